// SPDX-License-Identifier: Apache-2.0
//! A pump's connection: first in its hellos, then live.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use arca_proto::{
    hello::{Agreement, Carrier, Hello, HelloError, Kind},
    note,
};

use crate::sys;

/// Why a connection ended or was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the relay closed the connection")]
    Closed,
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Frame(#[from] arca_proto::frame::FrameError),
    #[error("epoch {0} is not newer than the live connection's {1}")]
    OldEpoch(u64, u64),
    #[error("displaced by epoch {0}")]
    Displaced(u64),
    #[error("the TAP refused the agreed offloads: {0}")]
    Tap(#[from] crate::tap::TapError),
    #[error("the other end says: {0}")]
    Told(String),
    #[error("a note was said out of turn")]
    OutOfTurn,
    #[error("the relay took nothing for {} s", super::STUCK.as_secs())]
    Stuck,
    #[error("the interface behind the lent TAP was removed")]
    LentGone,
}

/// A connection whose hellos are not complete.
#[derive(Debug)]
pub(super) struct Pending {
    stream: OwnedFd,
    bytes: [u8; 2 * Hello::SIZE],
    have: usize,
}

/// The terms of a connection whose hellos are complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) epoch: u64,
    pub(super) carrier: Carrier,
    pub(super) agreement: Agreement,
}

impl Pending {
    /// Says hello.
    pub(super) fn begin(stream: OwnedFd, ours: &Hello) -> Result<Self, Broken> {
        sys::raise_buffers(stream.as_fd());
        // A fresh stream takes 32 bytes at once; one that does not is no use.
        match sys::send(stream.as_fd(), &ours.encode())? {
            Some(Hello::SIZE) => Ok(Self { stream, bytes: [0; _], have: 0 }),
            _ => Err(Broken::Closed),
        }
    }

    /// Reads what is there, and not a byte beyond the hellos. `Some`: complete.
    pub(super) fn proceed(&mut self, ours: &Hello) -> Result<Option<Terms>, Broken> {
        while self.have < self.bytes.len() {
            match sys::read(self.stream.as_fd(), &mut self.bytes[self.have..])? {
                Some(0) => return Err(Broken::Closed),
                Some(n) => self.have += n,
                None => break,
            }
        }
        let Some((relay, peer)) = self.bytes.split_first_chunk::<{ Hello::SIZE }>() else { return Ok(None) };
        if self.have < Hello::SIZE {
            return Ok(None);
        }
        let relay = Hello::expect(relay, Kind::Relay, ours.link)?;
        let (Some(peer), Some(kind)) = (peer.first_chunk(), ours.kind.opposite()) else { return Ok(None) };
        if self.have < 2 * Hello::SIZE {
            return Ok(None);
        }
        let peer = Hello::expect(peer, kind, ours.link)?;
        let carrier = relay.carrier();
        ours.can(carrier)?;
        peer.can(carrier)?;
        Ok(Some(Terms { epoch: relay.epoch, carrier, agreement: Agreement::between(ours, &peer) }))
    }

    pub(super) fn into_stream(self) -> OwnedFd {
        self.stream
    }
}

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The connection in use.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) stream: OwnedFd,
    pub(super) token: u64,
    pub(super) terms: Terms,
    /// Most bytes of one write.
    pub(super) write_cap: usize,
    /// The stream takes no more; the TAP is not read meanwhile.
    pub(super) blocked: bool,
    /// What is said in place of frames, unless the carrier is the stream.
    pub(super) notes: note::Reader,
}

/// Whether the other end may send a frame of this `gso_type` under `agreement`.
pub(super) fn may_carry(agreement: &Agreement, gso_type: u8) -> bool {
    use arca_proto::hello::Offloads;
    // virtio 1.2 section 5.1.6: 0 none, 1 TCPv4, 3 UFO, 4 TCPv6, 5 UDP_L4. UFO is never offered.
    match gso_type {
        0 => true,
        1 => agreement.offloads.contains(Offloads::TSO4),
        4 => agreement.offloads.contains(Offloads::TSO6),
        5 => agreement.offloads.contains(Offloads::USO4),
        _ => false,
    }
}
