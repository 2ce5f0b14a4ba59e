//! Measures the total cost of a check: Envoy and the authorization server.
//!
//! One real Envoy has one worker thread and one listener for each way to check a request: not at all; with its own
//! filter for API keys, which has the keys in its configuration; by calling a server that allows everything; by calling
//! tenantgate; by the module of tenantgate inside Envoy, alone and with the skipped call behind it. The same request
//! goes through each in interleaved rounds, from many clients and from one alone. Then all are started again under
//! callgrind, which counts instructions.
//!
//! `benches/README.md` discusses the results.

#[expect(dead_code, reason = "each bench needs only a part")]
#[path = "load/mod.rs"]
mod load;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the benches need only a part of the test support"
)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::time::Instant;

use bytes::Bytes;

use self::load::peer::{Peer, Running};
use self::load::proxy::{Cluster, Filter, Proxy};
use self::load::web::{Browser, browse, get};
use self::load::{cost, count, median, millis, percentile, realistic};
use self::support::ask::KEY_HEADER;
use self::support::{World, envoy, wait};

const ROUNDS: usize = 12;
/// The number of connections, and of requests in a round.
const CROWD: (usize, usize) = (16, 3_200);
const ALONE: (usize, usize) = (1, 300);
/// The number of requests before instructions are counted, and during it.
const COUNTED: (usize, usize) = (100, 1_000);

/// Longer than any check, even under valgrind.
const TIMEOUT: &str = "60s";

/// A way to check a request.
struct Way {
    name: &'static str,
    filter: Filter,
    /// The server that it calls, if any.
    asks: Option<usize>,
}

impl Way {
    /// Checks that the module has decided about nearly all of these requests, or about none.
    fn check_module(&self, decided: u64, requests: usize) {
        let (decided, requests) = (usize::try_from(decided).expect("a count"), requests);
        let expected = if self.asks == Some(2) { requests - requests / 50..=requests } else { 0..=0 };
        assert!(expected.contains(&decided), "{}: the module allowed {decided} of {requests}", self.name);
    }
}

/// The cost of a way in one round, per request: µs of CPU in Envoy and in the server, and latency for clients.
struct Spent {
    envoy: f64,
    service: f64,
    rate: f64,
    p50: f64,
    p99: f64,
    alone: f64,
}

fn main() {
    let world = World::somewhere();
    let mut asked = realistic();
    asked.push((KEY_HEADER, world.live.text.clone()));
    let request = get("/v1/items", &asked);
    let ways = ways(&world.live.text);
    let listen = ["--listen", "127.0.0.1:0", "--listen", "unix:socket"];
    let peers = [
        Peer::stock("stock", "release", "127.0.0.1:0"),
        Peer::tenantgate("tenantgate", world.db.url(), &listen),
        Peer::tenantgate(
            "tenantgate",
            world.db.url(),
            &[&listen[2..], &["--publish", "unix:publish"]].concat(),
        )
        .polling(),
    ];
    let spent = rounds(&ways, &peers.each_ref().map(Running::start), &request);
    let counted = instructions(&ways, &peers.each_ref().map(Running::start_countable), &request);
    report(&ways, &spent, &counted);
}

fn ways(key: &str) -> Vec<Way> {
    let way = |name, filter, asks| Way { name, filter, asks };
    vec![
        way("no auth", String::new(), None),
        way("api_key_auth, 1 key", native(1, key), None),
        way("api_key_auth, 100,000 keys", native(100_000, key), None),
        way("stock, TCP, all headers", ext_authz("stock", false), Some(0)),
        way("stock, TCP, allowed_headers", ext_authz("stock", true), Some(0)),
        way("tenantgate, TCP, all headers", ext_authz("tenantgate_tcp", false), Some(1)),
        way("tenantgate, TCP, allowed_headers", ext_authz("tenantgate_tcp", true), Some(1)),
        way("tenantgate, Unix, all headers", ext_authz("tenantgate_unix", false), Some(1)),
        way("tenantgate, Unix, allowed_headers", ext_authz("tenantgate_unix", true), Some(1)),
        way("tenantgate, Unix, as in envoy.yaml", as_users_have_it("tenantgate_unix"), Some(1)),
        way("the same, retried by the cluster", retried_by_cluster("tenantgate_retried"), Some(1)),
        // The first one proves the key for both.
        way("module, the Check skipped", [MODULE, &skipped()].concat(), Some(2)),
        way("module", MODULE.trim_end().to_owned(), Some(2)),
    ]
}

