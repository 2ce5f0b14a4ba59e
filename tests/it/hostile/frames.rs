//! Callers that do not speak gRPC, or speak it incorrectly: rows 34 and 37.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request};
use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckResponse;

use crate::support::client::SERVICE;
use crate::support::{Ask, PATIENCE, Server, World, runtime, wait};

/// The rows of the catalogue in this file.
pub(super) const NUMBERS: [u8; 2] = [34, 37];

/// The response on a stream.
#[derive(Debug)]
struct Reply {
    /// From the trailers, or from the headers if there are no trailers.
    grpc_status: Option<String>,
    body: Vec<u8>,
}

impl Reply {
    /// Whether Envoy would pass the request: a message with code 0.
    fn allows(&self) -> bool {
        let message = self.body.get(5..).and_then(|message| CheckResponse::decode(message).ok());
        message.is_some_and(|answer| answer.status.unwrap_or_default().code == 0)
            && self.grpc_status.as_deref() == Some("0")
    }
}

/// A connection that can send any HTTP/2.
struct Raw(SendRequest<Bytes>);

impl Raw {
    fn to(server: &Server) -> Self {
        let stream = wait(tokio::net::TcpStream::connect(&server.grpc[0])).expect("it listens");
        let (send, connection) = wait(h2::client::handshake(stream)).expect("it speaks HTTP/2");
        // It ends with the last sender.
        runtime().spawn(connection);
        Self(send)
    }

    fn send(&self, request: Request<()>, body: Vec<u8>) -> Result<Reply, h2::Error> {
        let send = self.0.clone();
        wait(async {
            tokio::time::timeout(PATIENCE, exchange(send, request, body)).await.expect("an end of some kind")
        })
    }
}

async fn exchange(send: SendRequest<Bytes>, request: Request<()>, body: Vec<u8>) -> Result<Reply, h2::Error> {
    let mut send = send.ready().await?;
    let connect = request.method() == Method::CONNECT;
    let (response, mut stream) = send.send_request(request, false)?;
    // The server may answer before it has read everything.
    let _ = stream.send_data(body.into(), !connect);
    let response = response.await?;
    let status = |headers: &HeaderMap| {
        headers.get("grpc-status").map(|value| value.to_str().expect("ASCII").to_owned())
    };
    let early = status(response.headers());
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        body.extend(chunk?);
    }
    let late = incoming.trailers().await?.as_ref().and_then(status);
    Ok(Reply { grpc_status: late.or(early), body })
}

/// A Check as Envoy sends it, to be broken.
fn check() -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://tenantgate/{SERVICE}/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// Adds the gRPC prefix to a message.
fn framed(compressed: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).expect("four bytes").to_be_bytes();
    [&[compressed][..], &length, message].concat()
}

fn plain(message: &[u8]) -> Vec<u8> {
    framed(0, message.len(), message)
}

#[test]
fn row_34_a_frame_that_contradicts_its_prefix_is_an_error() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let raw = Raw::to(&server);
    let whole = Ask::with_key(&world.live.text).bytes();
    let public = Ask::get("/docs").bytes();
    let good = raw.send(check().body(()).expect("valid"), plain(&whole)).expect("an answer");
    assert!(good.allows(), "the same, unspoiled: {good:?}");
    let bodies = [
        ("a length beyond the limit", framed(0, 64 * 1024 * 1024, &whole)),
        ("a length of 4 GiB", framed(0, u32::MAX as usize, &whole)),
        ("a length beyond the message", framed(0, public.len() + 1, &public)),
        ("a length short of the message", framed(0, public.len() - 1, &public)),
        ("a compressed message and no word of how", framed(1, public.len(), &public)),
        ("a flag that is none", framed(2, public.len(), &public)),
        ("half a head", vec![0, 0]),
        ("no message", Vec::new()),
    ];
    for (what, body) in bodies {
        let reply = raw.send(check().body(()).expect("valid"), body);
        let Ok(reply) = reply else { continue };
        assert!(!reply.allows(), "{what}: {reply:?}");
        // A message that is too large gets a CheckResponse that denies, if the client reads it before its own message
        // is rejected.
        let failed = !["0", ""].contains(&reply.grpc_status.as_deref().unwrap_or_default());
        assert!(failed || !reply.body.is_empty(), "{what}: {reply:?}");
    }
    // With two messages it is undefined which one counts, so the call must not pass.
    let nobody = plain(&Ask::get("/v1").bytes());
    let reply = raw.send(check().body(()).expect("valid"), [nobody, plain(&public)].concat());
    assert!(!reply.is_ok_and(|reply| reply.allows()), "two messages");
    let gzip = check().header("grpc-encoding", "gzip").body(()).expect("valid");
    let reply = raw.send(gzip, framed(1, public.len(), &public)).expect("an answer");
    assert_eq!(reply.grpc_status.as_deref(), Some("12"), "unimplemented: {reply:?}");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "and the server continues");
}

