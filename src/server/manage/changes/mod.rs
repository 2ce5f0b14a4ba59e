//! The handlers that change objects.
//!
//! ```text
//! permission (403) ─ body (413, 415, 400, 422) ─ Idempotency-Key (409, 422) ─ admin, If-Match (404, 409, 412) ─ response
//! ```
//!
//! The response is made in the transaction of the change, so that the transaction can also store it for repeated
//! requests. A change is completed even if its client disconnects: a tenant must not remain half created.

pub(super) mod admin_keys;
pub(super) mod keys;
pub(super) mod plans;
pub(super) mod routes;
pub(super) mod tenants;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header::{ETAG, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::Plane;
use super::access::check;
use super::body::{self, BodyForm, Fields};
use super::connections::HttpPeer;
use super::idempotency::{self, ClaimOutcome, Secret};
use super::precondition::{entity_tag, if_match, preferred_wait};
use super::problem::{Problem, RequestId};
use super::query::no_parameters;
use crate::admin::view::shown_once;
use crate::admin::{Admin, AdminError, Applied, Caller, ChangeOrigin, ExpectedVersion};
use crate::key::PlainKey;
use crate::permission::{About, Permission};
use crate::store::{Changed, Receipt};

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// A request for a change, whose body has not been read yet.
pub(in crate::server::manage) struct ChangeRequest {
    plane: Arc<Plane>,
    caller: Arc<Caller>,
    parts: Parts,
    body: Body,
}

impl FromRequest<Arc<Plane>> for ChangeRequest {
    type Rejection = Problem;

    async fn from_request(request: Request, plane: &Arc<Plane>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Arc<Caller>>().cloned().ok_or_else(Problem::unauthorized)?;
        Ok(Self { plane: Arc::clone(plane), caller, parts, body })
    }
}

/// The response to a change, made in the transaction of the change.
#[derive(Clone, Debug)]
struct ChangeResponse {
    object: Value,
    version: Option<String>,
    location: Option<String>,
}

impl ChangeResponse {
    fn of(object: &impl Serialize, version: String) -> Self {
        let object = serde_json::to_value(object).unwrap_or_default();
        Self { object, version: Some(version), location: None }
    }

    fn at(self, location: String) -> Self {
        Self { location: Some(location), ..self }
    }

    fn kept(&self) -> String {
        json!({ "object": self.object, "version": self.version, "location": self.location }).to_string()
    }

