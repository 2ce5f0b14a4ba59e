//! Tests the module inside Envoy: it says what a Check says, and whenever it is in doubt, the Check says it.
//!
//! Two Envoys stand before one server, one with the module and one without. What they answer is compared. The access log
//! contains all metadata of `ext_authz`, where `via` tells who has decided.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Outcome, Plan, binary};
use crate::support::world::Key;
use crate::support::{Ask, PATIENCE, Server, World, eventually};

/// The directory with the module, which is built on first use.
static MODULES: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_BIN_EXE_tenantgate")).parent().expect("in a directory").to_owned();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--quiet", "--locked", "--package", "tenantgate-envoy"];
    let built = Command::new(cargo).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(built.expect("cargo starts").success(), "the module is built");
    directory
});

const FILTER: &str = r#"          - name: tenantgate
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter
              dynamic_module_config: {name: tenantgate_envoy, do_not_close: true}
              filter_name: tenantgate
              filter_config:
                "@type": type.googleapis.com/google.protobuf.StringValue
                value: "unix:SOCKET context_extensions=none clear_route_cache=false"
"#;

const CHECK: &str =
    "          # --- The Check -----------------------------------------------------------------\n";

const SKIPPED: &str = r"              transport_api_version: V3
              filter_enabled_metadata:
                filter: envoy.tenantgate
                path: [{key: decided}]
                value: {bool_match: true}
                invert: true
              grpc_service:
                envoy_grpc:
                  cluster_name: tenantgate
";

/// Logs all metadata of the namespace.
fn logging(plan: Plan) -> Plan {
    plan.with(
        "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:decision)%",
        "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%",
    )
}

/// An Envoy with the module, which reads what is published at this path.
fn with_module(server: &Server, socket: &Path) -> Plan {
    let before = "              transport_api_version: V3\n              grpc_service:\n                envoy_grpc:\n                  cluster_name: tenantgate\n";
    let filter = FILTER.replace("SOCKET", &socket.display().to_string());
    let plan = logging(Envoy::before(server)).with(CHECK, &format!("{filter}{CHECK}"));
    plan.with(before, SKIPPED).modules(&MODULES)
}

/// A server that publishes, and the path of its socket.
fn publishing(world: &World, args: &[&str]) -> (Server, PathBuf, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("publish.sock");
    let address = format!("unix:{}", socket.display());
    let server = Server::on(&world.db).args(&["--publish", &address]).args(args).start();
    (server, socket, directory)
}

/// Sends a request, and returns what became of it with all metadata.
fn ask(envoy: &Envoy, path: &str, headers: &[(&str, &[u8])]) -> (Outcome, Value) {
    let outcome = envoy.send_bytes("GET", path, headers);
    (outcome, envoy.logged(path)["decision"].clone())
}

