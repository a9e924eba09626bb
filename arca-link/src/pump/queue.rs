// SPDX-License-Identifier: Apache-2.0
//! The two buffers of a pump: frames on their way to the stream, and bytes that came from it.

use arca_proto::frame::{self, FrameError, Frames, LENGTH_BYTES, MAX_FRAME, VNET_HDR};

/// Bytes gathered before one write, and read at once.
pub(crate) const BATCH: usize = 256 << 10;
const SLOT: usize = LENGTH_BYTES + MAX_FRAME as usize;

/// Frames in wire form, in order: `[..frame]` is sent, `[frame..head]` is the sent part of the frame being sent,
/// `[head..tail]` is to be sent.
#[derive(Debug)]
pub(crate) struct SendQueue {
    buffer: Box<[u8]>,
    frame: usize,
    head: usize,
    tail: usize,
}

impl SendQueue {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BATCH + SLOT].into_boxed_slice(), frame: 0, head: 0, tail: 0 }
    }

    /// Whether another frame of any size may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.tail < BATCH
    }

    /// Where the next frame's virtio_net_hdr and Ethernet frame go; then [`SendQueue::push`].
    pub(crate) fn slot(&mut self) -> &mut [u8] {
        &mut self.buffer[self.tail + LENGTH_BYTES..][..MAX_FRAME as usize]
    }

    /// Takes the `length` bytes that were put in the slot. False: no frame, nothing is queued.
    pub(crate) fn push(&mut self, length: usize, max: u32) -> bool {
        match frame::length_field(length) {
            Some(field) if frame::check_length(field, max).is_ok() => {
                self.buffer[self.tail..self.tail + LENGTH_BYTES].copy_from_slice(&field);
                self.tail += LENGTH_BYTES + length;
                true
            }
            _ => false,
        }
    }

    /// What is to be sent.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[self.head..self.tail]
    }

    /// `sent` bytes of it are.
    pub(crate) fn advance(&mut self, sent: usize) {
        self.head += sent;
        if self.head == self.tail {
            (self.frame, self.head, self.tail) = (0, 0, 0);
            return;
        }
        // The frame being sent is looked up only after a partial write.
        while let Some(next) = self.end_of_frame(self.frame).filter(|end| *end <= self.head) {
            self.frame = next;
        }
    }

    fn end_of_frame(&self, start: usize) -> Option<usize> {
        let field = self.buffer[start..self.tail].first_chunk::<LENGTH_BYTES>()?;
        Some(start + LENGTH_BYTES + u32::from_le_bytes(*field) as usize)
    }

    /// The connection broke: the frame being sent starts anew on the next one, the other end drops the part it has.
    pub(crate) fn rewind(&mut self) {
        self.head = self.frame;
    }

    /// Gives everything up; how many frames and Ethernet bytes that was.
    pub(crate) fn clear(&mut self) -> (u64, u64) {
        let was = self.frames();
        (self.frame, self.head, self.tail) = (0, 0, 0);
        was
    }

    /// Frames that are queued, the one being sent included, and their Ethernet bytes.
    pub(crate) fn frames(&self) -> (u64, u64) {
        let (mut frames, mut bytes) = (0, 0);
        let mut at = self.frame;
        while at < self.tail {
            let Some(end) = self.end_of_frame(at) else { break };
            frames += 1;
            bytes += (end - at - LENGTH_BYTES - VNET_HDR) as u64;
            at = end;
        }
        (frames, bytes)
    }
}

/// Bytes from the stream: `[..filled]` begins with a frame.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    buffer: Box<[u8]>,
    filled: usize,
}

impl ReceiveBuffer {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BATCH + SLOT].into_boxed_slice(), filled: 0 }
    }

    /// Room for the next read; never empty, because an incomplete frame is shorter than a slot.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Takes the `length` bytes that were read, hands every complete frame to `each`, keeps the rest.
    pub(crate) fn take(
        &mut self,
        length: usize,
        max: u32,
        mut each: impl FnMut(frame::Frame<'_>),
    ) -> Result<(), FrameError> {
        self.filled += length;
        let mut frames = Frames::new(&self.buffer[..self.filled], max);
        for frame in frames.by_ref() {
            each(frame?);
        }
        let consumed = frames.consumed();
        self.buffer.copy_within(consumed..self.filled, 0);
        self.filled -= consumed;
        Ok(())
    }

    /// Drops an incomplete frame.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(queue: &mut SendQueue, frame: &[u8]) {
        queue.slot()[..frame.len()].copy_from_slice(frame);
        assert!(queue.push(frame.len(), MAX_FRAME));
    }

    proptest! {
        /// Whatever is cut off by breaking connections, the receiver gets each frame whole and in order, and a frame is
        /// repeated only where its end was not confirmed by a later one.
        #[test]
        fn a_broken_connection_costs_no_frame_boundary(
            sizes in prop::collection::vec(26usize..400, 1..20),
            cuts in prop::collection::vec(1usize..500, 1..30),
        ) {
            let (mut queue, mut receiver) = (SendQueue::new(), ReceiveBuffer::new());
            let frames: Vec<Vec<u8>> = (0u8..).zip(&sizes).map(|(i, size)| vec![i; *size]).collect();
            for frame in &frames {
                push(&mut queue, frame);
            }
            let mut got = Vec::new();
            let mut cuts = cuts.into_iter();
            while !queue.pending().is_empty() {
                let sent = cuts.next().unwrap_or(usize::MAX).min(queue.pending().len());
                receiver.room()[..sent].copy_from_slice(&queue.pending()[..sent]);
                receiver.take(sent, MAX_FRAME, |f| got.push(f.payload().to_vec())).expect("whole frames");
                queue.advance(sent);
                queue.rewind();
                receiver.clear();
            }
            prop_assert_eq!(got, frames);
        }
    }

    #[test]
    fn clearing_counts_the_frame_being_sent_and_those_behind_it() {
        let mut queue = SendQueue::new();
        for size in [100, 200, 300] {
            push(&mut queue, &vec![0; size]);
        }
        queue.advance(104 + 3);
        assert_eq!(queue.clear(), (2, 200 + 300 - 2 * VNET_HDR as u64));
        assert_eq!(queue.pending(), b"");
    }

    #[test]
    fn what_is_no_frame_is_not_queued() {
        let mut queue = SendQueue::new();
        assert!(!queue.push(25, MAX_FRAME) && !queue.push(2000, 1999) && queue.push(1999, 1999));
        assert_eq!(queue.pending().len(), 4 + 1999);
    }
}
