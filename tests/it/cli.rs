//! Tests what scripts rely on: exit codes, streams, and that secrets are never printed.

use crate::support::cli::{DATABASE_URL, command, run_in};
use crate::support::link::free_port;
use crate::support::postgres::PASSWORD;
use crate::support::{Backend, Database, World, on_every_store};

/// A full key that was never issued; no message may repeat it.
const KEY: &str = "llmk_typed_SecretThatIsTyped0123";

on_every_store![text_is_for_people_and_json_for_programs, missing_objects_are_reported_in_one_line];

fn text_is_for_people_and_json_for_programs(world: &World) {
    for command in [["tenant", "list"], ["key", "list"]] {
        let text = world.db.cli(&command).ok();
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_err(), "text is the default: {text}");
        assert!(text.contains(&world.acme.id) || text.contains(&world.live.prefix), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours without a terminal: {text:?}");
        for flag in ["--output", "-o"] {
            let json = world.db.cli(&[command[0], command[1], flag, "json"]).json();
            assert!(json.as_array().is_some_and(|rows| !rows.is_empty()), "{json}");
        }
    }
}

fn missing_objects_are_reported_in_one_line(world: &World) {
    let nobody = "00000000-0000-4000-8000-000000000000";
    let commands: [&[&str]; 10] = [
        &["tenant", "show", nobody],
        &["tenant", "show", "Nobody"],
        &["tenant", "suspend", "Nobody"],
        &["tenant", "activate", "Nobody"],
        &["tenant", "delete", "Nobody", "--yes"],
        &["key", "create", "Nobody"],
        &["key", "list", "Nobody"],
        &["key", "show", "llmk_nobody"],
        &["key", "revoke", nobody],
        &["key", "rotate", "llmk_nobody"],
    ];
    for command in commands {
        let line = world.db.cli(command).refused();
        assert!(line.contains(command[2]), "the line names what was not found: {line}");
        world.db.cli(&[command, &["-o", "json"]].concat()).refused();
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let empty = tempfile::tempdir().expect("a directory");
    let commands: [&[&str]; 16] = [
        &[],
        &["serve"],
        &["migrate"],
        &["seed-demo"],
        &["tenant"],
        &["tenant", "create"],
        &["tenant", "list"],
        &["tenant", "show"],
        &["tenant", "suspend"],
        &["tenant", "delete"],
        &["key"],
        &["key", "create"],
        &["key", "list"],
        &["key", "revoke"],
        &["key", "rotate"],
        &["check"],
    ];
    for command in commands {
        let help = run_in(empty.path(), &[], &[command, &["--help"]].concat()).ok();
        assert!(help.contains("Usage: tenantgate"), "{help}");
    }
    assert!(run_in(empty.path(), &[], &["--version"]).ok().starts_with("tenantgate 0."));
    assert_eq!(std::fs::read_dir(empty.path()).expect("readable").count(), 0, "help creates no file");
}

#[test]
fn every_shell_gets_its_completions() {
    let empty = tempfile::tempdir().expect("a directory");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run_in(empty.path(), &[], &["completions", shell]).ok();
        assert!(script.contains("tenantgate") && script.contains("seed-demo"), "{shell}");
    }
    run_in(empty.path(), &[], &["completions", "tcsh"]).usage();
}

#[test]
fn usage_errors_exit_with_2() {
    let world = World::somewhere();
    let commands: [&[&str]; 16] = [
        &["frobnicate"],
        &["tenant", "list", "--frobnicate"],
        &["tenant", "list", "surplus"],
        &["tenant", "list", "--output", "yaml"],
        &["tenant", "create"],
        &["tenant", "show"],
        &["tenant", "delete", "Acme Corp"],
        &["key", "create"],
        &["key", "create", "Acme Corp", "--expires-in", "90d", "--expires-at", "2099-01-01T00:00:00Z"],
        &["key", "create", "Acme Corp", "--expires-in"],
        &["key", "revoke"],
        &["key", "rotate", "llmk_live", "--grace", "soon"],
        &["check"],
        &["check", "--target", "127.0.0.1:1", "--header", "no colon"],
        &["serve", "--on-unavailable", "maybe"],
        &["serve", "--log-format", "xml"],
    ];
    for command in commands {
        world.db.cli(command).usage();
    }
    let shown = world.db.json(&["tenant", "show", "Acme Corp"]);
    assert_eq!(shown["status"], "active", "a delete without --yes does nothing");
}

