// SPDX-License-Identifier: Apache-2.0
//! libFuzzer's driver, called by `tests/checks/fuzz`: runs the target that the environment variable
//! `ARCA_FUZZ_TARGET` names.
#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<arca_fuzz::Target> = OnceLock::new();

fn chosen() -> arca_fuzz::Target {
    let name = std::env::var("ARCA_FUZZ_TARGET").unwrap_or_default();
    arca_fuzz::find(&name).unwrap_or_else(|| {
        let names: Vec<_> = arca_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("ARCA_FUZZ_TARGET={name:?} is no fuzz target; there are: {}", names.join(", "));
        std::process::exit(2)
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(chosen).run)(bytes));
