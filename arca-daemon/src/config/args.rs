// SPDX-License-Identifier: Apache-2.0
//! Flags that every daemon takes.

use std::io;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Config, Input, KEYS, Key, load};
use crate::{exit::Fatal, logging};

/// `#[command(flatten)]` these into a daemon's own arguments.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// Overrides one key of the configuration; may be repeated.
    #[arg(short = 'c', long = "config", value_name = "KEY=VALUE", value_parser = pair, global = true)]
    pub config: Vec<(String, String)>,
    /// Same as -c logLevel=LEVEL.
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
}

impl CommonArgs {
    /// Loads the configuration with these flags on top.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Config, Fatal> {
        let mut flags = self.config.clone();
        flags.extend(self.log_level.iter().map(|level| ("logLevel".to_owned(), level.clone())));
        load(&Input::of_process(flags))
    }

    /// Loads the configuration and sets logging up with it.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load_and_log(&self) -> Result<Config, Fatal> {
        let config = self.load()?;
        logging::init(&config.log_level);
        Ok(config)
    }
}

impl CommonArgs {
    /// From now on SIGHUP makes this process read the configuration again and take over the log level. What else has
    /// changed is named in the log and waits for the next start; a configuration that is wrong changes nothing.
    ///
    /// # Errors
    /// If the signal handler cannot be set.
    pub fn reload_on_hangup(&self, started: &Config) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let (arguments, started) = (self.clone(), started.effective.clone());
        tokio::spawn(async move {
            let mut level = started["logLevel"].0.clone();
            while hangups.recv().await.is_some() {
                let config = match arguments.load() {
                    Ok(config) => config,
                    Err(error) => {
                        tracing::error!(%error, "the configuration is wrong; what was in force stays in force");
                        continue;
                    }
                };
                if config.log_level != level {
                    level.clone_from(&config.log_level);
                    logging::set_level(&level);
                    tracing::info!(level, "log level changed");
                }
                let changed = |key: &&Key| !key.live && started[key.name].0 != config.effective[key.name].0;
                for key in KEYS.iter().filter(changed) {
                    tracing::warn!(key = key.name, "changed in the configuration; counts from the next start");
                }
            }
        });
        Ok(())
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
