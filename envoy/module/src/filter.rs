//! Decides about a request, and applies the decision in Envoy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustix::time::{ClockId, clock_gettime};
use tenantgate_core::clock::{Clock, Timestamp};
use tenantgate_snapshot::Mapping;
use uuid::fmt::Hyphenated;
use uuid::{Builder, Uuid};

use crate::exchange::{ContextPolicy, Exchange, FilterAction};
use crate::judge::{Judgement, Published};
use crate::link::{Link, Target};
use crate::reports::Reports;

/// The metadata namespace of `ext_authz`, so that access logs and rate limits work alike for both.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// The metadata namespace of the mark that disables `ext_authz` for a request.
const OWN_NAMESPACE: &str = "envoy.tenantgate";

/// The response code details of a rejected request, as `ext_authz` sets them.
const REFUSED: &str = "ext_authz_denied";

/// The field of the mark.
const DECIDED: &str = "decided";

/// The metadata field that tells the server whether the module may decide on this route: `checks` (no) or `module`
/// (yes). The server disables the module if it gets `module` together with `context_extensions`.
const ROUTE: &str = "route";

/// The ids of counters in Envoy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counters {
    allowed: usize,
    denied: usize,
    asked: usize,
    panics: usize,
}

impl Counters {
    pub(crate) fn define(mut one: impl FnMut(&str) -> Option<usize>) -> Option<Self> {
        let (allowed, denied) = (one("tenantgate_allowed")?, one("tenantgate_denied")?);
        Some(Self { allowed, denied, asked: one("tenantgate_asked")?, panics: one("tenantgate_panics")? })
    }
}

/// A filter: its configuration, and the state that it shares with its thread.
pub(crate) struct Filter {
    published: Arc<ArcSwapOption<Published<Mapping>>>,
    reports: Arc<Reports>,
    link: Option<Link>,
    counters: Counters,
    clears_route_cache: bool,
    /// The default for routes without their own configuration.
    context_policy: ContextPolicy,
}

impl Filter {
    /// Creates a filter from a configuration (see [`Target::parse`]). `None` if the configuration is invalid, or if
    /// this Envoy has another ABI. Only an Envoy that `serves` connects to the server; one that validates does not.
    pub(crate) fn new(text: &str, counters: Counters, serves: bool) -> Option<Arc<Self>> {
        let target = Target::parse(text)?;
        if !crate::fingerprint::is_expected() {
            return None;
        }
        let (clears_route_cache, context_policy) = (target.clears_route_cache, target.context_policy);
        let (published, reports) = (Arc::<ArcSwapOption<_>>::default(), Arc::<Reports>::default());
        let link = if serves { Some(Link::start(target, &published, &reports)?) } else { None };
        Some(Arc::new(Self { published, reports, link, counters, clears_route_cache, context_policy }))
    }

    /// Stops the thread.
    pub(crate) fn stop(&self) {
        if let Some(link) = &self.link {
            link.stop();
        }
    }
}

/// Decides about a request. If that panics, the server decides.
pub(crate) fn decide(filter: &Filter, exchange: &mut dyn Exchange) -> FilterAction {
    let decided = catch_unwind(AssertUnwindSafe(|| judge_and_apply(filter, exchange)));
    decided.unwrap_or_else(|_| {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            // First the mark is removed, so that `ext_authz` asks the server.
            let action = ask(filter, exchange);
            exchange.count(filter.counters.panics);
            action
        }));
        // The mark of an earlier pass may still be there, so the request must not go on. It waits for its timeout.
        asked.unwrap_or(FilterAction::Denied)
    })
}

fn judge_and_apply(filter: &Filter, exchange: &mut dyn Exchange) -> FilterAction {
    if exchange.route().unwrap_or(filter.context_policy) != ContextPolicy::None {
        return leave(filter, exchange, "checks");
    }
    let clock = SystemClock;
    let (published, mut bytes) = (filter.published.load(), Vec::new());
    let judgement = match published.as_deref() {
        Some(published) => published.judge(exchange, &clock, &mut bytes),
        None => Judgement::Ask,
    };
    match judgement {
        Judgement::Ask => ask(filter, exchange),
        // A module cannot choose the gRPC status, so Envoy would report success to the client. And where the body has not
        // arrived yet, Envoy would close a connection of HTTP/1.1, which it keeps after a Check.
        Judgement::Deny(..) if is_grpc(exchange) || exchange.has_body() => ask(filter, exchange),
        Judgement::Allow(proven) => {
            let id = Id::new(clock.now());
            let set = proven.set.iter().all(|(name, value)| exchange.set_header(name, Some(value)));
            for name in &proven.remove {
                exchange.set_header(name, None);
            }
            // A remaining header would be one that the client has forged, or its key.
            let gone = proven.remove.iter().all(|name| exchange.values(name).is_empty());
            if !set || !gone {
                return ask(filter, exchange);
            }
            write_metadata(exchange, "allow", "ok", id.as_str(), &proven.metadata);
            filter.reports.add(proven.prefix, "ok", clock.now());
            exchange.count(filter.counters.allowed);
            if filter.clears_route_cache {
                exchange.clear_route_cache();
            }
            exchange.set_flag(OWN_NAMESPACE, DECIDED, true);
            FilterAction::Allowed
        }
        Judgement::Deny(answer, proven) => {
            let id = Id::new(clock.now());
            let metadata = proven.as_ref().map_or(&[][..], |proven| &proven.metadata);
            write_metadata(exchange, "deny", &answer.reason, id.as_str(), metadata);
            let headers: Vec<_> = answer
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), if value.is_empty() { id.as_str() } else { value }))
                .collect();
            let prefix = proven.as_ref().map_or("", |proven| proven.prefix);
            filter.reports.add(prefix, &answer.reason, clock.now());
            exchange.count(filter.counters.denied);
            exchange.respond(answer.status, &headers, &answer.body, REFUSED);
            FilterAction::Denied
        }
    }
}