#[test]
fn the_default_is_a_sqlite_file_in_the_working_directory() {
    let empty = tempfile::tempdir().expect("a directory");
    run_in(empty.path(), &[], &["tenant", "create", "Acme"]).ok();
    assert!(empty.path().join("tenantgate.db").exists());
    let shown = run_in(empty.path(), &[], &["tenant", "list", "-o", "json"]).json();
    assert_eq!(shown.as_array().map(Vec::len), Some(1));
}

#[test]
fn an_option_takes_precedence_over_its_variable() {
    let (one, two) = (World::somewhere(), Database::empty(Backend::Sqlite).expect("always there"));
    two.cli(&["migrate"]).ok();
    let list = |env: &[(&str, &str)], args: &[&str]| {
        let args = [&["tenant", "list", "-o", "json"], args].concat();
        run_in(one.db.dir(), env, &args).json().as_array().map_or(0, Vec::len)
    };
    assert_eq!(list(&[(DATABASE_URL, one.db.url())], &[]), 4);
    assert_eq!(list(&[(DATABASE_URL, two.url())], &[]), 0);
    assert_eq!(list(&[(DATABASE_URL, two.url())], &["--database-url", one.db.url()]), 4);
}

#[test]
fn an_invalid_database_url_is_a_usage_error() {
    let empty = tempfile::tempdir().expect("a directory");
    for url in ["mysql://localhost/db", "nonsense", "", "http://localhost", "postgres://host:notaport/db"] {
        run_in(empty.path(), &[], &["tenant", "list", "--database-url", url]).usage();
    }
    assert_eq!(std::fs::read_dir(empty.path()).expect("readable").count(), 0);
}

#[test]
fn an_unreachable_database_exits_with_3() {
    let empty = tempfile::tempdir().expect("a directory");
    let nobody = format!("postgres://tenantgate:{PASSWORD}@127.0.0.1:{}/db", free_port());
    let nowhere = format!("sqlite://{}/no/such/directory/tenantgate.db", empty.path().display());
    for url in [&nobody, &nowhere] {
        for command in [&["tenant", "list"][..], &["migrate"], &["key", "show", "llmk_live"], &["seed-demo"]]
        {
            run_in(empty.path(), &[], &[command, &["--database-url", url]].concat()).unavailable();
        }
    }
}

#[test]
fn a_database_that_rejects_the_login_exits_with_3() {
    let Some(database) = Database::empty(Backend::Postgres) else { return };
    let wrong = database.url().replace(database.name(), "no_such_database");
    run_in(database.dir(), &[], &["tenant", "list", "--database-url", &wrong]).unavailable();
    let nobody = database.url().replacen("tenantgate:", "nobody_we_know:", 1);
    run_in(database.dir(), &[], &["tenant", "list", "--database-url", &nobody]).unavailable();
}

#[test]
fn a_database_url_in_the_wrong_place_is_not_repeated_either() {
    let world = World::somewhere();
    for url in [
        format!("postgres://u:{PASSWORD}@localhost/db"),
        format!("postgresql+asyncpg://u:{PASSWORD}@localhost/db"),
    ] {
        for command in [&["tenant", "list", "--output"][..], &["tenant", "list"], &["serve", "--listen"], &[]]
        {
            run_in(world.db.dir(), &[], &[command, &[&url]].concat()).usage();
        }
    }
}

