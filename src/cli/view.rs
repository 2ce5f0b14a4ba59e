//! Formats results: as JSON for programs, as text for people.
//!
//! JSON is one object or array with the fields in the order of the contract. Text is a table as wide as the terminal,
//! or a short list of fields. Neither contains a hash; only [`IssuedView`] contains a whole key.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::rows::PrintRow;
use crate::admin::view::TermsView;
pub(super) use crate::admin::view::{IssuedView, KeyView, ListedKeyView, RotatedView, TenantView};
use crate::store::Migrated;

impl TenantView {
    /// Formats it in one line.
    pub(super) fn line(&self) -> String {
        format!("{}, {}, schema {}, id {}", self.name, self.status, self.db_schema_name, self.id)
    }
}

impl TermsView {
    /// Returns the fields that are set, with their names.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let labels = self.labels.iter().flatten().map(|(name, value)| format!("{name}={value}"));
        let scopes = self.scopes.as_ref().map(|scopes| match scopes.as_str() {
            "" => "none".to_owned(),
            scopes => scopes.to_owned(),
        });
        [
            ("disabled", self.disabled_at.clone()),
            ("not before", self.not_before.clone()),
            ("scopes", scopes),
            ("networks", self.networks.clone()),
            ("plan", self.plan.clone()),
            ("labels", self.labels.is_some().then(|| labels.collect::<Vec<_>>().join(" "))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

impl KeyView {
    /// Formats it in one line.
    pub(super) fn line(&self) -> String {
        let name = self.name.as_ref().map(|name| format!(", name {name}")).unwrap_or_default();
        format!("{}, {}{name}, id {}", self.key_prefix, self.status, self.id)
    }
}

impl PrintRow for ListedKeyView {
    fn head() -> Option<String> {
        Some(columns(["PREFIX", "STATUS", "TENANT", "NAME", "EXPIRES", "LAST USED", "MEMO", "ID"]))
    }

    fn line(&self) -> String {
        let key = &self.key;
        columns([
            &plain(&key.key_prefix),
            key.status,
            &plain(&self.tenant_schema),
            &plain(key.name.as_deref().unwrap_or("-")),
            key.expires_at.as_deref().map_or("never", short),
            key.last_used_at.as_deref().map_or("never", short),
            key.memo_pepper.as_deref().unwrap_or("-"),
            &key.id,
        ])
    }
}

/// Formats a line with fixed column widths, so that the first of a million lines is printed without waiting for the
/// last.
fn columns(cells: [&str; 8]) -> String {
    let [prefix, status, tenant, name, expires, used, memo, id] = cells;
    format!(
        "{prefix:<21}  {status:<13}  {tenant:<24}  {name:<16}  {expires:<19}  {used:<19}  {memo:<8}  {id}"
    )
}

/// The demonstration tenant and its key.
#[derive(Serialize)]
pub(super) struct DemoView {
    pub(super) tenant: TenantView,
    pub(super) key: IssuedView,
}

/// The result of a migration.
#[derive(Serialize)]
pub(super) struct MigratedView {
    applied: Vec<i64>,
    current: i64,
    /// What the migration fixed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mended: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    publication: Option<String>,
    /// The roles that got their privileges, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<String>>,
}

impl MigratedView {
    pub(super) fn new(migrated: Migrated, current: i64, roles: Option<Vec<String>>) -> Self {
        Self {
            applied: migrated.applied,
            current,
            mended: migrated.mended,
            identity: migrated.identity.map(|id| id.to_string()),
            publication: migrated.publication,
            roles,
        }
    }
}

/// A result as text for people.
pub(super) trait Text {
    /// Returns the text, without a newline at the end.
    fn text(&self) -> String;
}

impl Text for TenantView {
    fn text(&self) -> String {
        fields(&[
            ("id", Some(&self.id)),
            ("name", Some(&self.name)),
            ("schema", Some(&self.db_schema_name)),
            ("status", Some(&self.status)),
            ("mode", self.mode.as_ref()),
            ("plan", self.plan.as_ref()),
            ("created", Some(&self.created_at)),
        ])
    }
}

impl Text for IssuedView {
    fn text(&self) -> String {
        with_terms(
            &self.terms,
            &[
                ("key", self.key.as_ref()),
                ("prefix", Some(&self.key_prefix)),
                ("id", Some(&self.id)),
                ("name", self.name.as_ref()),
                ("tenant", Some(&self.tenant_id)),
                ("created", Some(&self.created_at)),
                ("expires", self.expires_at.as_ref().or(Some(&"never".to_owned()))),
            ],
        )
    }
}

impl Text for KeyView {
    fn text(&self) -> String {
        with_terms(
            &self.terms,
            &[
                ("prefix", Some(&self.key_prefix)),
                ("id", Some(&self.id)),
                ("name", self.name.as_ref()),
                ("tenant", Some(&self.tenant_id)),
                ("status", Some(&self.status.to_owned())),
                ("created", Some(&self.created_at)),
                ("expires", self.expires_at.as_ref().or(Some(&"never".to_owned()))),
                ("last used", self.last_used_at.as_ref().or(Some(&"never".to_owned()))),
                ("revoked", self.revoked_at.as_ref()),
                ("reason", self.revocation_reason.as_ref()),
                ("memo", self.memo_pepper.as_ref().or(Some(&"none".to_owned()))),
            ],
        )
    }
}

impl Text for Vec<TenantView> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no tenants yet: create one with `tenantgate tenant create NAME`".into();
        }
        let rows = self.iter().map(|t| [short(&t.created_at), &t.status, &t.name, &t.db_schema_name, &t.id]);
        fixed_table(["CREATED", "STATUS", "NAME", "SCHEMA", "ID"], rows)
    }
}

