//! Databases that were dumped and restored, replicated, or promoted.

use super::{KEY, PLAIN, count, rows};
use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::region::subscribe;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, eventually};

/// Creates a migrated database `own` in a cluster, with [`KEY`].
pub(super) fn own(cluster: &Cluster) -> Database {
    cluster.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &cluster.url("own"));
    database.cli(&["migrate"]).ok();
    database.sql(&rows());
    database
}

/// Starts a server whose database the test can redirect.
pub(super) fn server_through(link: &Link, cluster: &Cluster) -> Server {
    let url = cluster.url("own").replace(&format!(":{}/", cluster.port()), &format!(":{}/", link.port()));
    Server::on(&Database::at(Backend::Postgres, &url)).start()
}

#[track_caller]
fn polls_without_loading_again(server: &Server) {
    let polls = || server.metric(&["tenantgate_replica_polls_total"]);
    let before = polls();
    eventually("it polls", PATIENCE, || if polls() > before + 20.0 { Ok(()) } else { Err(polls()) });
    assert_eq!(count(server, "tenantgate_replica_loads_total"), 1, "one load");
}

#[test]
fn a_restored_dump_costs_one_load_whatever_its_transaction_ids() {
    let (Some(high), Some(low)) = (Cluster::private(), Cluster::private()) else { return };
    high.use_up_transactions(20_000);
    let database = own(&high);
    database.sql("SELECT tenantgate_prune(interval '0')");
    database.sql("UPDATE api_keys SET expires_at = '2099-01-01'");
    for args in [&[][..], &["--exclude-table-data=tenantgate_change"]] {
        low.restore("own", &high.dump("own", args));
        let restored = Database::at(Backend::Postgres, &low.url("own"));
        let said = restored.cli(&["doctor"]);
        assert!(said.stdout.contains("bad   database.identity"), "{said:#?}");
        let server = Server::on(&restored).start();
        polls_without_loading_again(&server);
        assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
        restored.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
        assert_eq!(server.row(Ask::with_key(KEY)), "401 revoked");
        assert_eq!(restored.cli(&["doctor"]).code, Some(0));
        drop(server);
        low.admin("DROP DATABASE own WITH (FORCE)");
    }
    // The reverse: transaction ids that this cluster has used before.
    let database = own(&low);
    drop(database);
    high.admin("DROP DATABASE own WITH (FORCE)");
    high.restore("own", &low.dump("own", &[]));
    let restored = Database::at(Backend::Postgres, &high.url("own"));
    let server = Server::on(&restored).start();
    polls_without_loading_again(&server);
    restored.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(KEY)), "401 revoked");
}

#[test]
fn a_restored_dump_of_200_000_keys_costs_one_load() {
    let (Some(high), Some(low)) = (Cluster::private(), Cluster::private()) else { return };
    high.use_up_transactions(20_000);
    // Migrated after the insert, because triggers would slow it down.
    high.admin("CREATE DATABASE own");
    let database = Database::at(Backend::Postgres, &high.url("own"));
    database.sql(PLAIN);
    database.sql(&rows());
    database.sql(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) \
         SELECT overlay(hashed_key PLACING lpad(n::text, 8, '0') FROM 40), 'llmk_many' || n, tenant_id \
         FROM api_keys, generate_series(1, 199999) n",
    );
    database.cli(&["migrate"]).ok();
    database.sql("UPDATE api_keys SET expires_at = '2099-01-01' WHERE key_prefix = 'llmk_ours'");
    low.restore("own", &high.dump("own", &[]));
    let restored = Database::at(Backend::Postgres, &low.url("own"));
    let server = Server::on(&restored).start();
    polls_without_loading_again(&server);
    assert_eq!(count(&server, "tenantgate_replica_keys"), 200_000);
    let status = server.http("/readyz").body;
    assert!(status.contains(r#""status":"ready""#), "not stale: {status}");
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    restored.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(KEY)), "401 revoked");
    polls_without_loading_again(&server);
}

