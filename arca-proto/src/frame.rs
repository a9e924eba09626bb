// SPDX-License-Identifier: Apache-2.0
//! Frames on a link's stream, after the [`crate::hello`]: `[u32 LE length][virtio_net_hdr, 12 bytes][Ethernet frame]`.
//!
//! The length counts what follows it. Everything here is pure: the pumps of arca-link read and write. The header is
//! virtio 1.x's `struct virtio_net_hdr` with `num_buffers` (section 5.1.6), passed unchanged from TAP to TAP.

/// Bytes of the length field.
pub const LENGTH_BYTES: usize = 4;
/// Bytes of the virtio_net_hdr.
pub const VNET_HDR: usize = 12;
/// Smallest length field: the virtio_net_hdr and an Ethernet header.
pub const MIN_FRAME: u32 = 12 + 14;
/// Greatest length field ever accepted: virtio_net_hdr, Ethernet header with VLAN tags, 64 KiB of IP, rounded up.
pub const MAX_FRAME: u32 = 65_600;

/// A stream that is not a sequence of frames. There is no way to find the next frame: the link must end.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("frame of {length} bytes, outside {MIN_FRAME}..={max}: the stream is out of step or hostile")]
pub struct FrameError {
    /// The length field.
    pub length: u32,
    /// The greatest one agreed on.
    pub max: u32,
}

/// Checks a length field; gives the bytes that follow it.
pub fn check_length(field: [u8; LENGTH_BYTES], max: u32) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(field);
    if (MIN_FRAME..=max.min(MAX_FRAME)).contains(&length) {
        // At most MAX_FRAME, which fits everywhere.
        Ok(length as usize)
    } else {
        Err(FrameError { length, max })
    }
}

/// The length field of `payload` bytes (virtio_net_hdr and Ethernet frame) or nothing if no frame may be so long.
pub fn length_field(payload: usize) -> Option<[u8; LENGTH_BYTES]> {
    let length = u32::try_from(payload).ok().filter(|l| (MIN_FRAME..=MAX_FRAME).contains(l))?;
    Some(length.to_le_bytes())
}

/// One frame: virtio_net_hdr and Ethernet frame, in one slice as a TAP wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a>(&'a [u8]);

impl<'a> Frame<'a> {
    /// Takes what follows a length field, if it is long enough to be a frame.
    pub fn new(payload: &'a [u8]) -> Option<Self> {
        (payload.len() >= MIN_FRAME as usize).then_some(Self(payload))
    }

    /// Header and frame.
    pub fn payload(self) -> &'a [u8] {
        self.0
    }

    /// The Ethernet frame alone.
    pub fn ethernet(self) -> &'a [u8] {
        &self.0[VNET_HDR..]
    }

    /// `VIRTIO_NET_HDR_GSO_*` without the ECN bit: 0 none, 1 TCPv4, 3 UDP (old), 4 TCPv6, 5 UDP_L4.
    pub fn gso_type(self) -> u8 {
        self.0[1] & 0x7f
    }
}

/// The complete frames at the beginning of a buffer. Stops at the first incomplete one ([`Frames::consumed`] says
/// where) and after an error.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    buffer: &'a [u8],
    max: u32,
    consumed: usize,
    failed: bool,
}

impl<'a> Frames<'a> {
    /// Frames of `buffer` whose length field is at most `max`.
    pub fn new(buffer: &'a [u8], max: u32) -> Self {
        Self { buffer, max, consumed: 0, failed: false }
    }

