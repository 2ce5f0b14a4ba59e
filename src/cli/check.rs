//! The command `check`: sends one Check, as Envoy would, and shows the response.
//!
//! It shows what a server answers, without an Envoy in front.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use prost::Message as _;
use prost_types::value::Kind;
use serde::Serialize;
use serde_json::Value;
use tonic::Code;

use super::Failure;
use super::target::{Target, TlsArgs, chain, connect, target};
use super::unreachable::{self, Unreachable};
use super::view::Text;
use crate::ext_authz::proto::envoy::config::core::v3::address::Address as SocketAddressOf;
use crate::ext_authz::proto::envoy::config::core::v3::{Address, HeaderValueOption, SocketAddress};
use crate::ext_authz::proto::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use crate::ext_authz::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use crate::ext_authz::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use crate::invalid::InvalidValue;
use crate::request::DEFAULT_KEY_HEADER;

/// The options of `check`.
#[derive(clap::Args, Clone)]
pub(super) struct CheckArgs {
    /// The server: HOST:PORT, `https://HOST:PORT` or `unix:/path`
    #[arg(long, value_name = "ADDR", value_parser = target)]
    target: Target,
    /// The method of the request
    #[arg(long, value_name = "M", default_value = "GET")]
    method: String,
    /// The path of the request, with its query
    #[arg(long, value_name = "P", default_value = "/")]
    path: String,
    /// The host of the request
    #[arg(long, value_name = "H", default_value = "")]
    host: String,
    /// The address of the client: `source.address` of the Check
    #[arg(long, value_name = "IP", value_parser = super::values::client_ip)]
    client_address: Option<IpAddr>,
    /// A `context_extensions` entry of the route in Envoy's configuration, such as tenantgate.scopes=models.read.
    /// Repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::values::pair)]
    context: Vec<(String, String)>,
    /// A header of the request. Repeatable
    #[arg(long, value_name = "k: v", value_parser = header)]
    header: Vec<(String, String)>,
    /// The API key, sent as x-llmcore-api-key
    #[arg(long, value_name = "K")]
    key: Option<String>,
    /// The TLS options.
    #[command(flatten)]
    tls: TlsArgs,
}

fn header(text: &str) -> Result<(String, String), InvalidValue> {
    let (name, value) = text.split_once(':').ok_or("expected a header, such as accept: text/html")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// The response to a Check.
#[derive(Serialize)]
pub(super) struct CheckView {
    /// Whether the request may pass.
    pub(super) allowed: bool,
    pub(super) http_status: i32,
    headers_set: BTreeMap<String, String>,
    headers_removed: Vec<String>,
    pub(super) body: Option<String>,
    pub(super) metadata: BTreeMap<String, Value>,
}

impl Text for CheckView {
    fn text(&self) -> String {
        let mut lines =
            vec![format!("{} {}", if self.allowed { "allowed" } else { "denied" }, self.http_status)];
        lines.extend(self.body.iter().cloned());
        lines.extend(self.headers_set.iter().map(|(k, v)| format!("set       {k}: {v}")));
        lines.extend(self.headers_removed.iter().map(|k| format!("removed   {k}")));
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.extend(self.metadata.iter().map(|(k, v)| format!("metadata  {k} = {}", plain(v))));
        lines.join("\n")
    }
}

/// Sends a Check without a key. Returns whether it is allowed, and the reason.
pub(super) async fn probe(target: &Target, path: &str, tls: &TlsArgs) -> Result<(bool, String), Failure> {
    let args = CheckArgs {
        target: target.clone(),
        method: "GET".into(),
        path: path.into(),
        host: String::new(),
        client_address: None,
        context: Vec::new(),
        header: Vec::new(),
        key: None,
        tls: tls.clone(),
    };
    let CheckView { allowed, mut metadata, .. } = check(args).await?;
    Ok((allowed, text(metadata.remove("reason"))))
}

/// Sends the Check.
pub(super) async fn check(args: CheckArgs) -> Result<CheckView, Failure> {
    let target = &args.target;
    let failed = match connect(target, &args.tls).await? {
        Ok(channel) => {
            match AuthorizationClient::new(channel).check(tonic::Request::new(request(&args))).await {
                Ok(response) => return Ok(view(response.into_inner())),
                // Envoy translates its own responses for gRPC clients, so they come with a `grpc-status`.
                Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
                    return Err(Failure::unavailable(format!(
                        "{target} {}",
                        Unreachable::Gateway(status.message().into())
                    )));
                }
                Err(status) if status.message().is_empty() => status.code().to_string(),
                Err(status) => status.message().to_owned(),
            }
        }
        Err(error) => chain(&error),
    };
    let why = match http_status(&failed) {
        Some(status) => Some(Unreachable::NotGrpc(status)),
        None => unreachable::reason(target, &args.tls).await,
    };
    Err(Failure::unavailable(match why {
        Some(why @ Unreachable::NotGrpc(_)) => format!("{target} {why}"),
        Some(why) => format!("no answer from {target}: {why}"),
        None => format!("no answer from {target}: {failed}"),
    }))
}

