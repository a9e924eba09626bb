# SPDX-License-Identifier: Apache-2.0
"""Differences from Docker's engine that are meant, each with its reason.

A pattern is searched in `GROUP: CASE :: PATH: DOCKER -> ARCA`, the text of one difference; the first that fits counts. Every
reason stands in docs/compatibility.md too, in the same words (tests/checks/compat).
"""

VERSION = "Arca says its own name, version and build"
RUNTIME = "the runtime is Arca's own"
LAYERS = "layers and logs lie elsewhere; the paths are told truthfully"
ABSENT = "not there yet: 501 with its name"
REFERENCE = "the reference has no registry to pull from"
IMAGE = "every container has an image"
WORDS = "a JSON fault is told in another reader's words"
LISTS = "lists that a client leaves out are shown empty, not as null"

PREFIX = "a subnet of link-local addresses is refused when the network is made"
MTU = "an MTU below what every IPv4 host takes (576) is refused"
OPTION = "an option that OVN cannot honour is refused by name, not ignored"
ANSWERS = "what leaves a network without masquerading gets its answers"
DRIVERS = "macvlan and ipvlan need an interface of the host; a container here has none of it"
DANGLING = "a network with containers is not dangling; Docker's list does not know them and calls it so"
NEVER = "a network that was never joined is not told as left"
ORDER = "several endpoints are named in no order"
SANDBOX = "host and none have no sandbox of their own, so there is no file to name"
MULTICAST = "a multicast hardware address, which no interface can have, is refused"
IFNAME = "an interface name that cannot be is refused before an interface is made"
ROUTER = "a network's gateway is OVN's router, not the host: nothing answers there"
KINDS = "questions about a known name that only other kinds of records could answer are not sent elsewhere"
LABEL = "a single label that nobody has does not exist, also where nothing could be asked"
CHANCE = "which of two networks is left first, and whose interface comes first, Docker decides by chance"
SYSCTL = "an interface sysctl that names no interface is refused; Docker takes it and does nothing"
SCTP = "the relay of published ports carries TCP and UDP, and refuses SCTP"

WANTED = [
    # The engine.
    (r":: \.headers\.builder-version: ", "no BuildKit yet, so clients are told of the classic builder"),
    (r"GET /version :: \.body\.(Platform|Components|Version|GitCommit|GoVersion|BuildTime)", VERSION),
    (r"GET /info :: \.body\.(ID|DriverStatus|Plugins|NFd|NGoroutines|ServerVersion|OperatingSystem|LiveRestoreEnabled"
     r"|InitBinary|FirewallBackend|InitCommit|CDISpecDirs|Containerd|KernelMemoryTCP|OomKillDisable)", VERSION),
    (r"GET /info :: \.body\.(Runtimes|DefaultRuntime|RuncCommit)", RUNTIME),
    (r'\.Runtime: "runc" -> "arca(-ns|-vm)?"$', RUNTIME),
    (r"OCI runtime create failed: runc create failed: .* -> .*OCI runtime create failed: arca create failed: ", RUNTIME),
    (r":: \.body(\[0\])?\.GraphDriver\.Data\.", LAYERS),
    (r":: \.body\.LogPath: ", LAYERS),
    (r"(172\.17\.0\.1.*hg.* -> .*192\.168\.\d+\.\d+.*hg)|net_names/hosts files: .*host-gateway", "host-gateway is the host's end of the uplink, where the host answers; a gateway is OVN's router"),
    (r":: \.body\.DockerVersion: ", VERSION),
    (r'(system|net_create)/bodies: .* :: \.body\.message: "invalid JSON: .* -> "invalid JSON: ', WORDS),
    (r'create faults: POST \S+ \{("Image":""|"Cmd":\["x"\])\} :: ', IMAGE),
    (r"registry-1\.docker\.io", REFERENCE),
    (r"docker load :: .*docker-import-\d+/repositories", "an empty archive is told without a temporary file's name"),
    (r"exec/\$E/resize", "two texts of containerd for one fault, by chance of time"),
    (r"volumes-from|VolumesFrom|volume is in use - \[|docker rm -v c1 c2", "a container with a tmpfs can be inherited from"),
    (r'Propagation: "rslave" -> "rprivate"', "Docker's own folder lies below the bound one here, which it then binds as rslave"),
    (r"net_versions/.*HostConfig\.\w+: (null -> (\[\]|\{\})|false -> null)$", LISTS),
    # Networks.
    (r"sharing/interfaces: .*ip -o -4 addr; ip route", CHANCE),
    (r"sharing/interfaces: .*endpoint\.sysctls=net\.ipv4\.conf\.IFNAME", SYSCTL),
    (r"net_create/pool faults: .*fe80::/64", PREFIX),
    (r"net_create/options: .*driver\.mtu\":\"68\"", MTU),
    (r"net_create/(options|pools): .*inhibit_ipv4", OPTION),
    (r"net_traffic/reach: \$ docker exec cm ", ANSWERS),
    (r"net_create/other drivers: .*(macvlan|ipvlan)", DRIVERS),
    (r"network ls .*--filter '?dangling|networks/create: .*dangling", DANGLING),
    (r"net_events/failures: ", NEVER),
    (r'has active endpoints \(name:\S+ id:\S+, name', ORDER),
    (r"netns/default", SANDBOX),
    (r"net_connect/faults: .*ff:ff:ff:ff:ff:ff", MULTICAST),
    (r"net_connect/faults: .*endpoint\.ifname", IFNAME),
    (r"net_traffic/isolation: .*10\.80\.0\.1:2375", ROUTER),
    (r"host-gateway.*172\.17\.0\.1.* -> .*192\.168\.\d+\.\d+", ROUTER),
    (r"sctp", SCTP),
    (r"net_names/embedded names: .*-type=(txt|mx|aaaa) web\.", KINDS),
    (r"net_names/embedded names: .*--network n3 .*SERVFAIL.* -> .*NXDOMAIN", LABEL),
    (r"multiple network endpoints: ", ORDER),
    (r"UsernsMode| -> .* is not (implemented by Arca|supported( by the ovs backend)?) yet", ABSENT),
]
