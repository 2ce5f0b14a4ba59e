//! Requests that change something.
//!
//! ```text
//! may it? (403) ── body (413, 415, 400, 422) ── Idempotency-Key (409, 422) ── admin, with If-Match (404, 409, 412) ── answer
//! ```
//!
//! The answer is made in the transaction that makes the change, so that it can be kept there for a request that is sent
//! again. A change is made to its end even if its client hangs up: a tenant whose schema is made must not stay half made.

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
use super::body::{self, Fields, Form};
use super::connections::Peer;
use super::idempotency::{self, Secret, Turn};
use super::precondition::{entity_tag, if_match, preferred_wait};
use super::problem::{Problem, RequestId};
use super::query::no_parameters;
use crate::admin::view::shown_once;
use crate::admin::{Admin, AdminError, Applied, Caller, Expected, Origin};
use crate::key::PlainKey;
use crate::permission::{About, Permission};
use crate::store::{Changed, Receipt};

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// A request that wants to change something, of which the body is not yet read.
pub(in crate::server::manage) struct Change {
    plane: Arc<Plane>,
    caller: Arc<Caller>,
    parts: Parts,
    body: Body,
}

impl FromRequest<Arc<Plane>> for Change {
    type Rejection = Problem;

    async fn from_request(request: Request, plane: &Arc<Plane>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let caller = parts.extensions.get::<Arc<Caller>>().cloned().ok_or_else(Problem::unauthorized)?;
        Ok(Self { plane: Arc::clone(plane), caller, parts, body })
    }
}

/// An answer to a change: what becomes of it is decided where it is made, in the transaction.
#[derive(Clone, Debug)]
struct Answer {
    object: Value,
    version: Option<String>,
    location: Option<String>,
}

impl Answer {
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

/// Makes the answer of what a transaction has changed; `None` if it is not the last one of the request.
type Render = fn(Changed<'_>, &Admin) -> Option<Answer>;

/// A request whose body was read.
struct Asked {
    plane: Arc<Plane>,
    caller: Arc<Caller>,
    parts: Parts,
    body: bytes::Bytes,
}

/// What a success looks like.
struct Success {
    status: StatusCode,
    secret: Secret,
    render: Render,
}

/// A change that was made, and the key that it has issued.
type Made = Result<Option<PlainKey>, AdminError>;

impl Change {
    /// Refuses a caller that lacks a permission, before anything is looked up.
    fn may(&self, permission: Permission) -> Result<(), Problem> {
        check(&self.caller, permission, About::Shared)
    }

    /// Refuses a caller that lacks a permission for something that is of no tenant that exists.
    fn may_make(&self, permission: Permission) -> Result<(), Problem> {
        check(&self.caller, permission, About::NewTenant)
    }

    /// Reads the body as JSON of a form. There are no parameters.
    async fn read(self, form: Form) -> Result<(Asked, Value), Problem> {
        no_parameters(self.parts.uri.query())?;
        self.read_with_parameters(form).await
    }

    async fn read_with_parameters(self, form: Form) -> Result<(Asked, Value), Problem> {
        let Self { plane, caller, parts, body } = self;
        let body = body::read(body).await?;
        let value = body::parse(&parts.headers, &body, form)?;
        Ok((Asked { plane, caller, parts, body }, value))
    }

    /// Reads the body as one object.
    async fn fields(self, form: Form) -> Result<(Asked, Fields), Problem> {
        let (asked, value) = self.read(form).await?;
        Ok((asked, Fields::of(value)?))
    }

    /// Reads a body that has no fields.
    async fn no_fields(self) -> Result<Asked, Problem> {
        let (asked, fields) = self.fields(Form::JsonOrEmpty).await?;
        fields.finish()?;
        Ok(asked)
    }
}

impl Asked {
    /// The management of the caller, for what is looked up before a change.
    fn admin(&self) -> Result<Admin, Problem> {
        let expected = if_match(&self.parts.headers)?.unwrap_or_default();
        let extensions = &self.parts.extensions;
        let origin = Origin {
            request_id: extensions.get::<RequestId>().map(|id| id.0.clone()),
            address: extensions.get::<Peer>().copied().and_then(Peer::address),
        };
        Ok(self.plane.admin.on_behalf(&self.caller, &origin).expecting(expected))
    }

    /// Makes the change and answers.
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
                Turn::Done(kept, derivation) => {
                    let mut answer = Answer::from_kept(kept);
                    success.secret.replay(&mut answer.object, derivation);
                    let applied = applied(&admin, wait).await;
                    let mut response = respond(success.status, answer, applied);
                    response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
                    return Ok(response);
                }
                Turn::Running => return Err(Problem::running()),
                Turn::OtherBody => return Err(Problem::other_body()),
                Turn::First(id, derivation) => {
                    attempt = Some(id);
                    admin = admin.deriving(derivation);
                }
            }
        }
        let caller = Arc::clone(&self.caller);
        // Made to its end, whatever becomes of the connection.
        let done = tokio::spawn(async move {
            let seen = Arc::new(Mutex::new(None));
            let reporting = admin.clone().reporting(receipt(attempt, &seen, success.render, admin.clone()));
            let made = work(reporting, caller).await;
            if let (Err(_), Some(attempt)) = (&made, attempt)
                && let Err(error) = admin.give_up_claim(attempt).await
            {
                tracing::warn!(%error, "a failed request cannot be sent again for two minutes");
            }
            let key = made?;
            let answer = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut answer = answer.ok_or_else(|| AdminError::Refused("nothing was changed".into()))?;
            if let (Some(place), Some(key)) = (success.secret.place(&mut answer.object), key) {
                place["key"] = shown_once(&key).into();
            }
            let applied = applied(&admin, wait).await;
            Ok::<_, AdminError>(respond(success.status, answer, applied))
        });
        Ok(done.await.map_err(|_| Problem::internal())??)
    }
}

/// Reports what is changed, and keeps the answer of an attempt.
fn receipt(
    attempt: Option<uuid::Uuid>,
    seen: &Arc<Mutex<Option<Answer>>>,
    render: Render,
    admin: Admin,
) -> Receipt {
    let seen = Arc::clone(seen);
    let answer = move |changed: Changed<'_>| {
        let answer = render(changed, &admin)?;
        let kept = answer.kept();
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        Some(kept)
    };
    Receipt { attempt, answer: Arc::new(answer) }
}

/// Waits until servers have applied what is committed, if the client prefers that. The change is made, so a database that
/// cannot be asked any more is no failure of it.
async fn applied(admin: &Admin, wait: Option<std::time::Duration>) -> Option<(u64, Result<Applied, ()>)> {
    let limit = wait?;
    let waited = admin.applied_within(limit).await.map_err(|error| {
        tracing::warn!(%error, "whether servers have applied a change is not known");
    });
    Some((limit.as_secs(), waited))
}

/// The answer to a change that was made.
fn respond(status: StatusCode, answer: Answer, waited: Option<(u64, Result<Applied, ()>)>) -> Response {
    let Answer { mut object, version, location } = answer;
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

/// Refuses `If-Match` where there is nothing yet that could match.
fn nothing_matches(parts: &Parts) -> Result<(), Problem> {
    match if_match(&parts.headers)? {
        None => Ok(()),
        Some(Expected::Any | Expected::OneOf(_)) => Err(AdminError::Stale.into()),
    }
}

/// What handlers need beside the request.
type Path<T> = axum::extract::Path<T>;
