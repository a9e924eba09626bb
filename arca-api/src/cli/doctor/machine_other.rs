// SPDX-License-Identifier: Apache-2.0
//! What of this machine an engine stands on, where there is no Linux kernel: the programs and images only.

use arca_daemon::config::Config;

use super::Finding;
use crate::cli::daemon::preflight;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let checks = preflight::checks(config).into_iter();
    checks
        .map(|check| match check.result {
            Ok(found) => Finding::good(check.what, found),
            Err(fatal) => {
                let (found, fix) = fatal.text.rsplit_once(": ").unwrap_or((&fatal.text, "see above"));
                Finding::bad(check.what, found, fix)
            }
        })
        .collect()
}
