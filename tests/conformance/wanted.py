# SPDX-License-Identifier: Apache-2.0
"""Differences from Docker's engine that are meant, each with its reason.

A pattern is searched in `GROUP: CASE :: PATH: DOCKER -> ARCA`, the text of one difference.
"""

VERSION = "Arca says its own name, version and build"
RUNTIME = "the runtime is Arca's own"
LAYERS = "layers and logs lie elsewhere; the paths are told truthfully"
ABSENT = "not there yet: 501 with its name"
REFERENCE = "the reference runs here without iptables, docker-init and a network to pull from"
OWN_NETWORKS = "networks are OVN's: what its routers need or take is another"
IMAGE = "every container has an image"

WANTED = [
    (r":: \.headers\.builder-version: ", "no BuildKit yet, so clients are told of the classic builder"),
    (r"GET /version :: \.body\.(Platform|Components|Version|GitCommit|GoVersion|BuildTime)", VERSION),
    (r"GET /info :: \.body\.(ID|DriverStatus|Plugins|NFd|NGoroutines|ServerVersion|OperatingSystem|LiveRestoreEnabled"
     r"|InitBinary|FirewallBackend|InitCommit|CDISpecDirs|Containerd|KernelMemoryTCP|OomKillDisable)", VERSION),
    (r"GET /info :: \.body\.(Runtimes|DefaultRuntime|RuncCommit)", RUNTIME),
    (r'\.Runtime: "runc" -> "arca"$', RUNTIME),
    (r"OCI runtime create failed: runc create failed: .* -> .*OCI runtime create failed: arca create failed: ", RUNTIME),
    (r":: \.body(\[0\])?\.GraphDriver\.Data\.", LAYERS),
    (r":: \.body\.LogPath: ", LAYERS),
    (r":: \.body\.DockerVersion: ", VERSION),
    (r"system/bodies: .* :: \.body\.message: \"invalid JSON: .* -> \"invalid JSON: ", "a JSON fault is told in another reader's words"),
    (r'create faults: POST \S+ \{("Image":""|"Cmd":\["x"\])\} :: ', IMAGE),
    (r"UsernsMode|/stats\?|\"Driver\":\"overlay\"", ABSENT),
    (r"enable_ip_masquerade: \"false\" -> \"true\"", REFERENCE),
    (r"run --rm --init ", REFERENCE),
    (r"registry-1\.docker\.io", REFERENCE),
    (r"docker network create --subnet 10\.82\.0\.0/31|--ipv4=false --ipv6", OWN_NETWORKS),
    (r"networks/create: (\$ docker network ls .*(Driver|custom|dangling).*|POST /networks/prune) :: ", OWN_NETWORKS),
    (r"docker load :: .*docker-import-\d+/repositories", "an empty archive is told without a temporary file's name"),
    (r"invalid endpoint settings:.* -> .*invalid endpoint settings:", "of several faults of an address the first kind is told"),
    (r"default via 10\.80\.0\.1 dev eth1", "eth0 is on the network of the container's mode"),
    (r"Networks\.none\.(NetworkID|EndpointID)|netns/default", "host and none have no endpoint and no sandbox of their own"),
    (r"\.n1\.NetworkID: \"\" -> \"<id>\"|\.nope\.DNSNames", "a network is remembered when it is connected, not when it is first used"),
    (r"exec/\$E/resize", "two texts of containerd for one fault, by chance of time"),
    (r"volumes-from|VolumesFrom|volume is in use - \[|docker rm -v c1 c2", "a container with a tmpfs can be inherited from"),
    (r'has active endpoints \(name:\S+ id:\S+, name', "several endpoints are named in no order"),
    (r'Propagation: "rslave" -> "rprivate"', "Docker's own folder lies below the bound one here, which it then binds as rslave"),
    (r" -> .* is not implemented by Arca yet", ABSENT),
]
