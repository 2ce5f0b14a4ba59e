//! Tests which clients can connect to a listener with TLS and with client authorities.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tenantgate::clock::{Clock as _, SystemClock, Timestamp};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::doctor::doctor;
use crate::failures::{is_told, send};
use crate::manage_process::Encrypted;
use crate::support::cli::run_in;
use crate::support::{Ask, Backend, Client, PATIENCE, Server, World, eventually, wait};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A certificate authority of the test's own.
pub(crate) fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// A certificate for `localhost`, and its key.
fn issued_by(authority: &Authority) -> (String, String) {
    issued_for(&["localhost", "127.0.0.1"], authority)
}

/// A certificate for these names, and its key.
pub(crate) fn issued_for(names: &[&str], authority: &Authority) -> (String, String) {
    certificate(authority, names, SystemClock.now().after(CENTURY))
}

const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// The same, with this expiry.
fn certificate(authority: &Authority, names: &[&str], end: Timestamp) -> (String, String) {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end.since(Timestamp(0));
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

pub(crate) fn trusting(authority: &Authority) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem())).domain_name("localhost")
}

/// Writes a file that the server can read.
pub(crate) fn file(directory: &Path, name: &str, content: &str) -> String {
    let path: PathBuf = directory.join(name);
    std::fs::write(&path, content).expect("written");
    path.display().to_string()
}

/// Returns the row that a client gets; `None` without an answer.
fn row(client: &Client, world: &World) -> Option<String> {
    wait(client.ask(Ask::with_key(&world.live.text))).ok().map(|answer| answer.row())
}

#[test]
fn a_listener_with_a_certificate_accepts_only_tls() {
    let world = World::somewhere();
    let (ours, others) = (authority("ours"), authority("others"));
    let (cert, key) = issued_by(&ours);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let server = Server::on(&world.db).args(&["--tls-cert", &cert, "--tls-key", &key]).start();
    let address = &server.grpc[0];
    assert_eq!(row(&Client::over_tls(address, trusting(&ours)), &world).as_deref(), Some("200 ok"));
    assert_eq!(
        row(&Client::over_tls(address, trusting(&others)), &world),
        None,
        "a client that trusts others"
    );
    assert_eq!(row(&Client::to(address), &world), None, "a client without TLS");
    let ca = file(world.db.dir(), "ca.pem", &ours.pem());
    let port = address.rsplit_once(':').expect("a port").1;
    let target = format!("https://localhost:{port}");
    let args =
        ["check", "-o", "json", "--path", "/v1", "--target", &target, "--ca", &ca, "--key", &world.live.text];
    assert_eq!(run_in(world.db.dir(), &[], &args).json()["allowed"], true);
    let untrusted = file(world.db.dir(), "others.pem", &others.pem());
    let args = ["check", "--target", &target, "--ca", &untrusted, "--key", &world.live.text];
    run_in(world.db.dir(), &[], &args).unavailable();
}

/// Speaks TLS without a library of HTTP: offers these protocols by ALPN, sends `words` and reads to the end.
pub(crate) fn speak(address: &str, authority: &str, alpn: &[&[u8]], words: &[u8]) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("a certificate")).expect("a root");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = "localhost".try_into().expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut stream = StreamOwned::new(client, stream);
    // The server may end the handshake.
    let _ = stream.write_all(words);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn clients_of_http_1_are_told_apart_by_tls_and_alpn() {
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: tenantgate\r\n\r\n";
    let world = World::somewhere();
    let ours = authority("ours");
    let (cert, key) = issued_by(&ours);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let server = Server::on(&world.db).args(&["--tls-cert", &cert, "--tls-key", &key]).start();
    let address = &server.grpc[0];
    speak(address, &ours.pem(), &[], GET);
    is_told(&server, "http1", "the client speaks HTTP/1.1");
    speak(address, &ours.pem(), &[b"http/1.1"], GET);
    is_told(&server, "no_alpn_h2", "does not offer h2 by ALPN");
    send(address, GET);
    is_told(&server, "plaintext_on_tls", "does not use TLS");
}

