//! Tests a server that starts with a snapshot file while the database is unavailable.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::cli::run_in;
use crate::support::link::Link;
use crate::support::server::Plan;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually};

struct Kept {
    world: World,
    link: Link,
    /// The database behind the link.
    seen: Database,
    file: PathBuf,
}

impl Kept {
    /// A world whose server has written its file and stopped, and whose database is unavailable.
    fn and_gone() -> Option<Self> {
        let world = World::on(Backend::Postgres)?;
        let (link, seen) = Link::before(&world.db);
        let file = world.db.dir().join("snapshot");
        let kept = Self { world, link, seen, file };
        kept.pepper("pepper");
        let mut server = kept.server().start();
        assert_eq!(server.row(Ask::with_key(&kept.world.live.text)), "200 ok");
        let memo = format!("SELECT key_memo FROM api_keys WHERE id = '{}'", kept.world.live.id);
        eventually("the memo is written", PATIENCE, || kept.world.db.text(&memo).map(drop).ok_or(()));
        eventually("the server knows the key", PATIENCE, || {
            let known = server.metric(&["tenantgate_replica_keys_with_memo"]);
            if known >= 1.0 { Ok(()) } else { Err(known) }
        });
        server.signal("TERM");
        assert_eq!(server.exit_code(PATIENCE), Some(0));
        kept.link.cut();
        Some(kept)
    }

    fn pepper(&self, name: &str) {
        let _ = std::fs::remove_file(self.dir().join(name));
        run_in(self.dir(), &[], &["pepper", "new", name]).ok();
    }

    fn dir(&self) -> &Path {
        self.world.db.dir()
    }

    fn server(&self) -> Plan {
        let pepper = self.dir().join("pepper");
        let (pepper, file) = (pepper.to_str().expect("plain"), self.file.to_str().expect("plain"));
        Server::on(&self.seen).args(&["--pepper-file", pepper, "--snapshot-file", file])
    }

    /// Starts without the database, and asserts this log text about the file.
    #[track_caller]
    fn refused(&self, plan: Plan, why: &str) {
        let server = plan.start_unready();
        eventually(&format!("the log says `{why}`"), PATIENCE, || {
            let log = server.stderr.text();
            if log.contains("the snapshot file is not used") && log.contains(why) { Ok(()) } else { Err(log) }
        });
        assert_eq!(server.row(Ask::with_key(&self.world.live.text)), "503 unavailable");
        assert_eq!(server.http("/readyz").status, 503);
    }
}

#[test]
fn a_server_that_starts_without_the_database_uses_the_file() {
    let Some(kept) = Kept::and_gone() else { return };
    let world = &kept.world;
    let server = kept.server().start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.bcrypts(), 0, "the memo in the file is valid");
    server.row_becomes("503 unavailable", PATIENCE, Ask::with_key("llmk_nobody_12345678"));
    for (wanted, ask) in [
        ("200 public", Ask::get("/docs")),
        ("200 ok", Ask::with_key(&world.live.text)),
        ("200 ok", Ask::with_key(&world.other.text)),
        ("401 mismatch", Ask::with_key(&world.live.with_wrong_secret())),
        ("401 revoked", Ask::with_key(&world.revoked.text)),
        ("401 expired", Ask::with_key(&world.expired.text)),
        ("403 tenant_inactive", Ask::with_key(&world.of_sleepy.text)),
    ] {
        assert_eq!(server.row(ask.clone()), wanted, "{ask:?}");
    }
    assert_eq!(server.check(Ask::with_key(&world.live.text)).headers()["x-llmcore-tenant-id"], world.acme.id);
    let ready = server.http("/readyz");
    assert!(ready.status == 200 && ready.body.contains(r#""database":"disconnected""#), "{}", ready.body);
    // Changes during the outage apply once the database is back.
    world.db.json(&["key", "revoke", &world.live.id]);
    kept.link.mend();
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.live.text));
    server.row_becomes("401 unknown", PATIENCE, Ask::with_key("llmk_nobody_12345678"));
}

#[test]
fn a_killed_server_leaves_its_file() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let kept = Kept { file: world.db.dir().join("snapshot"), world, link, seen };
    kept.pepper("pepper");
    let server = kept.server().start();
    eventually("the file exists", PATIENCE, || std::fs::metadata(&kept.file).map(drop));
    // A change soon after the first write is in the file once the database is lost.
    kept.world.db.json(&["key", "revoke", &kept.world.other.id]);
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&kept.world.other.text));
    kept.link.cut();
    eventually("the last poll is written", PATIENCE, || {
        match server.metric(&["tenantgate_snapshot_file_writes", "written"]) {
            written if written >= 2.0 => Ok(()),
            written => Err(written),
        }
    });
    server.signal("KILL");
    let server = kept.server().start();
    assert_eq!(server.row(Ask::with_key(&kept.world.live.text)), "200 ok");
    assert_eq!(server.row(Ask::with_key(&kept.world.other.text)), "401 revoked");
}

