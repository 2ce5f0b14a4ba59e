//! The protocol between a server and the module in Envoy, over the socket.
//!
//! The server sends a [`Hello`] together with the file descriptor of the memory: after the connect, and again whenever
//! another memory replaces it. The module sends [`Report`]s in frames: a length of four bytes, then that many bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::layout::{MemoryKey, VERSION};
use crate::record::{Decoder, Encoder};

const MAGIC: [u8; 8] = *b"tghello\0";

/// Magic, version and key.
const HELLO: usize = 8 + 8 + 32;

/// The maximum number of bytes of a frame.
pub const MOST_FRAME: usize = 1 << 16;

/// The message with which a module gets a memory.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The key for the digests and seals in the memory.
    pub key: MemoryKey,
}

impl Hello {
    /// Sends it with the descriptor of the memory.
    ///
    /// # Errors
    ///
    /// Fails if the socket cannot send, for example because the peer has closed it or its buffer is full.
    pub fn send(&self, socket: impl AsFd, memory: BorrowedFd<'_>) -> io::Result<()> {
        let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), self.key.expose()].concat();
        let (mut room, files) = ([MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))], [memory]);
        let mut beside = SendAncillaryBuffer::new(&mut room);
        beside.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
        // A socket that accepts the descriptor also accepts these few bytes.
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives a message.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the peer has closed the socket, `InvalidData` if it is not a server of this version,
    /// otherwise the error of the socket, such as `WouldBlock` after its timeout.
    pub fn receive(socket: impl AsFd) -> io::Result<(Self, OwnedFd)> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let (mut beside, mut bytes) = (RecvAncillaryBuffer::new(&mut room), [0; HELLO]);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut beside, flags)?.bytes;
        let files = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let file = files.flatten().next();
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (magic, rest) = bytes.split_at(8);
        let (version, key) = rest.split_at(8);
        let ours = received == HELLO && magic == MAGIC && version == VERSION.to_le_bytes();
        match (file, <[u8; 32]>::try_from(key)) {
            (Some(file), Ok(key)) if ours => Ok((Self { key: key.into() }, file)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a tenantgate of this version")),
        }
    }
}

/// A number of equal decisions that a module made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// `llmk_<prefix>` of the proven key; empty if no key was proven.
    pub prefix: String,
    /// The reason, as in the metadata.
    pub reason: String,
    /// The number of decisions.
    pub requests: u64,
    /// When the last one was made, in microseconds since 1970.
    pub at: i64,
}

impl Report {
    /// Returns frames for these reports, in the same order.
    #[must_use]
    pub fn frames(reports: &[Self]) -> Vec<u8> {
        let mut frames = Vec::new();
        let mut frame = Encoder::default();
        let mut end = |frame: &mut Encoder| {
            let bytes = std::mem::take(frame).0;
            frames.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            frames.extend_from_slice(&bytes);
        };
        for report in reports {
            frame.text(&report.prefix);
            frame.text(&report.reason);
            frame.0.extend_from_slice(&report.requests.to_le_bytes());
            frame.0.extend_from_slice(&report.at.to_le_bytes());
            if frame.0.len() > MOST_FRAME / 2 {
                end(&mut frame);
            }
        }
        if !frame.0.is_empty() {
            end(&mut frame);
        }
        frames
    }

    /// Removes the first frame from the received bytes; `Ok(None)` while it is incomplete.
    ///
    /// # Errors
    ///
    /// The bytes are not frames of reports.
    pub fn take(received: &mut Vec<u8>) -> Result<Option<Vec<Self>>, Malformed> {
        let Some(len) = received.first_chunk() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| Malformed)?;
        if len == 0 || len > MOST_FRAME {
            return Err(Malformed);
        }
        let Some(frame) = received.get(4..4 + len) else { return Ok(None) };
        let mut from = Decoder(frame);
        let mut reports = Vec::new();
        while !from.0.is_empty() {
            reports.push(Self::decode(&mut from).ok_or(Malformed)?);
        }
        received.drain(..4 + len);
        Ok(Some(reports))
    }

    fn decode(from: &mut Decoder<'_>) -> Option<Self> {
        let (prefix, reason) = (from.text()?.to_owned(), from.text()?.to_owned());
        let (requests, at) = (u64::from_le_bytes(from.array()?), i64::from_le_bytes(from.array()?));
        Some(Self { prefix, reason, requests, at })
    }
}

/// The error for bytes that a module of this version would not send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;