/// Returns the HTTP status of a response that was not gRPC, from the text of the gRPC client.
fn http_status(message: &str) -> Option<u16> {
    if message.contains("grpc-status header missing") {
        return message.rsplit(' ').next()?.parse().ok();
    }
    // Without the status, or with the first byte of a page where gRPC has a flag.
    let ok = ["missing grpc-status trailer", "invalid compression flag"];
    ok.iter().any(|text| message.contains(text)).then_some(200)
}

/// Builds the Check that Envoy would send: header names in lower case, values of equal names joined by a comma, and
/// pseudo-headers among the headers.
fn request(args: &CheckArgs) -> CheckRequest {
    let mut headers: HashMap<String, String> =
        [(":method".into(), args.method.clone()), (":path".into(), args.path.clone())].into();
    let key = args.key.iter().map(|key| (DEFAULT_KEY_HEADER.to_owned(), key.clone()));
    for (name, value) in args.header.iter().cloned().chain(key) {
        headers.entry(name).and_modify(|before| *before = format!("{before},{value}")).or_insert(value);
    }
    let http = HttpRequest {
        method: args.method.clone(),
        path: args.path.clone(),
        host: args.host.clone(),
        headers,
        scheme: "http".into(),
        protocol: "HTTP/1.1".into(),
        ..HttpRequest::default()
    };
    let request = Request { http: Some(http), ..Request::default() };
    let source = args.client_address.map(|address| {
        let socket = SocketAddress { address: address.to_string(), ..SocketAddress::default() };
        Peer {
            address: Some(Address { address: Some(SocketAddressOf::SocketAddress(socket)) }),
            ..Peer::default()
        }
    });
    let context_extensions = args.context.iter().cloned().collect();
    let attributes = AttributeContext {
        source,
        request: Some(request),
        context_extensions,
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }
}

/// Decodes a `CheckResponse` of this program. Returns what Envoy would do with it, and its `status.code`.
pub(super) fn of_answer(answer: &[u8]) -> (CheckView, i32) {
    let response = CheckResponse::decode(answer).unwrap_or_default();
    let code = response.status.as_ref().map_or(0, |status| status.code);
    (view(response), code)
}

/// Returns what Envoy would do with a response.
fn view(response: CheckResponse) -> CheckView {
    let allowed = response.status.is_none_or(|status| status.code == 0);
    let metadata = response
        .dynamic_metadata
        .unwrap_or_default()
        .fields
        .into_iter()
        .map(|(name, value)| (name, json(value)));
    let mut view = CheckView {
        allowed,
        http_status: if allowed { 200 } else { 403 },
        headers_set: BTreeMap::new(),
        headers_removed: Vec::new(),
        body: None,
        metadata: metadata.collect(),
    };
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) if allowed => {
            view.headers_set = header_map(ok.headers);
            view.headers_removed = ok.headers_to_remove;
        }
        Some(HttpResponse::DeniedResponse(denied) | HttpResponse::ErrorResponse(denied)) if !allowed => {
            view.http_status = denied.status.map_or(0, |status| status.code);
            view.headers_set = header_map(denied.headers);
            view.body = Some(denied.body);
        }
        _ => {}
    }
    view
}

/// Converts a value of metadata to JSON. Whole numbers become integers.
fn json(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::NumberValue(number)) => match number.to_string().parse::<i64>() {
            Ok(whole) => whole.into(),
            Err(_) => number.into(),
        },
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect(),
        Some(Kind::StructValue(fields)) => {
            Value::Object(fields.fields.into_iter().map(|(name, value)| (name, json(value))).collect())
        }
    }
}

fn header_map(headers: Vec<HeaderValueOption>) -> BTreeMap<String, String> {
    headers.into_iter().filter_map(|option| option.header).map(|header| (header.key, header.value)).collect()
}

/// Returns the text of a metadata field; empty if it is missing or not a text.
pub(super) fn text(field: Option<Value>) -> String {
    field.and_then(|field| field.as_str().map(str::to_owned)).unwrap_or_default()
}
