//! Finds a decision in logs.
//!
//! Searches tenantgate's own log and Envoy's access log, as JSON or text and with any prefix of a collector, for the id
//! of a decision, and reads the fields that both have in common. The id is a `UUIDv7` (RFC 9562 §5.7), which contains
//! the time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::super::Failure;
use crate::clock::Timestamp;
use crate::decision::rows::OutcomeRow;
use crate::invalid::InvalidValue;
use crate::telemetry::scrub::scrub;

/// Parses the id of a decision.
pub(super) fn decision_id(text: &str) -> Result<Uuid, InvalidValue> {
    let id = Uuid::parse_str(text.trim()).ok().filter(|id| id.get_version_num() == 7);
    id.ok_or_else(|| {
        "invalid decision id: expected a UUIDv7, such as 018bcfe5-687b-7abc-8def-0123456789ab".into()
    })
}

/// Returns when the decision with this id was made.
pub(super) fn made_at(id: Uuid) -> Timestamp {
    let millis = i64::try_from(id.as_u128() >> 80).unwrap_or(0);
    Timestamp(millis * 1_000)
}

/// One line about the decision.
#[derive(Debug, Default, Serialize)]
pub(super) struct Logged {
    /// File and line number.
    pub(super) source: String,
    pub(super) decision: Option<String>,
    pub(super) reason: Option<String>,
    /// The reason for which it would have been rejected without shadow mode.
    pub(super) would_deny: Option<String>,
    /// Why no decision was possible, if `reason` is another word.
    pub(super) cause: Option<String>,
    /// The row of the outcome table that applied.
    pub(super) row: Option<u8>,
    pub(super) condition: Option<&'static str>,
    pub(super) key_prefix: Option<String>,
    pub(super) tenant_id: Option<String>,
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) status: Option<String>,
    pub(super) details: Option<String>,
}

impl Logged {
    /// Returns whether the request passed in shadow mode.
    pub(super) fn is_shadow(&self) -> bool {
        self.would_deny.is_some()
    }

    /// Formats the fields in one line.
    pub(super) fn line(&self) -> String {
        let or = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".into());
        let row = self.row.map(|row| format!(" (row {row}: {})", self.condition.unwrap_or_default()));
        let mut line =
            format!("{}, reason {}{}", or(&self.decision), or(&self.reason), row.unwrap_or_default());
        let more = [
            ("would deny", &self.would_deny),
            ("cause", &self.cause),
            ("key", &self.key_prefix),
            ("tenant", &self.tenant_id),
            ("method", &self.method),
            ("path", &self.path),
            ("status", &self.status),
            ("details", &self.details),
        ];
        for (name, value) in more.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            line.extend([", ", name, " ", value]);
        }
        format!("{line}; in {}", self.source)
    }
}

/// Returns every line about the decision in these files; `-` is standard input.
pub(super) fn find(files: &[PathBuf], id: Uuid) -> Result<Vec<Logged>, Failure> {
    let mut found = Vec::new();
    for file in files {
        let wrong = |e: std::io::Error| Failure::usage(format!("--log {}: {e}", file.display()));
        if file == Path::new("-") {
            scan(std::io::stdin().lock(), "-", id, &mut found).map_err(wrong)?;
        } else {
            let lines = BufReader::new(File::open(file).map_err(wrong)?);
            scan(lines, &file.display().to_string(), id, &mut found).map_err(wrong)?;
        }
    }
    Ok(found)
}

fn scan(mut lines: impl BufRead, name: &str, id: Uuid, found: &mut Vec<Logged>) -> std::io::Result<()> {
    let (wanted, mut line, mut number) = (id.to_string(), Vec::new(), 0);
    while lines.read_until(b'\n', &mut line)? > 0 {
        number += 1;
        let text = String::from_utf8_lossy(&line);
        if text.contains(&wanted) {
            found.push(read(&text, format!("{name}:{number}")));
        }
        line.clear();
    }
    Ok(())
}

