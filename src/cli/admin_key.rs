//! The commands for management keys.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::values::long_duration;
use super::view::{Text, fixed_table, plain};
use super::{Failure, Out};
use crate::admin::view::{AdminKeyView, IssuedAdminKeyView};
use crate::admin::{Admin, AdminKeyWish, Creator, Expiry, IssuedAdminKey};
use crate::invalid::InvalidValue;
use crate::permission::{Permission, Permissions, Role};

#[derive(clap::Subcommand)]
pub(super) enum AdminKeyCommand {
    /// Create a management key; it is shown only once
    Create(CreateArgs),
    /// Show all management keys, oldest first
    List,
    /// Print a link that signs in to the page of `manage` as a management key: once, within 5 minutes
    LoginLink(LoginLinkArgs),
    /// Revoke a management key; the keys that it made end with it
    Revoke {
        /// The id, prefix (llma_…) or name of the management key
        #[arg(value_name = "REF")]
        reference: String,
    },
}

#[derive(clap::Args)]
pub(super) struct CreateArgs {
    /// A unique name for the management key, 1 to 255 characters
    #[arg(value_name = "NAME")]
    name: String,
    /// What the key may do: owner: everything; operator: everything except managing management keys; viewer: read what
    /// an operator may read [default: owner]
    #[arg(long, value_name = "R", value_parser = Role::parse, conflicts_with = "permission")]
    role: Option<Role>,
    /// A permission of the key, such as keys:read. Repeatable
    #[arg(long, value_name = "P", value_parser = Permission::parse)]
    permission: Vec<Permission>,
    /// A tenant that the key may access: id, schema name or exact name. Repeatable [default: all]
    #[arg(long, value_name = "REF")]
    tenant: Vec<String>,
    /// The life of the key, such as 90d (units s, m, h, d, w) [default: unlimited]
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    expires_in: Option<Duration>,
}

#[derive(clap::Args)]
pub(super) struct LoginLinkArgs {
    /// The id, prefix (llma_…) or name of the management key
    #[arg(value_name = "NAME")]
    reference: String,
    /// The base URL at which the browser reaches the page [default: the first TCP address of `manage --listen`, by
    /// HTTPS if `TENANTGATE_TLS_CERT` is set]
    #[arg(long, value_name = "BASE", value_parser = base_url)]
    url: Option<String>,
    /// The addresses of `manage`
    #[arg(
        long,
        env = "TENANTGATE_MANAGE_LISTEN",
        hide = true,
        value_delimiter = ',',
        default_value = "127.0.0.1:9465"
    )]
    listen: Vec<String>,
    /// Whether `manage` uses TLS
    #[arg(long, env = "TENANTGATE_TLS_CERT", hide = true)]
    tls_cert: Option<PathBuf>,
}

/// Parses a base URL and removes a slash at its end.
fn base_url(text: &str) -> Result<String, InvalidValue> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let fine = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>?#".contains(&b));
    if fine {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(format!("{text:?} is not the address of a page: expected https://HOST").into())
    }
}

impl LoginLinkArgs {
    fn base(&self) -> Result<String, Failure> {
        let on_this_machine = || {
            let tcp = self.listen.iter().find(|address| !address.starts_with("unix:"));
            let scheme = if self.tls_cert.is_some() { "https" } else { "http" };
            tcp.map(|address| format!("{scheme}://{address}"))
        };
        self.url.clone().or_else(on_this_machine).ok_or_else(|| {
            Failure::usage("--url is needed: manage listens on no TCP address that a browser could open")
        })
    }
}

impl CreateArgs {
    fn wish(self) -> AdminKeyWish {
        let listed = (!self.permission.is_empty()).then(|| Permissions::of(&self.permission));
        AdminKeyWish {
            name: self.name,
            permissions: self.role.map(Role::permissions).or(listed),
            tenants: (!self.tenant.is_empty()).then_some(self.tenant),
            expiry: self.expires_in.map_or(Expiry::Unsaid, Expiry::In),
        }
    }
}

/// Runs a command for management keys.
pub(super) async fn admin_key(admin: &Admin, command: AdminKeyCommand, out: &mut Out) -> Result<(), Failure> {
    let creator = Creator::database();
    match command {
        AdminKeyCommand::Create(args) => {
            let issued = admin.create_admin_key(&creator, &args.wish()).await?;
            out.show_once(&IssuedAdminKeyView::from(&issued)).map_err(|failure| unseen(failure, &issued))
        }
        AdminKeyCommand::List => {
            let keys = admin.admin_keys(&creator).await?;
            out.show(&keys.iter().map(AdminKeyView::from).collect::<Vec<_>>())
        }
        AdminKeyCommand::LoginLink(args) => {
            let base = args.base()?;
            let link = admin.login_link(&args.reference).await?;
            out.show(&LoginLinkView {
                url: format!("{base}/login/{}", link.token.expose()),
                name: link.key.name,
                key_prefix: link.key.prefix,
                expires_at: link.expires_at.to_string(),
            })
        }
        AdminKeyCommand::Revoke { reference } => {
            out.show(&AdminKeyView::from(&admin.revoke_admin_key(&creator, &reference).await?))
        }
    }
}

/// If printing failed, tells the operator to revoke the lost key.
fn unseen(mut failure: Failure, issued: &IssuedAdminKey) -> Failure {
    for line in &mut failure.lines {
        line.push_str("; the new key was not shown and is lost: run `tenantgate admin-key revoke ");
        line.push_str(&issued.details.prefix);
        line.push('`');
    }
    failure
}

/// A link that signs in to the page once.
#[derive(Serialize)]
struct LoginLinkView {
    url: String,
    name: String,
    key_prefix: String,
    expires_at: String,
}

impl Text for LoginLinkView {
    fn text(&self) -> String {
        let Self { url, name, expires_at, .. } = self;
        format!("{url}\n\nSigns in as {}: once, until {expires_at}.", plain(name))
    }
}

impl Text for IssuedAdminKeyView {
    fn text(&self) -> String {
        let Self { id, name, .. } = self;
        let key = self.key.as_deref().unwrap_or_default();
        let (may, sees) = (self.permissions.join(" "), sees(self.tenants.as_ref()));
        let expires = self.expires_at.as_deref().unwrap_or("never");
        format!(
            "key        {key}\nname       {name}\nid         {id}\nmay        {may}\ntenants    {sees}\nexpires    {expires}\n\n\
             The key is not shown again."
        )
    }
}

fn sees(tenants: Option<&Vec<String>>) -> String {
    tenants.map_or_else(|| "all".to_owned(), |tenants| tenants.join(" "))
}

impl Text for AdminKeyView {
    fn text(&self) -> String {
        format!("{}, {}, name {}, id {}", plain(&self.key_prefix), self.status, plain(&self.name), self.id)
    }
}

impl Text for Vec<AdminKeyView> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no management keys yet: `tenantgate admin-key create NAME` creates one".into();
        }
        let rows: Vec<_> = self
            .iter()
            .map(|key| {
                let (may, sees) = (key.permissions.join(" "), sees(key.tenants.as_ref()));
                let expires = key.expires_at.clone().unwrap_or_else(|| "never".into());
                [key.key_prefix.clone(), key.status.to_owned(), key.name.clone(), expires, sees, may]
            })
            .collect();
        let cells = rows.iter().map(|row| row.each_ref().map(String::as_str));
        fixed_table(["PREFIX", "STATUS", "NAME", "EXPIRES", "TENANTS", "MAY"], cells)
    }
}
