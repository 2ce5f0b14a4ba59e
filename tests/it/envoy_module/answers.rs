//! Tests which requests the module decides about, and which it leaves to the Check.

use std::path::Path;
use std::process::Command;

use super::*;

#[test]
fn the_module_needs_the_c_library_and_nothing_else() {
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy/module/check");
    let check = |file: &Path| Command::new(&check).arg(file).output().expect("bash and binutils");
    let said = check(&MODULES.join("libtenantgate_envoy.so"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    // The checker must reject a module that needs more.
    assert!(
        !check(Path::new(env!("CARGO_BIN_EXE_tenantgate"))).status.success(),
        "a program is not a module"
    );
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
    // The server decides about public requests.
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

/// The part of `envoy.yaml` that removes forged headers before the filters. The module must not depend on it.
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
    // A route for one tenant, which a client must not choose with a forged header.
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
fn a_check_decides_what_the_module_cannot() {
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
        // Twice, because the key of the first request may be published before the second one.
        for _ in 0..2 {
            let said = eventually("it passes", PATIENCE, || {
                let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, key.as_bytes())]);
                if outcome.page.status == 200 { Ok(said) } else { Err(Box::new((outcome, said))) }
            });
            assert!(said["via"].is_null(), "{said}");
        }
    }
    // With a rule in force, every request is left to the Check.
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
            lines.iter().any(|line| line.contains("publishing proven keys")).then_some(())
        });
        for _ in 0..3 {
            let (_, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
            assert!(said["via"].is_null(), "{args:?}: {said}");
        }
    }
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
    // Without the file of the module.
    let file = directory.path().join("envoy.yaml");
    std::fs::write(&file, plan.text()).expect("written");
    let missing = Command::new(&envoy)
        .args(["--mode", "validate", "-c"])
        .arg(&file)
        .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", directory.path())
        // Cargo lists the directory of its build there, where the module is as well.
        .env_remove("LD_LIBRARY_PATH")
        .output();
    assert!(!missing.expect("envoy starts").status.success());
    // An Envoy with another ABI: one of its functions has another name.
    let mut program = std::fs::read(&envoy).expect("read");
    let name = b"envoy_dynamic_module_callback_http_add_dynamic_metadata_list_bool\0";
    let at = program.windows(name.len()).position(|window| window == name).expect("it has the function");
    program[at + name.len() - 2] = b'X';
    let [written, other] = ["written", "envoy"].map(|name| directory.path().join(name));
    std::fs::write(&written, program).expect("written");
    // Copied by another process, because a program cannot be started while any process has it open for writing, and
    // the tests beside this one start processes that may inherit our file.
    let copied = Command::new("install").args(["-m", "755"]).args([&written, &other]).status();
    assert!(copied.expect("install starts").success());
    assert!(!validate(&other, plan.text()), "an Envoy of another ABI is refused");
}
