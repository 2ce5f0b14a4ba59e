//! Tests pages of keys in the order of creation: no key is skipped or repeated, with any filter and with changes
//! meanwhile.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use tenantgate::admin::{Admin, AdminError};
use tenantgate::clock::{Clock as _, SystemClock, Timestamp};
use tenantgate::permission::Reach;
use tenantgate::record::KeyState;
use tenantgate::store::{KeyFilter, StoredKey};
use tenantgate::tenant::TenantId;
use uuid::Uuid;

use crate::admin_keys::admin;
use crate::support::cli::command;
use crate::support::{World, on_every_store, runtime};

on_every_store![
    every_filter_finds_its_keys_once_and_in_order,
    keys_created_meanwhile_cause_no_gap_and_no_repetition,
    a_rare_key_is_found_behind_many_others,
    the_command_lists_many_keys_at_once_and_in_flat_memory,
];

/// Creates keys of Acme, four at each second.
fn add(world: &World, from: usize, to: usize) {
    let (acme, sleepy) = (&world.acme.id, &world.sleepy.id);
    let (series, id, at, number) = if world.db.url().starts_with("sqlite") {
        (
            format!(
                "WITH RECURSIVE s(n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM s WHERE n < {}) ",
                to - 1
            ),
            "substr('00000000-0000-4000-8000-', 1) || printf('%012d', (n * 7919) % 1000003)",
            "strftime('%Y-%m-%dT%H:%M:%SZ', 1700000000 + n / 4, 'unixepoch')",
            "FROM s",
        )
    } else {
        (
            String::new(),
            "('00000000-0000-4000-8000-' || lpad(((n * 7919) % 1000003)::text, 12, '0'))::uuid",
            "to_timestamp(1700000000 + n / 4)",
            "",
        )
    };
    let from_series = if number.is_empty() {
        format!("FROM generate_series({from}, {}) AS n", to - 1)
    } else {
        number.to_owned()
    };
    let cast = if number.is_empty() { "::uuid" } else { "" };
    let jsonb = if number.is_empty() { "::jsonb" } else { "" };
    let revoked = if number.is_empty() { "to_timestamp(1800000000)" } else { "'2027-01-15T08:00:00Z'" };
    world.db.sql(&format!(
        "{series} INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, scopes, labels, revoked_at)
         SELECT {id}, 'llmk_many' || n, 'hash of ' || n,
                CASE WHEN n % 3 = 0 THEN '{sleepy}' ELSE '{acme}' END{cast}, 'Number ' || n, {at},
                CASE WHEN n % 5 = 0 THEN 'models.read files.*' END,
                (CASE WHEN n % 7 = 0 THEN '{{\"env\":\"prod\"}}' END){jsonb},
                CASE WHEN n % 11 = 0 THEN {revoked} END
         {from_series}"
    ));
}

/// Follows the pages to the end.
fn all(admin: &Admin, filter: &KeyFilter, reach: &Reach, page: usize) -> Vec<StoredKey> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let part =
            runtime().block_on(admin.keys_by_creation(filter, reach, after.as_ref(), page)).expect("a page");
        assert!(part.keys.len() <= page);
        keys.extend(part.keys);
        after = part.next;
        if after.is_none() {
            return keys;
        }
    }
}

/// Returns the same keys as the command line lists them, sorted.
fn expected(admin: &Admin, filter: &KeyFilter, reach: &Reach) -> Vec<(Timestamp, Uuid)> {
    let mut keys = Vec::new();
    let sink = |key: &StoredKey| {
        if reach.has(key.details.tenant_id) {
            keys.push((key.details.created_at, key.details.id.0));
        }
        Ok::<_, AdminError>(())
    };
    runtime().block_on(admin.list_keys(filter, None, None, sink)).expect("a list");
    keys.sort_unstable();
    keys
}

fn places(keys: &[StoredKey]) -> Vec<(Timestamp, Uuid)> {
    keys.iter().map(|key| (key.details.created_at, key.details.id.0)).collect()
}

fn tenant(id: &str) -> TenantId {
    TenantId(Uuid::parse_str(id).expect("a UUID"))
}

