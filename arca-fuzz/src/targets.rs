// SPDX-License-Identifier: Apache-2.0
//! The targets themselves. Called through [`crate::TARGETS`].

use arca_helper_agent::ovsdb::Decoder;
use arca_proto::frame::{Frames, LENGTH_BYTES, Meter};
use arca_proto::hello::{Agreement, Hello};
use arca_proto::hybrid::{Line, LineParser};

/// Bounds of a frame stream: the first four bytes.
fn take_word(bytes: &[u8]) -> (u32, &[u8]) {
    bytes.split_first_chunk::<4>().map_or((0, bytes), |(word, rest)| (u32::from_le_bytes(*word), rest))
}

/// The two readers of a frame stream agree with each other, however the stream is cut into chunks.
pub(crate) fn frames(bytes: &[u8]) {
    let (word, stream) = take_word(bytes);
    let (max, cut) = (word & 0x000f_ffff, 1 + (word >> 24) as usize);
    let mut frames = Frames::new(stream, max);
    let (mut count, mut length, mut broken) = (0_u64, 0_u64, false);
    for frame in frames.by_ref() {
        match frame {
            Ok(frame) => {
                assert!(frame.payload().len() <= max as usize, "a frame longer than allowed");
                assert!(frame.ethernet().len() <= frame.payload().len());
                let _ = frame.gso_type();
                count += 1;
                length += frame.ethernet().len() as u64;
            }
            Err(_) => broken = true,
        }
    }
    let left = stream.len() - frames.consumed();

    let mut meter = Meter::new(max);
    let (mut seen_frames, mut seen_bytes, mut refused) = (0, 0, false);
    for chunk in stream.chunks(cut) {
        match meter.feed(chunk) {
            Ok(seen) => {
                seen_frames += seen.frames;
                seen_bytes += seen.bytes;
            }
            Err(_) => {
                refused = true;
                break;
            }
        }
    }
    assert_eq!(broken, refused, "one reader refuses what the other takes");
    if !broken {
        // The meter counts a frame as soon as its length field is there.
        let begun = u64::from(left >= LENGTH_BYTES);
        assert_eq!(seen_frames, count + begun);
        assert!(seen_bytes >= length);
        assert_eq!(meter.at_boundary(), left == 0);
    }
}

/// What decodes encodes to something that decodes to the same; an agreement is symmetric and within both offers.
pub(crate) fn hello(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<{ Hello::SIZE }>() else { return };
    let Ok(a) = Hello::decode(first) else { return };
    assert_eq!(Hello::decode(&a.encode()).ok(), Some(a));
    assert_eq!(Hello::expect(first, a.kind, a.link).ok(), Some(a));
    let Some(b) = rest.first_chunk().and_then(|bytes| Hello::decode(bytes).ok()) else { return };
    let agreement = Agreement::between(&a, &b);
    assert_eq!(agreement, Agreement::between(&b, &a));
    assert!(agreement.max_frame <= a.max_frame && agreement.max_frame <= b.max_frame);
    assert!(a.offloads.contains(agreement.offloads) && b.offloads.contains(agreement.offloads));
}

/// A line is bounded, and what was read is what its number encodes to (leading zeros aside).
pub(crate) fn hybrid(bytes: &[u8]) {
    for line in [Line::Connect, Line::Ok] {
        let mut parser = LineParser::new(line);
        for (offset, byte) in bytes.iter().enumerate() {
            assert!(offset < 20, "a line that never ends");
            match parser.push(*byte) {
                Ok(None) => {}
                Ok(Some(number)) => {
                    assert!(offset < line.encode(number).len() + 10);
                    break;
                }
                Err(_) => break,
            }
        }
    }
}

/// Messages come out the same however the stream is cut.
pub(crate) fn ovsdb(bytes: &[u8]) {
    let (cut, stream) = bytes.split_first().map_or((1, bytes), |(cut, rest)| (1 + usize::from(*cut), rest));
    let messages = |cut: usize| {
        let mut decoder = Decoder::with_limit(4096);
        let (mut out, mut failed) = (Vec::new(), false);
        for chunk in stream.chunks(cut) {
            decoder.buffer().extend_from_slice(chunk);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => out.push(message),
                    Ok(None) => break,
                    Err(_) => {
                        failed = true;
                        break;
                    }
                }
            }
            if failed {
                break;
            }
        }
        (out, failed)
    };
    assert_eq!(messages(stream.len().max(1)), messages(cut));
}
