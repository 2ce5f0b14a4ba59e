//! Connects to a real Postgres with every form of address that clients use, or checks how it is rejected.
//!
//! The forms are in `urls.txt`, which the unit test of the parser reads, too.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::Value;

use super::rows;
use crate::support::cli::{DATABASE_URL, Run, run_in};
use crate::support::postgres::Cluster;
use crate::support::{Backend, Database, PATIENCE, eventually, tell};
use crate::tls::{authority, file, issued_for};

/// The forms.
const FORMS: &str = include_str!("urls.txt");

/// A password with every character that has a meaning in a URL.
const PASSWORD: &str = "hunter@:/?#[]%&=+ énever";

/// No output contains any of these.
const SECRET: [&str; 2] = ["hunter", "never"];

/// The databases for rows without a schema and for rows with one.
const DATABASES: [(&str, &str); 2] = [("own", "public"), ("own_app", "app")];

/// A Postgres with TLS and passwords, on both loopbacks and a socket, and the files of its clients.
struct Place {
    cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Place {
    fn made() -> Option<Self> {
        let cluster = Cluster::private()?;
        let dir = tempfile::tempdir().expect("a directory");
        let (ours, others) = (authority("ours"), authority("others"));
        let (certificate, key) = issued_for(&["localhost", "::1"], &ours);
        let (certificate, key) = (cluster.file("server.pem", &certificate), cluster.file("server.key", &key));
        let ca = cluster.file("clients.pem", &ours.pem());
        cluster.restart_with(&format!(
            "-c listen_addresses=127.0.0.1,::1 -c ssl=on -c ssl_cert_file={} -c ssl_key_file={} -c ssl_ca_file={}",
            certificate.display(),
            key.display(),
            ca.display()
        ));
        file(dir.path(), "ca.pem", &ours.pem());
        file(dir.path(), "other.pem", &others.pem());
        let mut client = CertificateParams::new(Vec::new()).expect("no names");
        client.distinguished_name.push(DnType::CommonName, "certified");
        let key = KeyPair::generate().expect("a key");
        file(dir.path(), "cert.pem", &client.signed_by(&key, &ours).expect("signed").pem());
        file(dir.path(), "key.pem", &key.serialize_pem());
        for (name, schema) in DATABASES {
            cluster.admin(&format!("CREATE DATABASE {name}"));
            let database = Database::at(Backend::Postgres, &cluster.url(name));
            database.cli(&["migrate", "--database-schema", schema]).ok();
            database.sql(&format!("SET search_path = {schema}; {}", rows()));
        }
        Some(Self { cluster, dir })
    }

    /// Creates a role with the password unless it exists.
    fn role(&self, name: &str) {
        let password = PASSWORD.replace('\'', "''");
        self.cluster.admin(&format!(
            "DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN
                 CREATE ROLE \"{name}\" LOGIN SUPERUSER PASSWORD '{password}';
             END IF; END $do$"
        ));
    }

    /// Requires a password of all clients except the test itself.
    fn asks_everybody(&self) {
        self.cluster.lets_in(
            "host all tenantgate 127.0.0.1/32 trust\nhostssl all certified all cert\n\
             host all all all scram-sha-256\nlocal all all scram-sha-256\n",
        );
        let wrong = format!("postgres://u:wrong@localhost:{}/own", self.cluster.port());
        eventually("passwords are asked for", PATIENCE, || {
            let run = run_in(self.dir.path(), &[], &["tenant", "list", "--database-url", &wrong]);
            if run.code == Some(3) { Ok(()) } else { Err(run) }
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the value for a placeholder `{name:value}`.
    fn piece(&self, name: &str, value: Option<&str>, database: &str) -> String {
        let file = |name: &str| self.path(name).display().to_string();
        match name {
            "user" | "user%" | "ip" => value.unwrap_or("u").to_owned(),
            "password" => encoded(PASSWORD),
            "host" => "localhost".to_owned(),
            "port" => self.cluster.port().to_string(),
            "db" => database.to_owned(),
            "socket" => self.cluster.dir().display().to_string(),
            "socket%" => encoded(&self.cluster.dir().display().to_string()),
            name => file(&format!("{name}.pem")),
        }
    }

    fn filled(&self, form: &str, database: &str) -> String {
        let mut pieces = form.split('{');
        let mut text = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (inner, rest) = piece.split_once('}').expect("a closing brace");
            let (name, value) =
                inner.split_once(':').map_or((inner, None), |(name, value)| (name, Some(value)));
            text += &self.piece(name, value, database);
            text += rest;
        }
        text
    }

    /// Runs a command with this URL in the variable, as deployments do.
    fn run(&self, url: &str, args: &[&str]) -> Run {
        let (variable, url) = with_variable(url);
        let (port, roots) = (self.cluster.port().to_string(), self.path("ca.pem").display().to_string());
        let mut env = vec![(DATABASE_URL, url), ("PGPORT", &port)];
        if let Some(file) = variable {
            env.push(("SSL_CERT_FILE", file));
        } else if url.contains("sslrootcert=system") {
            // The system's certificates for this test.
            env.push(("SSL_CERT_FILE", &roots));
        }
        let run = run_in(self.dir.path(), &env, args);
        for secret in SECRET {
            assert!(!run.stdout.contains(secret), "{url}: stdout repeats the password: {run:#?}");
            assert!(!run.stderr.contains(secret), "{url}: stderr repeats the password: {run:#?}");
        }
        run
    }
}

/// Separates the variable that a form may begin with.
fn with_variable(form: &str) -> (Option<&str>, &str) {
    let given = form.strip_prefix("SSL_CERT_FILE=").and_then(|rest| rest.split_once(' '));
    given.map_or((None, form), |(file, url)| (Some(file), url))
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = if byte.is_ascii_alphanumeric() {
            write!(out, "{}", char::from(byte))
        } else {
            write!(out, "%{byte:02X}")
        };
        out
    })
}

/// Returns the result of a check of `doctor`.
fn said<'a>(findings: &'a Value, check: &str) -> &'a str {
    let found = findings.as_array().expect("a list").iter().find(|found| found["check"] == check);
    found.and_then(|found| found["what"].as_str()).unwrap_or_else(|| panic!("no {check}: {findings:#}"))
}

