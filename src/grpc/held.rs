//! When does what is written go out?
//!
//! When there is nothing more to take up: calls that came together are answered together, and their answers
//! leave in one system call, where `h2` makes two of each. What is written is not known here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held back at most; more wait until the peer has taken some.
const MOST: usize = 64 * 1024;

/// Bytes of room that an idle connection keeps: an answer or two.
const KEPT: usize = 4 * 1024;

/// A stream whose writing end can be held back. Clones are of the same stream: one is given to `h2`, which
/// gives nothing back, and another one holds and lets go.
pub(super) struct Held<T>(Arc<Mutex<Stream<T>>>);

struct Stream<T> {
    io: T,
    holds: bool,
    waiting: Vec<u8>,
    /// How many of those that wait have gone.
    gone: usize,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Held<T> {
    /// A stream that holds nothing back yet.
    pub(super) fn new(io: T) -> Self {
        Self(Arc::new(Mutex::new(Stream { io, holds: false, waiting: Vec::new(), gone: 0 })))
    }

    /// Holds back what is written from now on.
    pub(super) fn hold(&self) {
        self.lock().holds = true;
    }

    /// Lets go of what was held back. What the peer does not take yet goes when it does, if the task is polled again.
    pub(super) fn let_go(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().flush(cx)
    }

    /// Nobody shares it but the one task that polls it, so that there is nothing to wait for.
    fn lock(&self) -> MutexGuard<'_, Stream<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.waiting.get(self.gone..) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.gone += written,
            }
        }
        self.gone = 0;
        self.waiting.clear();
        self.waiting.shrink_to(KEPT);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Makes room, which there always is unless the peer takes nothing.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.len() < MOST { Poll::Ready(Ok(())) } else { self.flush(cx) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Held<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut stream.io).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Held<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.lock();
        ready!(stream.poll_room(cx))?;
        let before = stream.waiting.len();
        for buf in bufs {
            stream.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(stream.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        if stream.holds { Poll::Ready(Ok(())) } else { stream.flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        ready!(stream.flush(cx))?;
        Pin::new(&mut stream.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_held_back_goes_when_it_is_let_go_and_not_before() {
        let (io, mut peer) = duplex(1024);
        let held = Held::new(io);
        let mut inner = held.clone();
        inner.write_all(b"hello ").await.unwrap();
        inner.flush().await.unwrap();
        held.hold();
        inner.write_all(b"wor").await.unwrap();
        inner.write_all(b"ld").await.unwrap();
        inner.flush().await.unwrap();
        let mut read = vec![0; 64];
        assert_eq!(peer.read(&mut read).await.unwrap(), 6, "what was written before it was held back");
        poll_fn(|cx| held.let_go(cx)).await.unwrap();
        assert_eq!(peer.read(&mut read).await.unwrap(), 5);
        assert_eq!(read[..5], *b"world");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_waited_for() {
        let (io, mut peer) = duplex(1024);
        let held = Held::new(io);
        held.hold();
        let mut inner = held.clone();
        let all: Vec<u8> = (0..2 * MOST).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut sent = 0;
        poll_fn(|cx| {
            while sent < all.len() {
                let Poll::Ready(written) = Pin::new(&mut inner).poll_write(cx, &all[sent..][..1000]) else {
                    break;
                };
                sent += written.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        assert!(sent < MOST + 1000, "{sent} bytes are held back");
        let write = async {
            inner.write_all(&all[sent..]).await.unwrap();
            inner.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (read_all, ()) = tokio::join!(peer.read_to_end(&mut read), write);
        assert_eq!(read_all.unwrap(), all.len());
        assert_eq!(read, all);
        assert!(held.lock().waiting.capacity() <= KEPT);
    }
}
