//! A small rate-limit service (`envoy.service.ratelimit.v3`) that honors the limit that a request carries.
//!
//! It counts by descriptor, as a service does within one window. Windows do not end by themselves: a test ends them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::envoy::{Envoy, LIMITS, Plan};
use super::{Server, runtime, wait};

/// `RateLimitRequest`, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<Override>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Override {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    /// `RateLimitUnit`.
    #[prost(int32, tag = "2")]
    unit: i32,
}

/// `RateLimitResponse`, as far as it matters here.
#[derive(Clone, PartialEq, prost::Message)]
struct Verdict {
    #[prost(int32, tag = "1")]
    overall_code: i32,
}

const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;
const UNITS: [&str; 7] = ["UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR"];

/// A descriptor as the service got it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// `domain: key=value`.
    pub(crate) about: String,
    /// `N/UNIT`, if the request carried a limit.
    pub(crate) limit: Option<String>,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    used: HashMap<String, u64>,
    /// The limit of descriptors that carry none.
    own: Option<u32>,
}

#[derive(Clone, Default)]
struct Counts(Arc<Mutex<State>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, question: &Question) -> i32 {
        let mut state = self.lock();
        let mut over = false;
        for descriptor in &question.descriptors {
            let entries: Vec<_> =
                descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
            let about = format!("{}: {}", question.domain, entries.join(" "));
            let unit = |limit: Override| usize::try_from(limit.unit).ok().and_then(|unit| UNITS.get(unit));
            let told = |limit: Override| {
                format!("{}/{}", limit.requests_per_unit, unit(limit).copied().unwrap_or("none"))
            };
            let limit = descriptor.limit.map(|limit| limit.requests_per_unit).or(state.own);
            state.asked.push(Asked { about: about.clone(), limit: descriptor.limit.map(told) });
            let used = state.used.entry(about).or_default();
            *used += 1;
            over |= limit.is_some_and(|limit| *used > limit.into());
        }
        if over { OVER_LIMIT } else { OK }
    }
}

impl UnaryService<Question> for Counts {
    type Response = Verdict;
    type Future = std::future::Ready<Result<Response<Verdict>, Status>>;

    fn call(&mut self, request: Request<Question>) -> Self::Future {
        std::future::ready(Ok(Response::new(Verdict { overall_code: self.judge(request.get_ref()) })))
    }
}

impl NamedService for Counts {
    const NAME: &'static str = "envoy.service.ratelimit.v3.RateLimitService";
}

impl tower::Service<http::Request<Body>> for Counts {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let counts = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<Verdict, Question>::default());
            Ok(grpc.unary(counts, request).await)
        })
    }
}

/// A running service.
pub(crate) struct RateLimits {
    pub(crate) port: u16,
    counts: Counts,
    work: JoinHandle<()>,
}

impl RateLimits {
    /// A service whose own limit holds for descriptors that carry none.
    pub(crate) fn start(own: Option<u32>) -> Self {
        let listener = wait(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let counts = Counts::default();
        counts.lock().own = own;
        let server = tonic::transport::Server::builder().add_service(counts.clone());
        let work = runtime().spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves until aborted");
        });
        Self { port, counts, work }
    }

    /// An Envoy with `envoy/plain/limits.yaml` that asks this server and this service.
    #[track_caller]
    pub(crate) fn behind(&self, server: &Server) -> Plan {
        // Without an answer in time, requests would pass; a busy machine takes longer than the file allows.
        Envoy::with_file(LIMITS)
            .patient()
            .asking(&server.grpc[0])
            .port(8082, self.port)
            .with("              timeout: 0.1s\n", "              timeout: 30s\n")
            .with(
                "  - name: ratelimit\n    type: STATIC\n    connect_timeout: 0.25s\n",
                "  - name: ratelimit\n    type: STATIC\n    connect_timeout: 30s\n",
            )
    }

    /// Returns what it was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.counts.lock().asked)
    }

    /// Ends the current window: nothing counts as used.
    pub(crate) fn next_window(&self) {
        self.counts.lock().used.clear();
    }
}

impl Drop for RateLimits {
    fn drop(&mut self) {
        self.work.abort();
    }
}
