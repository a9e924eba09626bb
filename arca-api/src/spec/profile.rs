// SPDX-License-Identifier: Apache-2.0
//! A seccomp profile of the user's own (`--security-opt seccomp=FILE`, whose text the client sends), from Docker's form to
//! OCI's: what it says of capabilities, architectures and kernels is decided here.

use serde::Deserialize;
use serde_json::{Value, json};

use super::SpecError;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    listener_path: String,
    architectures: Vec<String>,
    arch_map: Vec<Architecture>,
    syscalls: Vec<Call>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Call {
    name: String,
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    includes: Filter,
    excludes: Filter,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: String,
}

/// The filter for a container that holds the capabilities `held`.
pub(super) fn filter(text: &str, held: &[&str]) -> Result<Value, SpecError> {
    let bad = |cause: String| SpecError(format!("Decoding seccomp profile failed: {cause}"));
    // An object and nothing else: the reader would take a list for its fields in order.
    let object: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let profile: Profile = serde_json::from_value(Value::Object(object)).map_err(|error| bad(error.to_string()))?;
    if !profile.listener_path.is_empty() {
        return Err(bad("listenerPath is not supported here".into()));
    }
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(bad("both 'architectures' and 'archMap' are specified in the seccomp profile".into()));
    }
    let (oci, short) =
        if cfg!(target_arch = "aarch64") { ("SCMP_ARCH_AARCH64", "arm64") } else { ("SCMP_ARCH_X86_64", "amd64") };
    let mut architectures = profile.architectures;
    for entry in profile.arch_map.into_iter().filter(|entry| entry.architecture == oci) {
        architectures.push(entry.architecture);
        architectures.extend(entry.sub_architectures.into_iter().flatten());
    }
    let kernel = kernel();
    let mut calls = Vec::new();
    for call in profile.syscalls {
        if !call.name.is_empty() && !call.names.is_empty() {
            return Err(bad("both 'name' and 'names' are specified in the seccomp profile".into()));
        }
        let has_cap = |name: &String| held.contains(&name.as_str());
        let named = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let here = |list: &[String]| list.iter().any(|name| name == short);
        let (includes, excludes) = (&call.includes, &call.excludes);
        let arches = named(&includes.arches);
        let wanted = (arches.is_empty() || here(&arches))
            && named(&includes.caps).iter().all(has_cap)
            && (includes.min_kernel.is_empty() || kernel >= version(&includes.min_kernel))
            && !here(&named(&excludes.arches))
            && !named(&excludes.caps).iter().any(has_cap)
            && (excludes.min_kernel.is_empty() || kernel < version(&excludes.min_kernel));
        if !wanted {
            continue;
        }
        let names = if call.names.is_empty() { vec![call.name] } else { call.names };
        let mut rule = json!({"names": names, "action": call.action});
        if let Some(number) = call.errno_ret {
            rule["errnoRet"] = json!(number);
        }
        if let Some(args) = call.args.filter(|args| !args.is_empty()) {
            rule["args"] = json!(args);
        }
        calls.push(rule);
    }
    let mut out = json!({"defaultAction": profile.default_action, "syscalls": calls});
    if !architectures.is_empty() {
        out["architectures"] = json!(architectures);
    }
    if let Some(number) = profile.default_errno_ret {
        out["defaultErrnoRet"] = json!(number);
    }
    Ok(out)
}

/// Major and minor number.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split(|sign: char| !sign.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn kernel() -> (u32, u32) {
    nix::sys::utsname::uname().map(|name| version(&name.release().to_string_lossy())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided_here() {
        let text = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x", "includes": {}, "excludes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["never"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
                {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
                 "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            ],
        })
        .to_string();
        let names = |held: &[&str]| {
            let made = filter(&text, held).expect("profile");
            made["syscalls"]
                .as_array()
                .expect("calls")
                .iter()
                .map(|call| call["names"][0].as_str().expect("name").to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "ptrace", "clone"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "mount", "ptrace"]);
        for bad in ["{", "[]", r#"{"architectures":["a"],"archMap":[{"architecture":"a"}]}"#] {
            assert!(filter(bad, &[]).is_err(), "{bad}");
        }
    }
}