#[test]
fn row_37_another_path_is_unimplemented() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let raw = Raw::to(&server);
    for path in [
        format!("/{SERVICE}/Nothing"),
        format!("/{}/Check", SERVICE.to_lowercase()),
        format!("/{SERVICE}/Check/"),
        format!("//{SERVICE}/Check"),
        format!("/x/../{SERVICE}/Check"),
        "/envoy.service.auth.v2.Authorization/Check".to_owned(),
        "/".to_owned(),
    ] {
        let request = check().uri(format!("http://tenantgate{path}")).body(()).expect("valid");
        let reply = raw.send(request, plain(&Ask::get("/docs").bytes())).expect("an answer");
        assert_eq!(reply.grpc_status.as_deref(), Some("12"), "{path}: {reply:?}");
        assert!(reply.body.is_empty(), "{path}: {reply:?}");
    }
}

#[test]
fn row_37_requests_that_are_not_grpc_do_not_pass() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let raw = Raw::to(&server);
    let nobody = plain(&Ask::get("/v1").bytes());
    for (what, request, body) in [
        ("the method GET", check().method(Method::GET), Vec::new()),
        ("the method GET and a message", check().method(Method::GET), nobody.clone()),
        ("a tunnel", Request::builder().method(Method::CONNECT).uri("tenantgate:443"), Vec::new()),
        ("gRPC-Web", of_type("application/grpc-web+proto"), nobody.clone()),
        ("gRPC-Web in base64", of_type("application/grpc-web-text"), b"AAAAAAA=".to_vec()),
        ("JSON", of_type("application/json"), b"{}".to_vec()),
        ("a form", of_type("application/x-www-form-urlencoded"), b"a=b".to_vec()),
    ] {
        // A closed stream or connection counts as an answer.
        let reply = raw.send(request.body(()).expect("valid"), body);
        assert!(!reply.as_ref().is_ok_and(Reply::allows), "{what}: {reply:?}");
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "after {what}");
    }
}

/// A Check of another content type.
fn of_type(content_type: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://tenantgate/{SERVICE}/Check"))
        .header("content-type", content_type)
}

#[test]
fn row_37_connections_of_other_protocols_are_closed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let path = format!("/{SERVICE}/Check");
    let greetings: [&[u8]; 5] = [
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n"
        )
        .into_bytes()
        .leak(),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        &[0xff; 4096],
    ];
    for greeting in greetings {
        let mut stream = TcpStream::connect(&server.grpc[0]).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(greeting).expect("sent");
        // The end of the input; the server may have closed the connection already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // A reset counts as an end.
        let _ = stream.read_to_end(&mut answer);
        // The server always sends the HTTP/2 preface and never a header of HTTP/1.
        assert!(answer.len() < 256 && !answer.starts_with(b"HTTP/"), "{}", answer.escape_ascii());
    }
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "and the server continues");
}
