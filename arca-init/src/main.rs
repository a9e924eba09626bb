// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-init; everything of substance is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use arca_daemon::{early_boot, exit};
    use clap::Parser as _;
    // Inside a container it is the first process too.
    if let Some(command) = arca_init::wrap::asked() {
        return arca_init::wrap::run(&command);
    }
    if early_boot::is_first_process() {
        exit::report("arca-init", arca_init::boot());
        early_boot::power_off();
    }
    exit::report("arca-init", arca_init::run(arca_init::Cli::parse()))
}

#[cfg(not(target_os = "linux"))]
fn main() {}