/// Envoy's own filter, with this number of keys, one of them ours.
fn native(keys: usize, key: &str) -> Filter {
    let others = (1..keys).map(|n| format!("{{key: llmk_other{n:06}_{n:032}, client: tenant{n}}}"));
    let credentials = others.chain([format!("{{key: {key}, client: tenant0}}")]).collect::<Vec<_>>();
    let separator = ",\n                ";
    format!(
        r#"          - name: envoy.filters.http.api_key_auth
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth
              key_sources: [{{header: {KEY_HEADER}}}]
              credentials: [{}]"#,
        credentials.join(separator)
    )
}

/// The `ext_authz` filter with few options.
fn ext_authz(cluster: &str, trimmed: bool) -> Filter {
    let allowed = "\n              allowed_headers:\n                patterns:\n                - {exact: x-llmcore-api-key, ignore_case: true}\n                - {exact: authorization, ignore_case: true}";
    format!(
        r#"          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              grpc_service: {{envoy_grpc: {{cluster_name: {cluster}}}, timeout: {TIMEOUT}}}{}"#,
        if trimmed { allowed } else { "" }
    )
}

/// The filter of `envoy/envoy.yaml`, unchanged except for its cluster and its timeout.
fn as_users_have_it(cluster: &str) -> Filter {
    let file = std::fs::read_to_string(envoy::FILE).expect("envoy/envoy.yaml is there");
    let (_, rest) = file.split_once("          - name: envoy.filters.http.ext_authz").expect("the filter");
    let (filter, _) = rest.split_once("          - name: envoy.filters.http.router").expect("its end");
    assert_eq!(filter.matches("cluster_name: tenantgate").count(), 1);
    let filter = filter.replace("cluster_name: tenantgate", &format!("cluster_name: {cluster}"));
    let filter = filter.replace(": 2s", &format!(": {TIMEOUT}"));
    format!("          - name: envoy.filters.http.ext_authz{}", filter.trim_end())
}

/// The module of tenantgate, as its guide configures it.
const MODULE: &str = r#"          - name: tenantgate
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter
              dynamic_module_config: {name: tenantgate_envoy, do_not_close: true}
              filter_name: tenantgate
              filter_config:
                "@type": type.googleapis.com/google.protobuf.StringValue
                value: "unix:PUBLISH context_extensions=none clear_route_cache=false"
"#;

/// The same filter without retries, which a cluster can do.
fn retried_by_cluster(cluster: &str) -> Filter {
    let filter = as_users_have_it(cluster);
    let retries = envoy::RETRIES.replace(": 2s", &format!(": {TIMEOUT}"));
    assert_eq!(filter.matches(&retries).count(), 1);
    filter.replace(&retries, "")
}

/// The filter that the guide of the module advises, skipped if the module has decided.
fn skipped() -> Filter {
    let version = "              transport_api_version: V3\n";
    let filter = retried_by_cluster("tenantgate_publishing");
    assert_eq!(filter.matches(version).count(), 1);
    let enabled = "              filter_enabled_metadata: {filter: envoy.tenantgate, path: [{key: decided}], value: {bool_match: true}, invert: true}\n";
    filter.replace(version, &[version, enabled].concat())
}

/// Returns the filter of each way, with the path of the socket that publishes.
fn filters(ways: &[Way], services: &[Running; 3]) -> Vec<Filter> {
    let socket = services[2].path("publish").display().to_string();
    ways.iter().map(|way| way.filter.replace("PUBLISH", &socket)).collect()
}

fn clusters(services: &[Running; 3]) -> [Cluster<'_>; 5] {
    let [stock, own, publishing] = services;
    let is_unix = |address: &&String| address.starts_with("unix:");
    let tcp = own.addresses.iter().find(|address| !is_unix(address)).expect("it listens on both");
    let unix = own.addresses.iter().find(is_unix).expect("it listens on both");
    [
        ("stock", stock.address(), false),
        ("tenantgate_tcp", tcp, false),
        ("tenantgate_unix", unix, false),
        ("tenantgate_retried", unix, true),
        ("tenantgate_publishing", publishing.address(), true),
    ]
}

/// Returns the cost of each way in each round.
fn rounds(ways: &[Way], services: &[Running; 3], request: &Bytes) -> Vec<Vec<Spent>> {
    let proxy = Proxy::start(&filters(ways, services), &clusters(services), false);
    for address in &proxy.addresses {
        // Warm-up: proves the key and opens connections.
        wait(browse(address, CROWD.0, CROWD.0 * 10, request));
    }
    let mut spent: Vec<Vec<Spent>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for at in 0..ways.len() {
            // The order changes, so that no candidate always follows the same one.
            let at = (at + round) % ways.len();
            let service = ways[at].asks.map(|asks| &services[asks]);
            let before = proxy.allowed_by_module();
            spent[at].push(spend(&proxy, &proxy.addresses[at], service, request));
            ways[at].check_module(proxy.allowed_by_module() - before, CROWD.1 + ALONE.1);
        }
    }
    spent
}

