//! Error responses: `application/problem+json` (RFC 9457).

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::admin::AdminError;
use crate::permission::Permission;
use crate::store::StoreError;

/// An error response.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<u64>,
}

/// An error of one part of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct FieldError {
    /// The place in the body (RFC 6901), or the name of a parameter.
    pointer: String,
    code: &'static str,
    detail: String,
}

/// The id of a request, which the outermost layer adds to the body.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// The body of an error response, for the description of the API.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is only described")]
pub(super) struct ProblemBody {
    /// `about:blank`: the status defines the meaning.
    r#type: String,
    title: String,
    status: u16,
    /// The problem or what to do about it, in one sentence.
    detail: String,
    /// A fixed code, for programs.
    code: String,
    request_id: String,
    /// All errors of the request.
    errors: Vec<FieldError>,
}

/// The body without the id of the request, which a later layer adds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Body {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
    errors: serde_json::Value,
}

/// A body with the id of its request.
#[derive(Serialize)]
struct BodyWithId {
    #[serde(flatten)]
    body: Body,
    request_id: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    /// The object does not exist, or the caller may not see it.
    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such object")
    }

    /// The request has no valid management key.
    pub(super) fn unauthorized() -> Self {
        let detail = "a live management key is needed: Authorization: Bearer llma_…";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// Too many wrong keys came from this address.
    pub(super) fn too_many_failures(seconds: u64) -> Self {
        let detail = "too many wrong management keys came from this address: try again later";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// The key lacks a permission.
    pub(super) fn lacks(permission: Permission) -> Self {
        let detail = format!("this management key lacks the permission {}", permission.as_str());
        Self::new(StatusCode::FORBIDDEN, "missing_permission", detail)
    }

    /// The key has the permission, but only for some tenants.
    pub(super) fn only_for_all_tenants(permission: Permission) -> Self {
        let detail = format!(
            "this needs a management key with {} for all tenants; this one is limited to some",
            permission.as_str()
        );
        Self::new(StatusCode::FORBIDDEN, "only_for_all_tenants", detail)
    }

    /// The path has no such method; the router adds `Allow`.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path has other methods: see Allow",
        )
    }

    /// Converts an error of a use case; a missing object becomes 404.
    pub(super) fn of_missing(error: AdminError) -> Self {
        if matches!(error, AdminError::Missing(_)) { Self::not_found() } else { error.into() }
    }

    /// The body is not valid JSON.
    pub(super) fn bad_body(why: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(String::new(), "invalid_json", why)])
    }

    /// The body is larger than 1 MiB.
    pub(super) fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than 1 MiB")
    }

    /// The body has a wrong media type, or none.
    pub(super) fn media_type(expected: &'static str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", expected)
    }

    /// A change of a whole table needs a precondition.
    pub(super) fn precondition_required() -> Self {
        let detail = "If-Match is required: name the version to change, which GET returns as ETag";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", detail)
    }

    /// The first request with this Idempotency-Key is still running.
    pub(super) fn running() -> Self {
        let detail = "the first request with this Idempotency-Key is still running: send it again later";
        let problem = Self::new(StatusCode::CONFLICT, "request_running", detail);
        Self { retry_after: Some(1), ..problem }
    }

    /// The first request with this Idempotency-Key had another body.
    pub(super) fn other_body() -> Self {
        let detail = "the first request with this Idempotency-Key had another body: use another key";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", detail)
    }

    /// Parts of the request conflict with each other or with existing objects.
    pub(super) fn unprocessable(errors: Vec<FieldError>) -> Self {
        let detail = "the request cannot be performed: errors says why";
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", detail) }
    }

    /// A task of the program panicked.
    pub(super) fn internal() -> Self {
        let detail = "internal error: see the log of tenantgate";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Parts of the request are wrong.
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = "the request is invalid: errors says where".to_owned();
        Self { errors, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail) }
    }
}

impl FieldError {
    /// Creates the error of one field. `pointer` is a JSON pointer into the body, or `/` and the name of a parameter.
    pub(super) fn new(pointer: String, code: &'static str, detail: impl Into<String>) -> Self {
        Self { pointer, code, detail: detail.into() }
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::BadRequest(why) => Self::new(StatusCode::BAD_REQUEST, "invalid_request", why),
            AdminError::Missing(_) => Self::not_found(),
            AdminError::Ended => Self::unauthorized(),
            AdminError::Refused(why) => Self::new(StatusCode::CONFLICT, "refused", why),
            AdminError::Excess(why) => Self::new(StatusCode::FORBIDDEN, "exceeds_own_authority", why),
            AdminError::Unfit { part, why } => {
                Self::unprocessable(vec![FieldError::new(format!("/{part}"), "unfit_value", why)])
            }
            AdminError::Stale => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                "the object is not in the version that If-Match names: read it again",
            ),
            AdminError::Store(StoreError::Conflict(why)) => Self::new(StatusCode::CONFLICT, "conflict", why),
            AdminError::Store(error) => {
                tracing::warn!(%error, "the database failed: a management request gets 503");
                let detail = "the database is unavailable or rejected the request: see the log of tenantgate";
                let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
                Self { retry_after: Some(1), ..problem }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
            errors: serde_json::to_value(self.errors).unwrap_or_default(),
        };
        let mut response = self.status.into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(body);
        response
    }
}

/// Writes the body of a problem with the id of its request. Leaves other responses unchanged.
pub(super) fn with_request_id(mut response: Response, id: RequestId) -> Response {
    let Some(body) = response.extensions_mut().remove::<Body>() else { return response };
    let (mut parts, _) = response.into_parts();
    let (more, body) = Json(BodyWithId { body, request_id: id.0 }).into_response().into_parts();
    parts.headers.extend(more.headers);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    Response::from_parts(parts, body)
}
