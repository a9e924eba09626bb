// SPDX-License-Identifier: Apache-2.0
//! The commands in `docs/` do what the pages say.
//!
//! A fenced block of the kind `console` is a piece of a terminal: lines after `$ ` are run, in a shell, one engine for the
//! whole page; the lines below one must come out of it, `*` standing for anything within a line and `...` for any lines.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use arca_tests::engine::{self, Engine};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("troubleshooting_shows_what_is_seen", || page("troubleshooting.md")),
    ("a_page_that_says_something_else_is_found_out", || {
        let told = play(&Page::read("```console\n$ echo one; echo two\none\nthree\n```\n")?, &|line| shell(line, None));
        ensure!(told.is_err_and(|error| error.to_string().contains("three")), "a wrong page passed");
        Ok(())
    }),
];

/// A command and what is shown below it.
#[derive(Debug)]
struct Shown {
    line: usize,
    command: String,
    output: Vec<String>,
}

#[derive(Debug, Default)]
struct Page {
    shown: Vec<Shown>,
}

impl Page {
    fn read(text: &str) -> anyhow::Result<Self> {
        let mut page = Self::default();
        let mut inside = false;
        for (index, line) in text.lines().enumerate() {
            if let Some(kind) = line.strip_prefix("```") {
                inside = !inside && kind == "console";
            } else if inside && let Some(command) = line.strip_prefix("$ ") {
                page.shown.push(Shown { line: index + 1, command: command.to_owned(), output: Vec::new() });
            } else if inside {
                let last =
                    page.shown.last_mut().with_context(|| format!("line {}: output of no command", index + 1))?;
                last.output.push(line.to_owned());
            }
        }
        ensure!(!page.shown.is_empty(), "no command in it");
        Ok(page)
    }
}

fn page(name: &str) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let page = Page::read(&fs::read_to_string(&path)?)?;
    let engine = Engine::start()?;
    engine.load_image()?;
    play(&page, &|line| shell(line, Some(&engine))).with_context(|| format!("docs/{name}"))?;
    engine.stop()
}

fn play(page: &Page, run: &dyn Fn(&str) -> anyhow::Result<String>) -> anyhow::Result<()> {
    for shown in &page.shown {
        let said = run(&shown.command)?;
        let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
        if let Err(missing) = compare(&shown.output, &lines) {
            anyhow::bail!("line {}: `{}` did not say `{missing}`, but:\n{said}", shown.line, shown.command);
        }
    }
    Ok(())
}

/// Standard output and error as a terminal shows them. The exit code is shown only by who asks for it (`; echo $?`).
fn shell(line: &str, engine: Option<&Engine>) -> anyhow::Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec 2>&1; {line}")]).stdin(Stdio::null()).env("NO_COLOR", "1");
    if let Some(engine) = engine {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", engine::binaries()?.display()));
        command.env("ARCA_HOME", engine.home()).env("DOCKER_HOST", engine.docker_host());
        command.env("DOCKER_CONFIG", engine.home().join("docker"));
    }
    Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
}

/// The first expected line that did not come where it had to.
fn compare<'a>(expected: &'a [String], said: &[&str]) -> Result<(), &'a str> {
    let mut said = said.iter();
    let mut anywhere = false;
    for line in expected {
        if line.trim() == "..." {
            anywhere = true;
            continue;
        }
        let found = if anywhere { said.any(|is| like(line, is)) } else { said.next().is_some_and(|is| like(line, is)) };
        if !found {
            return Err(line);
        }
        anywhere = false;
    }
    if !anywhere && said.next().is_some() && !expected.is_empty() {
        return Err("(the end)");
    }
    Ok(())
}

/// Whether `line` is what `pattern` shows; runs of spaces are one, as columns move with what is in them.
fn like(pattern: &str, line: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (pattern, line) = (squeeze(pattern), squeeze(line));
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}
