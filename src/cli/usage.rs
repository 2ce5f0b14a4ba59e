//! The command `report usage`: shows how many requests were made.

use serde::Serialize;

use super::args::ReportUsageArgs;
use super::rows::{PrintRow, RowPrinter};
use super::view::plain;
use super::{Failure, Out};
use crate::admin::Admin;
use crate::admin::view::UsageView;
use crate::store::UsageRow;
use crate::usage::NOBODY;

/// The width of the longest bar, in columns.
const WIDTH: u64 = 40;

/// Prints the report.
pub(super) async fn report(admin: &Admin, args: &ReportUsageArgs, out: &Out) -> Result<(), Failure> {
    let since = args.since.instant(admin.now());
    let counted = admin.usage(args.tenant.as_deref(), since, args.by.into()).await?;
    let most = counted.iter().map(|row| row.requests).max().unwrap_or(0);
    let mut rows = RowPrinter::new(out.0);
    for row in counted {
        rows.row(&BarView::of(row, most))?;
    }
    rows.finish::<BarView>("no requests were counted")
}

/// A row with its bar.
#[derive(Serialize)]
struct BarView {
    #[serde(flatten)]
    usage: UsageView,
    #[serde(skip)]
    bar: String,
}

impl BarView {
    fn of(row: UsageRow, most: u64) -> Self {
        let bar = bar(row.requests, most);
        Self { usage: row.into(), bar }
    }

    /// Returns what the line counts: a day, a reason or a key.
    fn subject(&self) -> String {
        let usage = &self.usage;
        let nobody = usage.key_id.as_ref().filter(|id| **id == NOBODY.0.to_string()).map(|_| "(no key)");
        let key = nobody.or(usage.key_prefix.as_deref()).or(usage.key_id.as_deref());
        plain(usage.day.as_deref().or(usage.reason.as_deref()).or(key).unwrap_or("-"))
    }
}

/// Returns a bar whose length is proportional to `n`: `most` is as long as [`WIDTH`]. The precision is an eighth of a
/// column.
fn bar(n: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = u128::from(n) * u128::from(8 * WIDTH) / u128::from(most.max(1));
    // A count above 0 is always visible.
    let eighths = usize::try_from(eighths).unwrap_or(0).max(usize::from(n > 0));
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS.get(eighths % 8).unwrap_or(&""))
}

impl PrintRow for BarView {
    const COLUMNS: &'static [&'static str] =
        &["day", "tenant_id", "key_id", "key_prefix", "reason", "requests"];

    fn line(&self) -> String {
        format!("{:<36}  {:>12}  {}", self.subject(), self.usage.requests, self.bar).trim_end().to_owned()
    }

    fn cells(&self) -> Vec<String> {
        let usage = &self.usage;
        let requests = usage.requests.to_string();
        [&usage.day, &usage.tenant_id, &usage.key_id, &usage.key_prefix, &usage.reason, &Some(requests)]
            .map(|cell| cell.clone().unwrap_or_default())
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_part_of_the_most() {
        for (n, most, columns, end) in [
            (0, 0, 0, None),
            (0, 9, 0, None),
            (1, u64::MAX, 1, Some('▏')),
            (u64::MAX, u64::MAX, 40, Some('█')),
            (1, 2, 20, Some('█')),
            (1, 320, 1, Some('▏')),
            (15, 320, 2, Some('▉')),
        ] {
            let bar = bar(n, most);
            assert_eq!((bar.chars().count(), bar.chars().last()), (columns, end), "{n} of {most}");
        }
    }
}
