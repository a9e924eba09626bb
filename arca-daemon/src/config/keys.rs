// SPDX-License-Identifier: Apache-2.0
//! The table of all keys.

/// One key of the configuration. The table of them is the source of `arca config show`, of errors and of
/// docs/configuration.md.
#[derive(Debug)]
pub struct Key {
    /// As in the file, camelCase.
    pub name: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    /// Shown by `arca config show` and in errors: half a line.
    pub meaning: &'static str,
    /// What a value may be.
    pub allowed: &'static str,
    /// What holds without one, in words.
    pub default: &'static str,
    /// More for the reference.
    pub more: &'static str,
    /// A running engine takes a change over on `arca daemon reload`.
    pub live: bool,
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    Key {
        name: "networkBackend",
        variable: "ARCA_NETWORK_BACKEND",
        meaning: "backend of plain `docker network create`: ovs or vmnet",
        allowed: "`ovs`, `vmnet`",
        default: "`ovs`",
        more: "Decides networks without a driver, with `--driver bridge`, and the default network `bridge`. `--driver ovs` \
               and `--driver vmnet` name a backend whatever stands here. Networks that exist keep theirs. See vmnet.md.",
        live: false,
    },
    Key {
        name: "machine",
        variable: "ARCA_MACHINE",
        meaning: "what containers live in: auto, namespace or vm",
        allowed: "`auto`, `namespace`, `vm`",
        default: "`auto`",
        more: "`auto` takes a virtual machine where the platform can run one, else namespaces.",
        live: false,
    },
    Key {
        name: "link",
        variable: "ARCA_LINK",
        meaning: "carrier of frames: auto, stream, tap-fd or cable",
        allowed: "`auto`, `stream`, `tap-fd`, `cable`",
        default: "`auto`",
        more: "How frames travel between a container and the helper machine. `auto` takes the best that both machines can.",
        live: false,
    },
    Key {
        name: "kernelPath",
        variable: "ARCA_KERNEL_PATH",
        meaning: "kernel of VM machines",
        allowed: "a path; `~` is the user's home",
        default: "`~/.arca/vmlinux`, whatever `ARCA_HOME` says",
        more: "",
        live: false,
    },
    Key {
        name: "initImage",
        variable: "ARCA_INIT_IMAGE",
        meaning: "initial RAM file system of container VMs",
        allowed: "a path; `~` is the user's home",
        default: "`~/.arca/vminit`, whatever `ARCA_HOME` says",
        more: "",
        live: false,
    },
    Key {
        name: "helperImage",
        variable: "ARCA_HELPER_IMAGE",
        meaning: "initial RAM file system of the helper VM",
        allowed: "a path; `~` is the user's home",
        default: "`~/.arca/helpervm`, whatever `ARCA_HOME` says",
        more: "",
        live: false,
    },
    Key {
        name: "vmTools",
        variable: "ARCA_VM_TOOLS",
        meaning: "folder looked into before PATH for qemu-system, virtiofsd and vhost-device-vsock",
        allowed: "a path; `~` is the user's home",
        default: "`~/.arca/vm-tools`, whatever `ARCA_HOME` says",
        more: "The programs lie in it or in its folder `bin`. It need not exist where the system has them.",
        live: false,
    },
    Key {
        name: "socketPath",
        variable: "ARCA_SOCKET_PATH",
        meaning: "Docker Engine API socket",
        allowed: "a path; `~` is the user's home",
        default: "`/var/run/arca.sock`; with `ARCA_HOME`, `arca.sock` in it",
        more: "`DOCKER_HOST=unix://PATH` leads the docker command there.",
        live: false,
    },
    Key {
        name: "logLevel",
        variable: "ARCA_LOG_LEVEL",
        meaning: "error, warn, info, debug, trace, or a filter such as arca_netd=debug,info",
        allowed: "`error`, `warn`, `info`, `debug`, `trace`, or a filter such as `arca_netd=debug,info`",
        default: "`info`",
        more: "Of the host daemons. Programs inside machines take it when their machine starts.",
        live: true,
    },
    Key {
        name: "metrics",
        variable: "ARCA_METRICS",
        meaning: "where figures for Prometheus are served: off, sockets or a loopback address",
        allowed: "`off`, `sockets`, a loopback address with a port such as `127.0.0.1:9480`",
        default: "`off`",
        more: "`sockets`: each daemon on a unix socket of its own in the folder of the engine's sockets. An address: arca-api \
               at that port, arca-netd at the next, arca-relayd at the one after that. See metrics.md.",
        live: false,
    },
    Key {
        name: "uplinkRange",
        variable: "ARCA_UPLINK_RANGE",
        meaning: "range the helper's uplink network (a /29) is taken from",
        allowed: "an IPv4 range of /8 to /29, host bits zero",
        default: "`192.168.127.0/24`",
        more: "The first /29 in it that is in nobody's way on the host is taken.",
        live: false,
    },
    Key {
        name: "uplinkRange6",
        variable: "ARCA_UPLINK_RANGE6",
        meaning: "range the IPv6 side (a /64) of the helper's uplink network is taken from",
        allowed: "an IPv6 range of /8 to /64, host bits zero, not link-local",
        default: "`fd9e:4c41:a27b::/48`",
        more: "Where the host has no IPv6 none is taken: IPv6 networks then have no way out.",
        live: false,
    },
    Key {
        name: "uplink",
        variable: "ARCA_UPLINK",
        meaning: "how a helper machine that is a virtual machine reaches out: auto, tap or user",
        allowed: "`auto`, `tap`, `user`",
        default: "`auto`",
        more: "`tap` is an interface of the host with forwarding and NAT, for which the engine must be root; `user` is QEMU's \
               user-mode network, which needs no privileges and is slower: the containers' connections are then the host's \
               own, and the gateway of the uplink network leads to the host's loopback. `auto` takes `tap` for root.",
        live: false,
    },
    Key {
        name: "publish",
        variable: "ARCA_PUBLISH",
        meaning: "how clients reach published ports: auto, or always through the helper machine",
        allowed: "`auto`, `helper`",
        default: "`auto`",
        more: "`auto`: where the host has a route to the helper's uplink, clients on this host are carried there by \
               arca-relayd and those from elsewhere redirected by the kernel, which keeps their address. `helper`: each client \
               is carried into the helper machine on a stream of its own, as it is where there is no such route; to a \
               container it then comes from the helper.",
        live: false,
    },
    Key {
        name: "addressPools",
        variable: "ARCA_ADDRESS_POOLS",
        meaning: "ranges that networks without a subnet take theirs from, RANGE:LENGTH; empty: Docker's",
        allowed: "`RANGE:LENGTH`, an IPv4 range and the prefix length (up to 29) of the subnets cut from it: a list in the \
                  file, separated by commas elsewhere",
        default: "172.18.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20",
        more: "As `default-address-pools` of Docker's engine. The first free piece of the first range that has one is taken; \
               pieces that overlap a network, a route or a name server of the host are stepped over. Networks that exist \
               keep theirs, and `bridge` is 172.17.0.0/16 whatever stands here.",
        live: false,
    },
    Key {
        name: "dns",
        variable: "ARCA_DNS",
        meaning: "servers unknown names are forwarded to, comma-separated; empty: those of the host",
        allowed: "IP addresses: a list in the file, separated by commas elsewhere",
        default: "the servers of the host's own resolv.conf",
        more: "",
        live: false,
    },
    Key {
        name: "guestDirectory",
        variable: "ARCA_GUEST_DIR",
        meaning: "folder of the guest programs",
        allowed: "a path; `~` is the user's home",
        default: "the folder `guest` beside the programs, else beside the installation",
        more: "Holds `arca-init`, `arca-tapfwd` and `arca-helper-agent`.",
        live: false,
    },
    Key {
        name: "helperRoot",
        variable: "ARCA_HELPER_ROOT",
        meaning: "root file system of the helper machine (namespace kind)",
        allowed: "a path; `~` is the user's home",
        default: "`helper-image/rootfs` in the data folder",
        more: "Not needed while every network is a vmnet one.",
        live: false,
    },
];