fn spend(proxy: &Proxy, address: &str, service: Option<&Running>, request: &Bytes) -> Spent {
    let cpu = || (cost::cpu(proxy.pid()), service.map_or(0.0, Running::cpu));
    let mut alone = wait(browse(address, ALONE.0, ALONE.1, request));
    alone.sort_unstable();
    let (before, begun) = (cpu(), Instant::now());
    let mut times = wait(browse(address, CROWD.0, CROWD.1, request));
    let (after, requests) = (cpu(), count(times.len()));
    let rate = requests / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    Spent {
        envoy: (after.0 - before.0) / requests,
        service: (after.1 - before.1) / requests,
        rate,
        p50: millis(percentile(&times, 50.0)),
        p99: millis(percentile(&times, 99.0)),
        alone: millis(percentile(&alone, 50.0)),
    }
}

/// Returns instructions per request of each way, in Envoy and in the server, with one request after the other.
fn instructions(ways: &[Way], services: &[Running; 3], request: &Bytes) -> Vec<(f64, f64)> {
    let proxy = Proxy::start(&filters(ways, services), &clusters(services), true);
    let mut counters = services.each_ref().map(Running::counter);
    let mut envoy = proxy.counter();
    let each = ways.iter().zip(&proxy.addresses).map(|(way, address)| {
        let mut browser = wait(Browser::to(address));
        wait(ask(&mut browser, COUNTED.0, request));
        let before = proxy.allowed_by_module();
        envoy.zero();
        counters.iter().for_each(cost::Counter::zero);
        wait(ask(&mut browser, COUNTED.1, request));
        let service = way.asks.map_or(0.0, |asks| counters[asks].read());
        let counted = (envoy.read() / count(COUNTED.1), service / count(COUNTED.1));
        way.check_module(proxy.allowed_by_module() - before, COUNTED.1);
        counted
    });
    each.collect()
}

async fn ask(browser: &mut Browser, requests: usize, request: &Bytes) {
    for _ in 0..requests {
        browser.ask(request).await;
    }
}

/// Prints a table for people and a line of JSON for programs. Ratios of a round are against no auth in the same round.
fn report(ways: &[Way], spent: &[Vec<Spent>], counted: &[(f64, f64)]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!(
        "{:<36}{:>9}{:>7}{:>9}{:>9}{:>10}{:>10}{:>11}{:>7}{:>14}{:>14}{:>7}",
        "a request through Envoy",
        "req/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "alone ms",
        "envoy µs",
        "service µs",
        "ratio",
        "envoy instr.",
        "service instr.",
        "ratio"
    ));
    let mut rows = Vec::new();
    for (at, way) in ways.iter().enumerate() {
        let of = |what: fn(&Spent) -> f64| median(spent[at].iter().map(what).collect());
        let ratio = |what: fn(&Spent) -> f64| {
            median(spent[at].iter().zip(&spent[0]).map(|(ours, none)| what(ours) / what(none)).collect())
        };
        let (rate, cpu) = (ratio(|s| s.rate), ratio(|s| s.envoy + s.service));
        let (envoy, service) = counted[at];
        let instructions = (envoy + service) / counted[0].0;
        line(format!(
            "{:<36}{:>9.0}{rate:>7.2}{:>9.2}{:>9.2}{:>10.3}{:>10.1}{:>11.1}{cpu:>7.2}{envoy:>14.0}{service:>14.0}{instructions:>7.2}",
            way.name,
            of(|s| s.rate),
            of(|s| s.p50),
            of(|s| s.p99),
            of(|s| s.alone),
            of(|s| s.envoy),
            of(|s| s.service),
        ));
        rows.push(serde_json::json!({
            "way": way.name, "per_second": of(|s| s.rate), "p50_ms": of(|s| s.p50), "p99_ms": of(|s| s.p99),
            "alone_p50_ms": of(|s| s.alone), "envoy_us": of(|s| s.envoy), "service_us": of(|s| s.service),
            "envoy_instructions": envoy, "service_instructions": service,
            "ratio_per_second": rate, "ratio_cpu": cpu, "ratio_instructions": instructions,
        }));
    }
    line(serde_json::json!({ "bench": "envoy", "ways": rows }).to_string());
}
