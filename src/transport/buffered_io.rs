//! A stream that batches writes and bounds reads.
//!
//! Writes: calls that arrive together are answered together. While buffering is on, the bytes that `h2` writes are
//! kept until there is no further call to accept. Then they are sent with one system call; `h2` alone makes two for
//! each response.
//!
//! Reads: `h2` keeps every open stream until it is accepted, even if the peer has reset it, and reads as long as the
//! socket has bytes. So at most [`READ_BUDGET`] bytes are read before all streams are accepted. A burst of resets
//! then takes a bounded amount of memory, and the connection need not be closed (CVE-2023-44487). Also, header lists
//! are read only as far as the memory budget has room. `h2` reads again after each call that it returns; once the
//! socket was empty, it is not read again in the same poll of the task.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::frame_scanner::FrameScanner;
use super::memory_budget::HeaderBlock;
use crate::stats::Counter;

/// The most bytes that are buffered. Further writes wait until the peer has read some.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// The capacity in bytes that an idle connection keeps: enough for one or two responses.
const KEPT: usize = 4 * 1024;

/// The most bytes that are read before all streams that they open are accepted. Opening and resetting a stream takes
/// at least about 23 bytes.
const READ_BUDGET: usize = 64 * 1024;

/// The same while memory is scarce, because the responses may have to be kept for a peer that does not read.
const SMALL_READ_BUDGET: usize = 4 * 1024;

/// Incomplete header blocks with more bytes than this are accounted for.
const SMALL_BLOCK: usize = 4 * 1024;

/// By how much a byte of such a header block reduces the read budget. `h2` decodes it at once, and slowly: without
/// this, a header block that never ends delays other connections of its worker for a millisecond at a time.
const HEADER_COST: usize = 16;

/// The most memory for one byte of a header block: a field can be an index of one byte into the compression table (RFC
/// 7541 §6.1), which becomes an entry of a header map.
const FIELD: usize = 80;

/// The most memory for one byte of a string: the byte itself while the string is incomplete, in a buffer that
/// doubles, and the decoded characters, whose Huffman codes have at least five bits.
const STRING: usize = 4;

/// The most memory for one byte of a header list, in vectors that double. The size of a header list counts 32 bytes
/// for each field besides its name and value.
const LISTED: usize = 5;

/// The interval at which a full budget is checked for room again.
const RETRY: Duration = Duration::from_millis(10);

/// The number of first bytes from the peer that are kept, to identify its protocol.
const FIRST: usize = 8;

/// The most bytes that are discarded after the last response was sent.
const LINGER_BYTES: u64 = 1024 * 1024;

/// A shared stream. Clones share the same stream: one is given to `h2`, which does not return it, and another one
/// controls it.
pub(super) struct BufferedIo<T>(Arc<Mutex<Stream<T>>>);

struct Stream<T> {
    io: T,
    buffering: bool,
    unsent: Vec<u8>,
    /// The number of bytes of `unsent` that have been sent.
    sent: usize,
    read_budget: usize,
    /// Whether the socket had no bytes when it was read, since [`BufferedIo::start_reading`].
    empty: bool,
    first: [u8; FIRST],
    first_len: usize,
    /// When the first byte from the peer was read.
    first_at: Option<Instant>,
    scanner: FrameScanner,
    resets: Arc<Counter>,
    header_block: Option<HeaderBlock>,
    /// The most bytes of a header list that `h2` keeps.
    header_list: usize,
    /// The bytes of the header block that `header_block` accounts for.
    accounted: usize,
    retry: Option<Pin<Box<Sleep>>>,
}

impl<T> Clone for BufferedIo<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> BufferedIo<T> {
    /// Locks the stream. Never waits, because only the task that polls the connection locks it.
    fn lock(&self) -> MutexGuard<'_, Stream<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> BufferedIo<T> {
    /// Wraps a stream. Buffering is off.
    pub(super) fn new(io: T) -> Self {
        Self(Arc::new(Mutex::new(Stream {
            io,
            buffering: false,
            unsent: Vec::new(),
            sent: 0,
            // It is not known yet whether memory is scarce.
            read_budget: SMALL_READ_BUDGET,
            empty: false,
            first: [0; FIRST],
            first_len: 0,
            first_at: None,
            scanner: FrameScanner::new(),
            resets: Arc::default(),
            header_block: None,
            header_list: 0,
            accounted: 0,
            retry: None,
        })))
    }

    /// Starts to buffer writes, and to account for header blocks with `header_block`. `header_list` is the most
    /// bytes of a header list that `h2` keeps. `resets` counts `RST_STREAM` frames.
    pub(super) fn start_buffering(&self, header_block: HeaderBlock, header_list: u32, resets: Arc<Counter>) {
        let mut stream = self.lock();
        stream.resets = resets;
        stream.buffering = true;
        stream.header_list = header_list as usize;
        stream.header_block = Some(header_block);
    }

    /// Stops to buffer: what is written is sent, and each read reads the socket.
    fn stop_buffering(&self) {
        let mut stream = self.lock();
        (stream.buffering, stream.empty) = (false, false);
    }

