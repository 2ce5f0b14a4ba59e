//! Error pages.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use maud::html;

use super::shell::alone;
use crate::admin::AdminError;
use crate::permission::{Permission, Permitted};
use crate::store::StoreError;

/// Why a page is not shown or a form not processed.
#[derive(Debug)]
pub(super) struct PageFailure {
    pub(super) status: StatusCode,
    title: &'static str,
    pub(super) text: String,
    retry_after: Option<u64>,
}

impl PageFailure {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self { status, title, text: text.into(), retry_after: None }
    }

    /// The object does not exist, or the management key has no access to it.
    pub(super) fn not_found() -> Self {
        let text = "There is no such page, or your management key has no access to it.";
        Self::new(StatusCode::NOT_FOUND, "Not found", text)
    }

    /// The address takes a form, and the browser asked for a page.
    pub(super) fn method_not_allowed() -> Self {
        let text = "This address is for a form. Go back and send the form again.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Not a page", text)
    }

    /// The request may come from another site.
    pub(super) fn foreign() -> Self {
        let text = "Your browser says that this request does not come from this page, or does not say where it comes from. \
                    Open the page itself and try again.";
        Self::new(StatusCode::FORBIDDEN, "Refused", text)
    }

    /// The form is invalid.
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Not valid", text)
    }

    /// Returns the message if the failure is about the content of a form, so that the form can be shown again with it.
    /// All other failures are pages of their own.
    pub(super) fn of_form(self) -> Result<Self, Self> {
        let about = [StatusCode::BAD_REQUEST, StatusCode::CONFLICT, StatusCode::UNPROCESSABLE_ENTITY];
        if about.contains(&self.status) { Ok(self) } else { Err(self) }
    }

    /// The form was sent before, and its change is running or done.
    pub(super) fn sent_before(text: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "Sent before", text)
    }

    /// Too many wrong keys or links came from this address.
    pub(super) fn too_many(seconds: u64) -> Self {
        let text = format!(
            "Too many wrong keys or links came from your address. Try again in {seconds} seconds. A valid key is accepted at once."
        );
        let failure = Self::new(StatusCode::TOO_MANY_REQUESTS, "Too many attempts", text);
        Self { retry_after: Some(seconds), ..failure }
    }

    /// Returns whether it is [`PageFailure::too_many`].
    pub(super) fn is_too_many(&self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// The key or the link is not valid.
    pub(super) fn not_signed_in(text: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Not signed in", text)
    }

    /// Converts a verdict of [`crate::permission::may`].
    pub(super) fn of_verdict(verdict: Permitted) -> Result<(), Self> {
        match verdict {
            Permitted::Yes => Ok(()),
            Permitted::Lacks(permission) => Err(Self::lacks(permission)),
            Permitted::OnlyForAllTenants(permission) => Err(Self::new(
                StatusCode::FORBIDDEN,
                "Not allowed",
                format!("This needs a management key with {} for all tenants.", permission.as_str()),
            )),
            Permitted::NotThere => Err(Self::not_found()),
        }
    }

    fn lacks(permission: Permission) -> Self {
        let text = format!("Your management key lacks the permission {}.", permission.as_str());
        Self::new(StatusCode::FORBIDDEN, "Not allowed", text)
    }
}

impl From<AdminError> for PageFailure {
    fn from(error: AdminError) -> Self {
        let text = sentence(&error.to_string());
        match error {
            AdminError::Excess(_) => Self::new(StatusCode::FORBIDDEN, "Not allowed", text),
            AdminError::BadRequest(_) => Self::new(StatusCode::BAD_REQUEST, "Not valid", text),
            AdminError::Missing(_) => Self::not_found(),
            AdminError::Ended => {
                Self::not_signed_in("Your management key was revoked or expired in the meantime.")
            }
            AdminError::Unfit { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Not valid", text),
            AdminError::Stale => {
                let text = "Somebody else changed it in the meantime, so nothing was saved. Open it again and repeat your change.";
                Self::new(StatusCode::CONFLICT, "Changed meanwhile", text)
            }
            AdminError::Refused(_) | AdminError::Store(StoreError::Conflict(_)) => {
                Self::new(StatusCode::CONFLICT, "Refused", text)
            }
            AdminError::Store(error) => {
                tracing::warn!(%error, "the database did not answer a request of the page");
                let text =
                    "The database is unavailable, or rejected the statement. See the log of tenantgate.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", text)
            }
        }
    }
}

/// Returns the text with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
    let rest = chars.as_str();
    let end = if rest.ends_with(['.', '?', '!']) { "" } else { "." };
    format!("{first}{rest}{end}")
}

impl IntoResponse for PageFailure {
    fn into_response(self) -> Response {
        let body = html! {
            h1 { (self.title) }
            p { (self.text) }
            p.actions { a.button href="/" { "To the overview" } }
        };
        let mut response = (self.status, alone(self.title, &body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
