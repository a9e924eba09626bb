// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-helper-agent; everything of substance is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use arca_daemon::{early_boot, exit};
    use arca_helper_agent::cli;
    use clap::Parser as _;
    if early_boot::is_first_process() {
        exit::report("arca-helper-agent", cli::boot());
        early_boot::power_off();
    }
    exit::report("arca-helper-agent", cli::run(cli::Arguments::parse()))
}

#[cfg(not(target_os = "linux"))]
fn main() {}
