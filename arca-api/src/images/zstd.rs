// SPDX-License-Identifier: Apache-2.0
//! Layers and archives that are compressed with zstd: any number of frames, those to be skipped included (RFC 8878).

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What a stream of frames begins with.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Undoes zstd.
pub(super) struct Decoder<R> {
    source: R,
    frame: FrameDecoder,
    /// A frame is being read.
    inside: bool,
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, frame: FrameDecoder::new(), inside: false }
    }

    /// Begins the next frame; `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.frame.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.inside = true;
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                let strategy = ruzstd::decoding::BlockDecodingStrategy::UptoBytes(1 << 17);
                self.frame
                    .decode_blocks(&mut self.source, strategy)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let count = self.frame.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.inside = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of one raw block.
    fn frame(data: &[u8]) -> Vec<u8> {
        let length = u8::try_from(data.len()).expect("short");
        // Single segment, a content size of one byte; last block, raw.
        let mut out = MAGIC.to_vec();
        out.extend([0x20, length]);
        out.extend(&((u32::from(length) << 3) | 1).to_le_bytes()[..3]);
        out.extend(data);
        out
    }

    #[test]
    fn frames_follow_each_other_and_some_are_skipped() {
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let stream = [frame(b"one "), skipped.clone(), frame(b""), frame(b"two"), skipped].concat();
        let mut text = String::new();
        Decoder::new(&stream[..]).read_to_string(&mut text).expect("frames");
        assert_eq!(text, "one two");
        for cut in [3, 7, stream.len() - 1] {
            assert!(Decoder::new(&stream[..cut]).read_to_end(&mut Vec::new()).is_err(), "cut at {cut}");
        }
        assert!(Decoder::new(&b"nonsense"[..]).read_to_end(&mut Vec::new()).is_err());
    }
}
