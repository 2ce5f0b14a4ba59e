//! Tests which connection is closed when all are taken.

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::*;
use crate::clock::{Clock, ManualClock};

/// The bytes of a long response, and those that its client takes at a time.
const LONG: usize = 1024 * 1024;
const PART: usize = 64 * 1024;

#[tokio::test]
async fn a_client_that_takes_a_long_answer_is_not_closed_before_those_that_send_nothing() {
    let app = Router::new().route("/", get(|| async { vec![b'x'; LONG] }));
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let acceptor = Arc::new(HttpAcceptor::new(app, None, Arc::default(), RateLimitedLog::new(clock, 1)));
    let (ours, mut theirs) = duplex(PART);
    let (_stop, stopping) = watch::channel(false);
    let place = acceptor.admit().unwrap();
    tokio::spawn(serve(place, ours, HttpPeer::Unix(None), stopping));
    theirs.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut part = vec![0; PART];
    theirs.read_exact(&mut part).await.unwrap();
    let silent: Vec<_> = (1..CONNECTIONS).map(|_| acceptor.admit().unwrap()).collect();
    for _ in 0..2 {
        theirs.read_exact(&mut part).await.unwrap();
    }
    let newcomer = acceptor.admit().expect("one of the others is closed");
    silent[0].evicted().await;
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() + 3 * PART > LONG, "the answer was cut after {} more bytes", rest.len());
    drop((silent, newcomer));
}