/// `support::cli` asserts that no stream of any run contains a secret of its arguments.
#[test]
fn no_message_repeats_a_key_or_a_password() {
    let world = World::somewhere();
    let with_key = [
        format!("--bogus={KEY}"),
        format!("--expires-in={KEY}"),
        format!("--output={KEY}"),
        format!("--grace={KEY}"),
        format!("--expires-at={KEY}"),
        KEY.to_owned(),
        format!("x{KEY}"),
        world.live.text.clone(),
    ];
    let with_password = [
        format!("mysql://u:{PASSWORD}@localhost/db"),
        format!("postgres://u:{PASSWORD}@localhost:notaport/db"),
        format!("postgres://u:{PASSWORD}@127.0.0.1:{}/db", free_port()),
        format!("postgres//u:{PASSWORD}@localhost/db"),
        format!("postgres://u:{PASSWORD}@127.0.0.1/db?sslmode=nonsense"),
        format!("u:{PASSWORD}@localhost"),
    ];
    for argument in &with_key {
        let commands: [&[&str]; 12] = [
            &[],
            &["key"],
            &["key", "show"],
            &["key", "show", "llmk_live"],
            &["key", "revoke"],
            &["key", "rotate"],
            &["key", "create"],
            &["key", "create", "Acme Corp"],
            &["tenant", "show"],
            &["serve"],
            &["check", "--target"],
            &["check", "--target", "127.0.0.1:1", "--header"],
        ];
        for command in commands {
            let run = world.db.cli(&[command, &[argument]].concat());
            assert_ne!(run.code, Some(101), "a panic: {run:#?}");
        }
    }
    for url in &with_password {
        for command in [&["tenant", "list"][..], &["migrate"], &["tenant"], &["serve", "--check-config"]] {
            let by_flag = run_in(world.db.dir(), &[], &[command, &["--database-url", url]].concat());
            let by_variable = run_in(world.db.dir(), &[(DATABASE_URL, url)], command);
            for run in [by_flag, by_variable] {
                assert_ne!(run.code, Some(101), "a panic: {run:#?}");
            }
        }
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let world = World::somewhere();
    for args in [
        &["key", "create", "Acme Corp"][..],
        &["key", "create", "Acme Corp", "-o", "json"],
        &["tenant", "list"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full exists");
        let mut command = command(world.db.dir());
        let said = command
            .args(args)
            .args(["--database-url", world.db.url()])
            .stdout(full)
            .output()
            .expect("it starts");
        assert_ne!(said.status.code(), Some(0), "the result was not printed: {args:?}: {said:?}");
        assert!(!said.stderr.is_empty(), "{args:?}: {said:?}");
    }
}

#[test]
fn a_configuration_is_checked_as_a_whole() {
    let world = World::somewhere();
    world.db.cli(&["serve", "--check-config"]).ok();
    let good =
        ["serve", "--check-config", "--max-staleness", "10m", "--sync-interval", "20ms", "--public", "none"];
    world.db.cli(&good).ok();
    let bad = [
        ("--public", "GET docs"),
        ("--max-staleness", "soon"),
        ("--sync-interval", "50"),
        ("--key-header", "not a header"),
        ("--listen", "nowhere"),
        ("--ops-listen", "127.0.0.1:99999"),
        ("--on-unavailable", "maybe"),
        ("--log-format", "xml"),
        ("--log-level", "a=b=c"),
        ("--tls-cert", "/no/such/file"),
    ];
    let mut args = vec!["serve", "--check-config"];
    args.extend(bad.iter().flat_map(|(flag, value)| [*flag, *value]));
    let said = world.db.cli(&args).usage();
    for (flag, value) in bad {
        assert!(said.contains(flag), "`{flag} {value}` is reported, too: {said}");
        let alone = world.db.cli(&["serve", "--check-config", flag, value]).usage();
        assert!(alone.contains(flag), "{flag}: {alone}");
    }
}

#[test]
fn wrong_variables_are_reported_like_wrong_flags() {
    let world = World::somewhere();
    let env = [
        ("TENANTGATE_MAX_STALENESS", "soon"),
        ("TENANTGATE_SYNC_INTERVAL", "x"),
        ("TENANTGATE_LISTEN", "nowhere"),
    ];
    let args = ["serve", "--check-config", "--database-url", world.db.url()];
    let said = run_in(world.db.dir(), &env, &args).usage();
    for word in ["MAX_STALENESS", "SYNC_INTERVAL", "LISTEN"] {
        let flag = format!("--{}", word.to_lowercase().replace('_', "-"));
        assert!(said.contains(word) || said.contains(&flag), "{word}: {said}");
    }
}
