//! Forms that create one key, even if the browser sends them several times.
//!
//! The page with a new key is the response to its form, so that the key is nowhere else. If the user reloads that page,
//! the browser sends the form again. Each form therefore has an id, which is claimed like an Idempotency-Key.

use std::sync::Arc;

use maud::{Markup, html};
use serde_json::{Value, json};
use uuid::Uuid;

use super::failure::PageFailure;
use super::form::Form;
use super::visit::Visitor;
use crate::admin::{Admin, AdminError};
use crate::random;
use crate::server::manage::idempotency::{self, Secret};
use crate::store::{Changed, Receipt};

/// Returns the id of a form.
pub(super) fn field() -> Markup {
    html! { input type="hidden" name="once" value=(random::new_id()); }
}

/// Whether a form was sent before.
pub(super) enum FormClaim {
    /// It was not: the key must be created.
    First(Box<First>),
    /// It was: this key was created then.
    Before(Before),
}

/// A form that is sent for the first time.
pub(super) struct First {
    /// The use cases that create its key.
    pub(super) admin: Admin,
    attempt: Option<Uuid>,
}

/// The key that a form has created.
pub(super) struct Before {
    /// Its id.
    pub(super) id: String,
    /// The whole key, if there is a pepper to derive it again.
    pub(super) key: Option<String>,
}

/// Claims the form that was sent to `path`.
pub(super) async fn begin(
    visitor: &Visitor,
    path: &str,
    form: &Form,
    body: &[u8],
    secret: Secret,
) -> Result<FormClaim, PageFailure> {
    let admin = visitor.admin.clone();
    let Some(id) = form.get("once") else {
        return Ok(FormClaim::First(Box::new(First { admin, attempt: None })));
    };
    let id = Uuid::parse_str(id).map_err(|_| PageFailure::invalid("The form is not one of this page."))?;
    match idempotency::claim(&admin, &visitor.caller, path, id.to_string(), body).await? {
        idempotency::ClaimOutcome::First(attempt, derivation) => {
            let receipt = Receipt { attempt: Some(attempt), answer: Arc::new(kept) };
            let admin = admin.deriving(derivation).reporting(receipt);
            Ok(FormClaim::First(Box::new(First { admin, attempt: Some(attempt) })))
        }
        idempotency::ClaimOutcome::Done(mut made, derivation) => {
            secret.replay(&mut made, derivation);
            let text = |value: &Value| value.as_str().map(str::to_owned);
            Ok(FormClaim::Before(Before {
                id: text(&made["id"]).unwrap_or_default(),
                key: text(&made["key"]),
            }))
        }
        idempotency::ClaimOutcome::Running => {
            Err(PageFailure::sent_before("This form was sent twice, and the first one is still running."))
        }
        idempotency::ClaimOutcome::OtherBody => Err(PageFailure::sent_before(
            "This form was sent before with other values. Open it again to make another key.",
        )),
    }
}

/// Returns the stored record of a key that was created.
fn kept(changed: Changed<'_>) -> Option<String> {
    let (id, prefix) = match changed {
        Changed::Key(key) | Changed::Rotated(_, key) => (key.id.0, &key.prefix),
        Changed::AdminKey(key) => (key.id.0, &key.prefix),
        _ => return None,
    };
    Some(json!({ "id": id.to_string(), "key_prefix": prefix }).to_string())
}

impl First {
    /// Releases the claim if no key was created, so that the form can be sent again.
    pub(super) async fn done<T>(self, made: Result<T, AdminError>) -> Result<T, PageFailure> {
        if let (Err(_), Some(attempt)) = (&made, self.attempt)
            && let Err(error) = self.admin.give_up_claim(attempt).await
        {
            tracing::warn!(%error, "a form that failed cannot be sent again for two minutes");
        }
        Ok(made?)
    }
}

/// Returns the text in place of a key that was shown before.
pub(super) fn not_again() -> Markup {
    html! {
        p.notice role="status" {
            "This form was sent before, and made the key then. The key cannot be shown again. If you did not store it, make \
             another one, and revoke this one."
        }
    }
}
