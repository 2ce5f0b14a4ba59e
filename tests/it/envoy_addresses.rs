//! Which address tenantgate takes for the client's, for each way in which a real Envoy detects it and each
//! `--client-address`.
//!
//! One Envoy for each way of detection asks five servers, by path. Keys that are limited to one network each tell what
//! a server believes: only the key of that network passes. `envoy_addresses.txt` has a line for each Envoy and each set
//! of headers that a client can send; `UPDATE_SNAPSHOTS=1 cargo test --test it envoy_addresses` rewrites it.
//!
//! | word | the server believes that the request is from |
//! |---|---|
//! | `peer` | the address of the connection to Envoy, or this machine's own, which Envoy appends for peers on loopback |
//! | `client` | the address that the proxy or load balancer before Envoy names |
//! | `forged` | an address that the client wrote |
//! | `unknown` | nowhere: no key with networks passes |

use std::fmt::Write as _;

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Plan};
use crate::support::world::quick_hash;
use crate::support::{Ask, PATIENCE, Server, World, eventually, table};

/// What a proxy before Envoy names as its client.
const CLIENT: &str = "203.0.113.7";

/// The address that a forging client claims.
const FORGED: &str = "198.51.100.66";

/// The servers: the path that leads to each, and its `--client-address`. Envoy's own filter asks the first.
const SERVERS: [(&str, &str); 5] = [
    ("metadata", "metadata:x-tenantgate-client-address"),
    ("source", "source"),
    ("xff1", "xff:1"),
    ("xff2", "xff:2"),
    ("header", "header:x-envoy-external-address"),
];

/// The headers of a request, by the way in which the table names them.
const SENT: [(&str, &[&str]); 7] = [
    ("nothing", &[]),
    ("x-forwarded-for: FORGED", &["x-forwarded-for: FORGED"]),
    ("x-forwarded-for: FORGED, CLIENT", &["x-forwarded-for: FORGED, CLIENT"]),
    (
        "x-forwarded-for: FORGED and x-forwarded-for: CLIENT",
        &["x-forwarded-for: FORGED", "x-forwarded-for: CLIENT"],
    ),
    ("x-envoy-external-address: FORGED", &["x-envoy-external-address: FORGED"]),
    ("x-tenantgate-client-address: FORGED", &["x-tenantgate-client-address: FORGED"]),
    (
        "all of them",
        &[
            "x-forwarded-for: FORGED, CLIENT",
            "x-envoy-external-address: FORGED",
            "x-tenantgate-client-address: FORGED",
        ],
    ),
];

const REMOTE: &str = "          use_remote_address: true\n";

