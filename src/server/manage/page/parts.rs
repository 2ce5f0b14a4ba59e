//! HTML parts that several screens use.

use maud::{Markup, html};

use super::failure::PageFailure;
use super::form::Form;
use super::visit::Visitor;
use crate::clock::{MICROS_PER_DAY, Timestamp};
use crate::record::{KeyDetails, KeyState};
use crate::store::TenantFilter;
use crate::tenant::{Tenant, TenantStatus};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// Renders a status as a word with a coloured dot. The word differs, too, for readers who cannot see the colour.
pub(super) fn pill(kind: &str, word: &str) -> Markup {
    html! { span class={ "pill " (kind) } { (word) } }
}

/// Renders the state of a key at `now`.
pub(super) fn key_pill(key: &KeyDetails, now: Timestamp) -> Markup {
    match key.state(now) {
        KeyState::Active => pill("good", "active"),
        state @ (KeyState::Disabled | KeyState::NotYetValid) => pill("warn", &spaced(state.as_str())),
        state => pill("off", &spaced(state.as_str())),
    }
}

/// Renders the status of a tenant.
pub(super) fn tenant_pill(tenant: &Tenant) -> Markup {
    let kind = match tenant.status {
        TenantStatus::Active => "good",
        TenantStatus::Suspended => "warn",
        _ => "off",
    };
    pill(kind, &spaced(tenant.status.as_str()))
}

/// Replaces underscores of an API word by spaces.
pub(super) fn spaced(word: &str) -> String {
    word.replace('_', " ")
}

/// Renders an instant relative to now, with the exact time in its title.
pub(super) fn when(at: Timestamp, now: Timestamp) -> Markup {
    let exact = at.to_string();
    html! { time datetime=(exact) title=(minutes(at)) { (distance(at, now)) } }
}

/// Renders an instant, or `otherwise` if there is none.
pub(super) fn when_or(at: Option<Timestamp>, now: Timestamp, otherwise: &str) -> Markup {
    at.map_or_else(|| html! { span.muted { (otherwise) } }, |at| when(at, now))
}

/// Formats an instant such as `2026-01-31 12:30 UTC`.
pub(super) fn minutes(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{} {} UTC", text.get(..10).unwrap_or_default(), text.get(11..16).unwrap_or_default())
}

/// Formats a day such as `2026-01-31`.
pub(super) fn day(at: Timestamp) -> String {
    at.to_string().get(..10).unwrap_or_default().to_owned()
}

fn distance(at: Timestamp, now: Timestamp) -> String {
    let away = at.0.saturating_sub(now.0);
    let size = away.saturating_abs();
    let rounded = |unit: i64| (size + unit / 2) / unit;
    let amount = match size {
        _ if size < MINUTE => return "now".into(),
        _ if size < HOUR => format!("{} min", rounded(MINUTE)),
        _ if size < 2 * MICROS_PER_DAY => format!("{} h", rounded(HOUR)),
        _ if size < 90 * MICROS_PER_DAY => format!("{} days", rounded(MICROS_PER_DAY)),
        _ => return day(at),
    };
    if away > 0 { format!("in {amount}") } else { format!("{amount} ago") }
}

/// Explains a reason in one sentence; empty if it is unknown.
pub(super) fn meaning(reason: &str) -> &'static str {
    match reason {
        "ok" => "The key may do this.",
        "public" => "No key is needed.",
        "anonymous" => "A key is optional here.",
        "shadow" => "It passed because shadow mode rejects nothing.",
        "missing" => "It has no key.",
        "malformed" => "Its key is malformed.",
        "unknown" => "There is no such key.",
        "mismatch" => "The prefix exists, the secret is wrong.",
        "revoked" => "The key was revoked.",
        "disabled" => "The key is disabled.",
        "expired" => "The key has expired.",
        "not_yet_valid" => "The key is not valid yet.",
        "network" => "The key may not be used from this address.",
        "scope" => "The key lacks a scope.",
        "route" => "No rule allows it.",
        "path_ambiguous" => "The path can be read in two ways.",
        "tenant_inactive" => "The tenant is not active.",
        "damaged_row" => "The row of the key, its tenant or its plan is damaged.",
        "bad_route_context" => "Envoy's context_extensions for this route are invalid.",
        "damaged_route" => "The rule for this request is damaged.",
        "deadline_too_short" => "Envoy's timeout is too short.",
        "overloaded" => "tenantgate was overloaded.",
        "too_large" => "The request is too large.",
        "never_loaded" | "too_old" | "unknown_while_stale" => {
            "tenantgate had no current data from its database."
        }
        "internal" | "unavailable" => "tenantgate could not decide.",
        _ => "",
    }
}

/// Formats a number with a narrow gap between thousands.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// Renders a code text with a button that copies it, if scripts are enabled.
pub(super) fn copyable(text: &str, label: &str) -> Markup {
    html! {
        span.copyable {
            code { (text) }
            button.copy type="button" data-copy=(text) aria-label={ "Copy " (label) } hidden { "Copy" }
        }
    }
}

/// Renders the message after a form was processed. It shows only these fixed texts, because anyone can
/// write the query.
pub(super) fn done(query: &Form) -> Markup {
    let text = match query.get("done") {
        Some("created") => "Created.",
        Some("updated") => "Saved.",
        Some("suspended") => "Suspended: its keys get 403 from now on.",
        Some("activated") => "Active: its keys work again.",
        Some("deleted") => "Deleted.",
        Some("disabled") => "Disabled: requests with this key are refused until it is enabled again.",
        Some("enabled") => "Enabled: requests with this key pass again.",
        Some("revoked") => "Revoked: requests with this key are refused for good.",
        Some("removed") => "Removed.",
        Some("signed-out") => "Signed out.",
        _ => return html! {},
    };
    html! { p.notice.good role="status" { (text) } }
}

