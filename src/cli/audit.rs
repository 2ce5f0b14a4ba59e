//! The command `audit`: lists and verifies the audit log.
//!
//! The rows before and after are shown as JSON, unchanged to the byte; the text for people shows the differences.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::args::AuditCommand;
use super::rows::{Row, Rows};
use super::view::{Text, plain};
use super::{Failure, Out};
use crate::admin::{Admin, Verified};
use crate::audit::{Actor, Entry};
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
    let instant = |when: Option<super::args::When>| when.map(|when| when.instant(now));
    let actor = whose.map(|actor| actor.as_str().to_owned());
    let filter = AuditFilter { since: instant(since), until: instant(until), actor, subject };
    let mut rows = Rows::new(out.0);
    let show = |page: &[Entry]| page.iter().try_for_each(|entry| rows.row(&EntryView::from(entry)));
    admin.audit(&filter, limit, show).await?;
    rows.finish::<EntryView<'_>>("no matching entries")
}

/// A row of the audit log.
#[derive(Serialize)]
struct EntryView<'a> {
    seq: i64,
    at: String,
    actor: &'a str,
    action: &'a str,
    subject: &'a str,
    before: Option<Seen<'a>>,
    after: Option<Seen<'a>>,
    request_id: Option<&'a str>,
    address: Option<&'a str>,
    hash: &'a str,
}

/// JSON as stored; a text if the column was changed to something else.
#[derive(Serialize)]
#[serde(untagged)]
enum Seen<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

impl<'a> Seen<'a> {
    fn of(text: &'a str) -> Self {
        serde_json::from_str(text).map_or(Self::Text(text), Self::Json)
    }

    fn fields(&self) -> BTreeMap<String, Value> {
        let Self::Json(json) = self else { return BTreeMap::new() };
        serde_json::from_str(json.get()).unwrap_or_default()
    }
}

impl<'a> From<&'a Entry> for EntryView<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            seq: entry.seq,
            at: entry.at.to_string(),
            actor: &entry.actor,
            action: &entry.action,
            subject: &entry.subject,
            before: entry.before.as_deref().map(Seen::of),
            after: entry.after.as_deref().map(Seen::of),
            request_id: entry.request_id.as_deref(),
            address: entry.address.as_deref(),
            hash: &entry.hash,
        }
    }
}

impl Row for EntryView<'_> {
    fn line(&self) -> String {
        let before = self.before.as_ref().map(Seen::fields);
        let after = self.after.as_ref().map(Seen::fields).unwrap_or_default();
        let named = ["key_prefix", "db_schema_name"].into_iter().find_map(|name| after.get(name)?.as_str());
        let subject =
            named.map_or_else(|| self.subject.to_owned(), |name| format!("{name} ({})", self.subject));
        // Of a change over HTTP, people want to know where it came from.
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

/// A log that is intact.
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
