// SPDX-License-Identifier: Apache-2.0
//! `--security-opt`: what is said there and what it means here.

use super::SpecError;
use crate::docker::host_config::HostConfig;

/// What the options come to; of one given twice the last counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Security {
    /// `unconfined`, `builtin`, or the text of a profile.
    pub(super) seccomp: Option<String>,
    pub(super) no_new_privileges: bool,
}

/// Reads the options, `NAME=VALUE` or, as of old, `NAME:VALUE`.
pub(super) fn options(host: &HostConfig) -> Result<Security, SpecError> {
    let mut found = Security::default();
    for option in host.security_opt.iter().flatten() {
        match option.as_str() {
            "no-new-privileges" => {
                found.no_new_privileges = true;
                continue;
            }
            // It has no other meaning than not to be confined by labels, and nothing here is.
            "disable" => continue,
            _ => {}
        }
        let parts = option.split_once('=').or_else(|| option.split_once(':'));
        let Some((name, value)) = parts else {
            return Err(SpecError(format!("invalid --security-opt 1: {option:?}")));
        };
        match (name, value) {
            ("no-new-privileges", _) => {
                let truth = crate::http::query::parse_bool(value);
                found.no_new_privileges =
                    truth.map_err(|_| SpecError(format!("invalid --security-opt 2: {option:?}")))?;
            }
            ("seccomp", profile) => found.seccomp = Some(profile.to_owned()),
            // Neither AppArmor nor SELinux confines a container here: to say so changes nothing.
            ("apparmor", "unconfined" | "docker-default" | "") | ("label", "disable") => {}
            ("writable-cgroups", _) | ("apparmor" | "label", _) => {
                return Err(SpecError(format!(
                    "--security-opt {name}={value} is not supported here: no such confinement"
                )));
            }
            _ => return Err(SpecError(format!("invalid --security-opt 2: {option:?}"))),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_both_forms_and_others_refused() {
        let read = |list: &[&str]| {
            let security_opt = Some(list.iter().map(|&text| text.to_owned()).collect());
            options(&HostConfig { security_opt, ..HostConfig::default() })
        };
        assert_eq!(read(&["no-new-privileges"]).map(|found| found.no_new_privileges), Ok(true));
        assert_eq!(read(&["no-new-privileges:false"]).map(|found| found.no_new_privileges), Ok(false));
        assert_eq!(
            read(&["seccomp=a", "seccomp:unconfined"]).map(|found| found.seccomp),
            Ok(Some("unconfined".into()))
        );
        assert!(read(&["apparmor=unconfined", "label=disable"]).is_ok());
        for bad in ["zz", "zz=1", "no-new-privileges=zz", "apparmor=mine", "label=type:x"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }
}
