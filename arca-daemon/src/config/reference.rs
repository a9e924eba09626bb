// SPDX-License-Identifier: Apache-2.0
//! docs/configuration.md, made from the table of keys: nothing about a key is written down twice.

use std::fmt::Write as _;

use super::{KEYS, Key};

const HEAD: &str = r#"<!-- Made by `arca config reference`; do not edit. A test fails when it is out of date: `just docs` makes it anew. -->

# Configuration

One file for the whole engine: `config.json` or `config.toml`, never both, in `~/.arca`, or in `$ARCA_HOME` where that
is set. A root service keeps its data in `/var/lib/arca` and still reads the file in the user's `~/.arca`. The two forms hold the same
keys:

```json
{
    // `//` begins a comment.
    "networkBackend": "vmnet",
    "dns": ["10.0.0.53", "fd00::53"]
}
```

```toml
# config.toml
networkBackend = "vmnet"
dns = ["10.0.0.53", "fd00::53"]
```

A value is taken from the first of these that has one:

1. the command line: `-c KEY=VALUE`, or `--log-level LEVEL`, of `arca` and of each daemon;
2. the environment variable of the key;
3. the file;
4. the default.

| command | what it does |
|---|---|
| `arca config show [--json]` | every key with the value in force and where that came from |
| `arca config check` | reads everything and changes nothing; exit code 78 and one line if something is wrong |
| `arca config path` | the file that is read, or the one to make |
| `arca config reference` | this page |
| `arca daemon reload` | the running engine takes over what can change while it runs (SIGHUP to a daemon does the same) |

What is wrong is told in one line with the key, the value, where it stands and what is allowed; an unknown key with the
nearest there is. Exit code 78 then, and nothing was started.

## Where things lie

`ARCA_HOME` is no key: it moves all files and sockets of an engine, the docker socket included, below one folder, so
that several engines live side by side. Without it:

| | root | another user |
|---|---|---|
| configuration | `~/.arca` | `~/.arca` |
| data | `/var/lib/arca` | `~/.arca` |
| sockets of the daemons | `/run/arca` | `~/.arca/run` |
| logs | `/var/log/arca` | `~/.arca/log` |

## Keys
"#;

/// The whole page.
#[must_use]
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for key in KEYS {
        entry(&mut text, key);
    }
    text
}

fn entry(text: &mut String, key: &Key) {
    let taken_over = if key.live { "`arca daemon reload`" } else { "the next start of the engine" };
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n### `{}`\n\n{}.{}{}\n\n\
         | | |\n|---|---|\n\
         | allowed | {} |\n| default | {} |\n| environment | `{}` |\n| a change counts from | {taken_over} |\n",
        key.name,
        capitalised(key.meaning),
        if key.more.is_empty() { "" } else { " " },
        key.more,
        key.allowed,
        key.default,
        key.variable,
    );
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
