// SPDX-License-Identifier: Apache-2.0
//! Flags that every daemon takes.

use clap::Args;

use super::{Config, Input, load};
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

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
