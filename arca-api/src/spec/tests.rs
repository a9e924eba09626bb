// SPDX-License-Identifier: Apache-2.0
//! The specification against the OCI types, and against what Docker users expect of it.

use super::*;

fn config(value: Value) -> ContainerConfig {
    serde_json::from_value(value).expect("container config")
}

fn spec(container: Value, change: impl FnOnce(&mut HostConfig)) -> Result<Value, SpecError> {
    let mut host = HostConfig::default();
    host.normalise();
    change(&mut host);
    let config = config(container);
    let mounts = [BindMount {
        source: "/host/f".into(),
        target: "/etc/hosts".to_owned(),
        read_only: true,
        propagation: String::new(),
    }];
    compose(&Input { id: "0", config: &config, host: &host, mounts: &mounts, root: &[] })
}

#[test]
fn the_default_container_is_a_valid_oci_specification_and_confined() {
    let value = spec(serde_json::json!({"Cmd": ["sh"], "Hostname": "h"}), |_| ()).expect("valid");
    let typed: oci_spec::runtime::Spec = serde_json::from_value(value.clone()).expect("OCI");
    assert!(typed.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()));
    assert_eq!(value["process"]["capabilities"]["bounding"].as_array().map(Vec::len), Some(14));
    assert!(value["linux"]["maskedPaths"].as_array().is_some_and(|paths| paths.contains(&json!("/proc/kcore"))));
    assert!(!value["linux"]["namespaces"].to_string().contains("network"), "the machine's own network is used");
    let env = value["process"]["env"].to_string();
    assert!(env.contains("HOSTNAME=h") && env.contains("HOME=/") && !env.contains("TERM="), "{env}");
    assert!(value["mounts"].to_string().contains(r#""/etc/hosts","type":"bind","source":"/host/f""#));
}

#[test]
fn privileged_lifts_what_confines() {
    let value = spec(json!({"Cmd": ["sh"]}), |host| {
        host.privileged = true;
        host.masked_paths = None;
    })
    .expect("valid");
    assert!(value["linux"]["seccomp"].is_null());
    // All there are on this machine, which may itself be a container.
    let mut all = capabilities::in_force(true, &[], &[]).expect("valid");
    capabilities::within_bound(&mut all);
    assert_eq!(value["process"]["capabilities"]["effective"], json!(all));
    assert_eq!(value["linux"]["maskedPaths"], json!([]));
}

#[test]
fn limits_environment_and_security_options_arrive() {
    let container = json!({"Cmd": ["sh"], "Env": ["A=1", "PATH=/x", "A=2", "HOSTNAME"], "Tty": true, "User": "5:6"});
    let value = spec(container, |host| {
        host.memory = 64 << 20;
        host.memory_swap = -1;
        host.nano_cpus = 1_500_000_000;
        host.pids_limit = Some(9);
        host.security_opt = Some(vec!["no-new-privileges".into(), "seccomp=unconfined".into()]);
        host.ulimits = json!([{"Name": "nofile", "Soft": 10, "Hard": -1}]);
        host.tmpfs.insert("/t".into(), "size=1m,exec".into());
    })
    .expect("valid");
    let resources = &value["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 67_108_864, "swap": -1}));
    assert_eq!(resources["cpu"], json!({"period": 100_000, "quota": 150_000}));
    assert_eq!(resources["pids"], json!({"limit": 9}));
    assert_eq!(value["process"]["env"], json!(["PATH=/x", "TERM=xterm", "A=2", "HOME=/"]));
    assert_eq!(value["process"]["noNewPrivileges"], json!(true));
    assert_eq!(value["process"]["user"]["gid"], json!(6));
    assert_eq!(value["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(value["process"]["rlimits"][0]["hard"], json!(u64::MAX));
    assert!(value["linux"]["seccomp"].is_null());
    assert!(value["mounts"].to_string().contains(r#""options":["nosuid","nodev","size=1m"]"#));
    serde_json::from_value::<oci_spec::runtime::Spec>(value).expect("OCI");
}

#[test]
fn nonsense_is_refused_in_dockers_words() {
    let text = |container: Value, change: fn(&mut HostConfig)| spec(container, change).expect_err("refused").0;
    assert_eq!(
        text(json!({"Cmd": ["sh"], "User": "eve"}), |_| ()),
        "unable to find user eve: no matching entries in passwd file"
    );
    assert_eq!(text(json!({}), |host| host.ulimits = json!([{"Name": "x"}])), "invalid ulimit type: x");
    assert_eq!(
        text(json!({}), |host| host.devices = json!([{"PathOnHost": "/dev/nope"}])),
        "error gathering device information while adding custom device \"/dev/nope\": no such file or directory"
    );
}