/// A path for each request, by which its line in the access log is found.
fn path() -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    format!("/v1/{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

/// Repeats a request until the module decides about it.
#[track_caller]
fn by_module(envoy: &Envoy, headers: &[(&str, &[u8])]) -> (Outcome, Value) {
    eventually("the module decides", PATIENCE, || {
        let (outcome, metadata) = ask(envoy, &path(), headers);
        if metadata["via"] == "module" { Ok((outcome, metadata)) } else { Err(Box::new((outcome, metadata))) }
    })
}

#[track_caller]
fn with_key(envoy: &Envoy, key: &str) -> (Outcome, Value) {
    by_module(envoy, &[(KEY_HEADER, key.as_bytes())])
}

/// What a client and an upstream see, without what differs from one request to the next.
fn seen(outcome: &Outcome) -> Value {
    let mut headers = outcome.page.headers.clone();
    for name in ["date", "x-envoy-upstream-service-time"] {
        headers.remove(name);
    }
    if let Some(id) = headers.get_mut("x-llmcore-decision-id") {
        *id = format!("{} characters", id.len());
    }
    let upstream = outcome.seen.as_ref().map(|seen| {
        let names: Vec<_> = seen.names("").into_iter().map(str::to_owned).collect();
        let values = |name: &String| {
            let values: Vec<_> = seen.values(name).into_iter().map(str::to_owned).collect();
            (name.clone(), if name == "x-request-id" { vec![] } else { values })
        };
        names.iter().map(values).collect::<Vec<_>>()
    });
    json!({"status": outcome.page.status, "headers": headers, "body": outcome.page.body, "upstream": upstream})
}

/// Metadata without what is made for each decision.
fn fields(metadata: &Value) -> Value {
    let mut fields = metadata.clone();
    if let Some(fields) = fields.as_object_mut() {
        let id = fields.remove("decision_id");
        assert_eq!(id.and_then(|id| id.as_str().map(str::len)), Some(36), "{metadata}");
        fields.remove("via");
        // Of Envoy's own, about the call.
        fields.remove("ext_authz_duration");
    }
    fields
}

#[test]
fn the_module_needs_the_c_library_and_nothing_else() {
    let module = MODULES.join("libtenantgate_envoy.so");
    let read = |args: &[&str]| {
        let said = Command::new("readelf").args(args).arg(&module).output().expect("binutils");
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let dynamic = read(&["-dW"]);
    let needed: Vec<_> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let libraries = ["[libc.so.6]", "[ld-linux-x86-64.so.2]", "[ld-linux-aarch64.so.1]"];
    assert!(
        !needed.is_empty() && needed.iter().all(|line| libraries.iter().any(|l| line.contains(l))),
        "{needed:?}"
    );
    assert!(dynamic.contains("NODELETE"), "its code stays mapped");
    let versions = read(&["-VW"]);
    let newest = versions.split("GLIBC_2.").skip(1).filter_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    assert!(newest.max().expect("versions") <= 35, "glibc 2.35 is enough");
}

#[test]
fn clients_and_upstreams_see_the_same_with_the_module_and_without() {
    let world = World::somewhere();
    let disabled = world.db.json(&["key", "create", &world.acme.id, "--name", "off"]);
    world.db.json(&["key", "disable", disabled["id"].as_str().expect("an id")]);
    let early = world.db.json(&["key", "create", &world.acme.id, "--not-before", "2100-01-01T00:00:00Z"]);
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(plain) = logging(Envoy::before(&server)).start() else { return };
    let Some(envoy) = with_module(&server, &socket).workers(2).start() else { return };
    let text = |key: &Value| key["key"].as_str().expect("a key").as_bytes().to_vec();
    let of = |key: &Key| vec![key.text.clone().into_bytes()];
    let forged = [("x-llmcore-tenant-id", &b"forged"[..]), ("X-LLMCORE-KEY-ID", b"forged")];
    // The values of the key header, the reason, and whether the module decides.
    let rows: Vec<(Vec<Vec<u8>>, &str, bool)> = vec![
        (vec![], "missing", true),
        (vec![b"".to_vec()], "missing", true),
        (vec![b"nonsense".to_vec()], "malformed", true),
        (vec![b"llmk_x_\xff\xfe0123456789".to_vec()], "malformed", true),
        (vec![world.live.text.clone().into_bytes(), world.live.text.clone().into_bytes()], "malformed", true),
        (vec![b"".to_vec(), world.live.text.clone().into_bytes()], "malformed", true),
        (vec![format!("{},x", world.live.text).into_bytes()], "malformed", true),
        (vec![b"llmk_nobody_0123456789".to_vec()], "unknown", true),
        (of(&world.live), "ok", true),
        (of(&world.issued), "ok", true),
        (vec![world.live.with_wrong_secret().into_bytes()], "mismatch", false),
        (of(&world.revoked), "revoked", true),
        (of(&world.expired), "expired", true),
        (vec![text(&disabled)], "disabled", true),
        (vec![text(&early)], "not_yet_valid", true),
        (of(&world.of_sleepy), "tenant_inactive", true),
        (of(&world.of_newborn), "tenant_inactive", true),
        (of(&world.of_gone), "tenant_inactive", true),
    ];
    with_key(&envoy, &world.live.text);
    for (values, reason, decides) in rows {
        let mut headers: Vec<(&str, &[u8])> = values.iter().map(|value| (KEY_HEADER, &value[..])).collect();
        headers.extend(forged);
        let (one, told) = eventually("the Check is proven", PATIENCE, || {
            let (one, told) = ask(&plain, &path(), &headers);
            if told["reason"] == reason { Ok((one, told)) } else { Err(Box::new((one, told))) }
        });
        let (other, said) =
            if decides { by_module(&envoy, &headers) } else { ask(&envoy, &path(), &headers) };
        assert_eq!(said["via"] == "module", decides, "{reason}: {said}");
        assert_eq!(seen(&other), seen(&one), "{reason}");
        assert_eq!(fields(&said), fields(&told), "{reason}");
    }
    // What needs no key is for the server.
    for path in ["/health", "/docs"] {
        let (one, told) = ask(&plain, path, &forged);
        let (other, said) = ask(&envoy, path, &forged);
        assert_eq!(
            (seen(&other), fields(&said), &said["via"]),
            (seen(&one), fields(&told), &Value::Null),
            "{path}"
        );
    }
}

/// What `envoy.yaml` does against forged headers before any filter sees them, which the module must not need.
const STRIPPED: [&str; 4] =
    ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];

fn stripping_nothing(plan: Plan) -> Plan {
    STRIPPED.iter().fold(plan, |plan, name| plan.with(&format!("              - {{remove: {name}}}\n"), ""))
}

#[test]
fn the_module_keeps_forged_headers_out_if_envoy_strips_nothing() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = stripping_nothing(with_module(&server, &socket)).start() else { return };
    let mut headers = vec![(KEY_HEADER, world.live.text.as_bytes())];
    for name in STRIPPED {
        headers.extend([(name, &b"forged"[..]), (name, b"twice")]);
    }
    let (outcome, _) = by_module(&envoy, &headers);
    let seen = outcome.seen.expect("it passes");
    for name in STRIPPED {
        let values = seen.values(name);
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        assert!(!values.contains(&"forged") && !values.contains(&"twice"), "{name}: {values:?}");
    }
    assert!(seen.values(KEY_HEADER).is_empty());
}

