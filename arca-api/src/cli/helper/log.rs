// SPDX-License-Identifier: Apache-2.0
//! `arca helper console` and `arca helper logs`: the file that the machine's keeper writes.

use std::path::{Path, PathBuf};

use arca_machine::{Kind, Record};
use serde_json::Value;

use crate::cli::{platform, print, tail::Tail};

/// Prints the log as it is.
pub(super) async fn console(record: &Record, follow: bool, tail: usize) -> anyhow::Result<()> {
    show(&of(record), follow, tail, |line| Some(line.trim_end_matches('\r').to_owned())).await
}

/// Prints what programs of the helper said, one line each.
pub(super) async fn programs(record: &Record, only: Option<&str>, follow: bool, tail: usize) -> anyhow::Result<()> {
    show(&of(record), follow, tail, |line| said(line, only)).await
}

/// What the machine itself has written. The log of a virtual one's record is its keeper's.
pub(super) fn of(record: &Record) -> PathBuf {
    match record.kind {
        Kind::Namespace => record.log.clone(),
        Kind::Vm => record.state_directory.join("console.log"),
    }
}

async fn show(path: &Path, follow: bool, tail: usize, pick: impl Fn(&str) -> Option<String>) -> anyhow::Result<()> {
    let mut changes = match path.parent() {
        Some(folder) if follow => Some(platform::changes(folder)?),
        _ => None,
    };
    let mut log = Tail::new(path.to_owned());
    let text = log.read_new()?;
    let lines: Vec<String> = text.lines().filter_map(&pick).collect();
    lines[lines.len().saturating_sub(tail)..].iter().for_each(|line| print(line));
    while let Some(changes) = &mut changes {
        changes.next().await?;
        log.read_new()?.lines().filter_map(&pick).for_each(|line| print(&line));
    }
    Ok(())
}

/// What a program said, if this line of the supervisor's log tells of one.
fn said(line: &str, only: Option<&str>) -> Option<String> {
    let is_wanted = |program: &str| only.is_none_or(|only| only == program);
    // A virtual machine's console is a terminal, and the log on it is for people already.
    if let Some((_, program)) = line.split_once(" program=\"") {
        return is_wanted(program.split_once('"')?.0).then(|| line.trim_end().to_owned());
    }
    let entry: Value = serde_json::from_str(line).ok()?;
    let (program, message) = (entry["program"].as_str()?, entry["message"].as_str()?);
    if !is_wanted(program) {
        return None;
    }
    let when = entry["timestamp"].as_str().unwrap_or("-");
    let details: String =
        ["how", "error"].iter().filter_map(|key| Some(format!(" {}", entry[key].as_str()?))).collect();
    Some(format!("{when} {program:<20} {message}{details}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_programs_are_told_from_others() {
        let line = r#"{"timestamp":"T","level":"INFO","message":"00012|WARN|slow","program":"ovn-northd"}"#;
        assert_eq!(said(line, None).as_deref(), Some("T ovn-northd           00012|WARN|slow"));
        assert!(said(line, Some("ovn-northd")).is_some() && said(line, Some("ovs-vswitchd")).is_none());
        let line = "T  INFO 00012|WARN|slow program=\"ovn-northd\" pid=7\r";
        assert_eq!(said(line, Some("ovn-northd")).as_deref(), Some(line.trim_end()));
        assert_eq!(said(line, Some("ovs-vswitchd")), None);
        for other in ["", "[ 0.0] Linux", r#"{"message":"boot"}"#, "{", "ä{\"program\":1}"] {
            assert_eq!(said(other, None), None, "{other}");
        }
    }
}
