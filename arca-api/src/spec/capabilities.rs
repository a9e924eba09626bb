// SPDX-License-Identifier: Apache-2.0
//! Which capabilities a workload holds: Docker's default set, `--cap-add`, `--cap-drop`, `--privileged`.

use super::SpecError;

/// What a container has unless told otherwise (Docker documentation, "Runtime privilege and Linux capabilities").
pub(super) const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The rest of capabilities(7).
const FURTHER: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

fn full_name(text: &str) -> String {
    let upper = text.to_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

/// The first name that no capability has.
pub(super) fn known(names: &[String]) -> Result<(), String> {
    let is_known = |name: &String| name == "CAP_ALL" || DEFAULT.iter().chain(FURTHER).any(|known| known == name);
    names.iter().map(|name| full_name(name)).find(|name| !is_known(name)).map_or(Ok(()), Err)
}

/// The set in force, sorted.
pub(super) fn in_force(privileged: bool, add: &[String], drop: &[String]) -> Result<Vec<&'static str>, SpecError> {
    let known = || DEFAULT.iter().chain(FURTHER).copied();
    let find = |text: &String| -> Result<Option<&'static str>, SpecError> {
        let name = full_name(text);
        match name.as_str() {
            "CAP_ALL" => Ok(None),
            name => known()
                .find(|known| *known == name)
                .map(Some)
                .ok_or_else(|| SpecError(format!("invalid capability: {name:?}"))),
        }
    };
    let added = add.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let dropped = drop.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let (add_all, drop_all) = (added.contains(&None), dropped.contains(&None));
    let base = |name: &str| privileged || add_all || (!drop_all && DEFAULT.contains(&name));
    let mut set: Vec<&'static str> = known()
        .filter(|name| base(name) && (privileged || !dropped.contains(&Some(*name))))
        .chain(added.iter().flatten().copied().filter(|name| !dropped.contains(&Some(*name))))
        .collect();
    set.sort_unstable();
    set.dedup();
    Ok(set)
}

/// Capabilities by number (capabilities(7)).
const NUMBERED: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Takes out what this engine itself could never hold: "all" means all there are, and asking for more is refused by the
/// kernel. Where the bound cannot be read nothing is taken out.
pub(super) fn within_bound(set: &mut Vec<&'static str>) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    if let Some(bound) = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) {
        retain(set, bound);
    }
}

fn retain(set: &mut Vec<&'static str>, bound: u64) {
    set.retain(|name| {
        let short = name.strip_prefix("CAP_").unwrap_or(name);
        NUMBERED.iter().position(|known| *known == short).is_none_or(|number| bound >> number & 1 == 1)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(privileged: bool, add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        in_force(privileged, &own(add), &own(drop)).expect("valid")
    }

    #[test]
    fn add_drop_and_all_combine_as_dockers() {
        assert_eq!(set(false, &[], &[]), DEFAULT);
        assert_eq!(set(false, &["net_bind_service"], &["ALL"]), ["CAP_NET_BIND_SERVICE"]);
        assert!(set(false, &["NET_ADMIN"], &["CAP_KILL"]).contains(&"CAP_NET_ADMIN"));
        assert!(!set(false, &["ALL"], &["CAP_SYS_ADMIN"]).contains(&"CAP_SYS_ADMIN"));
        assert_eq!(set(true, &[], &[]).len(), 41);
        let mut some = set(true, &[], &[]);
        assert!(some.iter().all(|name| NUMBERED.contains(&&name[4..])));
        retain(&mut some, 0b10_0001);
        assert_eq!(some, ["CAP_CHOWN", "CAP_KILL"]);
        assert_eq!(
            in_force(false, &["NOPE".to_owned()], &[]).expect_err("unknown").0,
            "invalid capability: \"CAP_NOPE\""
        );
    }
}
