//! Repeatable requests: `Idempotency-Key` on POST.
//!
//! For a day, a request with the same Idempotency-Key, path and body gets the response of the first success. An issued
//! API key is not stored: with a pepper it is derived again, without one it cannot be shown again.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::problem::{FieldError, Problem};
use crate::admin::view::shown_once;
use crate::admin::{Admin, AdminError, Caller};
use crate::audit::hex;
use crate::key::format::{issue_management_with, issue_with};
use crate::random;
use crate::store::{Claim, Claimed};
use crate::verify::derived::{Derivation, Randomness};
use crate::verify::memo::Peppers;

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest Idempotency-Key, in bytes.
const LONGEST: usize = 255;

/// How long a response is stored.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// An older attempt without a response counts as dead. A request takes at most 90 seconds, unless its process died.
const DEAD_AFTER: Duration = Duration::from_mins(2);

/// The code in a response whose key cannot be shown again.
const NOT_REPLAYABLE: &str = "secret_not_replayable";

/// The number of random characters at the end of a prefix. The others come from a name.
const PREFIX_RANDOM: usize = 8;

/// The place of an issued key in a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Secret {
    /// Nowhere.
    None,
    /// In `key` of the object.
    Key,
    /// In `key` of the object's `new`.
    KeyOfNew,
    /// In `key` of the object, and it is a management key.
    AdminKey,
}

impl Secret {
    /// Returns the object that contains `key`.
    pub(super) fn place(self, object: &mut Value) -> Option<&mut Value> {
        match self {
            Self::None => None,
            Self::Key | Self::AdminKey => Some(object),
            Self::KeyOfNew => object.get_mut("new"),
        }
    }

    /// Adds the key to a stored response, or the code that it cannot be shown again.
    pub(super) fn replay(self, object: &mut Value, derivation: Option<Derivation>) {
        let Some(place) = self.place(object) else { return };
        let prefix = place["key_prefix"].as_str().unwrap_or_default().to_owned();
        let key = derivation.and_then(|derivation| self.derived(&prefix, derivation));
        if key.is_none() {
            place["code"] = NOT_REPLAYABLE.into();
        }
        place["key"] = key.into();
    }

    /// Derives the key again. `None` if the result does not have this prefix.
    fn derived(self, prefix: &str, derivation: Derivation) -> Option<String> {
        let mut randomness = Randomness::from(Some(derivation));
        // The part before the random characters was derived from a name, and deriving from that part again yields the
        // same part.
        let (_, rest) = prefix.split_once('_')?;
        let name = rest.get(..rest.len().checked_sub(PREFIX_RANDOM)?)?;
        let key = match self {
            Self::AdminKey => issue_management_with(&mut randomness, name).ok()?,
            _ => issue_with(&mut randomness, name).ok()?,
        };
        (key.prefix() == prefix).then(|| shown_once(&key))
    }
}

/// Returns the Idempotency-Key of a request; `None` without one. An invalid one gets 400.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut lines = headers.get_all(HEADER).iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let text = first.to_str().unwrap_or_default();
    let fine = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !fine || lines.next().is_some() {
        let detail = "Idempotency-Key is not valid: expected one header of 1 to 255 visible ASCII characters";
        return Err(Problem::invalid(vec![FieldError::new(String::new(), "invalid_header", detail)]));
    }
    Ok(Some(text.to_owned()))
}

/// The result of claiming an Idempotency-Key.
pub(super) enum ClaimOutcome {
    /// The request is the first one and must be performed. The id of the attempt, and the derivation of its secrets.
    First(Uuid, Option<Derivation>),
    /// The request was performed before. The stored response, and the derivation of its secrets.
    Done(Value, Option<Derivation>),
    /// The first one is still running.
    Running,
    /// The first one had another body.
    OtherBody,
}

/// Claims an Idempotency-Key for a request.
pub(super) async fn claim(
    admin: &Admin,
    caller: &Caller,
    path: &str,
    key: String,
    body: &[u8],
) -> Result<ClaimOutcome, AdminError> {
    let (now, attempt, peppers) = (admin.now(), random::new_id(), admin.peppers());
    let derivation = Derivation::first(peppers, attempt);
    // Trusted users have no key id, so their name is part of the path.
    let whose = if caller.key.id.0.is_nil() { caller.key.name.as_str() } else { "" };
    let claim = Claim {
        admin_key: caller.key.id,
        path: format!("{whose}{path}"),
        key,
        body_hash: hex(&Sha256::digest(body)),
        attempt,
        pepper: derivation.as_ref().map(|derivation| derivation.pepper().to_string()),
        at: now,
        dead_before: now.before(DEAD_AFTER),
        forgotten_before: now.before(KEPT_FOR),
    };
    match admin.claim(&claim).await? {
        Claimed::First => Ok(ClaimOutcome::First(attempt, derivation)),
        Claimed::Running => Ok(ClaimOutcome::Running),
        Claimed::OtherBody => Ok(ClaimOutcome::OtherBody),
        Claimed::Done { attempt, pepper, answer } => {
            let kept = serde_json::from_str(&answer).unwrap_or_default();
            Ok(ClaimOutcome::Done(kept, again(peppers, pepper.as_deref(), attempt)))
        }
    }
}

fn again(peppers: &Peppers, pepper: Option<&str>, attempt: Uuid) -> Option<Derivation> {
    Derivation::again(peppers, pepper?, attempt)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::verify::memo::MemoPolicy;
    use crate::verify::pepper::Pepper;

    #[test]
    fn an_idempotency_key_is_one_header_of_visible_ascii() {
        let read = |lines: &[&str]| {
            let line = |line: &&str| (HEADER, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            key(&lines.iter().map(line).collect())
        };
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&["a-1"]).unwrap(), Some("a-1".into()));
        assert!(read(&[&"x".repeat(255)]).is_ok());
        for bad in [
            &[String::new()][..],
            &["a b".into()],
            &["é".into()],
            &["x".repeat(256)],
            &["a".into(), "a".into()],
        ] {
            let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_shown_again_only_if_it_can_be_derived() {
        let peppers = Peppers::new(vec![Pepper::random().unwrap()], MemoPolicy::Optional);
        let derivation = |number| Derivation::first(&peppers, Uuid::from_u128(number));
        let key = issue_with(&mut Randomness::from(derivation(1)), "Söhne & Co").unwrap();
        let kept = || json!({ "new": { "key": null, "key_prefix": key.prefix() } });
        let mut object = kept();
        Secret::KeyOfNew.replay(&mut object, derivation(1));
        assert_eq!(object["new"]["key"], key.expose());
        for other in [derivation(2), None] {
            let mut object = kept();
            Secret::KeyOfNew.replay(&mut object, other);
            assert_eq!(
                (&object["new"]["key"], &object["new"]["code"]),
                (&Value::Null, &NOT_REPLAYABLE.into())
            );
        }
        let mut object = json!({ "key_prefix": "llma_x" });
        Secret::AdminKey.replay(&mut object, derivation(1));
        assert_eq!(object["code"], NOT_REPLAYABLE);
    }
}
