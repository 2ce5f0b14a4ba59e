//! Tests all places of a key in a request, and values there that are not keys.

use crate::support::ask::KEY_HEADER;
use crate::support::verified_response::IDENTITY;
use crate::support::wire::{Headers, in_pieces};
use crate::support::{Ask, Server, World};

#[test]
fn authorization_is_read_only_with_accept_bearer() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let bearer = format!("Bearer {}", world.live.text);
    assert_eq!(server.row(Ask::get("/v1").authorization(&bearer)), "401 missing");
    let both = server.check(Ask::with_key(&world.other.text).authorization(&bearer));
    assert_eq!(both.row(), "200 ok");
    assert_eq!(both.removed(), [KEY_HEADER], "authorization is passed on");
}

#[test]
fn a_bearer_key_is_accepted_with_accept_bearer() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        let ask = Ask::get("/v1").authorization(&format!("{scheme} {}", world.live.text));
        let answer = server.check(ask.clone());
        assert_eq!(answer.row(), "200 ok", "{scheme}");
        assert!(
            answer.removed().contains(&"authorization"),
            "it is removed because it carried the key: {scheme}"
        );
        assert_eq!(server.row(ask.only_raw()), "200 ok", "{scheme} in header_map");
    }
    let wrong = format!("Bearer {}", world.live.with_wrong_secret());
    assert_eq!(server.row(Ask::get("/v1").authorization(&wrong)), "401 mismatch");
}

#[test]
fn unusual_bearer_values_are_malformed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let key = &world.live.text;
    let odd = [
        format!("Bearer  {key}"),
        format!("Bearer\t{key}"),
        format!("Bearer {key} "),
        format!("Bearer \t{key}"),
        format!("Bearer \"{key}\""),
        format!("Bearer <{key}>"),
        format!("Bearer {key},"),
        format!("Bearer {key}, Bearer {key}"),
        format!("Bearer {key},Basic dXNlcjpwYXNz"),
        format!("Basic dXNlcjpwYXNz,Bearer {key}"),
        format!("Bearer {key};x=1"),
        format!("Bearer {key}ü"),
        format!("Bearer ü{key}"),
        "Bearer llmk_".to_owned(),
        "Bearer llmk_x".to_owned(),
        "Bearer llmk_x_1234567".to_owned(),
    ];
    for value in odd {
        assert_eq!(server.row(Ask::get("/v1").authorization(&value)), "401 malformed", "{value:?}");
    }
}

#[test]
fn other_authorization_values_pass_unchanged() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let others = [
        "Basic dXNlcjpwYXNz",
        "Digest username=\"x\"",
        "Negotiate YII=",
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
        "Bearer sk-1234567890abcdef",
        "Bearer",
        "Bearer ",
        "",
    ];
    for value in others {
        assert_eq!(server.row(Ask::get("/v1").authorization(value)), "401 missing", "{value:?}");
        let answer = server.check(Ask::with_key(&world.live.text).authorization(value));
        assert_eq!(answer.row(), "200 ok", "{value:?}");
        assert_eq!(answer.removed(), [KEY_HEADER], "{value:?}");
    }
}

#[test]
fn two_credentials_are_malformed_even_when_equal() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let (live, other) = (&world.live.text, &world.other.text);
    let bearer = |key: &str| format!("Bearer {key}");
    let asks = [
        Ask::with_key(live).authorization(&bearer(live)),
        Ask::with_key(live).authorization(&bearer(other)),
        Ask::with_key(live).authorization("Bearer llmk_x"),
        Ask::with_key(live).raw(KEY_HEADER, live),
        Ask::with_key(live).raw(KEY_HEADER, other),
        Ask::get("/v1").raw(KEY_HEADER, live).raw(KEY_HEADER, live),
        Ask::get("/v1").raw(KEY_HEADER, live).raw(KEY_HEADER, other),
        Ask::get("/v1").raw(KEY_HEADER, live).raw("authorization", bearer(live)),
        Ask::with_key(live).raw("authorization", bearer(live)),
        Ask::get("/v1").authorization(&bearer(live)).raw("authorization", bearer(live)),
        Ask::get("/v1").raw("authorization", bearer(live)).raw("authorization", bearer(live)),
        Ask::get("/v1").raw("authorization", bearer(live)).raw("authorization", "Basic dXNlcjpwYXNz"),
        Ask::get("/v1").raw("authorization", "Basic dXNlcjpwYXNz").raw("authorization", bearer(live)),
        Ask::with_key(&format!("{live},{other}")),
        Ask::with_key(&format!("{live},{live}")),
        Ask::with_key(&format!("{live},")),
        Ask::with_key(&format!(",{live}")),
    ];
    for ask in asks {
        assert_eq!(server.row(ask.clone()), "401 malformed", "{ask:?}");
    }
    // Values that are not keys are ignored.
    let foreign = Ask::with_key(live).raw("authorization", "Basic eDp5").raw("authorization", "Basic eDp5");
    assert_eq!(server.row(foreign), "200 ok");
}

