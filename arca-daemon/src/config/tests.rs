// SPDX-License-Identifier: Apache-2.0
//! Precedence, sources, and every kind of bad configuration.

use std::{collections::BTreeMap, fs, path::Path};

use super::*;

fn input(home: &Path, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Input {
    let own =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let mut environment: BTreeMap<_, _> = own(variables).into_iter().collect();
    environment.insert("ARCA_HOME".to_owned(), home.to_string_lossy().into_owned());
    Input {
        environment,
        flags: own(flags),
        root: true,
        user_home: "/home/u".into(),
        program: "/opt/arca/bin/arca".into(),
    }
}

fn home_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("temporary directory");
    for (name, text) in files {
        fs::write(home.path().join(name), text).expect("write");
    }
    home
}

fn error(files: &[(&str, &str)], variables: &[(&str, &str)]) -> String {
    let home = home_with(files);
    let fatal = load(&input(home.path(), variables, &[])).expect_err("must be refused");
    assert_eq!(fatal.failure, Failure::Config);
    fatal.text
}

#[test]
fn flags_over_environment_over_file_over_defaults_each_with_its_source() {
    let home = home_with(&[("config.json", r#"{ "logLevel": "warn", "machine": "vm", "link": "cable" }"#)]);
    let variables = [("ARCA_MACHINE", "namespace"), ("ARCA_LINK", "tap-fd")];
    let config = load(&input(home.path(), &variables, &[("link", "stream")])).expect("valid");
    assert_eq!(
        (config.log_level.as_str(), config.machine, config.link),
        ("warn", MachineKind::Namespace, LinkKind::Stream)
    );
    assert_eq!(config.effective["link"].1, Source::Flag);
    assert_eq!(config.effective["machine"].1, Source::Environment("ARCA_MACHINE"));
    assert_eq!(config.effective["logLevel"].1, Source::File(home.path().join("config.json")));
    assert_eq!(config.effective["networkBackend"].1, Source::Default);
}

#[test]
fn a_tilde_is_the_users_home_and_toml_says_the_same() {
    let home = home_with(&[(
        "config.toml",
        "socketPath = \"~/d.sock\"\ndns = [\"10.0.0.1\", \"fd00::1\"]\n\
         addressPools = [\"10.10.0.0/16:24\", \"10.8.0.0/14:16\"]\n",
    )]);
    let config = load(&input(home.path(), &[], &[])).expect("valid");
    assert_eq!(config.paths.docker_socket, Path::new("/home/u/d.sock"));
    assert_eq!(config.dns.len(), 2);
    let pools = [(config.address_pools[0].base.to_string(), config.address_pools[0].size)];
    assert_eq!((config.address_pools.len(), pools), (2, [("10.10.0.0/16".to_owned(), 24)]));
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let text = error(&[("config.json", r#"{ "networkbackend": "ovs" }"#)], &[]);
    assert!(text.ends_with("unknown key `networkbackend`; did you mean `networkBackend`?"), "{text}");
}

#[test]
fn both_files_bad_json_and_bad_values_are_each_one_clear_line() {
    let both = error(&[("config.json", "{}"), ("config.toml", "")], &[]);
    assert!(both.contains("config.json and ") && both.ends_with("exist; keep one of them"), "{both}");
    let broken = error(&[("config.json", "{")], &[]);
    assert!(broken.contains("config.json: EOF while parsing"), "{broken}");
    let value = error(&[], &[("ARCA_NETWORK_BACKEND", "ovn")]);
    assert_eq!(value, "networkBackend = \"ovn\" ($ARCA_NETWORK_BACKEND): must be one of: ovs, vmnet");
    for range in ["192.168.1.1/24", "192.168.1.0/30", "x", "192.168.1.0"] {
        assert!(error(&[], &[("ARCA_UPLINK_RANGE", range)]).contains("uplinkRange"), "{range}");
    }
    for range in ["fd00::1/48", "fd00::/65", "fe80::/10", "192.168.0.0/24", "fd00::"] {
        assert!(error(&[], &[("ARCA_UPLINK_RANGE6", range)]).contains("uplinkRange6"), "{range}");
    }
}

#[test]
fn a_key_given_twice_is_a_mistake_in_either_form() {
    let json = error(&[("config.json", "{\"link\": \"stream\", \"link\": \"cable\"}")], &[]);
    assert!(json.contains("config.json: key `link` stands there twice"), "{json}");
    let toml = error(&[("config.toml", "link = \"stream\"\nlink = \"cable\"\n")], &[]);
    assert!(toml.contains("config.toml: ") && toml.contains("duplicate key"), "{toml}");
}

#[test]
fn every_wrong_value_names_key_value_place_and_what_is_allowed() {
    for (key, value, allowed) in [
        ("networkBackend", "ovn", "must be one of: ovs, vmnet"),
        ("machine", "docker", "must be one of: auto, namespace, vm"),
        ("link", "tap", "must be one of: auto, stream, tap-fd, cable"),
        ("logLevel", "loud", "must be error, warn, info, debug or trace"),
        ("logLevel", "", "must be error, warn, info, debug or trace"),
        ("uplinkRange", "10.0.0.1/24", "has host bits set"),
        ("addressPools", "10.10.0.0/16", "is not RANGE:LENGTH such as 10.10.0.0/16:24"),
        ("addressPools", "10.10.0.0/16:8", "the length must be 16 to 29"),
        ("addressPools", "10.10.0.1/16:24", "has host bits set"),
        ("dns", "example", "`example` is no IP address"),
    ] {
        let text = error(&[("config.json", &format!("{{\"{key}\": \"{value}\"}}"))], &[]);
        let head = format!("{key} = \"{value}\" (");
        assert!(text.starts_with(&head) && text.contains("config.json") && text.contains(allowed), "{text}");
    }
    let null = error(&[("config.json", "{\"link\": null}")], &[]);
    assert!(null.contains("`link` must be a text or a list of texts"), "{null}");
}

#[test]
fn the_reference_has_every_key_and_is_up_to_date() {
    let written = include_str!("../../../docs/configuration.md");
    assert!(written == reference(), "docs/configuration.md is out of date: run `just docs`");
    let home = home_with(&[]);
    let config = load(&input(home.path(), &[], &[])).expect("defaults are valid");
    for key in KEYS {
        assert!(written.contains(&format!("### `{}`", key.name)), "{}", key.name);
        // A plain default is the one that is in force.
        let plain = key.default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
        if let Some(plain) = plain.filter(|plain| !plain.contains('`')) {
            assert_eq!(config.effective[key.name].0, plain, "{}", key.name);
        }
    }
}