    /// Bytes of the frames given so far. What lies behind them must be kept for the next read.
    pub fn consumed(&self) -> usize {
        self.consumed
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let (field, rest) = self.buffer.get(self.consumed..)?.split_first_chunk::<LENGTH_BYTES>()?;
        match check_length(*field, self.max) {
            Ok(length) => {
                let payload = rest.get(..length)?;
                self.consumed += LENGTH_BYTES + length;
                Some(Ok(Frame(payload)))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

/// Counts frames in a byte stream that is passed on as it comes, in chunks cut anywhere.
#[derive(Clone, Debug)]
pub struct Meter {
    max: u32,
    /// Bytes of the current frame still to come.
    payload_left: usize,
    field: [u8; LENGTH_BYTES],
    field_have: usize,
}

/// What a [`Meter`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames whose length field was completed.
    pub frames: u64,
    /// Their Ethernet bytes.
    pub bytes: u64,
}

impl Meter {
    /// A meter at the beginning of a frame; length fields above `max` are errors.
    pub fn new(max: u32) -> Self {
        Self { max, payload_left: 0, field: [0; LENGTH_BYTES], field_have: 0 }
    }

    /// Looks at the next bytes. After an error the meter must not be used any more.
    pub fn feed(&mut self, mut chunk: &[u8]) -> Result<Seen, FrameError> {
        let mut seen = Seen::default();
        loop {
            let skip = self.payload_left.min(chunk.len());
            chunk = &chunk[skip..];
            self.payload_left -= skip;
            if chunk.is_empty() {
                return Ok(seen);
            }
            let take = (LENGTH_BYTES - self.field_have).min(chunk.len());
            self.field[self.field_have..self.field_have + take].copy_from_slice(&chunk[..take]);
            self.field_have += take;
            chunk = &chunk[take..];
            if self.field_have < LENGTH_BYTES {
                return Ok(seen);
            }
            self.payload_left = check_length(self.field, self.max)?;
            self.field_have = 0;
            seen.frames += 1;
            seen.bytes += (self.payload_left - VNET_HDR) as u64;
        }
    }

    /// Whether the stream may end here without cutting a frame.
    pub fn at_boundary(&self) -> bool {
        self.payload_left == 0 && self.field_have == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(payloads: &[Vec<u8>]) -> Vec<u8> {
        payloads
            .iter()
            .flat_map(|p| length_field(p.len()).expect("a frame's length").into_iter().chain(p.iter().copied()))
            .collect()
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), MIN_FRAME as usize..300), 0..12)
    }

    proptest! {
        #[test]
        fn frames_come_back_however_the_stream_is_cut(payloads in payloads(), cut in 1usize..97) {
            let stream = encode(&payloads);
            let (mut kept, mut got) = (Vec::new(), Vec::new());
            for chunk in stream.chunks(cut) {
                kept.extend_from_slice(chunk);
                let mut frames = Frames::new(&kept, MAX_FRAME);
                for frame in frames.by_ref() {
                    got.push(frame.expect("valid frames only").payload().to_vec());
                }
                let consumed = frames.consumed();
                kept.drain(..consumed);
            }
            prop_assert!(kept.is_empty());
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn the_meter_counts_what_the_parser_finds(payloads in payloads(), cut in 1usize..97) {
            let mut meter = Meter::new(MAX_FRAME);
            let mut total = Seen::default();
            for chunk in encode(&payloads).chunks(cut) {
                let seen = meter.feed(chunk).expect("valid frames only");
                total.frames += seen.frames;
                total.bytes += seen.bytes;
            }
            prop_assert!(meter.at_boundary());
            prop_assert_eq!(total.frames, payloads.len() as u64);
            prop_assert_eq!(total.bytes, payloads.iter().map(|p| (p.len() - VNET_HDR) as u64).sum::<u64>());
        }

        #[test]
        fn any_bytes_give_frames_or_one_error(bytes in prop::collection::vec(any::<u8>(), 0..4096), max in any::<u32>()) {
            let mut frames = Frames::new(&bytes, max);
            let found: Vec<_> = frames.by_ref().collect();
            prop_assert!(found.iter().rev().skip(1).all(Result::is_ok));
            prop_assert!(frames.consumed() <= bytes.len());
        }
    }

    #[test]
    fn lengths_out_of_range_are_errors() {
        for length in [0, 1, MIN_FRAME - 1, MAX_FRAME + 1, u32::MAX] {
            let error = FrameError { length, max: MAX_FRAME };
            assert_eq!(Frames::new(&length.to_le_bytes(), MAX_FRAME).collect::<Vec<_>>(), [Err(error)]);
            assert_eq!(Meter::new(MAX_FRAME).feed(&length.to_le_bytes()), Err(error));
            assert_eq!(length_field(length as usize), None);
        }
        assert_eq!(check_length(2000u32.to_le_bytes(), 1999), Err(FrameError { length: 2000, max: 1999 }));
    }

    #[test]
    fn the_ecn_bit_is_not_part_of_the_type() {
        let mut payload = [0; MIN_FRAME as usize];
        payload[1] = 0x81;
        assert_eq!(Frame::new(&payload).map(Frame::gso_type), Some(1));
        assert_eq!(Frame::new(&payload[1..]), None);
    }
}
