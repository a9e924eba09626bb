// SPDX-License-Identifier: Apache-2.0
//! `arca doctor`: looks at the machine and at the running engine; what is wrong is said with what to do about it.
//!
//! [`machine`] needs no engine; [`engine`] asks the daemons the same questions that they answer elsewhere. Nothing is
//! changed.

mod engine;
#[cfg(target_os = "linux")]
#[path = "machine_linux.rs"]
mod machine;
#[cfg(not(target_os = "linux"))]
#[path = "machine_other.rs"]
mod machine;
mod overlap;

use std::io::IsTerminal as _;

use arca_daemon::{
    config::CommonArgs,
    exit::{Failure, Fatal},
};
use clap::Args;
use serde_json::json;

use crate::cli::print;

/// `arca doctor`
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good,
    /// Works, but somebody may wonder.
    Odd,
    /// Does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    /// What was looked at: a few words.
    what: String,
    /// What was found.
    found: String,
    /// What to do about it, if anything.
    fix: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what: what.into(), found: found.into(), fix: None }
    }

    fn odd(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Odd, what: what.into(), found: found.into(), fix: Some(fix.into()) }
    }

    fn bad(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what: what.into(), found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs `arca doctor`.
///
/// # Errors
/// Something is bad: exit code 69.
pub fn run(arguments: &Arguments, common: &CommonArgs) -> anyhow::Result<()> {
    let config = common.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut findings = machine::look(&config);
    findings.extend(runtime.block_on(engine::look(&config)));
    if arguments.json {
        let rows = findings.iter().map(|finding| {
            let verdict = word(finding.verdict);
            json!({"verdict": verdict, "what": finding.what, "found": finding.found, "fix": finding.fix})
        });
        print(&format!("{:#}", serde_json::Value::Array(rows.collect())));
    } else {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        print(&text(&findings, colour));
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        1 => Err(Fatal::new(Failure::Missing, "1 thing needs to be put right").into()),
        bad => Err(Fatal::new(Failure::Missing, format!("{bad} things need to be put right")).into()),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "ok",
        Verdict::Odd => "odd",
        Verdict::Bad => "BAD",
    }
}

/// A line a finding, what to do about it below.
fn text(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let code = match finding.verdict {
            Verdict::Good => 32,
            Verdict::Odd => 33,
            Verdict::Bad => 31,
        };
        let word = format!("{:<4}", word(finding.verdict));
        let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word };
        lines.push(format!("{word}{:<width$}  {}", finding.what, finding.found));
        lines.extend(finding.fix.iter().map(|fix| format!("    {:<width$}  -> {fix}", "")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_its_fix_the_next() {
        let findings = [Finding::good("clock", "2026"), Finding::bad("TUN", "no device", "modprobe tun")];
        assert_eq!(text(&findings, false), "ok  clock  2026\nBAD TUN    no device\n           -> modprobe tun");
        assert!(text(&findings, true).contains("\x1b[31mBAD \x1b[0mTUN"));
    }
}
