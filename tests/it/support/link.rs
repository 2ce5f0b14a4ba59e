//! A network link between tenantgate and its database that tests can break.
//!
//! It forwards a port to the database. `cut` closes all connections and refuses new ones, as after the death of a host;
//! `slam` accepts new connections, closes them at once, and counts them; `freeze` keeps all connections open and
//! forwards no byte, as a network that drops packets; `delay` delays every byte; `tear` ends a connection in the middle
//! of a response; `mend` restores normal operation.

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::{Database, runtime, wait};

/// The current behaviour of the link.
#[derive(Clone, Copy)]
struct Weather {
    frozen: bool,
    /// The delay in each direction.
    delay: Duration,
    /// The number of response bytes after which a connection ends.
    tears_after: usize,
}

impl Weather {
    const FAIR: Self = Self { frozen: false, delay: Duration::ZERO, tears_after: usize::MAX };
}

/// The link.
pub(crate) struct Link {
    port: u16,
    to: AtomicU16,
    weather: watch::Sender<Weather>,
    attempts: Arc<AtomicUsize>,
    traffic: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// A working link to a port of the loopback.
    pub(crate) fn to(to: u16) -> Self {
        let weather = watch::Sender::new(Weather::FAIR);
        let link = Self {
            port: free_port(),
            to: to.into(),
            weather,
            attempts: Arc::default(),
            traffic: Mutex::default(),
        };
        link.mend();
        link
    }

    /// A working link to a database, and the database behind it.
    pub(crate) fn before(database: &Database) -> (Self, Database) {
        let port = database.port();
        let link = Self::to(port);
        let (direct, through) = (format!(":{port}/"), format!(":{}/", link.port));
        let seen = Database::at(database.backend, &database.url().replace(&direct, &through));
        (link, seen)
    }

    /// The address for tenantgate.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        if let Some(traffic) = self.traffic.lock().expect("no panic under the lock").take() {
            traffic.abort();
            let _ = wait(traffic);
        }
    }

    /// Forwards nothing, and keeps connections open.
    pub(crate) fn freeze(&self) {
        self.weather.send_modify(|weather| weather.frozen = true);
    }

    /// Delays every byte by this time in each direction.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Ends every connection after this many response bytes, even within a message.
    pub(crate) fn tear(&self, bytes: usize) {
        self.weather.send_modify(|weather| weather.tears_after = bytes);
    }

    /// Accepts every connection and closes it at once.
    pub(crate) fn slam(&self) {
        let listener = self.listen();
        let attempts = Arc::clone(&self.attempts);
        self.go_on(async move {
            while listener.accept().await.is_ok() {
                attempts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Returns the number of connections closed by `slam`.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Forwards to another port from now on.
    pub(crate) fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Relaxed);
        self.mend();
    }

    /// Restores normal operation.
    pub(crate) fn mend(&self) {
        let listener = self.listen();
        self.weather.send_replace(Weather::FAIR);
        self.go_on(carry(listener, self.to.load(Ordering::Relaxed), self.weather.subscribe()));
    }

    fn listen(&self) -> TcpListener {
        self.cut();
        wait(TcpListener::bind(("127.0.0.1", self.port))).expect("the port is still ours")
    }

    fn go_on(&self, traffic: impl Future<Output = ()> + Send + 'static) {
        *self.traffic.lock().expect("no panic under the lock") = Some(runtime().spawn(traffic));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn carry(listener: TcpListener, to: u16, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let weather = weather.clone();
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
            let _ = near.set_nodelay(true);
            let _ = far.set_nodelay(true);
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            let questions = pump(near_in, far_out, weather.clone(), false);
            let _ = tokio::try_join!(questions, pump(far_in, near_out, weather, true));
        });
    }
}

/// The error of a torn connection.
struct Torn;

/// Forwards one direction until it ends.
async fn pump(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
    tears: bool,
) -> Result<(), Torn> {
    let (queue, queued) = mpsc::unbounded_channel();
    tokio::try_join!(take(from, queue, weather.clone()), hand_over(queued, to, weather, tears)).map(|_| ())
}

/// Bytes and their time of arrival.
type Piece = (Instant, Vec<u8>);

async fn take(
    mut from: OwnedReadHalf,
    queue: mpsc::UnboundedSender<Piece>,
    weather: watch::Receiver<Weather>,
) -> Result<(), Torn> {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let arrives = Instant::now() + weather.borrow().delay;
        if queue.send((arrives, buffer[..read].to_vec())).is_err() {
            break;
        }
    }
    Ok(())
}

async fn hand_over(
    mut queued: mpsc::UnboundedReceiver<Piece>,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    tears: bool,
) -> Result<(), Torn> {
    let mut passed = 0;
    while let Some((arrives, bytes)) = queued.recv().await {
        sleep_until(arrives).await;
        let Ok(now) = weather.wait_for(|weather| !weather.frozen).await.map(|now| *now) else { break };
        let counts = tears && now.tears_after < usize::MAX;
        let fits = if counts { now.tears_after.saturating_sub(passed).min(bytes.len()) } else { bytes.len() };
        passed += if counts { fits } else { 0 };
        if to.write_all(&bytes[..fits]).await.is_err() {
            break;
        }
        if fits < bytes.len() {
            return Err(Torn);
        }
    }
    let _ = to.shutdown().await;
    Ok(())
}

/// Returns a free port below the range from which the kernel assigns ports.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000)
        .take(2_000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
