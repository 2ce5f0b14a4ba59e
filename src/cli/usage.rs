//! Shows how many requests were made: the command `report usage`.

use serde::Serialize;

use super::args::ReportUsageArgs;
use super::rows::{Row, Rows};
use super::view::plain;
use super::{Failure, Out};
use crate::admin::Admin;
use crate::store::UsageRow;
use crate::usage::NOBODY;

/// The columns of the longest bar.
const WIDTH: u64 = 40;

/// Prints the report.
pub(super) async fn report(admin: &Admin, args: &ReportUsageArgs, out: &Out) -> Result<(), Failure> {
    let since = args.since.instant(admin.now());
    let counted = admin.usage(args.tenant.as_deref(), since, args.by.into()).await?;
    let most = counted.iter().map(|row| row.requests).max().unwrap_or(0);
    let mut rows = Rows::new(out.0);
    for row in counted {
        rows.row(&UsageView::of(row, most))?;
    }
    rows.finish::<UsageView>("no requests were counted")
}

/// Requests that are counted together. What they are added up over is `None`.
#[derive(Serialize)]
struct UsageView {
    day: Option<String>,
    tenant_id: Option<String>,
    key_id: Option<String>,
    /// `None` also without a proven key, and if the key is gone.
    key_prefix: Option<String>,
    reason: Option<String>,
    requests: u64,
    #[serde(skip)]
    bar: String,
}

impl UsageView {
    fn of(row: UsageRow, most: u64) -> Self {
        Self {
            day: row.day,
            tenant_id: row.tenant.map(|tenant| tenant.0.to_string()),
            key_id: row.key.map(|key| key.0.to_string()),
            key_prefix: row.key_prefix,
            reason: row.reason,
            requests: row.requests,
            bar: bar(row.requests, most),
        }
    }

    /// What the line is about, for people.
    fn subject(&self) -> String {
        let nobody = self.key_id.as_ref().filter(|id| **id == NOBODY.0.to_string()).map(|_| "(no key)");
        let key = nobody.or(self.key_prefix.as_deref()).or(self.key_id.as_deref());
        plain(self.day.as_deref().or(self.reason.as_deref()).or(key).unwrap_or("-"))
    }
}

/// A bar whose length is the part of `most` that `n` is, in eighths of a column.
fn bar(n: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = u128::from(n) * u128::from(8 * WIDTH) / u128::from(most.max(1));
    // What was counted once shows, however short.
    let eighths = usize::try_from(eighths).unwrap_or(0).max(usize::from(n > 0));
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS.get(eighths % 8).unwrap_or(&""))
}

impl Row for UsageView {
    const COLUMNS: &'static [&'static str] =
        &["day", "tenant_id", "key_id", "key_prefix", "reason", "requests"];

    fn line(&self) -> String {
        format!("{:<36}  {:>12}  {}", self.subject(), self.requests, self.bar).trim_end().to_owned()
    }

    fn cells(&self) -> Vec<String> {
        let requests = self.requests.to_string();
        [&self.day, &self.tenant_id, &self.key_id, &self.key_prefix, &self.reason, &Some(requests)]
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
