// SPDX-License-Identifier: Apache-2.0
//! One blob comes over the network into a file that may have its beginning already.

use std::{io, path::Path, time::Duration};

use futures_util::StreamExt as _;
use oci_client::{client::BlobResponse, errors::OciDistributionError};
use tokio::{fs::OpenOptions, io::AsyncWriteExt as _};

use super::{
    Repository,
    progress::{Bar, Lines},
};

/// Docker's number of tries; one that brought something counts anew.
const TRIES: u32 = 5;

/// Fetches `digest` (of `size` bytes) into `file`, going on where it ends. The digest is not looked at here.
///
/// # Errors
/// The registry's last, after several tries; the file keeps what came.
pub(super) async fn receive(
    repository: &Repository,
    digest: &str,
    size: u64,
    file: &Path,
    id: &str,
    lines: &Lines,
) -> Result<(), OciDistributionError> {
    let mut tries = 0;
    loop {
        let before = length(file);
        match attempt(repository, digest, size, file, &lines.bar(id, "Downloading", size)).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tries = if length(file) > before { 1 } else { tries + 1 };
                if tries >= TRIES || !is_transient(&error) {
                    return Err(error);
                }
                tracing::info!(digest, %error, tries, "a download is tried again");
                for seconds in (1..=tries).rev() {
                    let plural = if seconds == 1 { "" } else { "s" };
                    lines.part(id, &format!("Retrying in {seconds} second{plural}"));
                    // Back-off, told to the user.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

/// Whether another try may help.
fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        _ => false,
    }
}

async fn attempt(
    repository: &Repository,
    digest: &str,
    size: u64,
    file: &Path,
    bar: &Bar,
) -> Result<(), OciDistributionError> {
    let mut offset = length(file);
    if offset > size {
        offset = 0;
    }
    if offset == size && size > 0 {
        return Ok(());
    }
    let place = &repository.place;
    let answer = match offset {
        0 => BlobResponse::Full(repository.client.pull_blob_stream(place, digest).await?),
        _ => repository.client.pull_blob_stream_partial(place, digest, offset, None).await?,
    };
    let mut stream = match answer {
        BlobResponse::Partial(stream) => stream,
        BlobResponse::Full(stream) => {
            // It cannot give parts.
            offset = 0;
            stream
        }
    };
    let mut out = OpenOptions::new().create(true).write(true).truncate(false).open(file).await?;
    out.set_len(offset).await?;
    io_seek(&mut out, offset).await?;
    bar.add(offset);
    let mut written = offset;
    while let Some(piece) = stream.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                out.flush().await?;
                return Err(error.into());
            }
        };
        written += piece.len() as u64;
        if written > size {
            let text = format!("blob {digest} is longer than its manifest says");
            return Err(OciDistributionError::SpecViolationError(text));
        }
        out.write_all(&piece).await?;
        bar.add(piece.len() as u64);
    }
    out.flush().await?;
    if written < size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

async fn io_seek(file: &mut tokio::fs::File, offset: u64) -> io::Result<()> {
    use tokio::io::AsyncSeekExt as _;
    file.seek(io::SeekFrom::Start(offset)).await.map(drop)
}