fn every_filter_finds_its_keys_once_and_in_order(world: &World) {
    add(world, 0, 600);
    let admin = admin(world);
    let (acme, sleepy) = (tenant(&world.acme.id), tenant(&world.sleepy.id));
    let filter = || KeyFilter { now: SystemClock.now(), ..KeyFilter::default() };
    let filters = [
        filter(),
        KeyFilter { tenant: Some(acme), ..filter() },
        KeyFilter { state: Some(KeyState::Revoked), ..filter() },
        KeyFilter { state: Some(KeyState::Active), tenant: Some(sleepy), ..filter() },
        KeyFilter { state: Some(KeyState::Disabled), ..filter() },
        KeyFilter { name: Some("NUMBER 5".into()), ..filter() },
        KeyFilter { scope: Some("files.*".into()), ..filter() },
        KeyFilter { labels: vec![("env".into(), "prod".into())], ..filter() },
        KeyFilter { unused_since: Some(Timestamp(1_700_000_050_000_000)), ..filter() },
    ];
    for filter in &filters {
        for reach in [Reach::All, Reach::Some(BTreeSet::from([sleepy])), Reach::Some(BTreeSet::new())] {
            let wanted = expected(&admin, filter, &reach);
            for page in [1_000, 37] {
                assert_eq!(
                    places(&all(&admin, filter, &reach, page)),
                    wanted,
                    "{page} of {filter:?} for {reach:?}"
                );
            }
        }
    }
}

fn keys_created_meanwhile_cause_no_gap_and_no_repetition(world: &World) {
    add(world, 0, 400);
    let admin = admin(world);
    let (mut seen, mut after, mut added) = (Vec::new(), None, 400);
    loop {
        let filter = KeyFilter::default();
        let page = admin.keys_by_creation(&filter, &Reach::All, after.as_ref(), 20);
        let part = runtime().block_on(page).expect("a page");
        seen.extend(places(&part.keys));
        after = part.next;
        if after.is_none() {
            break;
        }
        if added < 460 {
            // Keys before and after the current position, and one that is deleted.
            world.db.sql(&format!("DELETE FROM api_keys WHERE key_prefix = 'llmk_many{}'", added - 400));
            add(world, added, added + 10);
            added += 10;
        }
    }
    let different: BTreeSet<_> = seen.iter().collect();
    assert_eq!(different.len(), seen.len());
    assert!(seen.is_sorted());
    for (at, id) in expected(&admin, &KeyFilter::default(), &Reach::All) {
        assert!(seen.contains(&(at, id)), "{id}");
    }
}

fn a_rare_key_is_found_behind_many_others(world: &World) {
    add(world, 0, 11_000);
    let admin = admin(world);
    let filter = KeyFilter { name: Some("number 10999".into()), ..KeyFilter::default() };
    let first = runtime().block_on(admin.keys_by_creation(&filter, &Reach::All, None, 10)).expect("a page");
    assert!(first.keys.is_empty() && first.next.is_some(), "a page ends");
    let keys = all(&admin, &filter, &Reach::All, 10);
    assert_eq!(keys.iter().map(|key| key.details.prefix.as_str()).collect::<Vec<_>>(), ["llmk_many10999"]);
}

/// The most memory that a process had so far, in KiB; `None` once it has ended.
fn most_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn the_command_lists_many_keys_at_once_and_in_flat_memory(world: &World) {
    const KEYS: usize = 50_000;
    /// Far less than the rows, which are 25 MB of output.
    const GROWTH: u64 = 4 * 1024;
    add(world, 0, KEYS);
    let mut list = command(world.db.dir());
    list.args(["key", "list", "--output", "json", "--database-url", world.db.url()]);
    let mut child = list.stdout(Stdio::piped()).spawn().expect("the binary starts");
    let mut output = BufReader::with_capacity(1024, child.stdout.take().expect("piped"));
    let mut line = String::new();
    // While nothing more is read, the command cannot end: what it has by now is not the whole list.
    output.read_line(&mut line).expect("a first row");
    assert!(line.starts_with("[{") && child.try_wait().expect("a child").is_none(), "{line}");
    let (mut rows, mut at_first, mut at_last, mut bytes) = (1, None, None, line.len());
    loop {
        line.clear();
        if output.read_line(&mut line).expect("a row") == 0 {
            break;
        }
        (rows, bytes) = (rows + 1, bytes + line.len());
        if rows == 1_000 {
            at_first = most_memory(child.id());
        } else if rows % 1_000 == 0 {
            at_last = most_memory(child.id()).or(at_last);
        }
    }
    assert!(child.wait().expect("it ends").success());
    assert!(rows > KEYS, "{rows}");
    let [at_first, at_last] = [at_first, at_last].map(|memory| memory.expect("it runs for a while"));
    assert!(bytes as u64 / 1024 > 4 * GROWTH, "the list is larger than what may be kept: {bytes}");
    assert!(at_last < at_first + GROWTH, "from {at_first} to {at_last} KiB");
}
