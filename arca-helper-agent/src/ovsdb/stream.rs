// SPDX-License-Identifier: Apache-2.0
//! Cuts a byte stream into JSON texts. OVSDB has no framing: one object follows the other (RFC 7047 section 4).
//!
//! The scanner looks at every byte once, however the stream was split, and only counts brackets outside strings; the
//! text between is judged by the JSON parser.

use bytes::{Buf, BytesMut};
use serde_json::Value as Json;

use super::Error;

/// Greatest message accepted, in bytes. The whole northbound database of a thousand ports is about 2 MiB.
pub const MAX_MESSAGE: usize = 64 << 20;

/// Incremental decoder of concatenated JSON texts.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    limit: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::with_limit(MAX_MESSAGE)
    }
}

impl Decoder {
    /// A decoder that refuses messages of more than `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, depth: 0, in_string: false, escaped: false, limit }
    }

    /// Where to read the next bytes of the stream to.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next complete message, or `None` until more bytes have come. After an error the stream is of no use.
    pub fn next_message(&mut self) -> Result<Option<Json>, Error> {
        if self.depth == 0 {
            let blank = self.buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.buffer.advance(blank);
        }
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' if self.depth > 0 => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return self.take().map(Some);
                    }
                }
                _ if self.depth > 0 => {}
                other => return Err(Error::Protocol(format!("byte {other:#04x} where an object must begin"))),
            }
        }
        if self.scanned > self.limit {
            return Err(Error::Protocol(format!("a message of more than {} bytes", self.limit)));
        }
        Ok(None)
    }

    fn take(&mut self) -> Result<Json, Error> {
        if self.scanned > self.limit {
            return Err(Error::Protocol(format!("a message of more than {} bytes", self.limit)));
        }
        let text = self.buffer.split_to(self.scanned);
        self.scanned = 0;
        serde_json::from_slice(&text).map_err(|e| Error::Protocol(format!("malformed JSON: {e}")))
    }
}
