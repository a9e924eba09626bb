// SPDX-License-Identifier: Apache-2.0
//! `arca daemon logs [-f] [DAEMON]`.

use arca_daemon::{
    config::Config,
    exit::{Failure, Fatal},
};

use super::{DAEMONS, supervise::log_path};
use crate::cli::{platform, print, tail::Tail};

/// One log that is being read.
struct Log {
    name: String,
    tail: Tail,
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
        names.into_iter().map(|name| Log { name: name.to_owned(), tail: Tail::new(log_path(config, name)) }).collect();
    let mut changes = if follow { Some(platform::changes(&config.paths.log)?) } else { None };
    for log in &mut logs {
        let text = log.tail.read_new()?;
        let lines: Vec<&str> = text.lines().collect();
        log.print(&lines[lines.len().saturating_sub(tail)..], prefix);
    }
    while let Some(changes) = &mut changes {
        changes.next().await?;
        for log in &mut logs {
            let text = log.tail.read_new()?;
            log.print(&text.lines().collect::<Vec<_>>(), prefix);
        }
    }
    Ok(())
}

impl Log {
    fn print(&self, lines: &[&str], prefix: bool) {
        for line in lines {
            print(&if prefix { format!("{:<12} {line}", self.name) } else { (*line).to_owned() });
        }
    }
}
