// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-helper-agent; everything of substance is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use clap::Parser as _;
    arca_daemon::exit::report(
        "arca-helper-agent",
        arca_helper_agent::cli::run(arca_helper_agent::cli::Arguments::parse()),
    )
}

#[cfg(not(target_os = "linux"))]
fn main() {}