#[test]
fn a_route_that_depends_on_the_tenant_is_chosen_as_with_ext_authz() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    // A route of one tenant alone, which a client must not choose by a header of its own.
    let other = &world.sleepy.id;
    let routed = |plan: Plan| {
        let first = "              - match: {prefix: /, grpc: {}}\n";
        let route = |id: &str, status: u16| {
            format!(
                "              - match: {{prefix: /, headers: [{{name: x-llmcore-tenant-id, string_match: {{exact: {id}}}}}]}}\n                direct_response: {{status: {status}}}\n"
            )
        };
        let routes = format!("{}{}{first}", route(other, 299), route(&world.acme.id, 298));
        let plan = stripping_nothing(plan).with(first, &routes);
        plan.with(
            "              transport_api_version: V3\n",
            "              transport_api_version: V3\n              clear_route_cache: true\n",
        )
    };
    let clears = |plan: Plan| plan.with("clear_route_cache=false", "clear_route_cache=true");
    let Some(plain) = routed(logging(Envoy::before(&server))).start() else { return };
    let Some(envoy) = routed(clears(with_module(&server, &socket))).start() else { return };
    let key = (KEY_HEADER, world.live.text.as_bytes());
    for headers in [vec![key], vec![key, ("x-llmcore-tenant-id", other.as_bytes())]] {
        let (one, _) = ask(&plain, &path(), &headers);
        let (other, _) = by_module(&envoy, &headers);
        assert_eq!((one.page.status, other.page.status), (298, 298), "{headers:?}");
    }
}