#[test]
fn the_file_is_readable_only_by_its_owner_and_contains_no_plain_text() {
    let Some(kept) = Kept::and_gone() else { return };
    assert_eq!(std::fs::metadata(&kept.file).expect("there").permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&kept.file).expect("there");
    let world = &kept.world;
    assert!(has(&bytes, world.live.prefix.as_bytes()));
    for key in [&world.live, &world.issued, &world.revoked] {
        assert!(!has(&bytes, key.text.as_bytes()));
        assert!(!has(&bytes, key.text.rsplit_once('_').expect("a secret").1.as_bytes()));
    }
    assert!(!has(&bytes, crate::support::postgres::PASSWORD.as_bytes()));
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_foreign_or_truncated_file_is_rejected() {
    let Some(kept) = Kept::and_gone() else { return };
    let good = std::fs::read(&kept.file).expect("there");
    for at in [30, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&kept.file, bad).expect("written");
        kept.refused(kept.server(), "modified later");
    }
    std::fs::write(&kept.file, &good[..good.len() - 100]).expect("written");
    kept.refused(kept.server(), "modified later");
    std::fs::write(&kept.file, b"something else").expect("written");
    kept.refused(kept.server(), "not a complete snapshot file");
    std::fs::write(&kept.file, &good).expect("written");
    kept.pepper("pepper");
    kept.refused(kept.server(), "another pepper");
}

#[test]
fn a_file_of_another_database_or_too_old_is_rejected() {
    let Some(kept) = Kept::and_gone() else { return };
    let elsewhere = kept.seen.url().replace(kept.world.db.name(), "another");
    let pepper = kept.dir().join("pepper");
    let (pepper, file) = (pepper.to_str().expect("plain"), kept.file.to_str().expect("plain"));
    let args = ["--pepper-file", pepper, "--snapshot-file", file];
    let other = Database::at(Backend::Postgres, &elsewhere);
    kept.refused(Server::on(&other).args(&args), "written for another database");
    eventually("the file is older than a second", PATIENCE, || {
        let age = std::fs::metadata(&kept.file).and_then(|meta| meta.modified()).expect("there").elapsed();
        let age = age.expect("in the past");
        if age.as_millis() > 1_000 { Ok(()) } else { Err(age) }
    });
    kept.refused(kept.server().args(&["--max-staleness", "1s"]), "older than --max-staleness");
}

#[test]
fn an_empty_database_is_not_used_while_the_file_is_recent_enough() {
    let Some(kept) = Kept::and_gone() else { return };
    let server = kept.server().args(&["--max-staleness", "8s"]).start();
    assert_eq!(server.row(Ask::with_key(&kept.world.live.text)), "200 ok");
    kept.world.db.sql("SET session_replication_role = replica; DELETE FROM api_keys");
    kept.link.mend();
    eventually("the log says that there are no keys", PATIENCE, || {
        let log = server.stderr.text();
        if log.contains("shows no keys at all") { Ok(()) } else { Err(log) }
    });
    assert_eq!(server.row(Ask::with_key(&kept.world.live.text)), "200 ok");
    // Once the data is too old to serve, the database is used in any case.
    server.row_becomes("401 unknown", PATIENCE, Ask::with_key(&kept.world.live.text));
}

#[test]
fn an_unwritable_file_is_logged_once_and_affects_no_request() {
    let world = World::somewhere();
    let dir = world.db.dir();
    run_in(dir, &[], &["pepper", "new", "pepper"]).ok();
    let (pepper, folder) = (dir.join("pepper"), dir.join("folder"));
    std::fs::create_dir(&folder).expect("made");
    let file = folder.join("snapshot");
    let (pepper, shown) = (pepper.to_str().expect("plain"), file.to_str().expect("plain"));
    let plan = Server::on(&world.db).args(&["--pepper-file", pepper, "--snapshot-file", shown]);
    // Even root cannot write into a removed directory.
    let server = plan.start_unready();
    std::fs::remove_dir_all(&folder).expect("removed");
    server.wait_until_ready();
    world.db.json(&["key", "revoke", &world.other.id]);
    server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.other.text));
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}
