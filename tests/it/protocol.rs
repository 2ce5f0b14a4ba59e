//! Checks that messages that Envoy does not send are rejected, within bounds and without a panic.

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::attribute_context::Request;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use tonic::Code;

use crate::support::ask::KEY_HEADER;
use crate::support::client::{Client, SERVICE};
use crate::support::wire::{Entry, Headers};
use crate::support::{Ask, PATIENCE, Server, World};

#[test]
fn absent_attributes_are_a_missing_key() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let request = |request| CheckRequest {
        attributes: Some(AttributeContext { request, ..AttributeContext::default() }),
    };
    let asks = [CheckRequest::default(), request(None), request(Some(Request::default()))];
    for ask in asks {
        let answer = server.check_bytes(ask.encode_to_vec()).expect("an answer");
        assert_eq!(answer.row(), "401 missing", "{ask:?}");
    }
}

#[test]
fn bytes_chosen_by_the_client_do_not_break_the_message() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let live = world.live.text.as_bytes();
    let key = (KEY_HEADER, live);
    let rows = [
        ("200 ok", Headers::of(&[key]).with_sni(b"a\xff\xfeb")),
        ("401 missing", Headers::of(&[]).with_sni(b"a\xff\xfeb")),
        ("200 ok", Headers::of(&[key, ("x-bin", b"\x80\xff")])),
        ("200 ok", Headers::of(&[key, ("cookie", b"\xc3\x28")])),
        ("401 malformed", Headers::of(&[(KEY_HEADER, b"llmk_live_\xff\xff\xff\xff\xff\xff\xff\xff")])),
        ("401 missing", Headers::of(&[("x-llmcore-api-keý", live)])),
    ];
    for (number, (wanted, headers)) in rows.into_iter().enumerate() {
        assert_eq!(server.check_bytes(headers.bytes()).expect("an answer").row(), wanted, "row {number}");
    }
    let mut odd = Headers::of(&[key]);
    let http = odd.0.request.as_mut().and_then(|request| request.http.as_mut()).expect("made so");
    (http.path, http.host, http.id) = (b"/\xff".to_vec(), b"\xfe".to_vec(), b"\xfd".to_vec());
    assert_eq!(server.check_bytes(odd.bytes()).expect("an answer").row(), "200 ok");
}

#[test]
fn fields_of_a_later_envoy_are_skipped() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let mut headers = Headers::of(&[(KEY_HEADER, world.live.text.as_bytes())]);
    headers.0.unheard_of = vec![0xff; 300];
    headers.0.context_extensions = vec![Entry { key: b"audience".to_vec(), value: b"billing".to_vec() }];
    assert_eq!(server.check_bytes(headers.bytes()).expect("an answer").row(), "200 ok");
}

#[test]
fn an_unreadable_message_is_an_error_and_never_allowed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let whole = Ask::with_key(&world.live.text).bytes();
    let broken = [
        whole[..whole.len() - 1].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        vec![0x0a],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![0x0a; 64],
        vec![0x08, 0x01],
        vec![0xff; 32],
        vec![0x0b; 200],
        vec![0x00, 0x00],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for bytes in broken {
        match server.check_bytes(bytes.clone()) {
            Ok(answer) => assert_eq!(answer.http_status(), 401, "{bytes:02x?}: {answer:#?}"),
            Err(status) => {
                assert!(![Code::Ok, Code::Unknown].contains(&status.code()), "{bytes:02x?}: {status:?}");
            }
        }
    }
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "and the server continues");
}

#[test]
fn deep_nesting_is_not_followed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    // metadata_context is an unused tree: Struct { Entry { Value { Struct … } } }.
    let bomb = (0..1_000).fold(Vec::new(), |inner, _| field(1, &field(2, &field(5, &inner))));
    let message = field(1, &field(11, &field(1, &field(2, &bomb))));
    let refused = server.check_bytes(message).map(|answer| answer.http_status());
    assert!(matches!(refused, Ok(401) | Err(_)), "{refused:?}");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

#[test]
fn messages_are_read_up_to_the_size_limit() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let many = (0..500)
        .fold(Ask::with_key(&world.live.text), |ask, n| ask.header(&format!("x-{n}"), &"v".repeat(100)));
    assert_eq!(server.row(many), "200 ok", "the size that Envoy's limit of 60 KiB allows");
    let big = |mib: usize| Ask::with_key(&world.live.text).header("x-big", &"v".repeat(mib * 1024 * 1024));
    assert_eq!(server.row(big(8)), "200 ok", "the maximum size that Envoy can be configured to allow");
    // A gRPC status would let the request pass under Envoy's `failure_mode_allow`.
    assert_eq!(server.row(big(16)), "503 unavailable");
    assert!(server.metric(&["tenantgate_unavailable_total", "too_large"]) >= 1.0);
    server.stderr.wait_for("a line", PATIENCE, |lines| {
        let line = lines.iter().find(|line| line.contains("larger than --max-message-bytes"));
        line.map(|line| assert!(line.contains("peer=127.0.0.1:"), "{line}"))
    });
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

#[test]
fn other_calls_are_unimplemented() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let paths = [
        format!("/{SERVICE}/Nothing"),
        "/envoy.service.auth.v2.Authorization/Check".to_owned(),
        format!("/{SERVICE}/check"),
        format!("/{SERVICE}"),
        "/".to_owned(),
    ];
    for path in paths {
        let status = server.client().call(&path, Ask::get("/").bytes()).expect_err(&path);
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
    }
}

#[test]
fn a_unix_socket_works_like_a_tcp_listener() {
    let world = World::somewhere();
    let socket = format!("unix:{}", world.db.dir().join("check.sock").display());
    let plan = || Server::on(&world.db).args(&["--listen", &socket, "--listen", "127.0.0.1:0"]);
    let server = plan().start();
    assert!(server.grpc.contains(&socket), "the address as bound: {:?}", server.grpc);
    for address in &server.grpc {
        assert_eq!(Client::to(address).check(Ask::with_key(&world.live.text)).row(), "200 ok", "{address}");
    }
    // A killed server leaves its socket; the next one replaces it.
    drop(server);
    let next = plan().start();
    assert_eq!(Client::to(&socket).check(Ask::get("/v1")).row(), "401 missing");
    drop(next);
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}
