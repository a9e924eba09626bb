// SPDX-License-Identifier: Apache-2.0
//! Exit codes and the one place where an error becomes a line for a person.

use std::process::ExitCode;

/// Why a program gave up; each has an exit code of its own (sysexits.h where one fits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// Anything without a code of its own.
    General = 1,
    /// Bad command line (clap's own code).
    Usage = 2,
    /// EX_UNAVAILABLE: something the machine lacks: TUN, a package, a kernel feature.
    Missing = 69,
    /// EX_CANTCREAT: the socket is taken.
    SocketTaken = 73,
    /// EX_TEMPFAIL: another engine uses the same data.
    AlreadyRunning = 75,
    /// EX_NOPERM: privileges.
    Privileges = 77,
    /// EX_CONFIG: the configuration file, an environment variable.
    Config = 78,
}

impl Failure {
    /// The failure a program's exit code stands for; [`Failure::General`] for any other number.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        let all = [Self::Usage, Self::Missing, Self::SocketTaken, Self::AlreadyRunning, Self::Privileges, Self::Config];
        all.into_iter().find(|failure| *failure as u8 == code).unwrap_or(Self::General)
    }
}

/// An error with an exit code, for `main`. Anything else that reaches [`report`] ends with code 1.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Fatal {
    /// Decides the exit code.
    pub failure: Failure,
    /// One line: what, which, and the way out.
    pub text: String,
}

impl Fatal {
    /// A fatal error of the given kind.
    pub fn new(failure: Failure, text: impl Into<String>) -> Self {
        Self { failure, text: text.into() }
    }
}

/// Prints `program: error: cause: cause` on standard error and gives the exit code. The end of every `main`.
pub fn report(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

/// Exit code for an error chain: that of the outermost [`Fatal`] in it.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    let fatal = error.downcast_ref::<Fatal>().or_else(|| error.chain().find_map(|cause| cause.downcast_ref::<Fatal>()));
    fatal.map_or(Failure::General, |fatal| fatal.failure) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_code_survives_added_context() {
        let error = Err::<(), _>(Fatal::new(Failure::Config, "unknown key"))
            .context("load configuration")
            .expect_err("an error");
        assert_eq!(code(&error), 78);
        assert_eq!(code(&anyhow::anyhow!("anything")), 1);
    }
}
