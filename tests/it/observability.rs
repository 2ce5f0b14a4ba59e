//! Checks dashboard, alerts and reference against the metrics of a live server, with a real Prometheus.
//!
//! The files in `envoy/observability/` and `docs/reference/metrics.md` are compared with a live server in both
//! directions, because an alert on a renamed metric would never fire, without any error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::manage::Manage;
use crate::support::http;
use crate::support::prometheus::{ALERTS, Prometheus, promtool};
use crate::support::{Ask, PATIENCE, Server, World, eventually};

/// All labels. None of them can contain a tenant or a key.
const LABELS: [&str; 7] = ["cause", "decision", "le", "part", "reason", "result", "verdict"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Returns the families of a page in the text format with their types.
fn families(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Returns the metrics of the reference with their types.
fn documented() -> BTreeMap<String, String> {
    let page = read("docs/reference/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    rows.flat_map(|(names, rest)| {
        let kind = rest.split(" | ").next().expect("a type").to_owned();
        let names = names.split(", ").map(|name| name.trim_matches('`'));
        names
            .map(move |name| (name.split('{').next().expect("a name").to_owned(), kind.clone()))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_metric_is_in_the_reference_and_follows_the_naming_of_prometheus() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    server.check(Ask::with_key(&world.live.text));
    let page = server.http("/metrics");
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    manage.ask("GET", "/livez", &[]);
    let managing = http::get(&manage.ops, "/metrics").expect("an answer");
    let mut all = families(&page.body);
    all.extend(families(&managing.body));
    assert_eq!(all, documented(), "left: /metrics of both, right: docs/reference/metrics.md");
    for line in page.body.lines().filter(|line| !line.starts_with('#')) {
        let labels = line.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap_or_default());
        for label in labels.split(',').filter_map(|pair| pair.split('=').next()).filter(|l| !l.is_empty()) {
            let known = LABELS.contains(&label) || line.starts_with("tenantgate_build_info{version=");
            assert!(known, "{line}");
        }
    }
    for page in [&page, &managing] {
        let Some(checked) = promtool(&["check", "metrics"], &page.body) else { return };
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert!(checked.status.success() && said.is_empty(), "{said}");
    }
}

#[test]
fn each_alert_fires_in_its_case_and_not_while_all_is_well() {
    for args in [
        &["check", "rules", "envoy/observability/alerts.yml"],
        &["test", "rules", "envoy/observability/alerts_test.yml"],
    ] {
        let Some(done) = promtool(&absolute(args).iter().map(String::as_str).collect::<Vec<_>>(), "") else {
            return;
        };
        assert!(done.status.success(), "{args:?}: {done:#?}");
    }
    let (alerts, cases) = (alerts(), read("envoy/observability/alerts_test.yml"));
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(
            cases.contains(&format!("{{alertname=\"{alert}\"")),
            "there is no test case in which {alert} fires"
        );
    }
}

/// Makes a path of the repository absolute.
fn absolute(args: &[&str]) -> Vec<String> {
    let path = |arg: &str| root().join(arg).display().to_string();
    args.iter().map(|arg| if arg.contains('/') { path(arg) } else { (*arg).to_owned() }).collect()
}

fn alerts() -> Vec<String> {
    let text = std::fs::read_to_string(ALERTS).expect("the file of alerts exists");
    text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn each_alert_links_to_its_section_in_the_docs() {
    let text = std::fs::read_to_string(ALERTS).expect("the file of alerts exists");
    let links = text.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: "));
    let links: Vec<_> = links.collect();
    assert_eq!(links.len(), alerts().len(), "one annotation for each alert");
    for (alert, link) in alerts().iter().zip(links) {
        let (page, anchor) = link.split_once('#').expect("an anchor");
        assert_eq!(anchor, alert.to_lowercase());
        assert!(read(page).contains(&format!("\n### {alert}\n")), "{page} has no heading {alert}");
    }
}

/// Two servers and a `manage` with traffic, and a Prometheus that scrapes them.
struct Watched {
    world: World,
    servers: [Server; 2],
    manage: Manage,
    prometheus: Prometheus,
}

impl Watched {
    fn start() -> Option<Self> {
        let world = World::somewhere();
        let servers = [(); 2].map(|()| Server::on(&world.db).start());
        let manage = Manage::on(&world.db, "127.0.0.1:0");
        let prometheus = Prometheus::of(&[&servers[0], &servers[1]], &manage.ops)?;
        Some(Self { world, servers, manage, prometheus })
    }

    /// Sends some Checks of every kind, including bcrypt.
    fn traffic(&self, round: usize) {
        for server in &self.servers {
            server.check(Ask::get("/docs"));
            server.check(Ask::get("/v1"));
            server.check(Ask::with_key(&self.world.live.text));
            server.check(Ask::with_key(&format!("{}_Wrong{round:08}", self.world.other.prefix)));
        }
        self.manage.ask("GET", "/livez", &[]);
    }

    /// Waits until an expression gives a number. Returns it.
    fn answers(&self, expression: &str) -> Vec<Value> {
        let mut round = 0;
        let number = |sample: &Value| {
            sample["value"][1].as_str().and_then(|n| n.parse::<f64>().ok()).is_some_and(|n| !n.is_nan())
        };
        eventually(&format!("an answer to {expression}"), PATIENCE, || {
            round += 1;
            self.traffic(round);
            match self.prometheus.query(expression) {
                Ok(samples) if samples.iter().any(number) => Ok(samples),
                other => Err(format!("{other:?}")),
            }
        })
    }
}

#[test]
fn every_query_of_the_dashboard_has_a_result() {
    let dashboard: Value = serde_json::from_str(&read("envoy/observability/dashboard.json")).expect("JSON");
    let Some(watched) = Watched::start() else { return };
    let plain = |query: &str| {
        let query = query.replace("$__rate_interval", "5s").replace("$job", "tenantgate");
        let query = query.replace("$instance", ".*");
        assert!(!query.contains('$'), "an undefined variable: {query}");
        query
    };
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let queries: Vec<_> = targets.map(|target| plain(target["expr"].as_str().expect("a query"))).collect();
    assert!(queries.len() > 30, "{queries:#?}");
    for query in &queries {
        watched.answers(query);
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(of) = variable["definition"].as_str().and_then(|text| text.strip_prefix("label_values("))
        {
            let (series, label) = of.rsplit_once(", ").expect("the query names a series and a label");
            let samples = watched.answers(&plain(series));
            assert!(samples[0]["metric"][label.trim_end_matches(')')].is_string(), "{samples:?}");
        }
    }
    for note in dashboard["annotations"]["list"].as_array().expect("annotations") {
        watched
            .prometheus
            .query(&plain(note["expr"].as_str().expect("a query")))
            .expect("the query is a text");
    }
}

#[test]
fn every_alert_uses_existing_metrics() {
    let Some(watched) = Watched::start() else { return };
    let names: BTreeSet<_> = alerts().into_iter().collect();
    let evaluated = |rule: &Value| rule["health"] == "ok";
    let rules = eventually("every alert is evaluated", PATIENCE, || {
        let rules = watched.prometheus.rules();
        if !rules.is_empty() && rules.iter().all(evaluated) { Ok(rules) } else { Err(rules) }
    });
    assert_eq!(
        rules.iter().map(|rule| rule["name"].as_str().expect("a name").to_owned()).collect::<BTreeSet<_>>(),
        names
    );
    for metric in rules.iter().flat_map(|rule| metrics_of(rule["query"].as_str().expect("a query"))) {
        watched.answers(&metric);
    }
    watched.world.db.sql("UPDATE api_keys SET hashed_key = 'damaged' WHERE key_prefix = 'llmk_other'");
    eventually("the damaged row is counted", PATIENCE, || {
        let rules = watched.prometheus.rules();
        let states = rules.iter().map(|rule| (rule["name"].as_str().unwrap_or_default(), &rule["state"]));
        let active: Vec<_> =
            states.filter(|(_, state)| **state != "inactive").map(|(name, _)| name).collect();
        if active == ["TenantgateDamagedRows"] { Ok(()) } else { Err(format!("{active:?}")) }
    });
}

/// Returns the metrics in an expression.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("tenantgate_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Asserts that the tests use the files that the docs name.
#[test]
fn the_documentation_links_to_dashboard_and_alerts() {
    let page = read("docs/operations/alerts.md");
    for file in ["dashboard.json", "alerts.yml", "alerts_test.yml"] {
        let path: PathBuf = ["envoy", "observability", file].iter().collect();
        assert!(
            root().join(&path).is_file() && page.contains(&format!("(../../{})", path.display())),
            "{file}"
        );
    }
}
