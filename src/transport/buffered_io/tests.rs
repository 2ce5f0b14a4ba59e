//! Tests of the buffered reads and writes.

use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::super::Peer;
use super::super::memory_budget::{ConnectionBudget, MemoryBudget};
use super::*;

fn header_block() -> HeaderBlock {
    HeaderBlock::new(&ConnectionBudget::new(&MemoryBudget::new(1 << 20), Peer::Unknown))
}

#[tokio::test]
async fn buffered_bytes_are_sent_only_on_request() {
    let (io, mut peer) = duplex(1024);
    let buffered = BufferedIo::new(io);
    let mut inner = buffered.clone();
    inner.write_all(b"hello ").await.unwrap();
    inner.flush().await.unwrap();
    buffered.start_buffering(header_block(), 1 << 20, Arc::default());
    inner.write_all(b"wor").await.unwrap();
    inner.write_all(b"ld").await.unwrap();
    inner.flush().await.unwrap();
    let mut read = vec![0; 64];
    assert_eq!(peer.read(&mut read).await.unwrap(), 6, "written before buffering started");
    poll_fn(|cx| buffered.send_buffered(cx)).await.unwrap();
    assert_eq!(peer.read(&mut read).await.unwrap(), 5);
    assert_eq!(read[..5], *b"world");
}

#[tokio::test]
async fn writes_wait_for_a_peer_that_does_not_read() {
    let (io, mut peer) = duplex(1024);
    let buffered = BufferedIo::new(io);
    buffered.start_buffering(header_block(), 1 << 20, Arc::default());
    let mut inner = buffered.clone();
    let all: Vec<u8> = (0..2 * MAX_UNSENT_BYTES).map(|n| u8::try_from(n % 251).unwrap()).collect();
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
    assert!(sent < MAX_UNSENT_BYTES + 1000, "{sent} bytes are buffered");
    let write = async {
        inner.write_all(&all[sent..]).await.unwrap();
        inner.shutdown().await.unwrap();
    };
    let mut read = Vec::new();
    let (read_all, ()) = tokio::join!(peer.read_to_end(&mut read), write);
    assert_eq!(read_all.unwrap(), all.len());
    assert_eq!(read, all);
    assert!(buffered.lock().unsent.capacity() <= KEPT);
}

#[tokio::test]
async fn reading_stops_at_the_budget_until_it_is_renewed() {
    let (io, mut peer) = duplex(4 * READ_BUDGET);
    let buffered = BufferedIo::new(io);
    peer.write_all(&vec![7; 2 * READ_BUDGET]).await.unwrap();
    let mut reader = buffered.clone();
    let mut bytes = vec![0; 3 * READ_BUDGET];
    let mut read_once = async || {
        poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut bytes[..1000]);
            Poll::Ready(match Pin::new(&mut reader).poll_read(cx, &mut buf) {
                Poll::Ready(read) => read.map(|()| buf.filled().len()).unwrap(),
                Poll::Pending => 0,
            })
        })
        .await
    };
    assert_eq!(read_once().await, 1000);
    assert!(!buffered.renew_read_budget(false), "reading has not stopped yet");
    let mut total = 0;
    while let n @ 1.. = read_once().await {
        total += n;
    }
    assert!((READ_BUDGET..READ_BUDGET + 1000).contains(&total), "{total}");
    assert!(buffered.renew_read_budget(false), "reading had stopped");
    assert!(read_once().await > 0);
    assert_eq!(buffered.first_bytes(), [7; FIRST]);
}

#[tokio::test]
async fn an_empty_socket_is_read_once_in_each_poll_of_the_task() {
    /// A peer that has a byte at every second read.
    struct EverySecond(usize);
    impl AsyncRead for EverySecond {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.0 += 1;
            if self.0.is_multiple_of(2) {
                buf.put_slice(b"x");
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        }
    }
    let mut buffered = BufferedIo::new(tokio::io::join(EverySecond(0), tokio::io::sink()));
    let read = async |buffered: &mut BufferedIo<_>| {
        let mut byte = [0];
        poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut *buffered).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_ready())
        })
        .await
    };
    assert_eq!([read(&mut buffered).await, read(&mut buffered).await], [false, true], "during the handshake");
    buffered.start_buffering(header_block(), 1 << 20, Arc::default());
    for _ in 0..3 {
        assert_eq!([read(&mut buffered).await, read(&mut buffered).await], [false, false]);
        buffered.start_reading();
        assert!(read(&mut buffered).await);
    }
    assert!(!read(&mut buffered).await);
    buffered.linger(Duration::from_secs(1)).await;
    assert!(buffered.lock().first_len > 4, "lingering reads although the socket was empty");
}

#[tokio::test(start_paused = true)]
async fn lingering_discards_late_bytes_and_ends() {
    let (io, mut peer) = duplex(1024);
    let buffered = BufferedIo::new(io);
    peer.write_all(b"late").await.unwrap();
    drop(peer);
    buffered.linger(Duration::from_secs(1)).await;
    let (io, _silent) = duplex(1024);
    BufferedIo::new(io).linger(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn other_connections_get_a_turn_in_the_middle_of_a_large_header_block() {
    const HEADERS: u8 = 1;
    const DATA: u8 = 0;
    for (kind, stops) in [(HEADERS, true), (DATA, false)] {
        let (io, mut peer) = duplex(1 << 20);
        let buffered = BufferedIo::new(io);
        buffered.start_buffering(header_block(), 1 << 20, Arc::default());
        let frame = [&[0, 0x40, 0, kind, 0, 0, 0, 0, 1][..], &[0; 0x4000]].concat();
        peer.write_all(&[&[0; 24][..], &frame].concat()).await.unwrap();
        buffered.renew_read_budget(false);
        let mut reader = buffered.clone();
        let mut half = vec![0; 0x2000];
        reader.read_exact(&mut half).await.unwrap();
        let rest = timeout(Duration::from_secs(1), reader.read(&mut half)).await;
        assert_eq!(rest.is_err(), stops, "{kind}");
        assert_eq!(buffered.renew_read_budget(false), stops, "the connection is to be polled again");
        assert!(reader.read(&mut half).await.unwrap() > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_block_is_read_only_as_far_as_the_budget_has_room() {
    let total = MemoryBudget::new(1000);
    let [budget, others] = [(); 2].map(|()| ConnectionBudget::new(&total, Peer::Unknown));
    let mut exceeding = HeaderBlock::new(&others);
    assert!(exceeding.resize(2000, 2000), "the header block of another connection");
    let (io, mut peer) = duplex(1 << 20);
    let buffered = BufferedIo::new(io);
    buffered.start_buffering(HeaderBlock::new(&budget), 1 << 20, Arc::default());
    // HEADERS without END_HEADERS (RFC 9113 §6.2).
    let frame = [&[0, 0x40, 0, 1, 0, 0, 0, 0, 1][..], &[0; 0x4000]].concat();
    peer.write_all(&[&[0; 24][..], &frame, b"more"].concat()).await.unwrap();
    buffered.renew_read_budget(false);
    let mut reader = buffered.clone();
    let mut all = vec![0; 24 + frame.len()];
    reader.read_exact(&mut all).await.unwrap();
    buffered.renew_read_budget(false);
    let mut more = [0; 4];
    let early = timeout(Duration::from_secs(5), reader.read(&mut more)).await;
    assert!(early.is_err(), "there is no room for the rest yet");
    assert!(budget.unfinished_header_block().is_none(), "the peer is not to blame");
    drop(exceeding);
    assert_eq!(reader.read(&mut more).await.unwrap(), 4);
    assert!(budget.unfinished_header_block().is_some());
}