#[test]
fn management_tells_clients_that_offer_no_http_1() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let encrypted = Encrypted::on(&world.db);
    let authority = std::fs::read_to_string(&encrypted.ca).expect("its authority");
    speak(&encrypted.address, &authority, &[b"h2"], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let line = encrypted.manage.stderr.wait_for("its line", PATIENCE, |lines| {
        lines.iter().find(|line| line.contains("a TLS handshake failed")).cloned()
    });
    assert!(line.contains("reason=\"no_alpn_http1\""), "{line}");
}

#[test]
fn a_client_ca_accepts_only_its_own_certificates() {
    let world = World::somewhere();
    let (ours, clients, others) = (authority("ours"), authority("clients"), authority("others"));
    let (cert, key) = issued_by(&ours);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let ca = file(world.db.dir(), "client-ca.pem", &clients.pem());
    let args = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &ca];
    let server = Server::on(&world.db).args(&args).start();
    let with = |authority: &Authority| {
        let (cert, key) = issued_by(authority);
        let client = trusting(&ours).identity(Identity::from_pem(cert, key));
        row(&Client::over_tls(&server.grpc[0], client), &world)
    };
    assert_eq!(with(&clients).as_deref(), Some("200 ok"));
    assert_eq!(with(&others), None, "a certificate of somebody else's");
    assert_eq!(with(&ours), None, "the server's own authority does not make clients");
    assert_eq!(
        row(&Client::over_tls(&server.grpc[0], trusting(&ours)), &world),
        None,
        "no certificate at all"
    );
}

/// The beginning of a TLS record that announces 512 bytes, but is incomplete (RFC 8446 §5.1).
const RECORD: [u8; 9] = [22, 3, 1, 2, 0, 1, 0, 1, 252];

/// Waits until the server closes the connection; panics after the deadline.
fn until_hung_up(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server does not close the connection: {error}"),
    }
}

#[test]
fn a_client_that_stops_during_the_tls_handshake_is_disconnected() {
    let world = World::somewhere();
    let ours = authority("ours");
    let (cert, key) = issued_by(&ours);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let args = ["--tls-cert", &cert, "--tls-key", &key, "--handshake-timeout", "300ms"];
    let server = Server::on(&world.db).args(&args).start();
    let address = &server.grpc[0];
    let half_open: Vec<_> = (0..=RECORD.len())
        .map(|said| {
            let mut stream = TcpStream::connect(address).expect("a connection is free again");
            stream.write_all(&RECORD[..said]).expect("sent");
            stream
        })
        .collect();
    let client = Client::over_tls(address, trusting(&ours));
    assert_eq!(row(&client, &world).as_deref(), Some("200 ok"), "beside them");
    half_open.into_iter().for_each(until_hung_up);
    let turned_away = ["tenantgate_connections_total", "result=\"turned_away\""];
    // The client sees the end of a connection before the server has counted it.
    let least = f64::from(u8::try_from(RECORD.len()).expect("few"));
    eventually("they are counted", PATIENCE, || match server.metric(&turned_away) {
        count if count >= least => Ok(()),
        count => Err(count),
    });
    assert_eq!(row(&client, &world).as_deref(), Some("200 ok"), "after them");
}

/// A certificate with exactly these names, and its key.
fn named(authority: &Authority, names: &[&str]) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = names
        .iter()
        .map(|name| {
            let text = (*name).try_into().expect("ASCII");
            if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
        })
        .collect();
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, authority).expect("signed").pem(), key.serialize_pem())
}

