// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-tapfwd; everything of substance is in the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use clap::Parser as _;
    arca_daemon::exit::report("arca-tapfwd", arca_tapfwd::cli::run(arca_tapfwd::cli::Arguments::parse()))
}

#[cfg(not(target_os = "linux"))]
fn main() {}
