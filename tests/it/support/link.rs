//! What if the network between tenantgate and its database fails? A wire that tests can cut.
//!
//! Forwards a port of its own to the database. `cut` closes everything and refuses
//! newcomers, as a dead host's neighbour does; `freeze` keeps all connections open and
//! moves no byte, as a network that drops packets does; `mend` undoes both.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{runtime, wait};

/// The wire.
pub(crate) struct Link {
    port: u16,
    to: u16,
    frozen: watch::Sender<bool>,
    traffic: Mutex<Option<JoinHandle<()>>>,
}

impl Link {
    /// A working wire to a port of the loopback.
    pub(crate) fn to(to: u16) -> Self {
        let link =
            Self { port: free_port(), to, frozen: watch::Sender::new(false), traffic: Mutex::default() };
        link.mend();
        link
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

    /// Works again.
    pub(crate) fn mend(&self) {
        self.cut();
        self.frozen.send_replace(false);
        let listener = wait(TcpListener::bind(("127.0.0.1", self.port))).expect("the port is still ours");
        let traffic = runtime().spawn(carry(listener, self.to, self.frozen.subscribe()));
        *self.traffic.lock().expect("no panic under the lock") = Some(traffic);
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
