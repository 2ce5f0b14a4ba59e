//! The commands for keys.

use std::time::Duration;

use super::bulk::{self, ImportArgs, KeyExportArgs};
use super::output::print_stderr;
use super::rows::RowPrinter;
use super::values::{KeyRef, WaitArgs, long_duration, rfc_3339};
use super::view::{IssuedView, KeyView, ListedKeyView, RotatedView};
use super::{Failure, Out, unseen, wait_for_servers};
use crate::admin::{Admin, Expiry, KeyUpdate, Setting};
use crate::clock::Timestamp;
use crate::config::PepperArgs;
use crate::invalid::InvalidValue;
use crate::key::KeyId;
use crate::labels::parse_label;
use crate::network::Networks;
use crate::plan::PlanName;
use crate::record::{KeyDetails, KeyState};
use crate::scope::Scopes;
use crate::store::KeyFilter;

#[derive(clap::Subcommand)]
pub(super) enum KeyCommand {
    /// Create a key; it is shown only once
    Create {
        /// The id, schema name or exact name of the tenant
        #[arg(value_name = "TENANT_REF")]
        tenant: String,
        #[command(flatten)]
        key: UpdateArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
    /// Change what a key may do, its life, or its name and labels
    Update {
        #[command(flatten)]
        key: KeyRef,
        #[command(flatten)]
        update: UpdateArgs,
        /// Remove the label of this name
        #[arg(long, value_name = "NAME")]
        remove_label: Vec<String>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Disable a key until it is enabled: it gets 401 within 100 ms
    Disable {
        #[command(flatten)]
        key: KeyRef,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Enable a disabled key
    Enable {
        #[command(flatten)]
        key: KeyRef,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Import keys from a file: whole keys, or hashes that another program made
    Import {
        #[command(flatten)]
        import: ImportArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
    /// Export keys to a file; never contains a whole key
    Export(KeyExportArgs),
    /// Show the keys that match all options, ordered by id; without options, all keys
    List(ListArgs),
    /// Show a key
    Show(KeyRef),
    /// Revoke keys, all or none: they get 401 within 100 ms
    Revoke(RevokeArgs),
    /// Create a successor of a key, with the same name, scopes, networks, plan and labels; the old key expires after the
    /// grace period
    Rotate {
        #[command(flatten)]
        key: KeyRef,
        /// How long the old key remains valid
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = long_duration)]
        grace: Duration,
        #[command(flatten)]
        expiry: ExpiryArgs,
        #[command(flatten)]
        pepper: PepperArgs,
    },
}

#[derive(clap::Args)]
pub(super) struct ExpiryArgs {
    /// The life of the key, such as 90d (units s, m, h, d, w)
    #[arg(long, value_name = "DURATION", value_parser = long_duration, conflicts_with = "expires_at")]
    expires_in: Option<Duration>,
    /// The time at which the key expires (RFC 3339), such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "INSTANT", value_parser = rfc_3339)]
    expires_at: Option<Timestamp>,
    /// The key never expires
    #[arg(long, conflicts_with_all = ["expires_in", "expires_at"])]
    no_expiry: bool,
}

impl From<&ExpiryArgs> for Expiry {
    fn from(args: &ExpiryArgs) -> Self {
        match (args.expires_in, args.expires_at, args.no_expiry) {
            (Some(span), ..) => Self::In(span),
            (None, Some(at), _) => Self::At(at),
            (None, None, true) => Self::Never,
            (None, None, false) => Self::Unsaid,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct UpdateArgs {
    /// A name for the key
    #[arg(long, value_name = "N")]
    name: Option<String>,
    #[command(flatten)]
    expiry: ExpiryArgs,
    /// The time from which the key is valid (RFC 3339)
    #[arg(long, value_name = "INSTANT", value_parser = rfc_3339)]
    not_before: Option<Timestamp>,
    /// What the key grants, separated by blanks, such as `models.read invoices:*`; an empty list grants nothing
    #[arg(long, value_name = "S", value_parser = Scopes::parse, conflicts_with = "all_scopes")]
    scopes: Option<Scopes>,
    /// The key grants everything
    #[arg(long)]
    all_scopes: bool,
    /// The networks from which the key may be used, separated by blanks, such as `192.0.2.0/24 2001:db8::/32`
    #[arg(long, value_name = "N", value_parser = Networks::parse, conflicts_with = "any_network")]
    networks: Option<Networks>,
    /// The key may be used from anywhere
    #[arg(long)]
    any_network: bool,
    /// The plan of the key, which takes precedence over the plan of its tenant
    #[arg(long, value_name = "P", value_parser = PlanName::parse, conflicts_with = "no_plan")]
    plan: Option<PlanName>,
    /// No plan of its own
    #[arg(long)]
    no_plan: bool,
    /// A label, such as team=billing; replaces the one of the same name
    #[arg(long, value_name = "K=V", value_parser = label)]
    label: Vec<(String, String)>,
}

impl UpdateArgs {
    fn update(self, remove_labels: Vec<String>) -> KeyUpdate {
        KeyUpdate {
            name: Setting::said(self.name, false),
            expiry: (&self.expiry).into(),
            not_before: Setting::said(self.not_before, false),
            scopes: Setting::said(self.scopes, self.all_scopes),
            networks: Setting::said(self.networks, self.any_network),
            plan: Setting::said(self.plan, self.no_plan),
            labels: self.label.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            clear_labels: false,
            remove_labels,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// The id, schema name or exact name of the tenant
    #[arg(value_name = "TENANT_REF", conflicts_with = "of_tenant")]
    tenant: Option<String>,
    /// Only keys of this tenant: id, schema name or exact name
    #[arg(long = "tenant", value_name = "REF", id = "of_tenant")]
    of_tenant: Option<String>,
    /// Only keys in this state
    #[arg(long, value_name = "S", value_parser = KeyState::parse)]
    status: Option<KeyState>,
    /// Only keys whose name contains this text, in any case
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only keys whose scopes contain exactly this one
    #[arg(long, value_name = "S", value_parser = Scopes::parse_one)]
    scope: Option<String>,
    /// Only keys with this label. Repeatable: keys with all of them
    #[arg(long, value_name = "K=V", value_parser = label)]
    label: Vec<(String, String)>,
    /// Only keys that expire before this time (RFC 3339)
    #[arg(long, value_name = "INSTANT", value_parser = rfc_3339)]
    expires_before: Option<Timestamp>,
    /// Only keys that were last used at least this long ago, or were never used and are older than this
    #[arg(long, value_name = "DURATION", value_parser = long_duration)]
    unused_for: Option<Duration>,
    /// At most N keys
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only keys that come after the key of this id
    #[arg(long, value_name = "ID", value_parser = key_id)]
    after: Option<KeyId>,
}

#[derive(clap::Args)]
pub(super) struct RevokeArgs {
    /// The ids or prefixes (llmk_…) of the keys
    #[arg(value_name = "REF", required_unless_present = "all", conflicts_with = "all")]
    keys: Vec<String>,
    /// The tenant of `--all`: id, schema name or exact name
    #[arg(long, value_name = "REF", requires = "all")]
    tenant: Option<String>,
    /// Revoke all keys of the tenant
    #[arg(long, requires = "tenant")]
    all: bool,
    /// Confirm `--all`; without it, the command shows how many keys were used in the last day
    #[arg(long)]
    yes: bool,
    /// The reason, for human readers
    #[arg(long, value_name = "R")]
    reason: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Runs a command for keys.
pub(super) async fn key(admin: &Admin, command: KeyCommand, out: &mut Out) -> Result<(), Failure> {
    let shown = |key: &KeyDetails| KeyView::at(key, admin.now());
    match command {
        KeyCommand::Create { tenant, key, pepper: _ } => {
            let issued = admin.create_key(&tenant, &key.update(Vec::new())).await?;
            out.show_once(&IssuedView::from(&issued)).map_err(|e| unseen(e, &issued))?;
            out.remark("keep the key now: it is not shown again");
        }
        KeyCommand::Update { key, update, remove_label, wait } => {
            let key = admin.update_key(&key.reference, &update.update(remove_label)).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&shown(&key))?;
        }
        KeyCommand::Disable { key, wait } => {
            let key = admin.disable_key(&key.reference).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&shown(&key))?;
        }
        KeyCommand::Enable { key, wait } => {
            let key = admin.enable_key(&key.reference).await?;
            wait_for_servers(admin, &wait).await?;
            out.show(&shown(&key))?;
        }
        KeyCommand::Import { import, pepper: _ } => bulk::import_keys(admin, &import, out).await?,
        KeyCommand::Export(args) => bulk::export_keys(admin, &args, out).await?,
        KeyCommand::List(args) => list(admin, args, out).await?,
        KeyCommand::Show(key) => {
            let key = admin.key(&key.reference).await?;
            warn_of_damage(&key);
            out.show(&shown(&key))?;
        }
        KeyCommand::Revoke(args) => revoke(admin, args, out).await?,
        KeyCommand::Rotate { key, grace, expiry, pepper: _ } => {
            let (old, issued) = admin.rotate_key(&key.reference, grace, (&expiry).into()).await?;
            let view = RotatedView { old: shown(&old), new: (&issued).into() };
            out.show_once(&view).map_err(|e| unseen(e, &issued))?;
            out.remark("keep the new key now: it is not shown again");
        }
    }
    Ok(())
}

async fn list(admin: &Admin, args: ListArgs, out: &Out) -> Result<(), Failure> {
    let now = admin.now();
    let tenant = match args.tenant.or(args.of_tenant) {
        Some(reference) => Some(admin.tenant(&reference).await?.id),
        None => None,
    };
    let filter = KeyFilter {
        tenant,
        state: args.status,
        now,
        name: args.name,
        scope: args.scope,
        labels: args.label,
        expires_before: args.expires_before,
        unused_since: args.unused_for.map(|span| now.before(span)),
    };
    let mut rows = RowPrinter::new(out.0);
    admin
        .list_keys(&filter, args.after, args.limit, |key| {
            warn_of_damage(&key.details);
            rows.row(&ListedKeyView::at(key, now))
        })
        .await?;
    rows.finish::<ListedKeyView>("no keys: `tenantgate key create TENANT` creates one")
}

/// Says that a column of the key is shown with a stand-in, because its value cannot be read.
fn warn_of_damage(key: &KeyDetails) {
    if let Some(column) = key.unreadable {
        let (id, why) = (key.id.0, column.error());
        print_stderr(&format!(
            "warning: the row of key {id} is damaged, the key gets 503 until it is corrected: {why}\n"
        ));
    }
}

async fn revoke(admin: &Admin, args: RevokeArgs, out: &mut Out) -> Result<(), Failure> {
    let RevokeArgs { keys, tenant, yes, reason, wait, all: _ } = args;
    let single = keys.len() == 1;
    let revoked = match tenant {
        None => admin.revoke_keys(&keys, reason.as_deref()).await?,
        Some(tenant) => {
            let found = admin.keys_to_revoke(&tenant).await?;
            let (count, used) = (found.keys.len(), found.used);
            let says = format!("{count} keys are not revoked, {used} of them were used in the last day");
            if !yes {
                return Err(Failure::usage(format!("{says}: add --yes to revoke all of them")));
            }
            out.remark(&says);
            admin.revoke(&found.keys, reason.as_deref()).await?
        }
    };
    wait_for_servers(admin, &wait).await?;
    let mut views: Vec<_> = revoked.iter().map(|key| KeyView::at(key, admin.now())).collect();
    match views.pop() {
        Some(view) if single => out.show(&view),
        last => {
            views.extend(last);
            out.show(&views)
        }
    }
}

fn label(text: &str) -> Result<(String, String), InvalidValue> {
    let (name, value) = parse_label(text).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

fn key_id(text: &str) -> Result<KeyId, InvalidValue> {
    uuid::Uuid::parse_str(text).map(KeyId).map_err(|_| "expected the id of a key, a UUID".into())
}