#[test]
fn a_client_needs_one_of_the_configured_names() {
    let world = World::somewhere();
    let (ours, clients) = (authority("ours"), authority("clients"));
    let (cert, key) = issued_by(&ours);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let ca = file(world.db.dir(), "client-ca.pem", &clients.pem());
    let (spiffe, dns) = ("spiffe://mesh/ns/edge/sa/envoy", "envoy.internal");
    let args = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--client-ca",
        &ca,
        "--client-san",
        spiffe,
        "--client-san",
        dns,
    ];
    let server = Server::on(&world.db).args(&args).start();
    for (names, wanted) in [
        (&[spiffe][..], Some("200 ok")),
        (&["other.internal", dns], Some("200 ok")),
        (&["spiffe://mesh/ns/edge/sa/envoy2"], None),
        (&["spiffe://mesh/ns/edge/sa"], None),
        (&["x.envoy.internal"], None),
        (&[], None),
    ] {
        let (cert, key) = named(&clients, names);
        let client = trusting(&ours).identity(Identity::from_pem(cert, key));
        let seen = row(&Client::over_tls(&server.grpc[0], client), &world);
        assert_eq!(seen.as_deref(), wanted, "{names:?}");
    }
    assert!(server.stderr.text().contains("--client-san"), "the log says why");
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let world = World::somewhere();
    let (before, after) = (authority("before"), authority("after"));
    let (cert, key) = issued_by(&before);
    let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
    let server = Server::on(&world.db).args(&["--tls-cert", &cert, "--tls-key", &key]).start();
    let is_served =
        |trusted: &Authority| row(&Client::over_tls(&server.grpc[0], trusting(trusted)), &world).is_some();
    assert!(is_served(&before) && !is_served(&after));
    file(world.db.dir(), "cert.pem", "half of it");
    server.stderr.wait_for("the certificate files are not valid", PATIENCE, |lines| {
        lines.iter().any(|line| line.contains("the certificate files are not valid")).then_some(())
    });
    assert!(is_served(&before), "the certificates loaded before stay in use");
    let (new_cert, new_key) = issued_by(&after);
    file(world.db.dir(), "key.pem", &new_key);
    file(world.db.dir(), "cert.pem", &new_cert);
    eventually("the new certificate is used", PATIENCE, || if is_served(&after) { Ok(()) } else { Err(()) });
    assert!(!is_served(&before));
}

