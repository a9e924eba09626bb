// SPDX-License-Identifier: Apache-2.0
//! Keeper of one virtual machine: `arca-vmm PLAN`. Started by arca-machine's QEMU driver, never by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(plan), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: arca-vmm PLAN (arca-api and arca-netd start it)");
        return ExitCode::from(64);
    };
    arca_daemon::logging::init(&std::env::var("ARCA_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned()));
    match arca_machine::keep(plan.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
