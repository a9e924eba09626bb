// SPDX-License-Identifier: Apache-2.0
//! `arca daemon logs [-f] [DAEMON]`.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use arca_daemon::{
    config::Config,
    exit::{Failure, Fatal},
};

use super::{DAEMONS, supervise::log_path};
use crate::cli::{platform, print};

/// One log that is being read.
struct Log {
    name: String,
    path: PathBuf,
    offset: u64,
}

/// Prints the last lines of the logs, then what is added.
pub(super) async fn show(config: &Config, daemon: Option<&str>, follow: bool, tail: usize) -> anyhow::Result<()> {
    let names: Vec<&str> = match daemon {
        None => ["arca"].into_iter().chain(DAEMONS).collect(),
        Some(name) if DAEMONS.contains(&name) => vec![name],
        Some(name) => {
            let text = format!("`{name}` is no daemon of the engine; there are {}", DAEMONS.join(", "));
            return Err(Fatal::new(Failure::Usage, text).into());
        }
    };
    let prefix = names.len() > 1;
    let mut logs: Vec<Log> =
        names.into_iter().map(|name| Log { name: name.to_owned(), path: log_path(config, name), offset: 0 }).collect();
    let mut changes = if follow { Some(platform::changes(&config.paths.log)?) } else { None };
    for log in &mut logs {
        let text = log.read_new()?;
        let lines: Vec<&str> = text.lines().collect();
        log.print(&lines[lines.len().saturating_sub(tail)..], prefix);
    }
    while let Some(changes) = &mut changes {
        changes.next().await?;
        for log in &mut logs {
            let text = log.read_new()?;
            log.print(&text.lines().collect::<Vec<_>>(), prefix);
        }
    }
    Ok(())
}

impl Log {
    /// Whole lines added since the last call. A log not there yet is empty.
    fn read_new(&mut self) -> std::io::Result<String> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).into_owned())
    }

    fn print(&self, lines: &[&str], prefix: bool) {
        for line in lines {
            print(&if prefix { format!("{:<12} {line}", self.name) } else { (*line).to_owned() });
        }
    }
}
