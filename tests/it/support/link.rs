//! What if the network between tenantgate and its database fails? A wire that tests can cut.
//!
//! Forwards a port of its own to the database. `cut` closes everything and refuses
//! newcomers, as a dead host's neighbour does; `slam` takes newcomers and hangs up, and
//! counts them; `freeze` keeps all connections open and moves no byte, as a network that
//! drops packets does; `mend` undoes all of them.

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Database, runtime, wait};

/// The wire.
pub(crate) struct Link {
    port: u16,
    to: AtomicU16,
    frozen: watch::Sender<bool>,
    attempts: Arc<AtomicUsize>,
    traffic: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// A working wire to a port of the loopback.
    pub(crate) fn to(to: u16) -> Self {
        let frozen = watch::Sender::new(false);
        let link = Self {
            port: free_port(),
            to: to.into(),
            frozen,
            attempts: Arc::default(),
            traffic: Mutex::default(),
        };
        link.mend();
        link
    }

    /// A working wire to a database, and the database as seen through it.
    pub(crate) fn before(database: &Database) -> (Self, Database) {
        let cluster = database.cluster();
        let link = Self::to(cluster.port());
        let (direct, through) = (format!(":{}/", cluster.port()), format!(":{}/", link.port));
        let seen = Database::at(database.backend, &database.url().replace(&direct, &through));
        (link, seen)
    }

    /// The end that tenantgate is given.
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

    /// Lets nothing through, and says so to nobody.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Takes every connection and ends it at once.
    pub(crate) fn slam(&self) {
        let listener = self.listen();
        let attempts = Arc::clone(&self.attempts);
        self.go_on(async move {
            while listener.accept().await.is_ok() {
                attempts.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// How many connections were slammed.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Leads elsewhere from now on, and works.
    pub(crate) fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Relaxed);
        self.mend();
    }

    /// Works again.
    pub(crate) fn mend(&self) {
        let listener = self.listen();
        self.frozen.send_replace(false);
        self.go_on(carry(listener, self.to.load(Ordering::Relaxed), self.frozen.subscribe()));
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

async fn carry(listener: TcpListener, to: u16, frozen: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let frozen = frozen.clone();
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
            let _ = near.set_nodelay(true);
            let _ = far.set_nodelay(true);
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::join!(pump(near_in, far_out, frozen.clone()), pump(far_in, near_out, frozen));
        });
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// A port that nobody has, below the range from which the kernel gives ports to others.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000)
        .take(2_000)
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
