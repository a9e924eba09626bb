// SPDX-License-Identifier: Apache-2.0
//! `arca config show | check | path | reference`.

use arca_daemon::config::{CommonArgs, Config, KEYS, Source, reference};
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
    /// Read everything, change nothing; exit code 78 and one line if something is wrong
    Check,
    /// The configuration file that is read, or the one to make
    Path,
    /// The reference of all keys, as Markdown
    Reference,
}

/// Runs `arca config ...`.
///
/// # Errors
/// If the configuration is bad.
pub fn run(command: &Command, common: &CommonArgs) -> anyhow::Result<()> {
    match command {
        Command::Show { json: true } => print(&as_json(&common.load()?)),
        Command::Show { json: false } => print(&as_table(&common.load()?)),
        Command::Check => print(&checked(&common.load()?)),
        Command::Path => print(&path(&common.load()?)),
        // Without the line end that printing adds.
        Command::Reference => print(reference().trim_end_matches('\n')),
    }
    Ok(())
}

fn path(config: &Config) -> String {
    let path = config.file.clone().unwrap_or_else(|| config.paths.config.join("config.json"));
    path.display().to_string()
}

fn checked(config: &Config) -> String {
    let set = config.effective.values().filter(|(_, source)| *source != Source::Default).count();
    let there = if config.file.is_some() { "" } else { " (not there)" };
    format!("ok: {}{there}, {set} of {} keys set", path(config), KEYS.len())
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
