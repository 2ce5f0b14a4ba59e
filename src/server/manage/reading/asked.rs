//! The handlers of queries with a body: which rule applies to a request, and how it is answered.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde_json::Value;

use super::seen_by;
use crate::admin::{AdminError, RouteVerdict, TestedRequest};
use crate::client_address::parse_address;
use crate::key::format::{is_stored_prefix, parse};
use crate::permission::{About, Permission, Reach};
use crate::server::manage::access::check;
use crate::server::manage::body::{self, BodyForm, Fields, instant};
use crate::server::manage::problem::Problem;
use crate::server::manage::query::no_parameters;
use crate::server::manage::{CallerExtension, JsonResult, PlaneState};

/// A request to explain. Absent fields have the defaults of `tenantgate explain`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ExplainedRequest {
    /// The prefix of its key.
    pub key_prefix: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// Its path.
    pub path: Option<String>,
    /// Its host.
    pub host: Option<String>,
    /// The address of its client.
    pub client_address: Option<String>,
    /// The context extensions of its Envoy route.
    pub context: Vec<(String, String)>,
    /// The instant of the decision (RFC 3339).
    pub at: Option<String>,
}

/// Explains a request. The result is the object of `explain -o json`.
pub type ExplainFn = Arc<
    dyn Fn(ExplainedRequest) -> Pin<Box<dyn Future<Output = Result<Value, AdminError>> + Send>> + Send + Sync,
>;

async fn fields(headers: &HeaderMap, query: Option<&str>, body: Body) -> Result<Fields, Problem> {
    no_parameters(query)?;
    let bytes = body::read(body).await?;
    Fields::of(body::parse(headers, &bytes, BodyForm::Json)?)
}

/// Accepts any text without control characters, which no request contains.
fn text(text: &str) -> Result<String, &'static str> {
    if text.chars().any(char::is_control) {
        Err("expected no control characters")
    } else {
        Ok(text.to_owned())
    }
}

fn prefix(text: &str) -> Result<String, &'static str> {
    if is_stored_prefix(text) {
        Ok(text.to_owned())
    } else if parse(text.as_bytes()).is_ok() {
        Err("this is a whole key: give only its prefix (up to the second _), and keep the rest secret")
    } else {
        Err("expected llmk_ and 1 to 48 of A-Z, a-z, 0-9 and -")
    }
}

fn context(fields: &mut Fields) -> Vec<(String, String)> {
    let members = fields.members("context").value().unwrap_or_default();
    members.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Returns which rule applies to a request.
pub(in crate::server::manage) async fn test_route(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> JsonResult<RouteVerdict> {
    check(&caller, Permission::RoutesRead, About::Shared)?;
    let mut fields = fields(&headers, query.as_deref(), body).await?;
    let method = fields.text_needed("method", text);
    let host = fields.text("host", text).value();
    let path = fields.text_needed("path", text);
    let key = fields.text("key_prefix", prefix).value();
    let context = context(&mut fields);
    fields.finish()?;
    let request = TestedRequest {
        method: method.unwrap_or_default(),
        host: host.unwrap_or_default(),
        path: path.unwrap_or_default(),
        key,
        context,
        ..TestedRequest::default()
    };
    Ok(Json(seen_by(&plane, &caller).test_route(&request).await?))
}

/// Explains how a request is decided, and why.
pub(in crate::server::manage) async fn explain(
    State(plane): PlaneState,
    Extension(caller): CallerExtension,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> JsonResult<Value> {
    check(&caller, Permission::KeysRead, About::Shared)?;
    let mut fields = fields(&headers, query.as_deref(), body).await?;
    let address = |text: &str| match parse_address(text.as_bytes()) {
        Some(_) => Ok(text.to_owned()),
        None => Err("expected an IPv4 or IPv6 address"),
    };
    let request = ExplainedRequest {
        key_prefix: fields.text("key_prefix", prefix).value(),
        method: fields.text("method", text).value(),
        path: fields.text("path", text).value(),
        host: fields.text("host", text).value(),
        client_address: fields.text("client_address", address).value(),
        context: context(&mut fields),
        at: fields.text("at", |text| instant(text).map(|_| text.to_owned())).value(),
    };
    fields.finish()?;
    if let Some(prefix) = &request.key_prefix {
        // 404 for a key that the caller may not see.
        seen_by(&plane, &caller).key(prefix).await?;
    }
    let mut explained = (plane.explain)(request).await?;
    if caller.creator.authority.reach != Reach::All {
        // A caller for only some tenants does not need to know where the database is.
        explained["database"] = Value::Null;
    }
    Ok(Json(explained))
}