    fn from_kept(mut kept: Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (version, location) = (text(&kept["version"]), text(&kept["location"]));
        Self { object: kept["object"].take(), version, location }
    }
}

/// Makes the response from the changed objects; `None` if the transaction is not the last one of the request.
type RenderResponse = fn(Changed<'_>, &Admin) -> Option<ChangeResponse>;

/// A request for a change, whose body has been read.
struct ParsedChange {
    plane: Arc<Plane>,
    caller: Arc<Caller>,
    parts: Parts,
    body: bytes::Bytes,
}

/// How the server responds to a successful change.
struct Success {
    status: StatusCode,
    secret: Secret,
    render: RenderResponse,
}

/// The result of a change, with the key that it has issued, if any.
type Made = Result<Option<PlainKey>, AdminError>;

impl ChangeRequest {
    /// Rejects a caller that lacks a permission, before any object is read.
    fn may(&self, permission: Permission) -> Result<(), Problem> {
        check(&self.caller, permission, About::Shared)
    }

    /// Rejects a caller that may not create tenants with this permission.
    fn may_make(&self, permission: Permission) -> Result<(), Problem> {
        check(&self.caller, permission, About::NewTenant)
    }

    /// Reads the body as JSON. Rejects query parameters.
    async fn read(self, form: BodyForm) -> Result<(ParsedChange, Value), Problem> {
        no_parameters(self.parts.uri.query())?;
        self.read_with_parameters(form).await
    }

    async fn read_with_parameters(self, form: BodyForm) -> Result<(ParsedChange, Value), Problem> {
        let Self { plane, caller, parts, body } = self;
        let body = body::read(body).await?;
        let value = body::parse(&parts.headers, &body, form)?;
        Ok((ParsedChange { plane, caller, parts, body }, value))
    }

    /// Reads the body as one object.
    async fn fields(self, form: BodyForm) -> Result<(ParsedChange, Fields), Problem> {
        let (asked, value) = self.read(form).await?;
        Ok((asked, Fields::of(value)?))
    }

    /// Reads a body that must have no fields.
    async fn no_fields(self) -> Result<ParsedChange, Problem> {
        let (asked, fields) = self.fields(BodyForm::JsonOrEmpty).await?;
        fields.finish()?;
        Ok(asked)
    }
}

impl ParsedChange {
    /// Returns the use cases on behalf of the caller, with the precondition of `If-Match`.
    fn admin(&self) -> Result<Admin, Problem> {
        let expected = if_match(&self.parts.headers)?.unwrap_or_default();
        let extensions = &self.parts.extensions;
        let origin = ChangeOrigin {
            request_id: extensions.get::<RequestId>().map(|id| id.0.clone()),
            address: extensions.get::<HttpPeer>().copied().and_then(HttpPeer::address),
        };
        Ok(self.plane.admin.on_behalf(&self.caller, &origin).expecting(expected))
    }

    /// Performs the change and responds. Handles Idempotency-Key and `Prefer: wait`.
    async fn make<W, F>(self, success: Success, work: W) -> Result<Response, Problem>
    where
        W: FnOnce(Admin, Arc<Caller>) -> F + Send + 'static,
        F: Future<Output = Made> + Send + 'static,
    {
        let mut admin = self.admin()?;
        let wait = preferred_wait(&self.parts.headers);
        let claim = idempotency::key(&self.parts.headers)?.filter(|_| self.parts.method == Method::POST);
        let mut attempt = None;
        if let Some(key) = claim {
            match idempotency::claim(&admin, &self.caller, self.parts.uri.path(), key, &self.body).await? {
                ClaimOutcome::Done(kept, derivation) => {
                    let mut stored = ChangeResponse::from_kept(kept);
                    still_sees(&admin, &self.caller, &stored.object).await?;
                    success.secret.replay(&mut stored.object, derivation);
                    let applied = applied(&admin, wait).await;
                    let mut response = respond(success.status, stored, applied);
                    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
                    return Ok(response);
                }
                ClaimOutcome::Running => return Err(Problem::running()),
                ClaimOutcome::OtherBody => return Err(Problem::other_body()),
                ClaimOutcome::First(id, derivation) => {
                    attempt = Some(id);
                    admin = admin.deriving(derivation);
                }
            }
        }
        let caller = Arc::clone(&self.caller);
        // A separate task, so that the change is completed even if the connection ends.
        let done = tokio::spawn(async move {
            let seen = Arc::new(Mutex::new(None));
            let reporting = admin.clone().reporting(receipt(attempt, &seen, success.render, admin.clone()));
            let made = work(reporting, caller).await;
            if let (Err(_), Some(attempt)) = (&made, attempt)
                && let Err(error) = admin.give_up_claim(attempt).await
            {
                tracing::warn!(%error, "the Idempotency-Key of a failed request cannot be used again for two minutes");
            }
            let key = made?;
            let response = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut response = response.ok_or_else(|| AdminError::Refused("nothing was changed".into()))?;
            if let (Some(place), Some(key)) = (success.secret.place(&mut response.object), key) {
                place["key"] = shown_once(&key).into();
            }
            let applied = applied(&admin, wait).await;
            Ok::<_, AdminError>(respond(success.status, response, applied))
        });
        Ok(done.await.map_err(|_| Problem::internal())??)
    }
}

/// Checks that the caller may still see the object of a stored response: since then, tenants or permissions may have
/// been taken away from it.
async fn still_sees(admin: &Admin, caller: &Caller, object: &Value) -> Result<(), AdminError> {
    let object = object.get("new").unwrap_or(object);
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    let own = text("id").filter(|_| object.get("db_schema_name").is_some());
    match (text("tenant_id").or(own), text("id")) {
        (Some(tenant), _) => admin.tenant(tenant).await.map(drop),
        (None, Some(id)) if object.get("permissions").is_some() => {
            admin.admin_key(&caller.creator, id).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Creates the receipt that makes the response, passes it to `seen`, and returns it for storing.
fn receipt(
    attempt: Option<uuid::Uuid>,
    seen: &Arc<Mutex<Option<ChangeResponse>>>,
    render: RenderResponse,
    admin: Admin,
) -> Receipt {
    let seen = Arc::clone(seen);
    let answer = move |changed: Changed<'_>| {
        let response = render(changed, &admin)?;
        let kept = response.kept();
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
        Some(kept)
    };
    Receipt { attempt, answer: Arc::new(answer) }
}

/// Waits until all servers have applied the change, if the client asked for that. The change is committed, so an
/// unavailable database is not an error.
async fn applied(admin: &Admin, wait: Option<std::time::Duration>) -> Option<(u64, Result<Applied, ()>)> {
    let limit = wait?;
    let waited = admin.applied_within(limit).await.map_err(|error| {
        tracing::warn!(%error, "cannot tell whether all servers have applied a change");
    });
    Some((limit.as_secs(), waited))
}

/// Builds the response to a successful change.
fn respond(
    status: StatusCode,
    content: ChangeResponse,
    waited: Option<(u64, Result<Applied, ()>)>,
) -> Response {
    let ChangeResponse { mut object, version, location } = content;
    let mut status = status;
    let (mut told, mut seconds) = (None, None);
    if let Some((wait, applied)) = waited {
        seconds = Some(wait);
        let unknown = applied.is_err();
        let Applied { replicas, pending } = applied.unwrap_or_default();
        let late = unknown || !pending.is_empty();
        let pending: Vec<_> =
            pending.iter().map(|l| json!({ "name": l.name, "seen_at": l.seen_at.to_string() })).collect();
        let mut members = json!({ "applied": { "replicas": replicas } });
        if late {
            status = if status == StatusCode::CREATED { status } else { StatusCode::ACCEPTED };
            members["pending"] = pending.into();
        }
        told = Some(members);
    }
    if let Some(Value::Object(members)) = told {
        if !object.is_object() {
            object = json!({});
        }
        for (name, value) in members {
            object[name] = value;
        }
    }
    let mut response = match status {
        StatusCode::NO_CONTENT => status.into_response(),
        status => (status, Json(object)).into_response(),
    };
    let tag = version.as_deref().and_then(entity_tag).filter(|_| status != StatusCode::NO_CONTENT);
    let location = location.and_then(|location| HeaderValue::from_str(&location).ok());
    let preference = seconds.and_then(|n| HeaderValue::from_str(&format!("wait={n}")).ok());
    for (name, value) in [(ETAG, tag), (LOCATION, location), (PREFERENCE_APPLIED, preference)] {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Rejects `If-Match` in a request that creates an object, because no version can match.
fn nothing_matches(parts: &Parts) -> Result<(), Problem> {
    match if_match(&parts.headers)? {
        None => Ok(()),
        Some(ExpectedVersion::Any | ExpectedVersion::OneOf(_)) => Err(AdminError::Stale.into()),
    }
}

/// The extractor of path parameters.
type Path<T> = axum::extract::Path<T>;
