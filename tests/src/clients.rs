// SPDX-License-Identifier: Apache-2.0
//! Foreign clients that `tests/clients/prepare` brought, and what to say where one is missing.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Path of `file` of the client `name`; `None` if it is not there: the line for `test` that says so is printed.
#[must_use]
pub fn tool(test: &str, name: &str, file: &str) -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/tools");
    let tools = env::var_os("ARCA_TEST_TOOLS").map_or_else(default, PathBuf::from);
    let path = tools.join(name).join(file);
    if path.exists() {
        return Some(path);
    }
    let reason = std::fs::read_to_string(tools.join(format!("{name}.missing"))).unwrap_or_default();
    let reason = if reason.trim().is_empty() { "tests/clients/prepare brings it" } else { reason.trim() };
    crate::skip(test, &format!("no {name}: {reason}"));
    None
}
