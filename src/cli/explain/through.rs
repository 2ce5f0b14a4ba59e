//! Sends a real request through Envoy and reports who answered it.

use std::path::Path;

use http::{Method, Uri};
use serde::Serialize;

use super::super::Failure;
use crate::envoy::http::{Server, send};
use crate::envoy::verdict;
use crate::ext_authz::header::DECISION_ID_HEADER;
use crate::telemetry::scrub::scrub;

/// The number of characters of a body that are shown.
const SHOWN: usize = 500;

/// The result of the request.
#[derive(Serialize)]
pub(super) struct ThroughView {
    url: String,
    pub(super) method: String,
    path: String,
    pub(super) http_status: u16,
    decision_id: Option<String>,
    pub(super) answered_by: &'static str,
    what: String,
    look: String,
    pub(super) body: String,
    /// Whether the result equals the explanation; `None` if that is unknown.
    pub(super) as_explained: Option<bool>,
}

/// Sends the request. `header` carries the key, if there is one.
pub(super) async fn through(
    url: &Uri,
    ca: Option<&Path>,
    (method, path): (&str, &str),
    header: Option<(&str, &str)>,
) -> Result<ThroughView, Failure> {
    let server = Server { url: url.clone(), ca };
    let known = Method::from_bytes(method.as_bytes())
        .map_err(|_| Failure::usage("--method: expected an HTTP method, such as GET"))?;
    let headers: Vec<_> = header.into_iter().collect();
    let answer = send(&server, &known, path, &headers).await;
    let answer = answer.map_err(|why| Failure::unavailable(format!("no response from {url}: {why}")))?;
    let verdict = verdict::of(&answer, DECISION_ID_HEADER);
    Ok(ThroughView {
        url: url.to_string(),
        method: method.to_owned(),
        path: scrub(path).into_owned(),
        http_status: answer.status,
        decision_id: answer.header(DECISION_ID_HEADER).map(str::to_owned),
        answered_by: verdict.by.as_str(),
        what: verdict.what,
        look: verdict.next,
        // An upstream may echo the key.
        body: scrub(&answer.body).chars().take(SHOWN).collect(),
        as_explained: None,
    })
}

impl ThroughView {
    /// Returns the lines of the text output, each with its name.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let id = self.decision_id.as_ref().map(|id| format!(", decision {id}")).unwrap_or_default();
        let mut lines = vec![
            ("through", format!("{} {} at {}", self.method, self.path, self.url)),
            ("got", format!("{} from {}{id}", self.http_status, self.answered_by)),
        ];
        if !self.body.is_empty() {
            lines.push(("body", self.body.clone()));
        }
        lines.push(("means", self.what.clone()));
        lines.push(("check", self.look.clone()));
        lines.extend(self.as_explained.map(|same| {
            let said = if same {
                "yes"
            } else {
                "no: another database, other options, a stale server, or an exempt route"
            };
            ("explained", said.to_owned())
        }));
        lines
    }
}
