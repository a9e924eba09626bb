// SPDX-License-Identifier: Apache-2.0
//! The archive of a layer as it came: kept beside the unpacked layer, so that what is pushed or saved is bit for bit
//! what was pulled, loaded or made.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::{Compression as Level, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ImageError, Store, archive, digest_hex, hex, write_atomically};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A layer's archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// "sha256:..." of the file as it is kept.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// What was done to the tar.
    pub compression: Compression,
    /// Bytes of the tar itself.
    pub tar_size: u64,
}

impl Store {
    /// The archive of a layer, and the file that has it.
    ///
    /// # Errors
    /// If the layer is not there.
    pub fn blob(&self, diff_id: &str) -> Result<(Blob, PathBuf), ImageError> {
        let folder = self.layer_path(diff_id);
        let file = folder.join("blob.json");
        let text = fs::read(&file).map_err(ImageError::io("read", &file))?;
        let blob: Blob = serde_json::from_slice(&text)
            .map_err(|error| ImageError::io("read", &file)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let place = folder.join(digest_hex(&blob.digest));
        Ok((blob, place))
    }

    /// The archive in a compressed form, as registries keep it. What was plain is compressed now, once, and kept so.
    ///
    /// # Errors
    /// The disk's.
    pub fn compressed_blob(&self, diff_id: &str) -> Result<(Blob, PathBuf), ImageError> {
        let (blob, place) = self.blob(diff_id)?;
        if blob.compression != Compression::None {
            return Ok((blob, place));
        }
        let work = self.work_directory()?;
        let packed = work.path().join("blob");
        let (digest, size) = compress(&place, &packed).map_err(ImageError::io("compress", &place))?;
        let folder = self.layer_path(diff_id);
        let better = Blob { digest, size, compression: Compression::Gzip, tar_size: blob.tar_size };
        let target = folder.join(digest_hex(&better.digest));
        fs::rename(&packed, &target).map_err(ImageError::io("place", &target))?;
        write_atomically(&folder.join("blob.json"), &json(&better))?;
        // Nobody looks for the plain one any more; who has it open reads on.
        fs::remove_file(&place).map_err(ImageError::io("remove", &place))?;
        Ok((better, target))
    }

    /// A layer's tar, uncompressed.
    ///
    /// # Errors
    /// If the layer is not there.
    pub fn layer_tar(&self, diff_id: &str) -> Result<Box<dyn Read>, ImageError> {
        let (_, place) = self.blob(diff_id)?;
        let file = File::open(&place).map_err(ImageError::io("open", &place))?;
        archive::decompressed(BufReader::with_capacity(1 << 18, file)).map_err(ImageError::io("read", &place))
    }
}

/// What `blob.json` holds.
pub(super) fn json(blob: &Blob) -> Vec<u8> {
    // Texts and numbers always serialise.
    serde_json::to_vec(blob).unwrap_or_default()
}

/// Gzip without a name or a time, so that equal layers give equal blobs.
fn compress(from: &Path, to: &Path) -> io::Result<(String, u64)> {
    let mut out = GzEncoder::new(Counting { file: File::create(to)?, hash: Sha256::new(), size: 0 }, Level::default());
    io::copy(&mut BufReader::with_capacity(1 << 18, File::open(from)?), &mut out)?;
    let done = out.finish()?;
    Ok((format!("sha256:{}", hex(&done.hash.finalize())), done.size))
}

struct Counting {
    file: File,
    hash: Sha256,
    size: u64,
}

impl io::Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write_all(&mut self.file, bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::flush(&mut self.file)
    }
}