/// Renders a hidden field with the version that the form shows, so that the form does not undo a concurrent change.
pub(super) fn version(version: &str) -> Markup {
    html! { input type="hidden" name="version" value=(version); }
}

/// Renders the error of a form.
pub(super) fn wrong(text: Option<&str>) -> Markup {
    html! { @if let Some(text) = text { p.notice.bad role="alert" { (text) } } }
}

/// Renders a text field of a form.
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    pub(super) label: &'a str,
    pub(super) value: &'a str,
    pub(super) hint: &'a str,
    pub(super) required: bool,
}

impl Field<'_> {
    /// Renders the label, the input and the hint. An optional field is marked as such.
    pub(super) fn show(&self) -> Markup {
        let Self { name, label, value, hint, required } = self;
        let hint_id = format!("{name}-hint");
        html! {
            div.field {
                label for=(name) { (label) @if !required { span.muted { " (optional)" } } }
                input type="text" id=(name) name=(name) value=(value) required[*required] autocomplete="off"
                    aria-describedby=[(!hint.is_empty()).then_some(&hint_id)];
                @if !hint.is_empty() { p.hint id=(hint_id) { (hint) } }
            }
        }
    }
}

/// Renders the field of labels, one per line.
pub(super) fn labels_field(value: &str) -> Markup {
    html! {
        div.field {
            label for="labels" { "Labels" span.muted { " (optional)" } }
            textarea #labels name="labels" rows="3" aria-describedby="labels-hint" { (value) }
            p #labels-hint.hint { "One per line, such as team=search." }
        }
    }
}

/// Renders a selection of one option.
pub(super) fn select(name: &str, label: &str, chosen: &str, options: &[(&str, &str)]) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            select id=(name) name=(name) {
                @for (value, word) in options {
                    option value=(value) selected[*value == chosen] { (word) }
                }
            }
        }
    }
}

/// The maximum number of tenants in a selection. With more, the schema name is a text field.
const OFFERED: usize = 200;

/// Renders the selection of a tenant for a filter.
pub(super) async fn tenant_choice(visitor: &Visitor, query: &Form) -> Result<Markup, PageFailure> {
    let chosen = query.shown("tenant");
    let page = visitor.admin.tenants_by_creation(&TenantFilter::default(), None, OFFERED).await?;
    let tenants = page.tenants;
    if page.next.is_some() {
        let field =
            Field { name: "tenant", label: "Schema of the tenant", value: chosen, hint: "", required: false };
        return Ok(field.show());
    }
    let mut options: Vec<_> =
        tenants.iter().map(|tenant| (tenant.schema.as_str(), tenant.name.as_str())).collect();
    options.sort_by_key(|(_, name)| name.to_lowercase());
    options.insert(0, ("", "Every tenant"));
    Ok(select("tenant", "Tenant", chosen, &options))
}

/// Renders an action that needs a second click: a summary that opens an explanation and the button.
pub(super) fn asked(summary: &str, danger: bool, body: &Markup) -> Markup {
    html! {
        details.action {
            summary class=[danger.then_some("danger")] { (summary) }
            div.ask { (body) }
        }
    }
}

/// Renders a table that scrolls sideways on a narrow screen. A column whose name begins with `#` contains numbers.
pub(super) fn table(label: &str, head: &[&str], rows: &Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr {
                    @for name in head {
                        @match name.strip_prefix('#') {
                            Some(name) => th.number scope="col" { (name) },
                            None => th scope="col" { (name) },
                        }
                    }
                } }
                tbody { (rows) }
            }
        }
    }
}

/// Renders links to the first and the next page of a list.
pub(super) fn next_page(path: &str, query: &Form, after: Option<&str>) -> Markup {
    html! {
        nav.pages aria-label="Pages" {
            @if query.get("after").is_some() {
                a.button href={ (path) "?" (query.with("after", "")) } { "First page" }
            }
            @if let Some(after) = after {
                a.button href={ (path) "?" (query.with("after", after)) } rel="next" { "Next page" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Fault, Reason};

    #[test]
    fn every_reason_has_a_sentence() {
        let reasons = Reason::ALL.map(Reason::as_str);
        let faults = Fault::ALL.map(Fault::as_str);
        for reason in reasons.into_iter().chain(faults) {
            assert!(!meaning(reason).is_empty(), "{reason}");
        }
    }

    #[test]
    fn distances_are_short() {
        let now = Timestamp::parse("2026-06-01T00:00:00Z").unwrap();
        for (seconds, text) in [
            (0, "now"),
            (59, "now"),
            (60, "in 1 min"),
            (-3_600, "1 h ago"),
            (30 * 86_400, "in 30 days"),
            (-2 * 86_400, "2 days ago"),
            (-151 * 86_400, "2026-01-01"),
        ] {
            assert_eq!(distance(Timestamp(now.0 + seconds * SECOND), now), text);
        }
        assert_eq!(minutes(now), "2026-06-01 00:00 UTC");
        distance(Timestamp::MIN, now);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(7), "7");
        assert_eq!(number(1_234_567), "1\u{a0}234\u{a0}567");
        assert_eq!(number(100_000), "100\u{a0}000");
    }

    #[test]
    fn texts_are_escaped() {
        let shown = copyable("\"><script>", "x").into_string() + &pill("good", "<b>").into_string();
        assert!(!shown.contains("<script") && !shown.contains("<b>"), "{shown}");
    }
}