/// Reads a line of either program.
fn read(line: &str, source: String) -> Logged {
    let json = line
        .find('{')
        .and_then(|at| serde_json::Deserializer::from_str(&line[at..]).into_iter::<Value>().next()?.ok());
    let plain = without_colours(line);
    let field = |names: &[&str]| match &json {
        Some(json) => names.iter().find_map(|name| as_text(&json[*name])),
        None => names.iter().find_map(|name| token(&plain, name)),
    };
    let reason = field(&["reason"]);
    let (would_deny, cause) = (field(&["would_deny"]), field(&["cause"]));
    // The most specific of the three words.
    let word = cause.as_ref().or(would_deny.as_ref()).or(reason.as_ref());
    let row = word.and_then(|word| OutcomeRow::named(word));
    let unable = word.is_some_and(|word| word == "unavailable");
    Logged {
        source,
        decision: field(&["decision"]),
        row: row.map(OutcomeRow::number).or(unable.then_some(6)),
        condition: row
            .map(OutcomeRow::condition)
            .or(unable.then_some("undecidable: see the log of tenantgate for the cause")),
        reason,
        would_deny,
        cause,
        key_prefix: field(&["key.prefix", "key_prefix"]),
        tenant_id: field(&["tenant.id", "tenant_id"]),
        method: field(&["method", "http.method"]),
        path: field(&["path", "http.path"]).map(|path| scrub(&path).into_owned()),
        status: field(&["status", "response_code", "http.status"]),
        details: field(&["details", "response_code_details"]),
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if text != "-" => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the value of `name=value` or `name="value"`.
fn token(line: &str, name: &str) -> Option<String> {
    let wanted = format!("{name}=");
    let starts = line.match_indices(&wanted).map(|(at, _)| at);
    let at = starts.into_iter().find(|at| line[..*at].chars().next_back().is_none_or(char::is_whitespace))?;
    let value = &line[at + wanted.len()..];
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => value.split_whitespace().next(),
    };
    value.filter(|value| !value.is_empty() && *value != "-").map(str::to_owned)
}

/// Removes the colours of a terminal (ECMA-48 §8.3.117).
fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

/// Returns commands that find the decision, for calls without a log.
pub(super) fn how_to_find(id: Uuid) -> Vec<String> {
    let at = made_at(id);
    let (from, to) = (at.0 / 1_000_000 - 60, at.0 / 1_000_000 + 60);
    vec![
        format!("the decision was made at {at}; the logs contain the rest"),
        format!("tenantgate: journalctl -u tenantgate --since @{from} --until @{to} | grep -F {id}"),
        format!("Envoy, whose access log contains every decision: grep -F {id} ACCESS_LOG"),
        format!("then: … | tenantgate explain --decision-id {id} --log -"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "018bcfe5-687b-7abc-8def-0123456789ab";

    fn shown(line: &str) -> String {
        let logged = read(line, "x:1".into());
        let all =
            [logged.decision, logged.reason, logged.key_prefix, logged.tenant_id, logged.path, logged.status];
        all.map(|field| field.unwrap_or_else(|| "-".into())).join(" ")
    }

    #[test]
    fn a_line_of_either_program_is_read_in_text_and_in_json() {
        for (line, expected) in [
            (
                format!(
                    "2026-11-25T02:45:21Z  INFO tenantgate: refused decision.id={ID} decision=\"deny\" reason=\"revoked\" tenant.id=550e key.id=660e key.prefix=llmk_demo"
                ),
                "deny revoked llmk_demo 550e - -",
            ),
            (
                format!(
                    "\u{1b}[2m2026\u{1b}[0m \u{1b}[3mdecision.id\u{1b}[0m\u{1b}[2m=\u{1b}[0m{ID} \u{1b}[3mdecision\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"unable\" \u{1b}[3mreason\u{1b}[0m\u{1b}[2m=\u{1b}[0m\"too_old\""
                ),
                "unable too_old - - - -",
            ),
            (
                format!(
                    r#"{{"level":"INFO","message":"refused","decision.id":"{ID}","decision":"deny","reason":"unknown"}}"#
                ),
                "deny unknown - - - -",
            ),
            (
                format!(
                    r#"decision.id={ID} decision="allow" reason="shadow" would_deny="revoked" tenant.id=550e key.prefix=llmk_demo"#
                ),
                "allow shadow llmk_demo 550e - -",
            ),
            (
                format!(
                    r#"2026-11-25 stdout F {{"path":"/v1","status":403,"reason":"tenant_inactive","decision":"deny","decision_id":"{ID}","tenant_id":"550e","key_prefix":"llmk_demo"}}"#
                ),
                "deny tenant_inactive llmk_demo 550e /v1 403",
            ),
        ] {
            assert_eq!(shown(&line), expected, "{line}");
        }
        assert_eq!(read(r#"{"reason":"revoked"}"#, String::new()).row, Some(4));
        assert_eq!(read(r#"{"reason":"unavailable"}"#, String::new()).row, Some(6));
        assert_eq!(read(r#"{"reason":"shadow","would_deny":"tenant_inactive"}"#, String::new()).row, Some(5));
        let unable = read(r#"reason="shadow" would_deny="unavailable" cause="too_old""#, String::new());
        assert_eq!((unable.row, unable.condition), (Some(6), Some(OutcomeRow::TooOld.condition())));
    }

    #[test]
    fn an_id_contains_the_time() {
        let id = decision_id(ID).unwrap();
        assert_eq!(made_at(id), Timestamp(1_700_000_000_123_000));
        for bad in ["", "x", "550e8400-e29b-41d4-a716-446655440000"] {
            assert!(decision_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_lines_with_the_id_are_found_whatever_else_is_in_the_file() {
        let log = [b"no\n\xff\xfe\n", format!("reason=\"expired\" decision.id={ID}").as_bytes()].concat();
        let mut found = Vec::new();
        scan(log.as_slice(), "log", decision_id(ID).unwrap(), &mut found).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].source.as_str(), found[0].reason.as_deref()), ("log:3", Some("expired")));
    }
}