#[test]
fn tls_settings_must_be_consistent() {
    let world = World::somewhere();
    let (cert, key) = issued_by(&authority("ours"));
    let (_, other_key) = issued_by(&authority("others"));
    let write = |name: &str, content: &str| file(world.db.dir(), name, content);
    let (cert, key) = (write("cert.pem", &cert), write("key.pem", &key));
    let (other_key, empty) = (write("other-key.pem", &other_key), write("empty.pem", ""));
    let settings: [&[&str]; 7] = [
        &["--tls-cert", &cert],
        &["--tls-key", &key],
        &["--client-ca", &cert],
        &["--tls-cert", &cert, "--tls-key", "/no/such/key.pem"],
        &["--tls-cert", &cert, "--tls-key", &other_key],
        &["--tls-cert", &empty, "--tls-key", &key],
        &["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &empty],
    ];
    for args in settings {
        let said = world.db.cli(&[&["serve", "--check-config"], args].concat()).usage();
        assert!(said.contains("--tls-") || said.contains("--client-ca"), "{args:?}: {said}");
    }
    world.db.cli(&["serve", "--check-config", "--tls-cert", &cert, "--tls-key", &key]).ok();
}

#[test]
fn doctor_reports_the_validity_of_a_certificate() {
    let world = World::somewhere();
    let (ours, others) = (authority("ours"), authority("others"));
    let (ca, untrusted) =
        (file(world.db.dir(), "ca.pem", &ours.pem()), file(world.db.dir(), "others.pem", &others.pem()));
    let listener = |names: &[&str], ends_in: Duration, ca: &str| {
        let (cert, key) = certificate(&ours, names, SystemClock.now().after(ends_in));
        let (cert, key) = (file(world.db.dir(), "cert.pem", &cert), file(world.db.dir(), "key.pem", &key));
        let server = Server::on(&world.db).args(&["--tls-cert", &cert, "--tls-key", &key]).start();
        let target = format!("https://localhost:{}", server.grpc[0].rsplit_once(':').expect("a port").1);
        let (found, _) = doctor(&world.db, &["--target", &target, "--ca", ca]);
        found.not_ok().into_iter().filter(|found| found.starts_with("listener")).collect::<Vec<_>>()
    };
    let day = Duration::from_hours(24);
    assert_eq!(listener(&["localhost"], CENTURY, &ca), Vec::<String>::new());
    assert_eq!(listener(&["localhost"], day * 15, &ca), Vec::<String>::new());
    assert_eq!(listener(&["localhost"], day * 13, &ca), ["listener.tls warn"]);
    let both = ["listener.tls bad", "listener.answers bad"];
    assert_eq!(listener(&["localhost"], CENTURY, &untrusted), both);
    assert_eq!(listener(&["api.example.com"], CENTURY, &ca), both);
}

#[test]
fn check_and_doctor_present_a_client_certificate() {
    let world = World::somewhere();
    let (ours, clients, others) = (authority("ours"), authority("clients"), authority("others"));
    let write = |name: &str, content: &str| file(world.db.dir(), name, content);
    let pair = |name: &str, (cert, key): (String, String)| {
        (write(&format!("{name}.pem"), &cert), write(&format!("{name}-key.pem"), &key))
    };
    let (cert, key) = pair("server", issued_by(&ours));
    let (ca, client_ca) = (write("ca.pem", &ours.pem()), write("client-ca.pem", &clients.pem()));
    let args = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &client_ca];
    let server = Server::on(&world.db).args(&args).start();
    let target = format!("https://localhost:{}", server.grpc[0].rsplit_once(':').expect("a port").1);
    let (good, bad) = (pair("client", issued_by(&clients)), pair("other", issued_by(&others)));
    let shown = |(cert, key): &(String, String)| {
        ["--client-cert", cert, "--client-key", key].map(str::to_owned).to_vec()
    };
    for (own, allowed) in [(shown(&good), true), (shown(&bad), false), (vec![], false)] {
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        let to = [&["--target", &target, "--ca", &ca], own.as_slice()].concat();
        let (found, code) = doctor(&world.db, &to);
        let not_ok: Vec<_> =
            found.not_ok().into_iter().filter(|found| found.starts_with("listener")).collect();
        let asked = ["check", "--path", "/v1", "--key", &world.live.text];
        let run = run_in(world.db.dir(), &[], &[&asked, to.as_slice()].concat());
        if allowed {
            assert_eq!((not_ok, code), (vec![], Some(0)), "{found:#?}");
            assert!(found.is_ok("listener.health") && found.is_ok("listener.reflection"), "{found:#?}");
            assert!(run.ok().starts_with("allowed"));
        } else {
            assert_eq!(not_ok.last().map(String::as_str), Some("listener.answers bad"), "{found:#?}");
            run.unavailable();
        }
    }
    let usage = |args: &[&str]| {
        for command in ["check", "doctor"] {
            let said = world.db.cli(&[&[command], args].concat()).usage();
            assert!(said.contains("--client-"), "{command} {args:?}: {said}");
        }
    };
    usage(&["--target", &target, "--client-cert", &good.0]);
    usage(&["--target", &target, "--client-key", &good.1]);
    usage(&["--target", &target, "--ca", &ca, "--client-cert", &good.0, "--client-key", &bad.1]);
    usage(&["--target", &target, "--ca", &ca, "--client-cert", "/no/such.pem", "--client-key", &good.1]);
    usage(&["--target", &target, "--ca", &ca, "--client-cert", &good.0, "--client-key", &ca]);
    usage(&["--target", &server.grpc[0], "--client-cert", &good.0, "--client-key", &good.1]);
    let alone = ["doctor", "--client-cert", &good.0, "--client-key", &good.1];
    assert!(world.db.cli(&alone).usage().contains("--target"));
}
