//! Bad messages that need a gRPC client: rows 31 to 41.

use prost::Message as _;
use prost::encoding::encode_varint;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::attribute_context::Request;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use tonic::Code;

use crate::support::ask::KEY_HEADER;
use crate::support::wire::{Headers, in_pieces};
use crate::support::{Ask, Server, World};

/// The rows of the catalogue in this file.
pub(super) const NUMBERS: [u8; 5] = [31, 32, 33, 35, 41];

/// The allowed growth of memory after all large messages: a few times the largest message, and the reserve of the
/// allocator. A leak would be many times as much.
const ROOM_KIB: u64 = 48 * 1024;

/// A message, with its row or its error code.
struct Case {
    row: u8,
    what: &'static str,
    bytes: Vec<u8>,
    wanted: Result<&'static str, &'static [Code]>,
}

/// The answer to a message that is not a `CheckRequest`.
const UNREADABLE: &[Code] = &[Code::InvalidArgument];

/// The answer to a message that is too large.

#[test]
fn every_bad_message_gets_its_answer() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for case in [absent(), odd(&world), broken(&world)].into_iter().flatten() {
        hold(&server, &case);
    }
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "and the server continues");
    assert_eq!(server.bcrypts(), 1, "for the valid key");
}

#[test]
fn large_messages_are_answered_or_rejected_without_a_memory_leak() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let cases = large(&world);
    // After the warm-up.
    for case in &cases {
        hold(&server, case);
    }
    let before = resident_kib(&server);
    for _ in 0..10 {
        for case in &cases {
            hold(&server, case);
        }
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "between large ones");
    }
    let after = resident_kib(&server);
    assert!(after < before + ROOM_KIB, "{before} KiB became {after} KiB");
}

#[track_caller]
fn hold(server: &Server, case: &Case) {
    let seen = server.check_bytes(case.bytes.clone());
    let shown = case.bytes[..case.bytes.len().min(64)].escape_ascii();
    match (&seen, case.wanted) {
        (Ok(answer), Ok(row)) => assert_eq!(answer.row(), row, "row {} ({}): {shown}", case.row, case.what),
        (Err(status), Err(codes)) if codes.contains(&status.code()) => {}
        _ => panic!("row {} ({}): {shown}: {seen:?}, not {:?}", case.row, case.what, case.wanted),
    }
}

/// Returns the resident memory of the server.
fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("/proc has the value");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Calls of the network filter and hand-made ones, without an HTTP request.
fn absent() -> Vec<Case> {
    let with = |request| CheckRequest {
        attributes: Some(AttributeContext { request, ..AttributeContext::default() }),
    };
    let asks = [CheckRequest::default(), with(None), with(Some(Request::default()))];
    let asks = asks.map(|ask| Case {
        row: 31,
        what: "no request",
        bytes: ask.encode_to_vec(),
        wanted: Ok("401 missing"),
    });
    asks.into()
}

/// Messages that protobuf allows and Envoy never writes.
fn odd(world: &World) -> Vec<Case> {
    let live = world.live.text.as_bytes();
    let key = || Headers::of(&[(KEY_HEADER, live)]);
    let unheard_of = || {
        let mut headers = key();
        headers.0.unheard_of = vec![0xff; 300];
        headers.bytes()
    };
    let piece = key().without_request_line().bytes();
    // Address { socket_address }, then Address { pipe } in the same source: the last one counts; both are ignored here.
    let peer = |inner: &[u8]| within(&[1, 1, 1], inner);
    let oneof = [peer(&field(1, &field(2, b"10.0.0.1"))), peer(&field(2, &field(1, b"/sock")))].concat();
    let case = |what, bytes, wanted| Case { row: 32, what, bytes, wanted: Ok(wanted) };
    vec![
        case("nothing at all", Vec::new(), "401 missing"),
        case("unknown fields", unheard_of(), "200 ok"),
        case("unknown fields alone", field(15, &[0xff; 300]), "401 missing"),
        case("a number where nothing is", vec![0x78, 0x01], "401 missing"),
        case("a oneof twice", oneof.clone(), "401 missing"),
        case("a oneof twice and a key", in_pieces(&[oneof, key().bytes()]), "200 ok"),
        case("a key twice, in two pieces", in_pieces(&[key().bytes(), piece.clone()]), "401 malformed"),
        case(
            "a key in one piece, the path in another",
            in_pieces(&[Ask::get("/v1").bytes(), piece]),
            "200 ok",
        ),
        case(
            "a public path overruled by a later one",
            in_pieces(&[Ask::get("/docs").bytes(), Ask::get("/v1").bytes()]),
            "401 missing",
        ),
        case("no name", Headers::of(&[("", live)]).bytes(), "401 missing"),
        case("both kinds of value", both_values(live), "401 malformed"),
    ]
}

