//! Tests the protocol on the socket.
#![cfg(not(feature = "loom"))]

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use rustix::fd::AsFd as _;
use tenantgate_snapshot::{Hello, Malformed, Mapping, MemoryKey, Report};

#[test]
fn a_hello_carries_the_key_and_the_descriptor() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let memory = Mapping::create(64).unwrap();
    for n in [1, 2] {
        Hello { key: MemoryKey::from([n; 32]) }.send(&ours, memory.file().as_fd()).unwrap();
    }
    for n in [1, 2] {
        let (hello, file) = Hello::receive(&theirs).unwrap();
        assert_eq!(hello.key.expose(), &[n; 32]);
        assert!(Mapping::open(file).is_ok());
    }
    drop(ours);
    assert!(Hello::receive(&theirs).is_err());
}

#[test]
fn only_a_server_of_this_version_is_accepted() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[b't'; 48]).unwrap();
    assert!(Hello::receive(&theirs).is_err());
    ours.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    assert!(Hello::receive(&theirs).is_err());
}

proptest! {
    #[test]
    fn reports_arrive_as_they_were_sent_however_they_are_cut(
        prefixes in proptest::collection::vec("[a-z_]{0,60}", 0..600),
        cut in 200_usize..9_000,
    ) {
        let reports: Vec<_> = prefixes
            .into_iter()
            .zip(1..)
            .map(|(prefix, n)| Report { prefix, reason: "ok".into(), requests: n, at: -5 })
            .collect();
        let (mut received, mut taken) = (Vec::new(), Vec::new());
        for part in Report::frames(&reports).chunks(cut) {
            received.extend_from_slice(part);
            while let Some(some) = Report::take(&mut received).unwrap() {
                taken.extend(some);
            }
        }
        prop_assert_eq!(taken, reports);
        prop_assert!(received.is_empty());
    }

    #[test]
    fn other_bytes_end_in_an_error_or_wait_for_more(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut received = bytes;
        while let Ok(Some(_)) = Report::take(&mut received) {}
    }
}

#[test]
fn a_frame_has_a_bounded_length() {
    assert_eq!(Report::take(&mut vec![0, 0, 0, 0]), Err(Malformed));
    assert_eq!(Report::take(&mut vec![1, 0, 1, 0]), Err(Malformed));
    assert_eq!(Report::take(&mut vec![9, 0, 0]), Ok(None));
}
