//! Tests of whole connections in memory, with a service that the tests control.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, duplex};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use super::*;
use crate::clock::{Clock, ManualClock};

/// Makes every call wait until its deadline, and by the milliseconds in its header `late` longer.
#[derive(Default)]
struct Waits {
    /// How long the calls were allowed to wait.
    allowed: Mutex<Vec<Duration>>,
}

impl Unary for Waits {
    const PATH: &'static str = "/test.Service/Wait";

    fn answer_now(&self, _: &[u8], _: &HeaderMap) -> Option<Result<Frame, CallFailure>> {
        None
    }

    async fn answer(
        &self,
        _: Bytes,
        metadata: &HeaderMap,
        deadline: Instant,
    ) -> Result<(Frame, Option<Unable>), CallFailure> {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).push(deadline - Instant::now());
        let late = metadata.get("late").map_or(0, |late| late.to_str().unwrap().parse().unwrap());
        sleep_until(deadline + Duration::from_millis(late)).await;
        Ok((Frame::of(0, |_| {}), None))
    }

    fn compact(&self, message: Bytes) -> Bytes {
        message
    }

    fn compact_metadata(&self, metadata: &HeaderMap) -> HeaderMap {
        metadata.clone()
    }

    fn unable(&self, _: Unable) -> Frame {
        Frame::of(0, |message| message.extend_from_slice(b"unable"))
    }
}

/// A client and the server of its connection.
struct Pair {
    client: SendRequest<Bytes>,
    services: Arc<Services<Waits>>,
    clock: Arc<ManualClock>,
    _stop: watch::Sender<bool>,
}

impl Pair {
    async fn new(limits: Limits, others: Routes) -> Self {
        let clock = Arc::new(ManualClock::default());
        let ticks: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let services = Services::new(Waits::default(), others, limits, Arc::new(Failures::new(&ticks)));
        let (ours, theirs) = duplex(1 << 20);
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(serve(ours, Peer::Unknown, Arc::clone(&services), stopped));
        let (client, connection) = h2::client::handshake(theirs).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { client, services, clock, _stop: stop }
    }

    /// Sends a call with an empty message.
    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> impl Future<Output = Told> + use<> {
        self.send(path, headers, Bytes::from_static(&[0; 5]))
    }

