//! Tests the test support itself.

use crate::support::link::Link;
use crate::support::postgres::Cluster;
use crate::support::transcript::{field, says};
use crate::support::{Backend, Database};

#[test]
fn every_test_gets_a_postgres_database_of_its_own() {
    let (Some(one), Some(two)) = (Database::empty(Backend::Postgres), Database::empty(Backend::Postgres))
    else {
        return;
    };
    one.sql("CREATE TABLE only_here (n int); INSERT INTO only_here VALUES (1)");
    assert_eq!(one.text("SELECT n::text FROM only_here").as_deref(), Some("1"));
    assert!(two.refuses("SELECT n FROM only_here").contains("does not exist"));
}

#[test]
fn a_cluster_of_its_own_stops_and_starts() {
    let Some(cluster) = Cluster::private() else { return };
    cluster.admin("CREATE DATABASE kept");
    cluster.stop();
    assert!(cluster.start());
    cluster.admin("DROP DATABASE kept");
}

#[test]
fn a_cut_link_refuses_and_a_restored_one_forwards() {
    let Some(database) = Database::empty(Backend::Postgres) else { return };
    let (link, through_the_link) = Link::before(&database);
    let mut session = through_the_link.session();
    link.cut();
    assert!(session.run("SELECT 1").is_err());
    link.mend();
    through_the_link.sql("SELECT 1");
}

#[test]
fn log_lines_are_read_in_both_formats() {
    let text =
        r#"2026-01-01T00:00:00Z  INFO tenantgate::server: listening listener=grpc address="127.0.0.1:50051""#;
    let json =
        r#"{"level":"INFO","fields":{"message":"listening","listener":"grpc","address":"127.0.0.1:50051"}}"#;
    for line in [text, json] {
        assert!(says(line, "listening"), "{line}");
        assert!(!says(line, "ready"), "{line}");
        assert_eq!(field(line, "listener"), Some("grpc"), "{line}");
        assert_eq!(field(line, "address"), Some("127.0.0.1:50051"), "{line}");
    }
    assert!(says("2026-01-01T00:00:00Z  INFO ready keys=4 tenants=2", "ready"));
    assert!(!says("2026-01-01T00:00:00Z  WARN not ready", "ready"));
}