#[test]
fn changes_are_seen_within_the_promised_time() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &["--sync-interval", "10ms"]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    let becomes = |key: &str, reason: &str| {
        let status = match reason {
            "ok" => b"200",
            "tenant_inactive" => b"403",
            _ => b"401",
        };
        // The answer tells when; the access log, which Envoy writes when it has time, tells by whom.
        let (headers, start) = ([(KEY_HEADER, key.as_bytes())], Instant::now());
        let took = eventually(reason, PATIENCE, || {
            // Only the status line: Envoy closes the connection a second after a refusal by a filter that did not wait.
            let mut line = [0; 12];
            envoy.open("GET", &path(), &headers, "close").read_exact(&mut line).expect("an answer");
            if line.ends_with(status) { Ok(start.elapsed()) } else { Err(line) }
        });
        assert_eq!(by_module(&envoy, &headers).1["reason"], reason);
        took
    };
    let bound = Duration::from_secs(1);
    becomes(&world.live.text, "ok");
    becomes(&world.other.text, "ok");
    world.db.json(&["key", "revoke", &world.other.id]);
    assert!(becomes(&world.other.text, "revoked") < bound);
    world.db.json(&["tenant", "suspend", &world.acme.id]);
    assert!(becomes(&world.live.text, "tenant_inactive") < bound);
    world.db.json(&["tenant", "activate", &world.acme.id]);
    becomes(&world.live.text, "ok");
    world.db.json(&["key", "disable", &world.live.id]);
    assert!(becomes(&world.live.text, "disabled") < bound);
    world.db.json(&["key", "enable", &world.live.id]);
    becomes(&world.live.text, "ok");
    // A new hash voids what was proven.
    let hash = crate::support::world::quick_hash("llmk_live_another-Secret-0123456789");
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{hash}' WHERE id = '{}'", world.live.id));
    eventually("the old key is refused", PATIENCE, || {
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if outcome.page.status == 401 && said["via"].is_null() { Ok(()) } else { Err(said) }
    });
    // A prefix that was unknown.
    let made = world.db.json(&["key", "create", &world.acme.id]);
    becomes(made["key"].as_str().expect("a key"), "ok");
}

#[test]
fn what_the_module_cannot_judge_is_left_to_the_check() {
    let world = World::somewhere();
    let key = |args: &[&str]| {
        let made = world.db.json(&[&["key", "create", &world.acme.id], args].concat());
        made["key"].as_str().expect("a key").to_owned()
    };
    world.db.json(&["plan", "create", "gold", "--request-limit", "5/SECOND"]);
    let apart = [key(&["--scopes", "a b"]), key(&["--networks", "127.0.0.0/8"]), key(&["--plan", "gold"])];
    let weak = "llmk_weak_abcdefgh";
    let hash = crate::support::world::quick_hash(weak);
    world.db.sql(&format!(
        "UPDATE api_keys SET hashed_key = '{hash}', key_prefix = 'llmk_weak' WHERE id = '{}'",
        world.other.id
    ));
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    for key in apart.iter().map(String::as_str).chain([weak]) {
        // Twice: what was proven by the first could be published by the second.
        for _ in 0..2 {
            let said = eventually("it passes", PATIENCE, || {
                let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, key.as_bytes())]);
                if outcome.page.status == 200 { Ok(said) } else { Err(Box::new((outcome, said))) }
            });
            assert!(said["via"].is_null(), "{said}");
        }
    }
    // With a rule in force, every request is.
    world.db.json(&["route", "add", "--path", "/v1/**", "--scopes", "admin"]);
    eventually("the rule is in force", PATIENCE, || {
        let (_, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok(()) } else { Err(said) }
    });
    let (outcome, _) = ask(&envoy, &path(), &[(KEY_HEADER, apart[0].as_bytes())]);
    assert_eq!(outcome.page.status, 403);
}

