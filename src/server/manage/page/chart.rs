//! Charts of usage as SVG, each with its numbers as a table.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::parts::{day, meaning, number, spaced};
use crate::clock::{MICROS_PER_DAY, Timestamp};

/// The number of days of a chart.
pub(super) const DAYS: u32 = 30;

const WIDTH: u32 = 720;
const HEIGHT: u32 = 120;
/// The number of allowed and rejected requests of one day.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Outcomes {
    pub(super) passed: u64,
    pub(super) refused: u64,
}

/// Requests by day, such as `2026-01-31`.
pub(super) type ByDay = BTreeMap<String, Outcomes>;

/// The reasons of requests that passed.
const OK: [&str; 4] = ["ok", "public", "anonymous", "shadow"];

/// Adds the requests of one day and reason.
pub(super) fn add(days: &mut ByDay, day: &str, reason: &str, requests: u64) {
    let outcomes = days.entry(day.to_owned()).or_default();
    if OK.contains(&reason) {
        outcomes.passed += requests;
    } else {
        outcomes.refused += requests;
    }
}

/// Returns the start of a chart that ends with the day of `now`.
pub(super) fn start(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::from(DAYS - 1) * MICROS_PER_DAY))
}

/// Renders the requests of the last [`DAYS`] days as bars: allowed ones below, rejected ones above.
pub(super) fn bars(counts: &ByDay, now: Timestamp) -> Markup {
    let first = start(now);
    let days: Vec<_> = (0..DAYS)
        .map(|at| {
            let day = day(Timestamp(first.0.saturating_add(i64::from(at) * MICROS_PER_DAY)));
            let outcomes = counts.get(&day).copied().unwrap_or_default();
            (at, day, outcomes)
        })
        .collect();
    let passed: u64 = days.iter().map(|(.., outcomes)| outcomes.passed).sum();
    let refused: u64 = days.iter().map(|(.., outcomes)| outcomes.refused).sum();
    if passed + refused == 0 {
        return html! { p.empty { "No requests in the last " (DAYS) " days." } };
    }
    let most = days.iter().map(|(.., o)| o.passed + o.refused).max().unwrap_or(1).max(1);
    let summary =
        format!("{} requests passed and {} were refused in {DAYS} days", number(passed), number(refused));
    html! {
        figure.chart {
            figcaption {
                span.legend.passed { (number(passed)) " passed" }
                span.legend.refused { (number(refused)) " refused" }
            }
            p.most aria-hidden="true" { (number(most)) }
            // The chart is stretched to the width of the screen, so it contains no text.
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(summary) {
                @for (at, day, outcomes) in &days { (bar(*at, day, *outcomes, most)) }
            }
            p.days aria-hidden="true" {
                @for (_, day, _) in days.iter().step_by(DAYS as usize / 3).chain(days.last()) { span { (day.get(5..).unwrap_or_default()) } }
            }
            (numbers(&days))
        }
    }
}

fn numbers(days: &[(u32, String, Outcomes)]) -> Markup {
    let some = |outcomes: &Outcomes| *outcomes != Outcomes::default();
    html! {
        details.numbers {
            summary { "The same as a table" }
            table {
                thead { tr { th scope="col" { "Day (UTC)" } th.number scope="col" { "Passed" } th.number scope="col" { "Refused" } } }
                tbody {
                    @for (_, day, outcomes) in days.iter().filter(|(.., outcomes)| some(outcomes)) {
                        tr { td { (day) } td.number { (number(outcomes.passed)) } td.number { (number(outcomes.refused)) } }
                    }
                }
            }
        }
    }
}

fn bar(at: u32, day: &str, outcomes: Outcomes, most: u64) -> Markup {
    let step = WIDTH / DAYS;
    let (x, width) = (at * step + 2, step - 4);
    let room = u64::from(HEIGHT);
    // At least 2 units high, so that one request among millions is visible.
    let height = |count: u64| if count == 0 { 0 } else { (count * room / most).max(2) };
    let (passed, refused) = (height(outcomes.passed), height(outcomes.refused));
    let passed_at = room.saturating_sub(passed);
    let refused_at = passed_at.saturating_sub(refused);
    html! {
        g {
            title { (day) ": " (number(outcomes.passed)) " passed, " (number(outcomes.refused)) " refused" }
            rect.hit x=(at * step) y="0" width=(step) height=(HEIGHT) {}
            @if passed > 0 { rect.passed x=(x) y=(passed_at) width=(width) height=(passed) {} }
            @if refused > 0 { rect.refused x=(x) y=(refused_at) width=(width) height=(refused) {} }
        }
    }
}

/// Renders the reasons and their counts as a table with bars.
pub(super) fn reasons(counts: &[(String, u64)]) -> Markup {
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    html! {
        table.reasons {
            thead.hidden { tr { th scope="col" { "Reason" } th scope="col" { "Share" } th.number scope="col" { "Requests" } } }
            tbody {
                @for (reason, count) in counts {
                    @let width = (count * 100 / most).max(1);
                    tr {
                        th scope="row" { (spaced(reason)) span.meaning { (meaning(reason)) } }
                        td.share {
                            svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" {
                                rect class=(if OK.contains(&reason.as_str()) { "passed" } else { "refused" }) width=(width) height="8" rx="1" {}
                            }
                        }
                        td.number { (number(*count)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_without_requests_are_part_of_the_chart() {
        let now = Timestamp::parse("2026-03-01T12:00:00Z").unwrap();
        let mut days = ByDay::new();
        add(&mut days, "2026-02-28", "ok", 1_000_000);
        add(&mut days, "2026-02-28", "revoked", 1);
        let picture = bars(&days, now).into_string();
        assert_eq!(picture.matches("class=\"hit\"").count(), 30);
        assert!(picture.contains("2026-03-01: 0 passed, 0 refused"));
        assert!(picture.contains("2026-02-28: 1\u{a0}000\u{a0}000 passed, 1 refused"));
        assert!(picture.contains("height=\"2\""), "one refused request is visible");
        assert!(!picture.contains("style="));
        assert!(bars(&ByDay::new(), now).into_string().contains("No requests"));
    }
}
