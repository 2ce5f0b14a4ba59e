//! The command `report shadow`: shows which requests would be rejected without shadow mode.

use serde::Serialize;

use super::rows::{PrintRow, RowPrinter};
use super::values::When;
use super::view::{plain, short};
use super::{Failure, Out};
use crate::admin::Admin;
use crate::store::Shadowed;

/// Prints the report.
pub(super) async fn report(admin: &Admin, since: When, out: &Out) -> Result<(), Failure> {
    let mut rows = RowPrinter::new(out.0);
    for row in admin.shadow_report(since.instant(admin.now())).await? {
        rows.row(&ShadowedView::from(row))?;
    }
    rows.finish::<ShadowedView>("no request passed in shadow mode that enforcing would reject")
}

/// Requests that passed in shadow mode and would be rejected otherwise. Clients chose the texts, so they may contain
/// anything.
#[derive(Serialize)]
struct ShadowedView {
    reason: String,
    network: String,
    user_agent: String,
    method: String,
    path: String,
    /// The prefix of the key, if it was proven.
    key_prefix: Option<String>,
    requests: u64,
    first_seen: String,
    last_seen: String,
}

impl From<Shadowed> for ShadowedView {
    fn from(row: Shadowed) -> Self {
        let kind = row.kind;
        Self {
            reason: kind.reason,
            network: kind.network,
            user_agent: kind.user_agent,
            method: kind.method,
            path: kind.path,
            key_prefix: Some(kind.key_prefix).filter(|prefix| !prefix.is_empty()),
            requests: row.requests,
            first_seen: row.first_seen.to_string(),
            last_seen: row.last_seen.to_string(),
        }
    }
}

impl PrintRow for ShadowedView {
    const COLUMNS: &'static [&'static str] = &[
        "reason",
        "network",
        "user_agent",
        "method",
        "path",
        "key_prefix",
        "requests",
        "first_seen",
        "last_seen",
    ];

    fn head() -> Option<String> {
        Some(columns([
            "REQUESTS",
            "WOULD DENY",
            "FIRST SEEN",
            "LAST SEEN",
            "NETWORK",
            "KEY",
            "METHOD",
            "PATH",
            "USER AGENT",
        ]))
    }

    fn line(&self) -> String {
        columns([
            &self.requests.to_string(),
            &self.reason,
            short(&self.first_seen),
            short(&self.last_seen),
            &self.network,
            self.key_prefix.as_deref().unwrap_or("-"),
            &self.method,
            &plain(&self.path),
            &plain(&self.user_agent),
        ])
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.reason.clone(),
            self.network.clone(),
            self.user_agent.clone(),
            self.method.clone(),
            self.path.clone(),
            self.key_prefix.clone().unwrap_or_default(),
            self.requests.to_string(),
            self.first_seen.clone(),
            self.last_seen.clone(),
        ]
    }
}

/// Formats a line, with the longest columns at the end.
fn columns(cells: [&str; 9]) -> String {
    let [requests, reason, first, last, network, key, method, path, agent] = cells;
    let line = format!(
        "{requests:>8}  {reason:<15}  {first:<19}  {last:<19}  {network:<20}  {key:<25}  {method:<7}  {path:<24}  {agent}"
    );
    line.trim_end().to_owned()
}
