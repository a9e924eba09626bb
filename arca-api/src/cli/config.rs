// SPDX-License-Identifier: Apache-2.0
//! `arca config show`: every key, its effective value, and where that came from.

use arca_daemon::config::{CommonArgs, Config, KEYS};
use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::print;

/// `arca config ...`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every key with its effective value and where that came from
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `arca config ...`.
///
/// # Errors
/// If the configuration is bad.
pub fn run(command: &Command, common: &CommonArgs) -> anyhow::Result<()> {
    let Command::Show { json } = command;
    let config = common.load()?;
    print(&if *json { as_json(&config) } else { as_table(&config) });
    Ok(())
}

fn as_json(config: &Config) -> String {
    let entry = |name: &'static str| {
        let (value, source) = &config.effective[name];
        (name.to_owned(), json!({"value": value, "source": source.to_string()}))
    };
    let map: Map<String, Value> = KEYS.iter().map(|key| entry(key.name)).collect();
    format!("{:#}", Value::Object(map))
}

fn as_table(config: &Config) -> String {
    let width = KEYS.iter().map(|key| config.effective[key.name].0.len()).max().unwrap_or(0);
    let row = |key: &arca_daemon::config::Key| {
        let (value, source) = &config.effective[key.name];
        format!("{:<15} {value:<width$}  {source:<12} {}", key.name, key.meaning, source = source.to_string())
    };
    KEYS.iter().map(row).collect::<Vec<_>>().join("\n")
}
