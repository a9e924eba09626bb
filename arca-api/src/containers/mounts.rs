// SPDX-License-Identifier: Apache-2.0
//! `-v`, `--mount type=bind|volume` and the image's own volumes become mount points.

use std::{collections::BTreeMap, path::Path};

use crate::{
    containers::{names, record::MountPoint},
    docker::{
        config::ContainerConfig,
        host_config::{HostConfig, Mount},
    },
    engine::Engine,
    http::{ApiError, ApiResult},
    volumes::Volume,
};

/// One mount as asked for, before any volume is made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// Absolute path, volume name, or "" for an anonymous volume.
    source: String,
    target: String,
    mode: String,
    read_only: bool,
    propagation: String,
    /// Make a missing source folder (`-v` does, `--mount` does not).
    create: bool,
    bind: bool,
}

fn invalid(spec: &str) -> ApiError {
    ApiError::bad_request(format!("invalid volume specification: '{spec}'"))
}

/// Reads `source:target[:options]` or `target`.
fn parse_bind(spec: &str) -> ApiResult<Wanted> {
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(invalid(spec)),
    };
    if !target.starts_with('/') {
        return Err(ApiError::bad_request(format!(
            "invalid volume specification: '{spec}': invalid mount config for type \"{}\": invalid mount path: '{target}' mount path must be absolute",
            if source.starts_with('/') { "bind" } else { "volume" }
        )));
    }
    if target.trim_end_matches('/').is_empty() {
        return Err(ApiError::bad_request(format!(
            "invalid volume specification: '{spec}': invalid mount config for type \"bind\": invalid specification: destination can't be '/'"
        )));
    }
    if parts.len() > 1 && source.is_empty() {
        return Err(invalid(spec));
    }
    let mut wanted = Wanted {
        source: source.to_owned(),
        target: target.to_owned(),
        mode: mode.to_owned(),
        read_only: false,
        propagation: String::new(),
        create: true,
        bind: source.starts_with('/'),
    };
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => wanted.read_only = true,
            // Labels of SELinux and consistency hints change nothing here.
            "rw" | "z" | "Z" | "nocopy" | "consistent" | "cached" | "delegated" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => wanted.propagation = option.into(),
            _ => return Err(ApiError::bad_request(format!("invalid mode: {mode}"))),
        }
    }
    Ok(wanted)
}

fn parse_mount(mount: &Mount) -> ApiResult<Wanted> {
    let fault =
        |text: String| ApiError::bad_request(format!("invalid mount config for type \"{}\": {text}", mount.kind));
    if !mount.target.starts_with('/') {
        return Err(fault(format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
    }
    let option = |value: &Option<serde_json::Value>, key: &str| {
        value.as_ref().and_then(|value| value[key].as_bool()).unwrap_or(false)
    };
    let bind = match mount.kind.as_str() {
        "bind" if mount.source.is_empty() => return Err(fault("field Source must not be empty".into())),
        "bind" => true,
        "volume" => false,
        other => return Err(ApiError::absent(&format!("--mount type={other}"))),
    };
    if bind && !mount.source.starts_with('/') {
        return Err(fault(format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
    }
    let create = option(&mount.bind_options, "CreateMountpoint");
    if bind && !create && !Path::new(&mount.source).exists() {
        return Err(fault(format!("bind source path does not exist: {}", mount.source)));
    }
    let propagation = mount.bind_options.as_ref().and_then(|options| options["Propagation"].as_str()).unwrap_or("");
    Ok(Wanted {
        source: mount.source.clone(),
        target: mount.target.clone(),
        mode: String::new(),
        read_only: mount.read_only,
        propagation: propagation.to_owned(),
        create,
        bind,
    })
}

/// Everything to mount, by target, in target order; makes the volumes and folders that are missing. Returns the mount
/// points and the names of the anonymous volumes among them.
///
/// # Errors
/// 400 for what cannot be read, 501 for kinds that are absent.
pub async fn resolve(
    engine: &Engine,
    config: &ContainerConfig,
    host: &HostConfig,
) -> ApiResult<(Vec<MountPoint>, Vec<String>)> {
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for bind in host.binds.iter().flatten() {
        let one = parse_bind(bind)?;
        let target = one.target.trim_end_matches('/').to_owned();
        if wanted.insert(target.clone(), one).is_some() {
            return Err(ApiError::bad_request(format!("Duplicate mount point: {target}")));
        }
    }
    for mount in &host.mounts {
        let one = parse_mount(mount)?;
        let target = one.target.trim_end_matches('/').to_owned();
        if wanted.insert(target.clone(), one).is_some() {
            return Err(ApiError::bad_request(format!("Duplicate mount point: {target}")));
        }
    }
    for target in config.volumes.iter().flat_map(BTreeMap::keys) {
        let one = parse_bind(target)?;
        wanted.entry(target.trim_end_matches('/').to_owned()).or_insert(one);
    }
    let mut anonymous = Vec::new();
    let mut points = Vec::new();
    for one in wanted.into_values() {
        let point = if one.bind {
            if one.create {
                std::fs::create_dir_all(&one.source).or_else(|error| {
                    // A file, socket or device is as good a source as a folder.
                    if Path::new(&one.source).exists() { Ok(()) } else { Err(error) }
                })?;
            }
            MountPoint {
                kind: "bind".into(),
                source: one.source.into(),
                destination: one.target,
                mode: one.mode,
                rw: !one.read_only,
                propagation: if one.propagation.is_empty() { "rprivate".into() } else { one.propagation },
                ..MountPoint::default()
            }
        } else {
            let is_anonymous = one.source.is_empty();
            let name = if is_anonymous { names::new_id() } else { one.source };
            let (volume, new) =
                engine.volumes.create(Volume { name, anonymous: is_anonymous, ..Volume::default() }).await?;
            if new {
                engine.events.emit(
                    "volume",
                    "create",
                    &volume.name,
                    BTreeMap::from([("driver".into(), "local".into())]),
                );
            }
            if is_anonymous {
                anonymous.push(volume.name.clone());
            }
            MountPoint {
                kind: "volume".into(),
                source: engine.volumes.data(&volume.name),
                name: volume.name,
                destination: one.target,
                driver: "local".into(),
                mode: if one.mode.is_empty() { "z".into() } else { one.mode },
                rw: !one.read_only,
                propagation: String::new(),
            }
        };
        points.push(point);
    }
    Ok((points, anonymous))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_specifications() {
        let bind = parse_bind("/src:/dst:ro").expect("bind");
        assert_eq!((bind.bind, bind.read_only, bind.target.as_str()), (true, true, "/dst"));
        let named = parse_bind("data:/dst").expect("named");
        assert_eq!((named.bind, named.source.as_str()), (false, "data"));
        assert_eq!(parse_bind("/only").expect("anonymous").source, "");
        for bad in ["a:b:c:d", ":/dst", "/src:dst", "/src:/", "/src:/dst:zz"] {
            assert_eq!(parse_bind(bad).expect_err(bad).status.as_u16(), 400, "{bad}");
        }
    }

    #[test]
    fn a_mount_of_a_missing_folder_is_refused() {
        let mount = Mount { kind: "bind".into(), source: "/no/such/x".into(), target: "/d".into(), ..Mount::default() };
        assert_eq!(
            parse_mount(&mount).expect_err("missing").message,
            "invalid mount config for type \"bind\": bind source path does not exist: /no/such/x"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_specification_panics(text in "\\PC{0,30}") {
            let _ = parse_bind(&text);
        }
    }
}
