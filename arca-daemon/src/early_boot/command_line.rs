// SPDX-License-Identifier: Apache-2.0
//! The kernel command line: what the launcher tells the machine.
//!
//! Words `arca.KEY=VALUE`; all others are the kernel's. Keys: `role` (container, helper), `id`, `log` (level or filter),
//! `time` (the host's clock at the launch, milliseconds since 1970).

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Workloads run in it.
    Container,
    /// OVS and OVN run in it.
    Helper,
}

impl Role {
    /// As on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Helper => "helper",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The words that are meant for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    words: BTreeMap<String, String>,
}

impl CommandLine {
    /// Takes our words out of the text of /proc/cmdline; of a key given twice the last one counts, as in the kernel.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let ours = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix("arca.")?.split_once('='));
        Self { words: ours.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
    }

    /// Value of `arca.KEY`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words.get(key).map(String::as_str)
    }

    /// Id of the machine; `arca` if none was given.
    #[must_use]
    pub fn id(&self) -> &str {
        self.get("id").filter(|id| !id.is_empty()).unwrap_or("arca")
    }

    /// Log level or filter.
    #[must_use]
    pub fn log_level(&self) -> &str {
        self.get("log").unwrap_or("info")
    }

    /// The host's clock when it launched this machine.
    #[must_use]
    pub fn time(&self) -> Option<SystemTime> {
        let milliseconds = self.get("time")?.parse().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let line = CommandLine::parse("console=ttyS0 arca.role=helper arca.id=abc quiet arca.time=1500 arca.id=def\n");
        assert_eq!((line.get("role"), line.id(), line.log_level()), (Some("helper"), "def", "info"));
        assert_eq!(line.time(), Some(UNIX_EPOCH + Duration::from_millis(1500)));
    }

    #[test]
    fn nonsense_is_as_good_as_nothing() {
        let line = CommandLine::parse("arca. arca.x arca.time=soon arca.id= arca.=y =");
        assert_eq!((line.time(), line.id(), line.get("x")), (None, "arca", None));
        assert_eq!(CommandLine::parse(&format!("arca.time={}", u64::MAX)).get("role"), None);
        assert_eq!(CommandLine::parse(""), CommandLine::default());
    }
}
