//! Formats explanations.

use serde::Serialize;
use uuid::Uuid;

use super::super::check::{CheckView, of_answer, text};
use super::super::view::{KeyView, TenantView, Text, plain, table};
use super::logged::Logged;
use super::through::ThroughView;
use crate::decision::rows::{OutcomeRow, Step};
use crate::decision::{Decision, Fault, Grant, Objection};
use crate::explain::{Case, Explanation};
use crate::ext_authz::translate::{ResponseContent, ResponseOptions, write_response};
use crate::gate::Terms;

/// A row of the outcome table with its result.
#[derive(Serialize)]
struct RowView {
    row: u8,
    condition: &'static str,
    state: &'static str,
    because: Option<String>,
}

/// The answer to the client.
#[derive(Serialize)]
struct OutcomeView {
    allowed: bool,
    decision: String,
    reason: String,
    /// The reason for which it would be rejected without shadow mode.
    would_deny: Option<String>,
    /// Why no decision was possible.
    cause: Option<&'static str>,
    /// `None` if the request passes, because the upstream then sets the status.
    http_status: Option<i32>,
    code: i32,
    body: Option<String>,
}

#[derive(Serialize)]
struct CaseView {
    presented: &'static str,
    rows: Vec<RowView>,
    outcome: OutcomeView,
}

/// An explanation.
#[derive(Serialize)]
pub(crate) struct ExplainView {
    database: String,
    /// The decision in question, with its log lines.
    pub(super) decision: Option<DecisionView>,
    /// The result of the request through Envoy.
    pub(super) through: Option<ThroughView>,
    judged_at: Option<String>,
    key_prefix: Option<String>,
    key: Option<KeyView>,
    tenant: Option<TenantView>,
    cases: Vec<CaseView>,
    pub(super) notes: Vec<String>,
}

/// A past decision.
#[derive(Serialize)]
pub(super) struct DecisionView {
    pub(super) id: String,
    pub(super) made_at: String,
    pub(super) logged: Vec<Logged>,
}