    /// Sends a call with this body.
    fn send(&self, path: &str, headers: &[(&str, &str)], body: Bytes) -> impl Future<Output = Told> + use<> {
        let mut request = http::Request::post(format!("http://test{path}"));
        for (name, value) in [("content-type", "application/grpc")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let (client, request) = (self.client.clone(), request.body(()).unwrap());
        async move {
            let (response, mut sending) = client.ready().await.unwrap().send_request(request, false).unwrap();
            sending.send_data(body, true).unwrap();
            let (head, mut body) = response.await.unwrap().into_parts();
            let mut message = Vec::new();
            while let Some(chunk) = body.data().await {
                message.extend_from_slice(&chunk.unwrap());
            }
            let trailers = body.trailers().await.unwrap();
            let status = trailers.as_ref().unwrap_or(&head.headers)["grpc-status"].clone();
            Told {
                status: status.to_str().unwrap().parse().unwrap(),
                message: message.split_off(5.min(message.len())),
            }
        }
    }
}

/// The response to a call.
#[derive(Debug, Eq, PartialEq)]
struct Told {
    /// Its `grpc-status`.
    status: u16,
    message: Vec<u8>,
}

/// The log lines of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `grpc.health.v1.HealthCheckResponse` with `SERVING`.
const SERVING: &[u8] = &[8, 1];

#[tokio::test(start_paused = true)]
async fn other_services_answer_while_memory_is_full() {
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    const NOT_FOUND: u16 = 5;
    const RESOURCE_EXHAUSTED: u16 = 8;
    let health = HealthServer::new(HealthService::from_health_reporter(HealthReporter::new()));
    let limits = Limits { pending: 0, ..Limits::default() };
    let pair = Pair::new(limits, Routes::new(health)).await;
    let began = Instant::now();
    let mut waiting: JoinSet<Told> = (0..20).map(|_| pair.ask(Waits::PATH, &[])).collect();
    let unable = Told { status: 0, message: b"unable".to_vec() };
    assert_eq!(
        waiting.join_next().await.unwrap().unwrap(),
        unable,
        "the connection has no more room of its own"
    );
    let serving = || Told { status: 0, message: SERVING.to_vec() };
    // A large header list is of no use to these services.
    let large = "v".repeat(100_000);
    for _ in 0..20 {
        assert_eq!(pair.ask(HEALTH, &[("tracestate", &large)]).await, serving());
    }
    // A service of this name, by its field 1.
    let of_size = |size: u16| {
        let varint = [u8::try_from(size & 0x7f).unwrap() | 0x80, u8::try_from(size >> 7).unwrap()];
        let message = [&[0x0a][..], &varint, &vec![b's'; size.into()]].concat();
        let len = u32::try_from(message.len()).unwrap().to_be_bytes();
        Bytes::from([&[0][..], &len, &message].concat())
    };
    assert_eq!(pair.send(HEALTH, &[], of_size(10_000)).await.status, NOT_FOUND, "it is read");
    assert_ne!(pair.send(HEALTH, &[], of_size(16_380)).await.status, NOT_FOUND, "more is not read");
    let watching: JoinSet<Told> = (0..8).map(|_| pair.ask("/grpc.health.v1.Health/Watch", &[])).collect();
    // They are sent before it.
    tokio::task::yield_now().await;
    assert_eq!(pair.ask(HEALTH, &[]).await.status, RESOURCE_EXHAUSTED, "they are limited, too");
    assert_eq!(Instant::now(), began, "nothing has ended because of its deadline");
    drop((watching, waiting));
}

#[tokio::test(start_paused = true)]
async fn late_answers_are_counted_warned_of_once_a_minute_and_make_the_next_ones_earlier() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let pair = Pair::new(Limits::default(), Routes::default()).await;
    let warned = || lines.text().matches("calls that wait are answered late").count();
    // Of 200 ms, 50 ms are the margin.
    for (late, counted, written) in [("0", 0, 0), ("20", 0, 0), ("40", 0, 1), ("90", 1, 1), ("150", 2, 1)] {
        pair.ask(Waits::PATH, &[("grpc-timeout", "200m"), ("late", late)]).await;
        assert_eq!((pair.services.failures.late_answers(), warned()), (counted, written), "{late}");
    }
    pair.clock.advance(Duration::from_mins(1));
    pair.ask(Waits::PATH, &[("late", "100")]).await;
    assert_eq!(warned(), 1, "a call that does not tell its timeout cannot be late");
    pair.ask(Waits::PATH, &[("grpc-timeout", "200m"), ("late", "400")]).await;
    assert!(warned() == 2 && lines.text().contains("left_out=2"), "{}", lines.text());
    let allowed: Vec<_> =
        pair.services.unary.allowed.lock().unwrap().iter().map(Duration::as_millis).collect();
    // The timer of a test fires up to a millisecond late, too.
    let near = |seen: u128, wanted: u128| (wanted.saturating_sub(2)..=wanted).contains(&seen);
    for (seen, wanted) in allowed.iter().zip([150, 150, 130, 110, 60]) {
        assert!(near(*seen, wanted), "{allowed:?}");
    }
    assert!(near(allowed[6], 50), "at most half of the timeout earlier: {allowed:?}");
}

/// A peer that always has bytes: its preface, and then PING frames (RFC 9113 §6.7). Counts the bytes that were read.
struct Endless(Arc<AtomicUsize>);

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0\x07\x07\x07\x07\x07\x07\x07\x07";
        let at = self.0.load(SeqCst);
        let frame =
            if at < PREFACE.len() { &PREFACE[at..] } else { &PING[(at - PREFACE.len()) % PING.len()..] };
        let part = &frame[..frame.len().min(buf.remaining())];
        buf.put_slice(part);
        self.0.fetch_add(part.len(), SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn other_sockets_are_served_between_the_turns_of_a_connection() {
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::default();
    let failures = Arc::new(Failures::new(&clock));
    let services = Services::new(Waits::default(), Routes::default(), Limits::default(), failures);
    let (_stop, stopped) = watch::channel(false);
    let read = Arc::<AtomicUsize>::default();
    tokio::spawn(serve(Endless(Arc::clone(&read)), Peer::Unknown, services, stopped));
    let (mut ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (mut from, mut to) = theirs.into_split();
        tokio::io::copy(&mut from, &mut to).await
    });
    for byte in 0..10 {
        let before = read.load(SeqCst);
        ours.write_u8(byte).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), byte);
        let meanwhile = read.load(SeqCst) - before;
        assert!(meanwhile < 1024 * 1024, "it read {meanwhile} bytes during one round trip of another");
    }
    assert!(read.load(SeqCst) > 100_000, "it was busy");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time_from_the_first_byte() {
    let limits = Limits::default();
    let ticks: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let failures = Arc::new(Failures::new(&ticks));
    let services = Services::new(Waits::default(), Routes::default(), limits, failures);
    let (ours, mut theirs) = duplex(1 << 20);
    let (_stop, stopped) = watch::channel(false);
    let served = tokio::spawn(serve(ours, Peer::Unknown, services, stopped));
    // A silent client is not disconnected.
    sleep(limits.handshake * 19 / 10).await;
    assert!(!served.is_finished());
    let begin = Instant::now();
    theirs.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    served.await.unwrap();
    assert_eq!(begin.elapsed(), limits.handshake);
}