/// Checks that a connection reaches the database of the row, over TLS if the row demands it.
fn leads_there(place: &Place, url: &str, wanted: &str) {
    let run = place.run(url, &["doctor", "-o", "json"]);
    assert_eq!(run.code, Some(0), "{url}: {run:#?}");
    let findings = serde_json::from_str(&run.stdout).expect("JSON");
    let (whither, rest) = wanted.split_once(' ').expect("a mode");
    // The last @, because a name may contain one.
    let (user, address) = whither.rsplit_once('@').expect("a user");
    assert_eq!(said(&findings, "database.reachable"), format!("postgres://{address}"), "{url}");
    assert!(
        said(&findings, "database.role").starts_with(&format!("the role {user} ")),
        "{url}: {findings:#}"
    );
    assert_eq!(said(&findings, "database.load"), "1 keys of 1 tenants", "{url}");
    let plain = rest.starts_with("Disable") || address.starts_with('/');
    let tls = if plain { "not encrypted" } else { "is encrypted" };
    assert!(said(&findings, "database.tls").contains(tls), "{url}: {findings:#}");
}

fn is_refused(place: &Place, url: &str, why: &str) {
    for command in [&["tenant", "list"][..], &["serve", "--check-config"], &["doctor"]] {
        let said = place.run(url, command).usage();
        assert!(said.trim_end().ends_with(&format!(": {why}")), "{url}: {said}");
    }
}

#[test]
fn every_form_that_clients_write_connects_or_is_refused_with_what_to_write() {
    let Some(place) = Place::made() else { return };
    let rows = FORMS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split(" | ").collect()).collect();
    let literal =
        rows.iter().flat_map(|row| row[2].split("{user:").skip(1)).filter_map(|rest| rest.split('}').next());
    for role in literal.chain(["u", "certified"]) {
        place.role(role);
    }
    place.asks_everybody();
    let [mut connected, mut failed, mut refused] = [0; 3];
    for row in &rows {
        let [_, form, wanted] = row[..] else { panic!("three columns: {row:?}") };
        let schema = wanted.rsplit(' ').next().unwrap_or_default();
        let (database, _) = DATABASES[usize::from(schema == "app")];
        let url = place.filled(form, database);
        match wanted.split_once(' ') {
            Some(("refused", why)) => {
                is_refused(&place, &url, why);
                refused += 1;
            }
            Some(("fails", why)) => {
                let said = place.run(&url, &["tenant", "list"]).unavailable();
                assert!(said.contains(why), "{url}: {said}");
                failed += 1;
            }
            _ => {
                leads_there(&place, &url, &place.filled(wanted, database));
                connected += 1;
            }
        }
    }
    tell(&format!("addresses: {connected} forms connect, {failed} must not, {refused} are refused"));
    assert!(connected >= 35 && failed >= 7 && refused >= 35);
}

/// A file with the URL is read like the option.
#[test]
fn a_form_in_a_file_is_refused_in_the_same_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = FORMS.lines().filter_map(|line| {
        let (form, why) = line.split_once(" | refused ")?;
        Some((form.split_once(" | ")?.1, why))
    });
    for (form, why) in refused {
        let (variable, url) = with_variable(form);
        let name = file(Path::new(dir.path()), "url", &format!("{url}\n"));
        let env: Vec<_> = variable.map(|file| ("SSL_CERT_FILE", file)).into_iter().collect();
        let said = run_in(dir.path(), &env, &["tenant", "list", "--database-url-file", &name]).usage();
        assert!(said.trim_end().ends_with(&format!(": {why}")), "{form}: {said}");
        assert!(SECRET.iter().all(|secret| !said.contains(secret)), "{form}: {said}");
    }
}
