// SPDX-License-Identifier: Apache-2.0
//! Field names of request bodies, matched without regard to case as Go's decoder does.
//!
//! Clients send `"image"` as well as `"Image"`. Before serde sees a body, [`canonical`] gives every field its one
//! spelling and drops `null` fields (Go's zero value). Keys that are data (labels, port numbers, network names) stay.

use serde_json::{Map, Value};

/// Fields whose value is a map with keys of the user's own and plain values.
const DATA: &[&str] = &[
    "Annotations",
    "AuxiliaryAddresses",
    "DriverOpts",
    "ExposedPorts",
    "Labels",
    "Options",
    "StorageOpt",
    "Sysctls",
    "Tmpfs",
    "Volumes",
    "Config",
];
/// Fields whose value is a map with keys of the user's own and objects as values.
const MAPS: &[&str] = &["EndpointsConfig", "PortBindings"];

/// Every other field of the bodies Arca reads.
const FIELDS: &[&str] = &[
    "Aliases",
    "ArgsEscaped",
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Attachable",
    "AutoRemove",
    "BindOptions",
    "Binds",
    "BlkioDeviceReadBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceWriteIOps",
    "BlkioWeight",
    "BlkioWeightDevice",
    "CapAdd",
    "CapDrop",
    "Cgroup",
    "CgroupParent",
    "CgroupPermissions",
    "CgroupnsMode",
    "CheckDuplicate",
    "Cmd",
    "ConfigFrom",
    "ConfigOnly",
    "Consistency",
    "ConsoleSize",
    "Container",
    "ContainerIDFile",
    "CpuCount",
    "CpuPercent",
    "CpuPeriod",
    "CpuQuota",
    "CpuRealtimePeriod",
    "CpuRealtimeRuntime",
    "CpuShares",
    "CpusetCpus",
    "CpusetMems",
    "CreateMountpoint",
    "DNSNames",
    "Detach",
    "DetachKeys",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Domainname",
    "Driver",
    "DriverConfig",
    "EnableIPv4",
    "EnableIPv6",
    "EndpointConfig",
    "EndpointID",
    "Entrypoint",
    "Env",
    "ExtraHosts",
    "Force",
    "Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "GroupAdd",
    "GwPriority",
    "Hard",
    "Healthcheck",
    "HostConfig",
    "HostIp",
    "HostPort",
    "Hostname",
    "IOMaximumBandwidth",
    "IOMaximumIOps",
    "IPAM",
    "IPAMConfig",
    "IPAddress",
    "IPPrefixLen",
    "IPRange",
    "IPv4Address",
    "IPv6Address",
    "IPv6Gateway",
    "Image",
    "Ingress",
    "Init",
    "Internal",
    "Interval",
    "Interval",
    "IpcMode",
    "Isolation",
    "KernelMemory",
    "KernelMemoryTCP",
    "LinkLocalIPs",
    "Links",
    "LogConfig",
    "MacAddress",
    "MaskedPaths",
    "MaximumRetryCount",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "Mode",
    "Mounts",
    "Name",
    "NanoCpus",
    "Network",
    "NetworkDisabled",
    "NetworkID",
    "NetworkMode",
    "NetworkingConfig",
    "NoCopy",
    "NonRecursive",
    "OnBuild",
    "OomKillDisable",
    "OomScoreAdj",
    "OpenStdin",
    "PathInContainer",
    "PathOnHost",
    "PidMode",
    "PidsLimit",
    "Privileged",
    "Propagation",
    "PublishAllPorts",
    "ReadOnly",
    "ReadOnlyForceRecursive",
    "ReadOnlyNonRecursive",
    "ReadonlyPaths",
    "ReadonlyRootfs",
    "RestartPolicy",
    "Retries",
    "Retries",
    "Runtime",
    "Scope",
    "SecurityOpt",
    "Shell",
    "ShmSize",
    "SizeBytes",
    "Soft",
    "Source",
    "StartInterval",
    "StartInterval",
    "StartPeriod",
    "StartPeriod",
    "StdinOnce",
    "StopSignal",
    "StopTimeout",
    "Subnet",
    "Subpath",
    "Target",
    "Test",
    "Test",
    "Timeout",
    "Timeout",
    "TmpfsOptions",
    "Tty",
    "Type",
    "UTSMode",
    "Ulimits",
    "User",
    "UsernsMode",
    "VolumeDriver",
    "VolumeOptions",
    "VolumesFrom",
    "WorkingDir",
];

/// Gives every field of an object body its canonical spelling. Objects deeper than `MAX_DEPTH` stay as they are.
pub fn canonical(value: Value) -> Value {
    object_fields(value, 0)
}

/// serde_json refuses text nested deeper than 128 itself; no body of the API is nested deeper than this.
const MAX_DEPTH: usize = 16;

fn object_fields(value: Value, depth: usize) -> Value {
    if depth >= MAX_DEPTH {
        return value;
    }
    match value {
        Value::Object(map) => {
            let mut out = Map::with_capacity(map.len());
            for (key, value) in map {
                let Some(name) = spelling(&key, &value) else {
                    out.insert(key, value);
                    continue;
                };
                if value.is_null() {
                    continue;
                }
                let value = if DATA.contains(&name) && !is_ipam_pools(name, &value) {
                    value
                } else if MAPS.contains(&name) {
                    map_values(value, depth + 1)
                } else {
                    object_fields(value, depth + 1)
                };
                out.insert(name.to_owned(), value);
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(|item| object_fields(item, depth + 1)).collect()),
        other => other,
    }
}

/// `Config` is a map of options in a log configuration and a list of pools in an IPAM one.
fn is_ipam_pools(name: &str, value: &Value) -> bool {
    name == "Config" && value.is_array()
}

fn map_values(value: Value, depth: usize) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (key, object_fields(value, depth + 1))).collect())
        }
        other => other,
    }
}

fn spelling(key: &str, _: &Value) -> Option<&'static str> {
    [FIELDS, DATA, MAPS].into_iter().flatten().copied().find(|name| name.eq_ignore_ascii_case(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_get_one_spelling_and_data_keys_stay() {
        let body = json!({
            "image": "busybox", "LABELS": {"image": "x"}, "hostconfig": {"portbindings": {"80/tcp": [{"hostport": "1"}]}},
            "networkingconfig": {"endpointsconfig": {"Aliases": {"aliases": ["a"]}, "nil": null}}, "cmd": null,
            "ipam": {"config": [{"subnet": "10.0.0.0/8"}]}, "unknownField": 1,
        });
        assert_eq!(
            canonical(body),
            json!({
                "Image": "busybox", "Labels": {"image": "x"},
                "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "1"}]}},
                "NetworkingConfig": {"EndpointsConfig": {"Aliases": {"Aliases": ["a"]}, "nil": null}},
                "IPAM": {"Config": [{"Subnet": "10.0.0.0/8"}]}, "unknownField": 1,
            })
        );
    }
}