impl ExplainView {
    /// Only the address of the database.
    pub(super) fn of(database: String) -> Self {
        Self {
            database,
            decision: None,
            through: None,
            judged_at: None,
            key_prefix: None,
            key: None,
            tenant: None,
            cases: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds the explanation.
    pub(super) fn with(
        self,
        explanation: &Explanation<'_>,
        prefix: Option<&str>,
        options: &ResponseOptions,
    ) -> Self {
        Self {
            judged_at: Some(explanation.judged_at.to_string()),
            key_prefix: prefix.map(str::to_owned),
            key: explanation.key.as_ref().map(|key| KeyView::at(key, explanation.judged_at)),
            tenant: explanation.tenant.as_ref().map(TenantView::from),
            cases: explanation.cases.iter().map(|case| case_view(explanation, case, options)).collect(),
            notes: explanation.notes.clone(),
            ..self
        }
    }

    /// Compares the result of the request through Envoy with the explanation.
    pub(super) fn compare(&mut self) {
        let ([case], Some(through)) = (self.cases.as_slice(), &mut self.through) else { return };
        let outcome = &case.outcome;
        let refused = || {
            let same = outcome.http_status == Some(i32::from(through.http_status));
            same && through.answered_by == "tenantgate"
                && (through.method == "HEAD" || outcome.body.as_deref() == Some(&through.body))
        };
        through.as_explained =
            Some(if outcome.allowed { through.answered_by == "upstream" } else { refused() });
    }
}

fn case_view(explanation: &Explanation<'_>, case: &Case<'_>, options: &ResponseOptions) -> CaseView {
    let row = |(row, step): (OutcomeRow, Step)| RowView {
        row: row.number(),
        condition: row.condition(),
        state: match step {
            Step::Held => "held",
            Step::Not => "not",
            Step::NotReached => "not_reached",
        },
        because: explanation.because(case, row, step),
    };
    let rows = case.rows().into_iter().map(row).collect();
    CaseView { presented: case.presenter.as_str(), rows, outcome: outcome(&case.decision(), options) }
}

/// Returns the answer that Envoy would get, and its effect.
fn outcome((decision, terms): &(Decision<'_>, Terms<'_>), options: &ResponseOptions) -> OutcomeView {
    let mut message = Vec::new();
    // The id of the response is not shown.
    write_response(
        &mut message,
        &ResponseContent { terms: *terms, ..ResponseContent::of(decision) },
        Uuid::nil(),
        false,
        options,
    );
    let (said, code) = of_answer(&message);
    let CheckView { allowed, http_status, body, mut metadata, .. } = said;
    OutcomeView {
        allowed,
        decision: text(metadata.remove("decision")),
        reason: text(metadata.remove("reason")),
        would_deny: metadata.remove("would_deny").map(|reason| text(Some(reason))),
        cause: fault(decision).map(Fault::as_str),
        http_status: (!allowed).then_some(http_status),
        code,
        body,
    }
}

/// Returns why no decision was possible, even if the request passes.
fn fault(decision: &Decision<'_>) -> Option<Fault> {
    match decision {
        Decision::Unable(fault, _) | Decision::Allow(Grant::Shadow(Objection::Unable(fault, _))) => {
            Some(*fault)
        }
        _ => None,
    }
}

impl OutcomeView {
    fn line(&self) -> String {
        let cause = self.cause.map(|cause| format!(", {cause}")).unwrap_or_default();
        let Self { code, decision, reason, .. } = self;
        if let (Some(http), Some(body)) = (&self.http_status, &self.body) {
            return format!("{http} {body}   code {code}, {decision}, reason {reason}{cause}");
        }
        let shadow = |why| format!(" in shadow mode, would be rejected: {why}");
        let shadow = self.would_deny.as_ref().map(shadow).unwrap_or_default();
        format!("allowed{shadow}   code {code}, reason {reason}{cause}")
    }
}

impl Text for ExplainView {
    fn text(&self) -> String {
        let mut parts = vec![self.head()];
        parts.extend((!self.cases.is_empty()).then(|| self.table()));
        parts.extend((!self.cases.is_empty()).then(|| self.outcomes()));
        if !self.notes.is_empty() {
            parts.push(
                self.notes.iter().map(|note| format!("* {}", plain(note))).collect::<Vec<_>>().join("\n"),
            );
        }
        parts.join("\n\n")
    }
}

impl ExplainView {
    fn head(&self) -> String {
        let mut lines = vec![("database", self.database.clone())];
        lines.extend(self.decision.iter().flat_map(DecisionView::lines));
        lines.extend(self.through.iter().flat_map(ThroughView::lines));
        lines.extend(self.judged_at.clone().map(|at| ("judged at", at)));
        lines.extend(match (&self.key, &self.key_prefix) {
            (Some(key), _) => Some(("key", key.line())),
            (None, Some(prefix)) => Some(("key", format!("{prefix}, not in this database"))),
            (None, None) => None,
        });
        lines.extend(self.tenant.as_ref().map(|tenant| ("tenant", tenant.line())));
        let line = |(name, value): &(&str, String)| format!("{name:<10} {}", plain(value));
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// The table of outcomes: the conditions once, and a column for each case.
    fn table(&self) -> String {
        let columns = self.cases.iter().map(|case| case.presented.to_uppercase());
        let head: Vec<_> = ["ROW".into(), "CONDITION".into()].into_iter().chain(columns).collect();
        let rows = self.cases[0].rows.iter().enumerate().map(|(at, row)| {
            let states = self.cases.iter().map(|case| case.rows[at].mark().to_owned());
            let because = self.cases.iter().find_map(|case| case.rows[at].because.clone());
            let line = [row.row.to_string(), row.condition.to_owned()].into_iter().chain(states);
            line.chain([because.unwrap_or_default()]).collect()
        });
        table(head.into_iter().chain(["BECAUSE".into()]).collect(), rows)
    }

    fn outcomes(&self) -> String {
        let line = |case: &CaseView| format!("{}: {}", case.presented, case.outcome.line());
        self.cases.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl RowView {
    fn mark(&self) -> &'static str {
        match self.state {
            "not_reached" => "not reached",
            state => state,
        }
    }
}

impl DecisionView {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let made = ("decision", format!("{}, made at {}", self.id, self.made_at));
        [made].into_iter().chain(self.logged.iter().map(|logged| ("logged", logged.line()))).collect()
    }
}