/// Returns whether Envoy would translate a rejection into a gRPC response.
fn is_grpc(exchange: &dyn Exchange) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let is_grpc =
        |value: &Vec<u8>| value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
    exchange.values("content-type").iter().any(is_grpc)
}

/// Makes the server decide on a request, on a route where the module may decide.
fn ask(filter: &Filter, exchange: &mut dyn Exchange) -> FilterAction {
    leave(filter, exchange, "module")
}

fn leave(filter: &Filter, exchange: &mut dyn Exchange, route: &str) -> FilterAction {
    // Envoy may have redirected this request internally, so a mark of the first pass is removed.
    exchange.set_flag(OWN_NAMESPACE, DECIDED, false);
    exchange.set_metadata(OWN_NAMESPACE, &[(ROUTE, route)]);
    exchange.count(filter.counters.asked);
    FilterAction::Ask
}

/// Writes the metadata of a decision.
fn write_metadata(
    exchange: &mut dyn Exchange,
    decision: &str,
    reason: &str,
    id: &str,
    metadata: &[(&str, &str)],
) {
    let own = [("decision", decision), ("decision_id", id), ("reason", reason), ("via", "module")];
    exchange.set_metadata(NAMESPACE, &[&own, metadata].concat());
}

/// Returns the id of a decision: a `UUIDv7` (RFC 9562 §5.7), as text.
struct Id([u8; Hyphenated::LENGTH]);

impl Id {
    fn new(now: Timestamp) -> Self {
        let millis = u64::try_from(now.0 / 1_000).unwrap_or(0);
        let id: Uuid = Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid();
        let mut text = [0; Hyphenated::LENGTH];
        id.hyphenated().encode_lower(&mut text);
        Self(text)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The clocks of the operating system, which are also those of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let time = clock_gettime(ClockId::Realtime);
        Timestamp(time.tv_sec * 1_000_000 + time.tv_nsec / 1_000)
    }

    fn uptime(&self) -> Duration {
        let time = clock_gettime(ClockId::Boottime);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that panics as soon as it is looked at, and at the second look if `twice`. It records what is written.
    #[derive(Default)]
    struct Broken {
        twice: bool,
        marked: Option<bool>,
        counted: Vec<usize>,
    }

    impl Exchange for Broken {
        fn each_header(&self, _: &mut dyn FnMut(&[u8], &[u8])) {}
        fn has_body(&self) -> bool {
            false
        }
        fn values(&self, _: &str) -> Vec<Vec<u8>> {
            Vec::new()
        }
        fn set_header(&mut self, _: &str, _: Option<&str>) -> bool {
            false
        }
        fn set_metadata(&mut self, _: &str, _: &[(&str, &str)]) {}
        fn set_flag(&mut self, namespace: &str, name: &str, value: bool) {
            assert!(!self.twice, "broken again");
            assert_eq!((namespace, name), (OWN_NAMESPACE, DECIDED));
            self.marked = Some(value);
        }
        fn route(&self) -> Option<ContextPolicy> {
            panic!("broken");
        }
        fn clear_route_cache(&mut self) {}
        fn respond(&mut self, _: u16, _: &[(&str, &str)], _: &str, _: &str) {}
        fn count(&mut self, counter: usize) {
            self.counted.push(counter);
        }
    }

    fn filter() -> Filter {
        Filter {
            published: Arc::default(),
            reports: Arc::default(),
            link: None,
            counters: Counters { allowed: 0, denied: 1, asked: 2, panics: 3 },
            clears_route_cache: false,
            context_policy: ContextPolicy::None,
        }
    }

    #[test]
    fn after_a_panic_the_server_decides() {
        let mut request = Broken::default();
        assert_eq!(decide(&filter(), &mut request), FilterAction::Ask);
        assert_eq!(request.marked, Some(false), "a mark of an earlier pass is removed");
        assert_eq!(request.counted, [2, 3]);
    }

    #[test]
    fn a_request_that_keeps_its_mark_after_a_panic_does_not_pass() {
        let mut request = Broken { twice: true, ..Broken::default() };
        assert_eq!(decide(&filter(), &mut request), FilterAction::Denied);
        assert_eq!(request.marked, None);
    }
}
