//! What a server and the module in Envoy tell each other over the socket.
//!
//! The server sends a [`Hello`] with the descriptor of the memory beside it: at once, and again whenever another memory
//! takes its place. The module sends [`Report`]s in frames: four bytes of length, and that many bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::layout::{Key, VERSION};
use crate::record::{Decoder, Encoder};

const MAGIC: [u8; 8] = *b"tghello\0";

/// Magic, version and key.
const HELLO: usize = 8 + 8 + 32;

/// The most bytes of a frame of reports.
pub const MOST_FRAME: usize = 1 << 16;

/// Tells a module where to look.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The key of everything in the memory.
    pub key: Key,
}

impl Hello {
    /// Sends it with the descriptor of the memory.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn send(&self, socket: impl AsFd, memory: BorrowedFd<'_>) -> io::Result<()> {
        let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), self.key.expose()].concat();
        let (mut room, files) = ([MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))], [memory]);
        let mut beside = SendAncillaryBuffer::new(&mut room);
        beside.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL)?;
        // A socket with room for the descriptor has room for these few bytes.
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one.
    ///
    /// # Errors
    ///
    /// Those of the socket; the other side is not a server of this version.
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

/// Decisions that were made in Envoy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// `llmk_<prefix>` of the key that was proven; empty without one.
    pub prefix: String,
    /// The reason, as metadata spells it.
    pub reason: String,
    /// How many.
    pub requests: u64,
    /// When the last one was made, in microseconds since 1970.
    pub at: i64,
}

impl Report {
    /// Frames for these reports, in the order given.
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

    /// Takes the first frame out of what was received; `Ok(None)` while it is not complete.
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
        let (prefix, reason) = (from.text()?, from.text()?);
        let (requests, at) = (u64::from_le_bytes(from.array()?), i64::from_le_bytes(from.array()?));
        Some(Self { prefix, reason, requests, at })
    }
}

/// What was received is not from a module of this version.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Malformed;