#[test]
fn a_dump_without_privileges_is_detected_and_fixed() {
    let Some(cluster) = Cluster::private() else { return };
    drop(own(&cluster));
    cluster.restore("bare", &cluster.dump("own", &["--no-acl", "--no-owner"]));
    let bare = Database::at(Backend::Postgres, &cluster.url("bare"));
    let said = bare.cli(&["doctor"]);
    assert!(said.stdout.contains("every role may call the function"), "{said:#?}");
    bare.cli(&["migrate"]).ok();
    assert_eq!(bare.cli(&["doctor"]).code, Some(0));
}

#[test]
fn a_moved_database_is_followed_and_one_that_went_back_raises_an_alarm() {
    let Some(cluster) = Cluster::private() else { return };
    let database = own(&cluster);
    let older = cluster.dump("own", &[]);
    let server = Server::on(&database).start();
    let key = Ask::with_key(KEY);
    database.sql("UPDATE api_keys SET revoked_at = now()");
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    let newer = cluster.dump("own", &[]);
    let moves = || count(&server, "tenantgate_database_moves_total");
    let alarms = || count(&server, "tenantgate_replica_went_back_total");
    // Without a lost change, there is a warning but no error.
    cluster.admin("DROP DATABASE own WITH (FORCE)");
    cluster.restore("own", &newer);
    eventually("the move is counted", PATIENCE, || {
        if moves() > 0 { Ok(()) } else { Err(server.stderr.lines()) }
    });
    assert_eq!((moves(), alarms()), (1, 0), "{}", server.stderr.text());
    assert_eq!(server.row(key.clone()), "401 revoked");
    // Now an older copy is at this address, and the server uses it.
    cluster.admin("DROP DATABASE own WITH (FORCE)");
    cluster.restore("own", &older);
    server.row_becomes("200 ok", PATIENCE, key);
    assert_eq!((moves(), alarms()), (2, 1), "{}", server.stderr.text());
    assert!(server.stderr.text().contains("the database went back"));
}

#[test]
fn a_copy_with_a_new_identity_is_rejected() {
    let Some(cluster) = Cluster::private() else { return };
    drop(own(&cluster));
    let link = Link::to(cluster.port());
    let server = server_through(&link, &cluster);
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    let said = Database::at(Backend::Postgres, &cluster.url("own")).json(&["migrate", "--new-identity"]);
    let identity =
        Database::at(Backend::Postgres, &cluster.url("own")).text("SELECT id::text FROM tenantgate_identity");
    assert_eq!(said["identity"].as_str(), identity.as_deref());
    // The session that the server has notices it, too.
    eventually("the log says so", PATIENCE, || {
        let log = server.stderr.text();
        if log.contains("another database") { Ok(()) } else { Err(log) }
    });
    assert_eq!(count(&server, "tenantgate_database_moves_total"), 0);
}

/// Starts a publisher with [`KEY`] and a subscriber, each with a database `own`.
fn subscribed(publication: &str, how: &str) -> Option<(Cluster, Cluster)> {
    let (publisher, subscriber) = (Cluster::publisher()?, Cluster::private()?);
    let database = own(&publisher);
    database.sql("CREATE TABLE theirs (id int PRIMARY KEY)");
    if publication == "tenantgate" {
        let said = database.json(&["migrate", "--publication"]);
        assert_eq!(said["publication"], "tenantgate");
    } else {
        database.sql(&format!("CREATE PUBLICATION {publication} FOR ALL TABLES"));
        let said = database.cli(&["doctor"]);
        assert!(said.stdout.contains("sends usage by partition"), "{said:#?}");
        database.sql(&format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)"));
    }
    subscriber.admin("CREATE DATABASE own");
    let copy = Database::at(Backend::Postgres, &subscriber.url("own"));
    if how == "dump" {
        subscriber.admin("DROP DATABASE own");
        subscriber.restore("own", &publisher.dump("own", &["--schema-only", "--no-publications"]));
    } else {
        copy.cli(&["migrate"]).ok();
        copy.sql("CREATE TABLE theirs (id int PRIMARY KEY)");
    }
    subscribe(&copy, &database, "region", publication);
    assert_eq!(copy.text("SELECT count(*)::text FROM api_keys").as_deref(), Some("1"));
    Some((publisher, subscriber))
}