#[test]
fn options_that_need_a_judgement_of_requests_leave_all_of_it_to_the_check() {
    for args in [&["--public", "GET /open/*"][..], &["--route-default", "deny"], &["--mode", "shadow"]] {
        let world = World::somewhere();
        let (server, socket, _directory) = publishing(&world, args);
        let Some(envoy) = with_module(&server, &socket).start() else { return };
        server.stderr.wait_for("published", PATIENCE, |lines| {
            lines.iter().any(|line| line.contains("what is proven is published")).then_some(())
        });
        for _ in 0..3 {
            let (_, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
            assert!(said["via"].is_null(), "{args:?}: {said}");
        }
    }
}

#[test]
fn without_a_server_nothing_passes_and_a_new_one_is_found() {
    let world = World::somewhere();
    let (mut server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    server.signal("KILL");
    server.exit_code(PATIENCE);
    let key = [(KEY_HEADER, world.live.text.as_bytes())];
    let start = Instant::now();
    eventually("the memory is stale", PATIENCE, || {
        let (outcome, said) = ask(&envoy, &path(), &key);
        if outcome.page.status == 503 { Ok(()) } else { Err(Box::new((outcome, said))) }
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for headers in [&key[..], &[]] {
        let (outcome, said) = ask(&envoy, &path(), headers);
        assert_eq!((outcome.page.status, outcome.seen.is_none()), (503, true), "{said}");
    }
    // Another process, with another key, on the same sockets.
    let listen = server.grpc[0].clone();
    let address = format!("unix:{}", socket.display());
    let _next = Server::on(&world.db).args(&["--listen", &listen, "--publish", &address]).start();
    with_key(&envoy, &world.live.text);
}

#[test]
fn a_server_that_is_suspended_is_not_believed_for_longer_than_a_second() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    server.signal("STOP");
    let passed = eventually("the memory is stale", PATIENCE, || {
        let before = Instant::now();
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok((before, outcome)) } else { Err(said) }
    });
    server.signal("CONT");
    assert_ne!(passed.1.page.status, 200, "{:?}", passed.1);
    with_key(&envoy, &world.live.text);
}

#[test]
fn envoy_may_start_first() {
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    let elsewhere = directory.path().join("later.sock");
    let Some(envoy) = with_module(&server, &elsewhere).start() else { return };
    let (outcome, said) = ask(&envoy, &path(), &[]);
    assert_eq!((outcome.page.status, &said["via"]), (401, &Value::Null));
    // Something else that listens there is not a server.
    let foreign = std::os::unix::net::UnixListener::bind(&elsewhere).expect("bound");
    let (mut stream, _) = foreign.accept().expect("the module tries");
    std::io::Write::write_all(&mut stream, &[0x41; 48]).expect("sent");
    let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
    assert_eq!((outcome.page.status, &said["via"]), (200, &Value::Null));
    drop((foreign, stream));
    std::fs::remove_file(&elsewhere).expect("removed");
    std::os::unix::fs::symlink(&socket, &elsewhere).expect("linked");
    with_key(&envoy, &world.live.text);
}

#[test]
fn decisions_in_envoy_are_counted_where_those_of_checks_are() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    by_module(&envoy, &[]);
    let module = |reason: &str| {
        server.metric(&["tenantgate_decisions_total", "path=\"module\"", &format!("reason=\"{reason}\"")])
    };
    for reason in ["ok", "missing"] {
        eventually(reason, PATIENCE, || if module(reason) >= 1.0 { Ok(()) } else { Err(module(reason)) });
    }
    let before = server.metric(&["tenantgate_decisions_total"]);
    for _ in 0..100 {
        let (outcome, _) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        assert_eq!(outcome.page.status, 200);
    }
    eventually("all of them are counted", PATIENCE, || {
        let now = server.metric(&["tenantgate_decisions_total"]);
        if now >= before + 100.0 { Ok(()) } else { Err(now - before) }
    });
    assert!(envoy.stat("dynamicmodulescustom.tenantgate_allowed") >= 100);
    server.signal("TERM");
    eventually("the use is written", PATIENCE, || {
        let shown = world.db.json(&["key", "show", &world.live.id]);
        if shown["last_used_at"].is_string() { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn once_envoy_tells_of_a_route_the_module_decides_nothing() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    let mut request = Ask::with_key(&world.live.text).request();
    let attributes = request.attributes.as_mut().expect("a request");
    attributes.context_extensions.insert("tenantgate.mode".into(), "required".into());
    server.check(request);
    eventually("the module asks", PATIENCE, || {
        let (_, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_configuration_is_validated_without_a_server_and_a_bad_one_is_rejected() {
    let Some(envoy) = binary() else { return };
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    let validate = |program: &Path, text: &str| {
        let file = directory.path().join("envoy.yaml");
        std::fs::write(&file, text).expect("written");
        let said = Command::new(program)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", &*MODULES)
            .output();
        said.expect("envoy starts").status.success()
    };
    let plan = with_module(&server, &socket);
    assert!(validate(&envoy, plan.text()));
    let bad = plan.text().replace("value: \"unix:", "value: \"tcp:");
    assert!(!validate(&envoy, &bad));
    // An Envoy of another ABI: one of its functions has another name.
    let mut program = std::fs::read(&envoy).expect("read");
    let name = b"envoy_dynamic_module_callback_http_add_dynamic_metadata_list_bool\0";
    let at = program.windows(name.len()).position(|window| window == name).expect("it has the function");
    program[at + name.len() - 2] = b'X';
    let other = directory.path().join("envoy");
    std::fs::write(&other, program).expect("written");
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&other, mode).expect("executable");
    assert!(!validate(&other, plan.text()), "an Envoy of another ABI is refused");
}