    /// Returns whether the buffer is full, so that the peer must read before more can be written.
    pub(super) fn is_full(&self) -> bool {
        self.lock().unsent.len() >= MAX_UNSENT_BYTES
    }

    /// Sends the buffered bytes. Pending until the socket has accepted all of them.
    pub(super) fn send_buffered(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().flush(cx)
    }

    /// Reads the socket again although it was empty. Must be called once in each poll of the task, because the socket
    /// wakes the task when it has bytes.
    pub(super) fn start_reading(&self) {
        self.lock().empty = false;
    }

    /// Renews the read budget, with a smaller one if memory `is_scarce`. Must be called only after every stream has
    /// been accepted. Returns whether reading had stopped, so that the connection must be polled again.
    pub(super) fn renew_read_budget(&self, is_scarce: bool) -> bool {
        let budget = if is_scarce { SMALL_READ_BUDGET } else { READ_BUDGET };
        std::mem::replace(&mut self.lock().read_budget, budget) == 0
    }

    /// Returns the first bytes from the peer, at most [`FIRST`].
    pub(super) fn first_bytes(&self) -> Vec<u8> {
        let stream = self.lock();
        stream.first[..stream.first_len].to_vec()
    }

    /// Returns when the first byte from the peer was read; `None` if it has sent nothing.
    pub(super) fn first_at(&self) -> Option<Instant> {
        self.lock().first_at
    }

    /// Closes the writing side, then reads and discards until the peer closes its side, for at most `within`.
    ///
    /// Closing a TCP socket that still has unread bytes makes the kernel reset the connection, and a reset discards
    /// responses that the peer has not received yet (RFC 9112 §9.6 describes the same for HTTP/1.1).
    pub(super) async fn linger(&self, within: Duration) {
        let discard = async {
            let mut discarded = 0;
            let mut buffer = [0; 4096];
            let mut stream = self.clone();
            stream.stop_buffering();
            if stream.shutdown().await.is_err() {
                return;
            }
            while discarded < LINGER_BYTES {
                self.renew_read_budget(false);
                match stream.read(&mut buffer).await {
                    Ok(n @ 1..) => discarded += n as u64,
                    _ => return,
                }
            }
        };
        let _ = timeout(within, discard).await;
    }
}

impl<T: AsyncWrite + Unpin> Stream<T> {
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.unsent.get(self.sent..) {
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.sent = 0;
        self.unsent.clear();
        self.unsent.shrink_to(KEPT);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Waits for room in the buffer. There is room unless the peer does not read.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.len() < MAX_UNSENT_BYTES { Poll::Ready(Ok(())) } else { self.flush(cx) }
    }
}

impl<T> Stream<T> {
    /// Accounts for the header block that is arriving. Pending while the budget has no room for it.
    fn account(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let unfinished = self.scanner.unfinished();
        let counted = if unfinished > SMALL_BLOCK { unfinished } else { 0 };
        while counted != self.accounted {
            let Some(block) = &mut self.header_block else { break };
            let memory = (counted * FIELD).min(counted * STRING + self.header_list * LISTED);
            if block.resize(counted, memory) {
                (self.accounted, self.retry) = (counted, None);
                break;
            }
            let retry = self.retry.get_or_insert_with(|| Box::pin(sleep(RETRY)));
            ready!(retry.as_mut().poll(cx));
            self.retry = None;
        }
        Poll::Ready(())
    }

    /// Records the first bytes from the peer.
    fn note_first(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.first_at.is_none() {
            self.first_at = Some(Instant::now());
        }
        let taken = bytes.len().min(FIRST - self.first_len);
        self.first[self.first_len..][..taken].copy_from_slice(&bytes[..taken]);
        self.first_len += taken;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for BufferedIo<T> {
    /// Pending without a wake-up once the budget is used up: [`BufferedIo::renew_read_budget`] says when to poll
    /// again.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        if stream.read_budget == 0 || stream.empty {
            return Poll::Pending;
        }
        ready!(stream.account(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut stream.io).poll_read(cx, buf);
        stream.empty = stream.buffering && read.is_pending();
        ready!(read)?;
        let read = &buf.filled()[before..];
        stream.scanner.scan(read);
        let resets = stream.scanner.take_resets();
        if resets > 0 {
            stream.resets.add(resets);
        }
        let cost = if stream.scanner.unfinished() > SMALL_BLOCK { HEADER_COST } else { 1 };
        stream.read_budget = stream.read_budget.saturating_sub(read.len() * cost);
        if stream.first_len < FIRST {
            stream.note_first(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for BufferedIo<T> {
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
        let before = stream.unsent.len();
        for buf in bufs {
            stream.unsent.extend_from_slice(buf);
        }
        Poll::Ready(Ok(stream.unsent.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        if stream.buffering { Poll::Ready(Ok(())) } else { stream.flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        ready!(stream.flush(cx))?;
        Pin::new(&mut stream.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
