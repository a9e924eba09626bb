// SPDX-License-Identifier: Apache-2.0
//! Notes: what is said on a link's streams after the hellos when the carrier is not the stream.
//!
//! Then no frame passes the relay. One end lends the other a descriptor, and the streams stay open to tell either of the
//! other's end. arca-tapfwd, arca-helper-agent and arca-relayd (which passes notes on) use this.
//!
//! ```text
//! tap-fd: lender = container end, which lends its TAP; the helper end moves frames between it and its own TAP
//! cable:  lender = helper end, which lends its network namespace; the container end moves one end of a veth pair there
//!
//! lender                       relay                      borrower
//!    | --- LEND +descriptor --->|--- LEND +descriptor -----> |   takes it
//!    | <---------- TAKEN ------ | <---------- TAKEN -------- |
//!    | --- TAKEN -------------> | --- TAKEN ---------------> |   both are ready: the link is up
//!    helper end <--- ASK ------ |
//!    helper end --- COUNTERS -> |                              on demand only
//! ```
//!
//! FAILED ends a connection with a reason. A note has a fixed size, so nobody reads into the next one.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// Bytes of a note.
pub const SIZE: usize = 56;
/// Bytes of a reason.
const TEXT: usize = SIZE - 8;

/// Frames, bytes and drops of both directions of a link, as its helper end counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Container to helper: frames, Ethernet bytes, drops.
    pub to_helper: [u64; 3],
    /// Helper to container: the same.
    pub to_container: [u64; 3],
}

/// One note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A descriptor goes with it.
    Lend,
    /// What was lent is in use.
    Taken,
    /// The relay asks for counters.
    Ask,
    /// The answer.
    Counters(Counts),
    /// The link cannot be; in few words why.
    Failed(String),
}

impl Note {
    /// To the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; SIZE] {
        let mut out = [0; SIZE];
        out[0] = match self {
            Self::Lend => 1,
            Self::Taken => 2,
            Self::Ask => 3,
            Self::Counters(_) => 4,
            Self::Failed(_) => 5,
        };
        match self {
            Self::Counters(counts) => {
                let numbers = counts.to_helper.iter().chain(&counts.to_container);
                for (place, number) in out[8..].chunks_exact_mut(8).zip(numbers) {
                    place.copy_from_slice(&number.to_le_bytes());
                }
            }
            Self::Failed(text) => {
                let mut end = text.len().min(TEXT);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                out[8..8 + end].copy_from_slice(&text.as_bytes()[..end]);
            }
            Self::Lend | Self::Taken | Self::Ask => {}
        }
        out
    }

    /// From the wire; `None` for what is no note.
    #[must_use]
    pub fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let number = |index: usize| {
            let start = 8 + 8 * index;
            bytes[start..start + 8].try_into().map(u64::from_le_bytes).unwrap_or_default()
        };
        Some(match bytes[0] {
            1 => Self::Lend,
            2 => Self::Taken,
            3 => Self::Ask,
            4 => Self::Counters(Counts {
                to_helper: [number(0), number(1), number(2)],
                to_container: [number(3), number(4), number(5)],
            }),
            5 => {
                let text = bytes[8..].split(|byte| *byte == 0).next().unwrap_or_default();
                Self::Failed(text.utf8_chunks().map(|chunk| chunk.valid()).collect())
            }
            _ => return None,
        })
    }
}

/// Writes a note, with a descriptor if one goes with it. A stream that does not take so few bytes at once is no use.
///
/// # Errors
/// As `sendmsg(2)`.
pub fn send(to: impl AsFd, note: &Note, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = note.encode();
    let raw: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        let to = to.as_fd().as_raw_fd();
        match sendmsg::<()>(to, &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(SIZE) => return Ok(()),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::WriteZero, "a note was cut short")),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Puts notes together from what arrives.
#[derive(Debug)]
pub struct Reader {
    bytes: [u8; SIZE],
    have: usize,
    descriptor: Option<OwnedFd>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { bytes: [0; SIZE], have: 0, descriptor: None }
    }
}

impl Reader {
    /// Reads what is there of one note, and not a byte beyond it. `None`: it is not complete yet.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side has closed, `InvalidData` for what is no note, otherwise as `recvmsg(2)`.
    pub fn read(&mut self, from: impl AsFd) -> io::Result<Option<(Note, Option<OwnedFd>)>> {
        while self.have < SIZE {
            let mut control = nix::cmsg_space!([RawFd; 1]);
            let mut parts = [IoSliceMut::new(&mut self.bytes[self.have..])];
            let from = from.as_fd().as_raw_fd();
            let received = match recvmsg::<()>(from, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(numbers) = message {
                    for number in numbers {
                        // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
                        self.descriptor = Some(unsafe { OwnedFd::from_raw_fd(number) });
                    }
                }
            }
            match received.bytes {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed the connection")),
                length => self.have += length,
            }
        }
        self.have = 0;
        let note = Note::decode(&self.bytes);
        let note = note.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "said what is no note"))?;
        Ok(Some((note, self.descriptor.take())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_give_a_note_or_none(bytes in prop::collection::vec(any::<u8>(), SIZE)) {
            let bytes: [u8; SIZE] = bytes.try_into().expect("56 bytes");
            if let Some(note) = Note::decode(&bytes) {
                prop_assert_eq!(Note::decode(&note.encode()), Some(note));
            }
        }

        #[test]
        fn a_reason_is_kept_as_far_as_it_fits(text in "\\PC{0,80}") {
            let Some(Note::Failed(got)) = Note::decode(&Note::Failed(text.clone()).encode()) else { panic!("a reason") };
            prop_assert!(text.starts_with(&got) && (got.len() == text.len() || got.len() > TEXT - 4));
        }
    }

    #[test]
    fn notes_and_descriptors_arrive_in_pieces_and_one_after_the_other() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("a socket");
        let mut reader = Reader::default();
        assert!(reader.read(&theirs).expect("nothing yet").is_none());
        let lent = std::fs::File::open("/dev/null").expect("/dev/null");
        send(&ours, &Note::Lend, Some(lent.as_fd())).expect("sent");
        let counts = Counts { to_helper: [1, 2, 3], to_container: [4, 5, u64::MAX] };
        send(&ours, &Note::Counters(counts), None).expect("sent");
        let (note, descriptor) = reader.read(&theirs).expect("read").expect("whole");
        assert_eq!((note, descriptor.is_some()), (Note::Lend, true));
        assert_eq!(reader.read(&theirs).expect("read").expect("whole").0, Note::Counters(counts));
        use std::io::Write as _;
        (&ours).write_all(&Note::Ask.encode()[..5]).expect("written");
        assert!(reader.read(&theirs).expect("not whole").is_none());
        (&ours).write_all(&Note::Ask.encode()[5..]).expect("written");
        assert_eq!(reader.read(&theirs).expect("read").expect("whole").0, Note::Ask);
        drop(ours);
        assert_eq!(reader.read(&theirs).expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);
    }
}
