//! The command `audit`: lists and verifies the audit log.
//!
//! The rows before and after are shown as JSON, unchanged to the byte; the text for people shows the differences.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::args::AuditCommand;
use super::rows::{PrintRow, RowPrinter};
use super::view::{Text, plain};
use super::{Failure, Out};
use crate::admin::view::{EntryView, StoredJson};
use crate::admin::{Admin, Verified};
use crate::audit::{Actor, AuditEntry};
use crate::store::AuditFilter;

/// Runs the command.
pub(super) async fn audit(
    admin: &Admin,
    command: AuditCommand,
    whose: Option<Actor>,
    out: &mut Out,
) -> Result<(), Failure> {
    let (since, until, subject, limit) = match command {
        AuditCommand::Verify { expect_head } => {
            return out.show(&VerifiedView::from(admin.verify_audit(expect_head.as_deref()).await?));
        }
        AuditCommand::List { since, until, subject, limit } => (since, until, subject, limit),
    };
    let now = admin.now();
    let instant = |when: Option<super::values::When>| when.map(|when| when.instant(now));
    let actor = whose.map(|actor| actor.as_str().to_owned());
    let filter = AuditFilter { since: instant(since), until: instant(until), actor, subject, tenants: None };
    let mut rows = RowPrinter::new(out.0);
    let show = |page: &[AuditEntry]| page.iter().try_for_each(|entry| rows.row(&EntryView::from(entry)));
    admin.audit(&filter, limit, show).await?;
    rows.finish::<EntryView<'_>>("no matching entries")
}

impl PrintRow for EntryView<'_> {
    fn line(&self) -> String {
        let before = self.before.as_ref().map(StoredJson::fields);
        let after = self.after.as_ref().map(StoredJson::fields).unwrap_or_default();
        let named = ["key_prefix", "db_schema_name"].into_iter().find_map(|name| after.get(name)?.as_str());
        let subject =
            named.map_or_else(|| self.subject.to_owned(), |name| format!("{name} ({})", self.subject));
        // For a change over HTTP, the text names the address of its client.
        let from = self.address.map(|address| format!("  from {address}")).unwrap_or_default();
        let changes = before.map(|before| differences(&before, &after)).unwrap_or_default();
        let line = format!(
            "{:>5}  {}  {:<12}  {:<16}  {}  {}{from}",
            self.seq, self.at, self.actor, self.action, subject, changes
        );
        plain(line.trim_end())
    }
}

/// Formats changes: `status: active → suspended`.
fn differences(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> String {
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let differing = after.iter().filter(|(name, value)| before.get(*name) != Some(*value));
    let words: Vec<_> = differing
        .map(|(name, value)| format!("{name}: {} → {}", shown(before.get(name)), shown(Some(value))))
        .collect();
    words.join(", ")
}

/// The result of verifying an intact log.
#[derive(Serialize)]
struct VerifiedView {
    rows: i64,
    head: String,
    rows_since_expected: Option<i64>,
}

impl From<Verified> for VerifiedView {
    fn from(verified: Verified) -> Self {
        let Verified { head, since_expected } = verified;
        Self { rows: head.seq, head: head.hash, rows_since_expected: since_expected }
    }
}

impl Text for VerifiedView {
    fn text(&self) -> String {
        let since =
            self.rows_since_expected.map_or_else(String::new, |n| format!(", {n} of them since then"));
        format!("intact: {} rows{since}; head {}", self.rows, self.head)
    }
}