/// A way of detection: its name, what changes in `envoy.yaml`, and what goes before each request.
type Detection = (&'static str, Vec<(&'static str, &'static str)>, String);

fn detections() -> [Detection; 7] {
    let proxied = format!("PROXY TCP4 {CLIENT} 127.0.0.1 4711 80\r\n");
    [
        ("envoy.yaml", vec![], String::new()),
        (
            "xff_num_trusted_hops: 1",
            vec![(REMOTE, "          use_remote_address: true\n          xff_num_trusted_hops: 1\n")],
            String::new(),
        ),
        ("use_remote_address: false", vec![(REMOTE, "          use_remote_address: false\n")], String::new()),
        (
            "original_ip_detection: xff",
            vec![(
                REMOTE,
                "          use_remote_address: false
          original_ip_detection_extensions:
          - name: envoy.http.original_ip_detection.xff
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig
              xff_trusted_cidrs: {cidrs: [{address_prefix: 127.0.0.0, prefix_len: 8}]}
",
            )],
            String::new(),
        ),
        (
            "proxy_protocol",
            vec![(
                "    filter_chains:\n",
                "    listener_filters:
    - name: envoy.filters.listener.proxy_protocol
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
    filter_chains:
",
            )],
            proxied,
        ),
        (
            "peer is internal",
            vec![(
                "cidr_ranges: [{address_prefix: \"100::\", prefix_len: 64}]",
                "cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]",
            )],
            String::new(),
        ),
        (
            "dual-stack listener",
            vec![(
                "address: {socket_address: {address: 127.0.0.1, port_value: 10000}}",
                "address: {socket_address: {address: \"::\", ipv4_compat: true, port_value: 10000}}",
            )],
            String::new(),
        ),
    ]
}

/// Changes the file so that a path leads to each server, and all headers that servers read are sent.
fn asking_all(plan: Plan, servers: &[Server]) -> Plan {
    let (mut routes, mut clusters) = (String::new(), String::new());
    for ((name, _), server) in SERVERS.iter().zip(servers).skip(1) {
        let port = server.grpc[0].rsplit(':').next().expect("a port");
        let _ = write!(
            routes,
            "              - match: {{prefix: /{name}/}}
                route: {{cluster: api}}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: {{grpc_service: {{envoy_grpc: {{cluster_name: {name}}}, timeout: 20s}}}}
"
        );
        let _ = write!(
            clusters,
            "  - name: {name}
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
"
        );
    }
    let bearer = "                - {exact: authorization, ignore_case: true}\n";
    let sent = ["x-forwarded-for", "x-envoy-external-address", "x-tenantgate-client-address"];
    let sent = sent.map(|name| format!("                - {{exact: {name}, ignore_case: true}}\n")).concat();
    plan.patient()
        .with("              routes:\n", &format!("              routes:\n{routes}"))
        .with("  - name: api_grpc\n", &format!("{clusters}  - name: api_grpc\n"))
        .with(bearer, &format!("{bearer}{sent}"))
}

/// Creates a key that may be used from these networks, with a hash that a busy machine verifies in time.
fn key_from(world: &World, networks: &str) -> String {
    let key = world.db.json(&["key", "create", &world.acme.id, "--networks", networks]);
    let [id, text] = ["id", "key"].map(|field| key[field].as_str().expect("a text").to_owned());
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{}' WHERE id = '{id}'", quick_hash(&text)));
    text
}

/// The status of a request with a key and these headers.
fn status(envoy: &Envoy, before: &str, path: &str, key: &str, headers: &[&str]) -> u16 {
    let headers = headers.iter().flat_map(|header| [header, "\r\n"]).collect::<String>();
    let headers = headers.replace("FORGED", FORGED).replace("CLIENT", CLIENT);
    let request = format!(
        "{before}GET /{path}/v1 HTTP/1.1\r\nhost: api.example.com\r\nconnection: close\r\n{KEY_HEADER}: {key}\r\n{headers}\r\n"
    );
    envoy.exchange(request.as_bytes()).status
}

/// The address that Envoy appends to `x-forwarded-for` for a peer on loopback.
fn appended(envoy: &Envoy, world: &World) -> String {
    let seen = envoy.send("GET", "/source/v1", &[(KEY_HEADER, &world.live.text)]).seen.expect("it passes");
    let [address] = seen.values("x-forwarded-for")[..] else { panic!("one address: {seen:?}") };
    address.to_owned()
}

#[test]
fn every_way_to_detect_a_client_is_in_the_committed_table() {
    let world = World::somewhere();
    let start =
        |(_, address): (&str, &str)| Server::on(&world.db).args(&["--client-address", address]).start();
    let servers = SERVERS.map(start);
    let (client, forged) = (key_from(&world, CLIENT), key_from(&world, FORGED));
    let mut peer = None;
    let head = ["Envoy", "the request has"].into_iter().chain(SERVERS.map(|(_, address)| address));
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>().try_into().expect("7 columns")];
    for (detection, changes, before) in detections() {
        let plan = asking_all(Envoy::before(&servers[0]), &servers);
        let plan = changes.iter().fold(plan, |plan, (from, to)| plan.with(from, to));
        let Some(envoy) = plan.start() else { return };
        let peer = peer.get_or_insert_with(|| {
            let key = key_from(&world, &format!("127.0.0.0/8 {}", appended(&envoy, &world)));
            for server in &servers {
                eventually("every server has the key", PATIENCE, || {
                    let row = server.row(Ask::with_key(&key));
                    if row == "401 unknown" { Err(row) } else { Ok(()) }
                });
            }
            key
        });
        let keys = [("peer", peer.as_str()), ("client", &client), ("forged", &forged)];
        for (name, headers) in SENT {
            let believed = SERVERS.map(|(path, _)| {
                let passes = |key: &str| match status(&envoy, &before, path, key, headers) {
                    200 => true,
                    403 => false,
                    other => panic!("{detection}, {name}, {path}: {other}"),
                };
                let passing: Vec<_> =
                    keys.iter().filter(|(_, key)| passes(key)).map(|(name, _)| *name).collect();
                match passing[..] {
                    [] => "unknown",
                    [one] => one,
                    _ => panic!("{detection}, {name}, {path}: from {passing:?}"),
                }
            });
            let cells = [detection, name].into_iter().chain(believed).map(str::to_owned);
            rows.push(cells.collect::<Vec<_>>().try_into().expect("7 columns"));
        }
    }
    table::compare("envoy_addresses.txt", &table::render::<7>(&rows), "addresses through Envoy");
}
