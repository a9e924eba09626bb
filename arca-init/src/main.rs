// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-init; everything of substance is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use clap::Parser as _;
    arca_daemon::exit::report("arca-init", arca_init::run(arca_init::Cli::parse()))
}

#[cfg(not(target_os = "linux"))]
fn main() {}