#[test]
fn a_subscriber_is_a_database_for_its_own_servers_and_read_only_until_promoted() {
    for (publication, how) in [("tenantgate", "migrate"), ("everything", "migrate"), ("everything", "dump")] {
        let Some((publisher, subscriber)) = subscribed(publication, how) else { return };
        let here = Database::at(Backend::Postgres, &subscriber.url("own"));
        let there = Database::at(Backend::Postgres, &publisher.url("own"));
        if how == "dump" {
            // A dump of the schema does not contain the required rows.
            here.cli(&["migrate"]).ok();
        }
        let server = Server::on(&here).start();
        let key = Ask::with_key(KEY);
        assert_eq!(server.row(key.clone()), "200 ok", "{publication} {how}");
        let id = "SELECT id::text FROM tenantgate_identity";
        assert_eq!(here.text(id), there.text(id), "the same database");
        // The counts of the publisher are not those of the region. The region creates the missing partitions.
        there.sql("SELECT tenantgate_add_usage(ARRAY[current_date], ARRAY[gen_random_uuid()], ARRAY['ok'], ARRAY[1])");
        let origin = Server::on(&there).start();
        there.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
        assert_eq!(origin.row(key.clone()), "401 revoked");
        server.row_becomes("401 revoked", PATIENCE, key.clone());
        there.sql("DELETE FROM tenants");
        server.row_becomes("401 unknown", PATIENCE, key.clone());
        if publication == "everything" {
            there.sql("INSERT INTO theirs VALUES (1)");
            let theirs = || here.text("SELECT count(*)::text FROM theirs");
            eventually("the tables are still replicated", PATIENCE, || {
                theirs().filter(|n| n == "1").ok_or_else(theirs)
            });
        }
        assert_eq!(count(&server, "tenantgate_replica_loads_total"), 1, "{publication} {how}");
        assert_eq!(here.text("SELECT count(*)::text FROM tenantgate_usage").as_deref(), Some("0"));
        let line = here.cli(&["tenant", "create", "New"]).refused();
        assert!(line.contains("read-only") && line.contains("\"region\""), "{line}");
        // A disabled subscription is not a promotion: once enabled, it would collide with what was changed meanwhile.
        here.sql("ALTER SUBSCRIPTION region DISABLE");
        let line = here.cli(&["tenant", "create", "New"]).refused();
        for word in ["read-only", "ALTER SUBSCRIPTION region ENABLE", "DROP SUBSCRIPTION region"] {
            assert!(line.contains(word), "{line}");
        }
        here.sql("ALTER SUBSCRIPTION region ENABLE");
        eventually("its worker runs again", PATIENCE, || {
            let said = here.cli(&["doctor"]);
            if said.code == Some(0) { Ok(()) } else { Err(said) }
        });
        // The publisher is lost: the region continues, and is promoted.
        drop(origin);
        publisher.stop();
        assert_eq!(server.row(key), "401 unknown");
        here.sql("ALTER SUBSCRIPTION region DISABLE; ALTER SUBSCRIPTION region SET (slot_name = NONE); DROP SUBSCRIPTION region");
        here.cli(&["tenant", "create", "New"]).ok();
        let made = here.json(&["key", "create", "tenant_new"]);
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(made["key"].as_str().unwrap()));
        let said = here.cli(&["audit", "verify"]);
        assert_eq!(said.code, Some(0), "{publication} {how}: {said:#?}");
    }
}