#[test]
fn a_map_may_name_the_key_header_twice_on_the_wire() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let once = [(KEY_HEADER, world.live.text.as_bytes())];
    let twice = [once[0], (KEY_HEADER, world.other.text.as_bytes())];
    let same = [once[0], once[0]];
    assert_eq!(server.check_bytes(Headers::of(&once).bytes()).expect("an answer").row(), "200 ok");
    assert_eq!(server.check_bytes(Headers::of(&twice).bytes()).expect("an answer").row(), "401 malformed");
    assert_eq!(server.check_bytes(Headers::of(&same).bytes()).expect("an answer").row(), "401 malformed");
}

#[test]
fn a_message_in_pieces_is_one_message() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = Headers::of(&[(KEY_HEADER, world.live.text.as_bytes())]).without_request_line();
    let rows = [
        (in_pieces(&[Ask::get("/v1").bytes(), key.bytes()]), "200 ok"),
        (in_pieces(&[key.bytes(), Ask::get("/v1").bytes()]), "200 ok"),
        (in_pieces(&[key.bytes(), key.bytes()]), "401 malformed"),
        (in_pieces(&[Ask::with_key(&world.live.text).bytes(), key.bytes()]), "401 malformed"),
        (in_pieces(&[Ask::get("/v1").bytes(), Ask::get("/docs").bytes()]), "200 public"),
        (in_pieces(&[Ask::get("/docs").bytes(), Ask::get("/v1").bytes()]), "401 missing"),
    ];
    for (number, (bytes, wanted)) in rows.into_iter().enumerate() {
        assert_eq!(server.check_bytes(bytes).expect("an answer").row(), wanted, "row {number}");
    }
}

#[test]
fn raw_headers_are_read_as_bytes() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let live = world.live.text.as_bytes();
    let asks = [
        ("200 ok", Ask::get("/v1").raw(KEY_HEADER, live)),
        ("200 ok", Ask::with_key(&world.live.text).only_raw()),
        ("200 ok", Ask::get("/v1").raw(KEY_HEADER, live).raw("x-bin", b"\x80\xff\x00")),
        ("200 public", Ask::get("/docs").only_raw()),
        ("401 missing", Ask::get("/v1").only_raw()),
        ("401 missing", Ask::get("/v1").raw(KEY_HEADER, "")),
        ("401 malformed", Ask::get("/v1").raw(KEY_HEADER, [live, b"\x80"].concat())),
        ("401 malformed", Ask::get("/v1").raw(KEY_HEADER, b"\xff\xfe\xfd")),
        ("401 mismatch", Ask::get("/v1").raw(KEY_HEADER, world.live.with_wrong_secret())),
    ];
    for (wanted, ask) in asks {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
}

#[test]
fn header_names_are_compared_in_lower_case_only() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let bearer = format!("Bearer {}", world.live.text);
    let others =
        ["X-LLMCore-API-Key", "X-LLMCORE-API-KEY", "x-llmcore-api-key ", "x_llmcore_api_key", "x-api-key"];
    for name in others {
        assert_eq!(server.row(Ask::get("/v1").header(name, &world.live.text)), "401 missing", "{name:?}");
        assert_eq!(server.row(Ask::get("/v1").raw(name, &world.live.text)), "401 missing", "{name:?}");
    }
    assert_eq!(server.row(Ask::get("/v1").header("Authorization", &bearer)), "401 missing");
}

#[test]
fn a_key_anywhere_else_is_not_read() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = &world.live.text;
    let asks = [
        Ask::get(&format!("/v1?api_key={key}&x-llmcore-api-key={key}")),
        Ask::get(&format!("/{key}")),
        Ask::get("/v1").header("cookie", &format!("x-llmcore-api-key={key}")),
        Ask::get("/v1").header("proxy-authorization", &format!("Bearer {key}")),
    ];
    for ask in asks {
        assert_eq!(server.row(ask.clone()), "401 missing", "{ask:?}");
    }
}

#[test]
fn the_key_header_can_have_another_name() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--key-header", "x-api-key"]).start();
    let answer = server.check(Ask::get("/v1").header("x-api-key", &world.live.text));
    assert_eq!((answer.row().as_str(), answer.removed()), ("200 ok", vec!["x-api-key"]));
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 missing");
    let as_documented = Server::on(&world.db).args(&["--key-header", "X-Api-Key"]).start();
    assert_eq!(as_documented.row(Ask::get("/v1").header("x-api-key", &world.live.text)), "200 ok");
    let mut removed =
        server.check(Ask::get("/")).removed().iter().map(ToString::to_string).collect::<Vec<_>>();
    removed.retain(|name| !IDENTITY.contains(&name.as_str()));
    assert_eq!(removed, ["x-api-key"]);
}

#[test]
fn an_empty_key_header_does_not_conflict_with_a_bearer_key() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let bearer = format!("Bearer {}", world.live.text);
    let answer = server.check(Ask::with_key("").authorization(&bearer));
    assert_eq!(answer.row(), "200 ok", "an empty value counts as missing");
    assert!(answer.removed().contains(&"authorization"));
}
