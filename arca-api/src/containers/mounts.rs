// SPDX-License-Identifier: Apache-2.0
//! `-v`, `--mount`, `--volumes-from` and the image's own volumes become mount points.

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
    kind: Kind,
    /// A fresh volume gets what the image has at the target.
    copy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bind,
    Volume,
    Tmpfs,
}

/// Faults of `-v` are 500, those of `--mount` 400, as in Docker.
fn invalid(spec: &str) -> ApiError {
    ApiError::internal(format!("invalid volume specification: '{spec}'"))
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
    if target.is_empty() {
        return Err(invalid(spec));
    }
    if !target.starts_with('/') {
        return Err(ApiError::internal(format!(
            "invalid volume specification: '{spec}': invalid mount config for type \"{}\": invalid mount path: '{target}' mount path must be absolute",
            if source.starts_with('/') { "bind" } else { "volume" }
        )));
    }
    if target.trim_end_matches('/').is_empty() {
        return Err(ApiError::internal(format!(
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
        kind: if source.starts_with('/') { Kind::Bind } else { Kind::Volume },
        copy: true,
    };
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => wanted.read_only = true,
            // Labels of SELinux and consistency hints change nothing here.
            "nocopy" => wanted.copy = false,
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => wanted.propagation = option.into(),
            _ => return Err(ApiError::internal(format!("invalid mode: {mode}"))),
        }
    }
    Ok(wanted)
}

fn parse_mount(mount: &Mount) -> ApiResult<Wanted> {
    let fault =
        |text: String| ApiError::bad_request(format!("invalid mount config for type \"{}\": {text}", mount.kind));
    if mount.target.is_empty() {
        return Err(fault("field Target must not be empty".into()));
    }
    if !mount.target.starts_with('/') {
        return Err(fault(format!("invalid mount path: '{}' mount path must be absolute", mount.target)));
    }
    let option = |value: &Option<serde_json::Value>, key: &str| {
        value.as_ref().and_then(|value| value[key].as_bool()).unwrap_or(false)
    };
    let kind = match mount.kind.as_str() {
        "bind" if mount.source.is_empty() => return Err(fault("field Source must not be empty".into())),
        "tmpfs" if !mount.source.is_empty() => return Err(fault("field Source must not be specified".into())),
        "bind" => Kind::Bind,
        "volume" => Kind::Volume,
        "tmpfs" => Kind::Tmpfs,
        "image" | "cluster" => return Err(ApiError::absent(&format!("--mount type={}", mount.kind))),
        _ => return Err(fault("mount type unknown".into())),
    };
    let bind = kind == Kind::Bind;
    if bind && !mount.source.starts_with('/') {
        return Err(fault(format!("invalid mount path: '{}' mount path must be absolute", mount.source)));
    }
    let create = option(&mount.bind_options, "CreateMountpoint");
    if bind && !create && !Path::new(&mount.source).exists() {
        return Err(fault(format!("bind source path does not exist: {}", mount.source)));
    }
    if let Some(part) = subpath(mount)
        && (part.starts_with('/') || part.split('/').any(|word| word == ".."))
    {
        return Err(fault("subpath must be a relative path within the volume".into()));
    }
    let propagation = mount.bind_options.as_ref().and_then(|options| options["Propagation"].as_str()).unwrap_or("");
    if !matches!(propagation, "" | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave") {
        return Err(fault(format!("invalid propagation mode: {propagation}")));
    }
    Ok(Wanted {
        source: mount.source.clone(),
        target: mount.target.clone(),
        mode: String::new(),
        read_only: mount.read_only,
        propagation: propagation.to_owned(),
        create,
        kind,
        // The image's content is not what a part of the volume is for.
        copy: !option(&mount.volume_options, "NoCopy") && subpath(mount).is_none(),
    })
}

/// `volume-subpath`
pub fn subpath(mount: &Mount) -> Option<&str> {
    let options = mount.volume_options.as_ref()?;
    options["Subpath"].as_str().filter(|path| !path.is_empty())
}

/// Where the mount at `target` begins: the volume's folder, or the part of it that was asked for, links followed but never
/// out of the volume.
///
/// # Errors
/// Docker's text for a part that is not there.
pub fn part_of(host: &HostConfig, target: &str, volume: &Path) -> ApiResult<Option<std::path::PathBuf>> {
    let named = host.mounts.iter().find(|mount| mount.target.trim_end_matches('/') == target.trim_end_matches('/'));
    let Some(part) = named.and_then(subpath) else { return Ok(None) };
    let missing =
        || ApiError::internal(format!("cannot access path {}: no such file or directory", volume.join(part).display()));
    let whole = std::fs::canonicalize(volume).map_err(|_| missing())?;
    let found = std::fs::canonicalize(whole.join(part)).map_err(|_| missing())?;
    if !found.starts_with(&whole) {
        return Err(ApiError::internal(format!("path {} is outside of the volume", found.display())));
    }
    Ok(Some(found))
}

/// What the mounts of a container are.
#[derive(Debug, Default)]
pub struct Resolved {
    /// In target order.
    pub points: Vec<MountPoint>,
    /// Names of the volumes that go with the container.
    pub anonymous: Vec<String>,
    /// Target and folder of each volume that gets the image's content if it is empty.
    pub copies: Vec<(String, std::path::PathBuf)>,
}

/// The mount points of the containers in `--volumes-from NAME[:ro|:rw]`.
fn volumes_from(engine: &Engine, host: &HostConfig) -> ApiResult<Vec<MountPoint>> {
    let mut points = Vec::new();
    for spec in host.volumes_from.iter().flatten() {
        let (name, mode) = spec.split_once(':').unwrap_or((spec, ""));
        let read_only = match mode {
            "ro" => true,
            "" | "rw" | "z" | "Z" => false,
            _ => return Err(ApiError::bad_request(format!("invalid mode for volumes-from: {mode}"))),
        };
        let container = engine.container(name).map_err(|error| ApiError::bad_request(error.message))?;
        let theirs = container.with(|record| record.mounts.clone());
        points.extend(theirs.into_iter().filter(|point| point.kind != "tmpfs").map(|point| MountPoint {
            rw: point.rw && !read_only,
            mode: if mode.is_empty() { String::new() } else { mode.to_owned() },
            ..point
        }));
    }
    Ok(points)
}

/// Everything to mount, by target, in target order; makes the volumes and folders that are missing.
///
/// # Errors
/// 400 for what cannot be read, 501 for kinds that are absent.
pub async fn resolve(engine: &Engine, config: &ContainerConfig, host: &HostConfig) -> ApiResult<Resolved> {
    let inherited = volumes_from(engine, host)?;
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
    let mut resolved = Resolved::default();
    for point in inherited {
        let target = point.destination.trim_end_matches('/');
        // An own mount wins; an own anonymous volume of the image does not.
        match wanted.get(target) {
            Some(own) if !own.source.is_empty() || own.kind == Kind::Tmpfs => {}
            _ => {
                wanted.remove(target);
                resolved.points.push(point);
            }
        }
    }
    for one in wanted.into_values() {
        let point = if one.kind == Kind::Tmpfs {
            MountPoint { kind: "tmpfs".into(), destination: one.target, rw: !one.read_only, ..MountPoint::default() }
        } else if one.kind == Kind::Bind {
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
            let (read_only, data) = (volume.is_read_only(), engine.volumes.data(&volume.name));
            if !data.exists() {
                let device = volume.options.get("device").cloned().unwrap_or_default();
                let place = data.display();
                return Err(ApiError::internal(format!(
                    "failed to populate volume: error while mounting volume '{place}': failed to mount local volume: mount {device}:{place}, flags: 0x1000: no such file or directory"
                )));
            }
            if is_anonymous {
                resolved.anonymous.push(volume.name.clone());
            }
            if one.copy {
                resolved.copies.push((one.target.clone(), engine.volumes.data(&volume.name)));
            }
            MountPoint {
                kind: "volume".into(),
                source: engine.volumes.data(&volume.name),
                name: volume.name,
                destination: one.target,
                driver: "local".into(),
                mode: if one.mode.is_empty() && !is_anonymous { "z".into() } else { one.mode },
                rw: !one.read_only && !read_only,
                propagation: String::new(),
            }
        };
        resolved.points.push(point);
    }
    resolved.points.sort_by(|a, b| a.destination.cmp(&b.destination));
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_specifications() {
        let bind = parse_bind("/src:/dst:ro").expect("bind");
        assert_eq!((bind.kind, bind.read_only, bind.target.as_str()), (Kind::Bind, true, "/dst"));
        let named = parse_bind("data:/dst").expect("named");
        assert_eq!((named.kind, named.source.as_str()), (Kind::Volume, "data"));
        assert_eq!(parse_bind("/only").expect("anonymous").source, "");
        for bad in ["a:b:c:d", ":/dst", "/src:dst", "/src:/", "/src:/dst:zz"] {
            assert_eq!(parse_bind(bad).expect_err(bad).status.as_u16(), 500, "{bad}");
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
