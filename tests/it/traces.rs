//! Checks that a check becomes part of the trace that Envoy samples, and of no other.

use crate::support::collector::{Collector, Seen};
use crate::support::envoy::Envoy;
use crate::support::link::free_port;
use crate::support::{Ask, PATIENCE, Server, World, eventually};

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

/// The names of a span's attributes before a key is proven, and after.
const UNPROVEN: [&str; 6] = ["decision", "decision.id", "reason", "rpc.method", "rpc.service", "rpc.system"];
const PROVEN: [&str; 3] = ["key.id", "key.prefix", "tenant.id"];

fn is_check(seen: &Seen) -> bool {
    seen.service == "tenantgate"
}

fn names(proven: bool) -> Vec<&'static str> {
    let mut names: Vec<_> = UNPROVEN.into_iter().chain(PROVEN.into_iter().filter(|_| proven)).collect();
    names.sort_unstable();
    names
}

#[test]
fn only_a_sampled_call_becomes_a_span() {
    let (world, collector) = (World::somewhere(), Collector::start());
    let mut server = Server::on(&world.db).args(&["--otlp-endpoint", &collector.url()]).start();
    server.client().check_traced(UNSAMPLED, Ask::with_key(&world.live.text));
    server.client().check_traced("nonsense", Ask::with_key(&world.live.text));
    server.check(Ask::with_key(&world.live.text));
    server.client().check_traced(SAMPLED, Ask::with_key(&world.revoked.text));
    server.client().check_traced(SAMPLED, Ask::with_key(&world.live.with_wrong_secret()));
    server.client().check_traced(SAMPLED, Ask::get("/v1"));
    // A graceful stop sends the remaining spans.
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let spans = collector.spans();
    let reasons: Vec<_> = spans.iter().filter_map(|seen| seen.attribute("reason")).collect();
    assert_eq!(reasons, ["revoked", "mismatch", "missing"], "{spans:#?}");
    for (seen, proven) in spans.iter().zip([true, false, false]) {
        assert_eq!(seen.span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
        assert_eq!(seen.span.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(seen.names(), names(proven));
        assert!(seen.span.end_time_unix_nano >= seen.span.start_time_unix_nano);
    }
    assert_eq!(spans[0].attribute("key.id"), Some(world.revoked.id.clone()));
    let refused = server.stderr.text();
    let id = spans[0].attribute("decision.id").expect("an id");
    assert!(refused.contains(&format!("decision.id={id}")), "one id in span and log: {refused}");
}

#[test]
fn an_unreachable_collector_is_logged_once_and_affects_no_request() {
    let world = World::somewhere();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut server = Server::on(&world.db).args(&["--otlp-endpoint", &nobody]).start();
    server.client().check_traced(SAMPLED, Ask::with_key(&world.live.text));
    eventually("the batch is given up", PATIENCE, || {
        let lost = server.metric(&["tenantgate_trace_flushes_total", "failed"]);
        if lost > 0.0 { Ok(()) } else { Err(lost) }
    });
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert!(server.stderr.text().contains("spans could not be sent and are lost"));
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
}

/// Envoy's tracer, as in the docs.
fn tracing(percent: u32) -> String {
    format!(
        "stat_prefix: edge
          tracing:
            random_sampling: {{value: {percent}}}
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                \"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                service_name: envoy
                grpc_service: {{envoy_grpc: {{cluster_name: collector}}, timeout: 1s}}"
    )
}

fn cluster(port: u16) -> String {
    format!(
        "  clusters:
  - name: collector
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: collector
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
"
    )
}

#[test]
fn behind_envoy_a_check_is_a_child_of_envoys_own_span() {
    let (world, collector) = (World::somewhere(), Collector::start());
    let mut server = Server::on(&world.db).args(&["--otlp-endpoint", &collector.url()]).start();
    for (percent, path) in [(0, "/unsampled"), (100, "/sampled")] {
        let plan = Envoy::before(&server)
            .with("stat_prefix: edge", &tracing(percent))
            .with("  clusters:\n", &cluster(collector.port));
        let Some(envoy) = plan.start() else { return };
        let outcome = envoy.send("GET", path, &[("x-llmcore-api-key", &world.live.text)]);
        assert_eq!(outcome.page.status, 200);
        if percent == 100 {
            collector.wait_for("envoy's span", |seen| {
                seen.service == "envoy" && seen.attribute("http.url").is_some_and(|url| url.contains(path))
            });
        }
    }
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let spans = collector.spans();
    let ours: Vec<_> = spans.iter().filter(|seen| is_check(seen)).collect();
    assert_eq!(ours.len(), 1, "the sampled one: {spans:#?}");
    let parent = spans.iter().find(|seen| seen.span.span_id == ours[0].span.parent_span_id);
    let parent = parent.unwrap_or_else(|| panic!("its parent is among {spans:#?}"));
    assert_eq!(parent.service, "envoy");
    assert_eq!(parent.span.trace_id, ours[0].span.trace_id);
    assert!(parent.span.name.contains("envoy.service.auth.v3.Authorization"), "{parent:?}");
    assert_eq!(ours[0].attribute("key.id"), Some(world.live.id.clone()));
}

#[test]
fn an_invalid_endpoint_is_rejected() {
    let world = World::somewhere();
    for bad in ["127.0.0.1:4317", "ftp://x:1", "http://x:4318/v1/traces", "http://"] {
        let (code, _, said) =
            Server::on(&world.db).args(&["--otlp-endpoint", bad, "--check-config"]).run_to_end();
        assert_eq!(code, Some(2), "{bad}: {said}");
        assert!(said.contains("--otlp-endpoint: "), "{said}");
    }
}
