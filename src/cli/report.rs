//! The command `report`: keys that need attention, the shadow report, and usage.

use serde::Serialize;

use super::args::{ReportCommand, ReportKeysArgs};
use super::rows::{PrintRow, RowPrinter};
use super::view::{plain, short};
use super::{Failure, Out, shadow, usage};
use crate::admin::{Admin, Criteria, KeyFinding};
use crate::record::SecretHash;
use crate::store::StoredKey;

/// Prints the report.
pub(super) async fn report(admin: &Admin, command: &ReportCommand, out: &Out) -> Result<(), Failure> {
    match command {
        ReportCommand::Keys(args) => keys(admin, args, out).await,
        ReportCommand::Shadow { since } => shadow::report(admin, *since, out).await,
        ReportCommand::Usage(args) => usage::report(admin, args, out).await,
    }
}

async fn keys(admin: &Admin, args: &ReportKeysArgs, out: &Out) -> Result<(), Failure> {
    let mut rows = RowPrinter::new(out.0);
    let show = |key: &StoredKey, findings: &[KeyFinding]| rows.row(&KeyFindingView::of(key, findings));
    admin.report_keys(args.tenant.as_deref(), &Criteria::from(args), show).await?;
    rows.finish::<KeyFindingView>("no findings")
}

/// A key with its findings.
#[derive(Serialize)]
struct KeyFindingView {
    id: String,
    key_prefix: String,
    name: Option<String>,
    tenant_id: String,
    tenant_schema: String,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    cost: Option<u8>,
    findings: Vec<&'static str>,
}

impl KeyFindingView {
    fn of(key: &StoredKey, findings: &[KeyFinding]) -> Self {
        let details = &key.details;
        Self {
            id: details.id.0.to_string(),
            key_prefix: details.prefix.clone(),
            name: details.name.clone(),
            tenant_id: details.tenant_id.0.to_string(),
            tenant_schema: key.tenant_schema.clone(),
            created_at: details.created_at.to_string(),
            expires_at: details.expires_at.map(|at| at.to_string()),
            last_used_at: details.last_used_at.map(|at| at.to_string()),
            cost: SecretHash::parse(&key.hash).map(|hash| hash.cost()),
            findings: findings.iter().map(|finding| finding.as_str()).collect(),
        }
    }
}

impl PrintRow for KeyFindingView {
    const COLUMNS: &'static [&'static str] = &[
        "id",
        "key_prefix",
        "name",
        "tenant_id",
        "tenant_schema",
        "created_at",
        "expires_at",
        "last_used_at",
        "cost",
        "findings",
    ];

    fn head() -> Option<String> {
        Some(columns(["PREFIX", "TENANT", "NAME", "EXPIRES", "LAST USED", "COST", "FINDINGS"]))
    }

    fn line(&self) -> String {
        let cost = self.cost.map_or_else(|| "-".to_owned(), |cost| cost.to_string());
        columns([
            &plain(&self.key_prefix),
            &plain(&self.tenant_schema),
            &plain(self.name.as_deref().unwrap_or("-")),
            self.expires_at.as_deref().map_or("never", short),
            self.last_used_at.as_deref().map_or("never", short),
            &cost,
            &self.findings.join(", "),
        ])
    }

    fn cells(&self) -> Vec<String> {
        let cost = self.cost.map(|cost| cost.to_string());
        [
            Some(&self.id),
            Some(&self.key_prefix),
            self.name.as_ref(),
            Some(&self.tenant_id),
            Some(&self.tenant_schema),
            Some(&self.created_at),
            self.expires_at.as_ref(),
            self.last_used_at.as_ref(),
            cost.as_ref(),
            Some(&self.findings.join(" ")),
        ]
        .map(|cell| cell.cloned().unwrap_or_default())
        .into()
    }
}

/// Formats a line with fixed column widths, so that the first of a million lines is printed without waiting for the
/// last.
fn columns(cells: [&str; 7]) -> String {
    let [prefix, tenant, name, expires, used, cost, findings] = cells;
    format!("{prefix:<25}  {tenant:<24}  {name:<16}  {expires:<19}  {used:<19}  {cost:>4}  {findings}")
}