/// A header in `header_map` with `value` and `raw_value`.
fn both_values(live: &[u8]) -> Vec<u8> {
    let header = [field(1, KEY_HEADER.as_bytes()), field(2, live), field(3, live)].concat();
    within(&[1, 4, 2, 13, 1], &header)
}

/// Messages that no decoder accepts.
fn broken(world: &World) -> Vec<Case> {
    let whole = Ask::with_key(&world.live.text).bytes();
    let case = |what, bytes, wanted| Case { row: 33, what, bytes, wanted };
    let unreadable = |what, bytes| case(what, bytes, Err(UNREADABLE));
    // Struct { Entry { Value { Struct … } } } in an unused field.
    let struct_bomb = (0..1_000).fold(Vec::new(), |inner, _| field(1, &field(2, &field(5, &inner))));
    let mut cases = vec![
        case("depth in a field that is skipped", within(&[1, 11, 1, 2], &struct_bomb), Ok("401 missing")),
        unreadable("groups in groups", vec![0x0b; 10_000]),
        unreadable("groups in groups, closed", [vec![0x7b; 200], vec![0x7c; 200]].concat()),
        unreadable("a group that another closes", vec![0x7b, 0x74]),
        unreadable("a group that is not open", vec![0x7c]),
        unreadable("attributes as a number", vec![0x08, 0x01]),
        unreadable("attributes as eight bytes", [&[0x09][..], &[0; 8]].concat()),
        unreadable("attributes as four bytes", [&[0x0d][..], &[0; 4]].concat()),
        unreadable("attributes as a group", vec![0x0b, 0x0c]),
        unreadable("a wire type that is none", vec![0x0e]),
        unreadable("field 0", vec![0x02, 0x00]),
        unreadable("a length beyond the end", vec![0x0a, 0x05, 0x00]),
        unreadable(
            "a length beyond all memory",
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ),
        unreadable("a number of eleven bytes", [&[0x78][..], &[0x80; 10], &[0x01]].concat()),
        unreadable("a tag beyond 32 bits", vec![0xfa, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00]),
        unreadable("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        unreadable("a header as a number", within(&[1, 4, 2], &[0x18, 0x01])),
        unreadable("a method as a number", within(&[1, 4, 2], &[0x10, 0x01])),
    ];
    // The first byte opens a message, so no prefix of a message is valid.
    let cuts = (1..whole.len()).step_by(7).chain([whole.len() - 1]);
    cases.extend(cuts.map(|cut| unreadable("cut short", whole[..cut].to_vec())));
    cases
}

/// Large messages.
fn large(world: &World) -> Vec<Case> {
    let live = world.live.text.as_str();
    let names: Vec<String> = (0..10_000).map(|n| format!("x-{n}")).collect();
    let mut entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"value"[..])).collect();
    let without = Headers::of(&entries).bytes();
    entries.push((KEY_HEADER, live.as_bytes()));
    let with = Headers::of(&entries).bytes();
    let many_keys = Headers::of(&vec![(KEY_HEADER, live.as_bytes()); 10_000]).bytes();
    let one = |bytes: usize| {
        Headers::of(&[("x-big", &vec![b'v'; bytes][..]), (KEY_HEADER, live.as_bytes())]).bytes()
    };
    let long_key = |bytes: usize| Ask::with_key(&format!("llmk_live_{}", "s".repeat(bytes))).bytes();
    let body = |bytes: usize| {
        in_pieces(&[Ask::with_key(live).bytes(), within(&[1, 4, 2], &field(11, &vec![b'b'; bytes]))])
    };
    let case = |row, what, bytes, wanted| Case { row, what, bytes, wanted };
    let mib = 1024 * 1024;
    vec![
        case(35, "10,000 headers", without, Ok("401 missing")),
        case(35, "10,000 headers and a key", with, Ok("200 ok")),
        case(35, "10,000 keys", many_keys, Ok("401 malformed")),
        case(35, "a header of 1,000 KiB", one(1_000 * 1024), Ok("200 ok")),
        case(35, "a header of 8 MiB", one(8 * mib), Ok("200 ok")),
        case(35, "a header of 16 MiB", one(16 * mib), Ok("503 unavailable")),
        case(35, "a key of 1,000 KiB", long_key(1_000 * 1024), Ok("401 malformed")),
        case(35, "a key of 8 MiB", long_key(8 * mib), Ok("401 malformed")),
        case(35, "a key of 16 MiB", long_key(16 * mib), Ok("503 unavailable")),
        case(41, "a body of 1,000 KiB", body(1_000 * 1024), Ok("200 ok")),
        case(41, "a body of 8 MiB", body(8 * mib), Ok("200 ok")),
        case(41, "a body of 16 MiB", body(16 * mib), Ok("503 unavailable")),
    ]
}

/// A length-delimited field.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(u64::from(number << 3 | 2), &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A message within messages, the outermost field first.
fn within(fields: &[u32], content: &[u8]) -> Vec<u8> {
    fields.iter().rev().fold(content.to_vec(), |inner, number| field(*number, &inner))
}
