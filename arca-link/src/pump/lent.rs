// SPDX-License-Identifier: Apache-2.0
//! A pump whose link has the carrier `tap-fd`: the container's end lends its TAP, the helper's end moves frames between
//! that and its own. The connection then only says that both ends are there.
//!
//! A TAP that was lent belongs to the borrower until the next connection says otherwise. So nothing is lost when the
//! relay or the lender restarts, and the lender never takes a frame that the borrower waits for.

use std::{io, os::fd::AsFd};

use arca_proto::{
    frame::{MAX_FRAME, VNET_HDR},
    hello::{Agreement, Kind},
    note::{self, Counts, Note},
};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{
    connection::{Broken, may_carry},
    worker::{BORROWED, IN, OUT, Worker},
};
use crate::{
    stats::{Counters, Meter},
    sys,
    tap::Tap,
};

/// Frames of one direction in one turn, so that a flood does not keep the other direction waiting.
const TURN: usize = 64;

/// The other end's TAP and the terms on which frames go there.
#[derive(Debug)]
pub(super) struct Borrowed {
    tap: Tap,
    agreement: Agreement,
}

impl Worker {
    /// The container's end: gives the TAP away. What was read of it already cannot be put back.
    pub(super) fn lend(&mut self) -> Result<(), Broken> {
        let (frames, _) = self.send.clear();
        self.shared.to_stream.dropped(frames);
        self.lent = true;
        let Some(live) = &self.live else { return Ok(()) };
        Ok(note::send(&live.stream, &Note::Lend, Some(self.shared.tap.as_fd()))?)
    }

    /// Every note that is there.
    pub(super) fn take_notes(&mut self) -> Result<(), Broken> {
        while let Some(live) = &mut self.live {
            let terms = live.terms;
            let Some((note, descriptor)) = live.notes.read(&live.stream).map_err(closed)? else { return Ok(()) };
            match (self.hello.kind, note, descriptor) {
                (Kind::Container, Note::Taken, _) => {
                    note::send(&live.stream, &Note::Taken, None)?;
                    self.linked(&terms);
                }
                (Kind::Helper, Note::Lend, Some(descriptor)) => {
                    let tap = Tap::from_fd(descriptor)?;
                    // A former one is closed, and so leaves the epoll, before the new one is watched.
                    self.borrowed = None;
                    self.epoll.add(&tap, EpollEvent::new(EpollFlags::EPOLLIN, BORROWED)).map_err(io::Error::from)?;
                    self.borrowed = Some(Borrowed { tap, agreement: terms.agreement });
                    let (frames, _) = self.send.clear();
                    self.shared.to_stream.dropped(frames);
                    note::send(&live.stream, &Note::Taken, None)?;
                    self.watch_tap(true)?;
                    self.linked(&terms);
                }
                (Kind::Helper, Note::Ask, _) => {
                    let numbers = |c: Counters| [c.frames, c.bytes, c.drops];
                    let mut to_container = self.shared.to_stream.read();
                    to_container.drops += self.shared.tap.kernel_drops();
                    let to_helper = numbers(self.shared.from_stream.read());
                    let counts = Counts { to_helper, to_container: numbers(to_container) };
                    note::send(&live.stream, &Note::Counters(counts), None)?;
                }
                // The lender is ready too; frames have not waited for that.
                (Kind::Helper, Note::Taken, _) if self.borrowed.is_some() => {}
                (_, Note::Failed(text), _) => return Err(Broken::Told(text)),
                _ => return Err(Broken::OutOfTurn),
            }
        }
        Ok(())
    }

    /// Own TAP to the borrowed one.
    pub(super) fn pump_to_borrowed(&mut self) -> io::Result<()> {
        let Some(borrowed) = &self.borrowed else { return Ok(()) };
        let (own, meter) = (&self.shared.tap, &self.shared.to_stream);
        let came = self.shared.tracer.now();
        let (passed, read) = carry(own, &borrowed.tap, &borrowed.agreement, self.send.slot(), meter);
        self.tell(OUT, came, passed.0, passed.1);
        read
    }

    /// Borrowed TAP to the own one. One that is gone takes the link with it.
    pub(super) fn pump_borrowed(&mut self, events: EpollFlags) -> io::Result<()> {
        let Some(borrowed) = &self.borrowed else { return Ok(()) };
        let (own, meter) = (&self.shared.tap, &self.shared.from_stream);
        if !events.contains(EpollFlags::EPOLLERR) {
            let came = self.shared.tracer.now();
            let (passed, read) = carry(&borrowed.tap, own, &borrowed.agreement, self.send.slot(), meter);
            self.tell(IN, came, passed.0, passed.1);
            if read.is_ok() {
                return Ok(());
            }
        }
        self.borrowed = None;
        self.unlink(&Broken::LentGone)
    }
}

/// Frames as they are there, with their headers, until none is left or the turn is over. How many and their Ethernet bytes,
/// and an error of `from`.
fn carry(
    from: &Tap,
    to: &Tap,
    agreement: &Agreement,
    buffer: &mut [u8],
    meter: &Meter,
) -> ((u64, u64), io::Result<()>) {
    let (mut frames, mut bytes, mut drops) = (0, 0, 0);
    let mut read = Ok(());
    for _ in 0..TURN {
        let length = match sys::read(from.as_fd(), &mut buffer[..MAX_FRAME as usize]) {
            Ok(Some(length)) => length,
            Ok(None) => break,
            Err(error) => {
                read = Err(error);
                break;
            }
        };
        let frame = &buffer[..length];
        // virtio 1.2 section 5.1.6: the second byte of the header is gso_type.
        let fits = length <= agreement.max_frame as usize && frame.get(1).is_some_and(|gso| may_carry(agreement, *gso));
        if fits && matches!(sys::write(to.as_fd(), frame), Ok(Some(_))) {
            frames += 1;
            bytes += length.saturating_sub(VNET_HDR) as u64;
        } else {
            drops += 1;
        }
    }
    meter.passed(frames, bytes);
    meter.dropped(drops);
    ((frames, bytes), read)
}

fn closed(error: io::Error) -> Broken {
    if error.kind() == io::ErrorKind::UnexpectedEof { Broken::Closed } else { Broken::Io(error) }
}
