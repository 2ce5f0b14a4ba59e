//! Searches all output, at the most verbose level, for keys.

mod places;
mod process;
mod types;

use crate::support::postgres::PASSWORD;
use crate::support::world::string;
use crate::support::{Ask, PATIENCE, Server, World, on_every_store};

on_every_store![a_server_at_the_most_verbose_level_prints_no_secret];

fn a_server_at_the_most_verbose_level_prints_no_secret(world: &World) {
    for format in ["text", "json"] {
        let plan =
            Server::on(&world.db).args(&["--log-level", "trace", "--log-format", format, "--accept-bearer"]);
        let mut server = plan.start();
        let presented = present_everything(world, &server);
        let metrics = server.http("/metrics").body;
        let others = [server.http("/readyz").body, server.http("/livez").body].join("\n");
        server.signal("TERM");
        assert_eq!(server.exit_code(PATIENCE), Some(0));
        let log = server.stderr.to_the_end(PATIENCE);
        assert!(log.lines().count() > 50 && log.contains("TRACE"), "the log is not verbose: {log}");
        for (place, text) in [("the log", &log), ("/metrics", &metrics), ("/readyz", &others)] {
            for secret in &presented {
                assert!(
                    !text.contains(secret.as_str()),
                    "{place} ({format}) contains `{secret}`: {}",
                    around(text, secret)
                );
            }
        }
    }
}

/// Returns the lines of a text that contain something.
fn around(text: &str, what: &str) -> String {
    text.lines().filter(|line| line.contains(what)).take(3).collect::<Vec<_>>().join("\n")
}

/// Sends keys of every kind in every place. Returns every text that must not occur in output.
fn present_everything(world: &World, server: &Server) -> Vec<String> {
    let made = string(&world.db.json(&["key", "create", &world.acme.id]), "key");
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&made));
    let keys = [
        world.live.text.clone(),
        world.issued.text.clone(),
        world.revoked.text.clone(),
        world.expired.text.clone(),
        world.of_sleepy.text.clone(),
        world.live.with_wrong_secret(),
        "llmk_nobody_UnknownSecret01".to_owned(),
        "llmk_live.x_MalformedSecret02".to_owned(),
        "llmk_short_1a2b3c".to_owned(),
        "sk-ForeignSecret03".to_owned(),
        format!("llmk_live_{}", "TooLongSecret04".repeat(10)),
        made,
    ];
    for key in &keys {
        let bearer = format!("Bearer {key}");
        let asks = [
            Ask::with_key(key),
            Ask::get("/docs").key(key),
            Ask::get("/v1").authorization(&bearer),
            Ask::with_key(key).authorization(&bearer),
            Ask::with_key(&format!("{key},{key}")),
            Ask::with_key(&format!(" {key}")),
            Ask::get("/v1").raw("x-llmcore-api-key", key),
            Ask::get("/v1").raw("x-llmcore-api-key", format!("{key}\u{ff}")),
            Ask::get(&format!("/v1?key={key}")),
        ];
        for ask in asks {
            server.check(ask);
        }
        let broken = Ask::with_key(key).bytes();
        let _ = server.check_bytes(broken[..broken.len() - 3].to_vec());
    }
    let secrets = keys.iter().filter_map(|key| Some(key.splitn(3, '_').nth(2)?.to_owned()));
    let mut never_seen: Vec<String> = secrets.chain(keys.iter().cloned()).collect();
    never_seen
        .extend(["sk-ForeignSecret03", "TooLongSecret04", PASSWORD, "$2b$12$", "$2b$04$"].map(str::to_owned));
    never_seen
}

#[test]
fn a_command_at_the_most_verbose_level_prints_no_secret() {
    let world = World::somewhere();
    let args = ["key", "create", &world.acme.id, "--database-url", world.db.url(), "-o", "json"];
    let run = crate::support::cli::run_in(world.db.dir(), &[("RUST_LOG", "trace")], &args);
    let key = string(&serde_json::from_str(&run.stdout).expect("JSON on stdout"), "key");
    let secret = key.rsplit_once('_').expect("a secret").1;
    assert!(!run.stderr.contains(secret) && !run.stderr.contains("$2b$"), "{}", run.stderr);
}
