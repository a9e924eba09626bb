// SPDX-License-Identifier: Apache-2.0
//! `arca helper exec` and `arca helper shell`: the helper's own tools, run inside by its agent.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use arca_proto::helper::v1::{ExecRequest, exec_output::Kind, helper_client::HelperClient};
use tonic::{Code, transport::Channel};

/// Runs one tool; gives its exit code.
pub(super) async fn run(client: &mut HelperClient<Channel>, words: Vec<String>) -> anyhow::Result<i32> {
    let asked = client.exec(ExecRequest { words, stdin: Vec::new() }).await;
    let mut output = asked
        .map_err(|status| match status.code() {
            Code::Unavailable => {
                anyhow::anyhow!("the helper's agent does not answer: {} (see `arca helper console`)", status.message())
            }
            _ => anyhow::anyhow!("{}", status.message()),
        })?
        .into_inner();
    while let Some(piece) = output.message().await.context("the helper's agent broke off")? {
        // A reader that closed its end (`| head`) is no error.
        let _ = match piece.kind {
            Some(Kind::Stdout(bytes)) => write(&mut std::io::stdout(), &bytes),
            Some(Kind::Stderr(bytes)) => write(&mut std::io::stderr(), &bytes),
            Some(Kind::Code(code)) => return Ok(code),
            None => Ok(()),
        };
    }
    anyhow::bail!("the helper's agent ended before the tool did")
}

fn write(out: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

/// Runs what is typed, line by line, until the input ends.
pub(super) async fn shell(client: &mut HelperClient<Channel>) -> anyhow::Result<()> {
    // Nothing else happens while a line is waited for.
    let mut lines = std::io::stdin().lines();
    let terminal = std::io::stdin().is_terminal();
    loop {
        if terminal {
            let mut out = std::io::stdout();
            out.write_all(b"helper> ").and_then(|()| out.flush())?;
        }
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        let words = match split(&line) {
            Ok(words) if words.is_empty() => continue,
            Ok(words) if words == ["exit"] => return Ok(()),
            Ok(words) => words,
            Err(why) => {
                eprintln!("{why}");
                continue;
            }
        };
        match run(client, words).await {
            Ok(0) => {}
            Ok(code) => eprintln!("exit code {code}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// Words separated by blanks; quotes of either kind keep what is between them together.
fn split(line: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            None if letter == '\'' || letter == '"' => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote is not closed") } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_stay_together() {
        assert_eq!(
            split(" ovs-ofctl  dump-flows 'br-int' \"a b\" ''"),
            Ok(["ovs-ofctl", "dump-flows", "br-int", "a b", ""].map(String::from).into())
        );
        assert_eq!(split("  "), Ok(Vec::new()));
        assert!(split("a 'b").is_err());
    }
}
