//! Runs the guide `docs/guides/an-agreement.md`: every command in it, in order, and every request through a real Envoy
//! with `envoy/plain/limits.yaml` and a rate-limit service. What stands behind `#` must be in the output.

use std::process::{Command, Stdio};

use crate::support::ask::KEY_HEADER;
use crate::support::cli::{DATABASE_URL, command, tenantgate};
use crate::support::envoy::Envoy;
use crate::support::http::Page;
use crate::support::rate_limit::RateLimits;
use crate::support::world::{quick_hash, string};
use crate::support::{Ask, Backend, Database, PATIENCE, Server};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/an-agreement.md");

/// The prefix of the key in the page.
const PREFIX: &str = "llmk_acmeYt7Rk2Wq";

/// The commands of the page, each with what is expected of it.
fn commands() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(PAGE).expect("the page is there");
    let blocks = page.split("```sh\n").skip(1).map(|block| block.split("```").next().expect("a block ends"));
    let lines = blocks.flat_map(str::lines).map(|line| line.split_once(" # ").unwrap_or((line, "")));
    lines.map(|(command, expected)| (command.trim().to_owned(), expected.trim().to_owned())).collect()
}

/// Runs a command of the page, as a shell reads it. Returns its output in one line.
fn run(database: &Database, line: &str) -> String {
    let mut shell = Command::new("sh");
    // Without the caller's settings, as everywhere in the tests.
    for (name, _) in command(database.dir()).get_envs() {
        shell.env_remove(name);
    }
    shell.args(["-c", &line.replacen("tenantgate", "exec \"$0\"", 1)]).arg(tenantgate());
    shell.env(DATABASE_URL, database.url()).current_dir(database.dir()).stdin(Stdio::null());
    let done = shell.output().expect("sh starts");
    assert!(done.status.success(), "{line}: {done:?}");
    let text = String::from_utf8(done.stdout).expect("text");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Sends a request as the proxy before Envoy does for a client at this address.
fn send(envoy: &Envoy, method: &str, path: &str, key: Option<&str>, from: &str) -> Page {
    let key = key.map(|key| format!("{KEY_HEADER}: {key}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: api.example.com\r\nconnection: close\r\nx-forwarded-for: {from}\r\n{key}\r\n"
    );
    envoy.exchange(request.as_bytes())
}

/// Sends what a line with `curl` sends, and checks its status and body.
fn curl(envoy: &Envoy, line: &str, expected: &str, key: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let method = words.iter().position(|word| *word == "-X").map_or("GET", |at| words[at + 1]);
    let url = words.iter().find_map(|word| word.strip_prefix("http://127.0.0.1:10000")).expect("a URL");
    let key = line.contains("$KEY").then_some(key);
    let (from, wanted) = expected.split_once(": ").expect("ADDRESS: STATUS TEXT");
    let (status, text) = wanted.split_once(' ').unwrap_or((wanted, ""));
    let page = send(envoy, method, url, key, from);
    assert_eq!(page.status.to_string(), status, "{line}: {page:?}");
    assert!(page.body.contains(text), "{line}: {page:?}");
}

#[test]
fn the_agreement_of_the_guide_holds_through_envoy() {
    let database = Database::empty(Backend::Sqlite).expect("SQLite is always there");
    database.cli(&["migrate"]).ok();
    let limits = RateLimits::start(None);
    let (mut key, mut prefix, mut running) = (String::new(), PREFIX.to_owned(), None);
    let mut curls = 0;
    for (line, expected) in commands() {
        let line = line.replace(PREFIX, &prefix);
        if let Some(options) = line.strip_prefix("tenantgate serve ") {
            let options: Vec<_> = options.split_whitespace().collect();
            let server = Server::on(&database).args(&options).start();
            // The clients of the page are elsewhere: a proxy before Envoy says where.
            let plan = limits.behind(&server).with(
                "          use_remote_address: true\n",
                "          use_remote_address: true\n          xff_num_trusted_hops: 1\n",
            );
            let Some(envoy) = plan.start() else { return };
            running = Some((server, envoy));
        } else if line.starts_with("envoy ") {
            assert!(line.ends_with("envoy/plain/limits.yaml"), "the file that runs here: {line}");
        } else if line.starts_with("curl ") {
            let (_, envoy) = running.as_ref().expect("the page starts Envoy first");
            curl(envoy, &line, &expected, &key);
            curls += 1;
        } else if line.starts_with("tenantgate key create ") {
            let made: serde_json::Value =
                serde_json::from_str(&run(&database, &format!("{line} -o json"))).expect("JSON");
            (key, prefix) = (string(&made, "key"), string(&made, "key_prefix"));
            let hash = quick_hash(&key);
            database.sql(&format!("UPDATE api_keys SET hashed_key = '{hash}' WHERE key_prefix = '{prefix}'"));
        } else {
            if line.starts_with("tenantgate plan update") {
                let (_, envoy) = running.as_ref().expect("the page starts Envoy first");
                at_most_a_hundred(envoy, &limits, &key);
            }
            let said = run(&database, &line);
            assert!(said.contains(&expected), "{line}: no {expected:?} in {said}");
        }
    }
    assert_eq!(curls, 5, "the requests of the page were sent");
    let (server, _) = running.expect("the page starts a server");
    server.row_becomes("401 disabled", PATIENCE, Ask::with_key(&key));
}

/// Uses up the minute, beside requests that tenantgate rejects.
fn at_most_a_hundred(envoy: &Envoy, limits: &RateLimits, key: &str) {
    limits.next_window();
    let from = |address: &str, method: &str| send(envoy, method, "/v1/orders/7", Some(key), address).status;
    for number in 0..100 {
        assert_eq!(from("192.0.2.10", "GET"), 200, "request {number}");
        if number % 10 == 0 {
            assert_eq!((from("198.51.100.9", "GET"), from("192.0.2.10", "POST")), (403, 403));
        }
    }
    assert_eq!((from("192.0.2.10", "GET"), from("2001:db8:7::1", "HEAD")), (429, 429), "all of the tenant");
    let asked = limits.asked();
    assert!(asked.iter().all(|asked| asked.limit.as_deref() == Some("100/MINUTE")), "{asked:?}");
    limits.next_window();
    assert_eq!(from("192.0.2.10", "GET"), 200, "the next minute");
}
