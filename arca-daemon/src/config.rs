// SPDX-License-Identifier: Apache-2.0
//! The engine's one configuration (DESIGN section 11): flags over `ARCA_*` over the file over defaults.
//!
//! `config.json` (`//` comments allowed) or `config.toml`, never both. Every key is in [`KEYS`]; an unknown one is an
//! error that names the nearest. [`load`] runs before any socket is bound and remembers where each value came from,
//! which is what `arca config show` prints. [`file`] reads the two file forms; [`keys`] is the table that the reference in
//! docs/configuration.md is made from.

use std::{collections::BTreeMap, env, fmt, net::IpAddr, path::PathBuf};

use crate::{
    exit::{Failure, Fatal},
    paths::Paths,
};

mod args;
mod file;
mod keys;
mod reference;
mod values;

pub use args::CommonArgs;
pub use keys::{KEYS, Key};
pub use reference::reference;
pub use values::{
    AddressPool, BackendKind, LinkKind, MachineKind, MetricsPlace, Prefix, Prefix6, PublishKind, UplinkKind,
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(&'static str),
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(variable) => write!(f, "${variable}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// Raw values with their sources, by key name.
pub(crate) type Raw = BTreeMap<&'static str, (String, Source)>;

/// The effective configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Files and sockets; `docker_socket` already honours `socketPath`.
    pub paths: Paths,
    /// Backend of networks that name none.
    pub network_backend: BackendKind,
    /// What containers live in.
    pub machine: MachineKind,
    /// Carrier of frames.
    pub link: LinkKind,
    /// How a virtual helper machine reaches out.
    pub uplink: UplinkKind,
    /// How clients reach published ports.
    pub publish: PublishKind,
    /// Kernel of VM machines.
    pub kernel_path: PathBuf,
    /// Initial RAM file system of container VMs.
    pub init_image: PathBuf,
    /// Initial RAM file system of the helper VM.
    pub helper_image: PathBuf,
    /// Folder of the programs that make VMs.
    pub vm_tools: PathBuf,
    /// Log filter.
    pub log_level: String,
    /// Where figures for Prometheus are served.
    pub metrics: MetricsPlace,
    /// Where the uplink /29 is taken from.
    pub uplink_range: Prefix,
    /// Range of its IPv6 side, a /64.
    pub uplink_range6: Prefix6,
    /// Where subnets nobody named come from; empty: Docker's.
    pub address_pools: Vec<AddressPool>,
    /// Forwarders for unknown names; empty: the host's own.
    pub dns: Vec<IpAddr>,
    /// Folder of arca-init, arca-tapfwd, arca-helper-agent.
    pub guest_directory: PathBuf,
    /// Root of the namespace helper machine.
    pub helper_root: PathBuf,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
    /// Every key's effective text and source.
    pub effective: BTreeMap<&'static str, (String, Source)>,
}

/// What [`load`] reads besides files; tests make their own.
#[derive(Clone, Debug)]
pub struct Input {
    /// `ARCA_*` variables and what else [`load`] asks for.
    pub environment: BTreeMap<String, String>,
    /// `KEY=VALUE` from the command line.
    pub flags: Vec<(String, String)>,
    /// Effective user is root.
    pub root: bool,
    /// The user's home, for `~`.
    pub user_home: PathBuf,
    /// The running program, next to which guest programs may lie.
    pub program: PathBuf,
}

impl Input {
    /// Of this process.
    #[must_use]
    pub fn of_process(flags: Vec<(String, String)>) -> Self {
        let environment: BTreeMap<_, _> = env::vars().collect();
        let user_home = environment.get("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        Self {
            environment,
            flags,
            root: nix::unistd::geteuid().is_root(),
            user_home,
            program: env::current_exe().unwrap_or_default(),
        }
    }
}

/// Loads the configuration.
///
/// # Errors
/// A [`Fatal`] with code 78 that names the key, the value, where it came from and what is allowed.
pub fn load(input: &Input) -> Result<Config, Fatal> {
    let home = input.environment.get("ARCA_HOME").map(|home| absolute(expand(home, input)));
    let mut paths = home.as_deref().map_or_else(|| Paths::default_for(input.root, &input.user_home), Paths::below);
    let file = file::find(&paths.config)?;
    let mut raw = file.as_deref().map_or_else(|| Ok(Raw::new()), file::read)?;
    for key in KEYS {
        if let Some(value) = input.environment.get(key.variable) {
            raw.insert(key.name, (value.clone(), Source::Environment(key.variable)));
        }
    }
    for (name, value) in &input.flags {
        let key = known(name, "the command line")?;
        raw.insert(key.name, (value.clone(), Source::Flag));
    }
    let defaults = defaults(&paths, input);
    for key in KEYS {
        let fallback = || (defaults.get(key.name).cloned().unwrap_or_default(), Source::Default);
        raw.entry(key.name).or_insert_with(fallback);
    }

    let path = |name| expand(&raw[name].0, input);
    paths.docker_socket = path("socketPath");
    Ok(Config {
        network_backend: parsed(&raw, "networkBackend")?,
        machine: parsed(&raw, "machine")?,
        link: parsed(&raw, "link")?,
        uplink: parsed(&raw, "uplink")?,
        publish: parsed(&raw, "publish")?,
        kernel_path: path("kernelPath"),
        init_image: path("initImage"),
        helper_image: path("helperImage"),
        vm_tools: path("vmTools"),
        log_level: parsed::<values::LogLevel>(&raw, "logLevel")?.0,
        metrics: parsed(&raw, "metrics")?,
        uplink_range: parsed(&raw, "uplinkRange")?,
        address_pools: parsed::<values::AddressPools>(&raw, "addressPools")?.0,
        uplink_range6: parsed(&raw, "uplinkRange6")?,
        dns: parsed::<values::Addresses>(&raw, "dns")?.0,
        guest_directory: path("guestDirectory"),
        helper_root: path("helperRoot"),
        paths,
        file,
        effective: raw,
    })
}

fn defaults(paths: &Paths, input: &Input) -> BTreeMap<&'static str, String> {
    let beside = input.program.parent().map(PathBuf::from).unwrap_or_default();
    let guest = Some(beside.join("guest")).filter(|folder| folder.is_dir()).unwrap_or(beside);
    BTreeMap::from([
        ("networkBackend", "ovs".to_owned()),
        ("machine", "auto".to_owned()),
        ("link", "auto".to_owned()),
        ("uplink", "auto".to_owned()),
        ("publish", "auto".to_owned()),
        ("kernelPath", input.user_home.join(".arca/vmlinux").to_string_lossy().into_owned()),
        ("initImage", input.user_home.join(".arca/vminit").to_string_lossy().into_owned()),
        ("helperImage", input.user_home.join(".arca/helpervm").to_string_lossy().into_owned()),
        ("vmTools", input.user_home.join(".arca/vm-tools").to_string_lossy().into_owned()),
        ("socketPath", paths.docker_socket.to_string_lossy().into_owned()),
        ("logLevel", "info".to_owned()),
        ("metrics", "off".to_owned()),
        ("uplinkRange", "192.168.127.0/24".to_owned()),
        ("uplinkRange6", "fd9e:4c41:a27b::/48".to_owned()),
        ("guestDirectory", guest.to_string_lossy().into_owned()),
        ("helperRoot", paths.data.join("helper-image/rootfs").to_string_lossy().into_owned()),
    ])
}

fn parsed<T: std::str::FromStr<Err = String>>(raw: &Raw, name: &str) -> Result<T, Fatal> {
    let (text, source) = &raw[name];
    text.parse().map_err(|why| Fatal::new(Failure::Config, format!("{name} = \"{text}\" ({source}): {why}")))
}

/// Daemons started elsewhere must find the same files.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn expand(path: &str, input: &Input) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => input.user_home.clone(),
        Some(rest) if rest.starts_with('/') => input.user_home.join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

/// The key called `name`, or an error that names the nearest.
pub(crate) fn known(name: &str, place: &str) -> Result<&'static Key, Fatal> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let nearest = KEYS.iter().min_by_key(|key| distance(&key.name.to_lowercase(), &name.to_lowercase()));
        let hint = nearest.map_or("", |key| key.name);
        Fatal::new(Failure::Config, format!("{place}: unknown key `{name}`; did you mean `{hint}`?"))
    })
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