impl Text for Vec<KeyView> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no keys: create one with `tenantgate key create TENANT`".into();
        }
        let rows = self.iter().map(|k| {
            [
                k.key_prefix.as_str(),
                k.status,
                k.name.as_deref().unwrap_or("-"),
                k.expires_at.as_deref().map_or("never", short),
                k.last_used_at.as_deref().map_or("never", short),
                k.memo_pepper.as_deref().unwrap_or("-"),
                &k.id,
            ]
        });
        fixed_table(["PREFIX", "STATUS", "NAME", "EXPIRES", "LAST USED", "MEMO", "ID"], rows)
    }
}

impl Text for DemoView {
    fn text(&self) -> String {
        format!("{}\n\n{}", self.tenant.text(), self.key.text())
    }
}

impl Text for RotatedView {
    fn text(&self) -> String {
        format!("old\n{}\n\nnew\n{}", self.old.text(), self.new.text())
    }
}

impl Text for MigratedView {
    fn text(&self) -> String {
        let mut text = match self.applied.as_slice() {
            [] if self.mended.is_empty()
                && self.identity.is_none()
                && self.publication.is_none()
                && self.roles.is_none() =>
            {
                format!("nothing to do, the schema is at version {}", self.current)
            }
            [] => format!("the schema is at version {}", self.current),
            applied => {
                let applied: Vec<_> = applied.iter().map(ToString::to_string).collect();
                format!("applied {}, the schema is at version {}", applied.join(", "), self.current)
            }
        };
        for what in &self.mended {
            text.push_str("\nfixed: ");
            text.push_str(what);
        }
        if let Some(id) = &self.identity {
            text.push_str("\nthe new identity is ");
            text.push_str(id);
        }
        if let Some(publication) = &self.publication {
            text.push_str("\nthe publication is ");
            text.push_str(publication);
        }
        if let Some(roles) = &self.roles {
            text.push_str("\nthe roles have their rights: ");
            text.push_str(&roles.join(", "));
        }
        text
    }
}

/// Fields, followed by those of the terms of a key.
fn with_terms(terms: &TermsView, all: &[(&str, Option<&String>)]) -> String {
    let terms = terms.lines();
    let more = terms.iter().map(|(name, value)| (*name, Some(value)));
    fields(&all.iter().copied().chain(more).collect::<Vec<_>>())
}

/// Escapes control characters, which a terminal would execute.
pub(super) fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Cuts an instant to seconds, for tables.
pub(super) fn short(instant: &str) -> &str {
    instant.split('.').next().unwrap_or(instant)
}

fn fields(fields: &[(&str, Option<&String>)]) -> String {
    let lines: Vec<_> = fields
        .iter()
        .filter_map(|(name, value)| value.map(|value| format!("{name:<10} {}", plain(value))))
        .collect();
    lines.join("\n")
}

pub(super) fn fixed_table<'a, const N: usize>(
    head: [&str; N],
    rows: impl Iterator<Item = [&'a str; N]>,
) -> String {
    table(head.map(str::to_owned).into(), rows.map(|row| row.map(str::to_owned).into()))
}

/// Formats a table with any number of columns.
pub(super) fn table(head: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    // Removes the trailing blanks of the columns.
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
