# SPDX-License-Identifier: Apache-2.0
"""Starts the two engines, each in network, mount and process namespaces of its own with everything below a folder.

Used by `run`. Docker's own daemon comes from Debian packages that are unpacked into .cache, never installed. When the
first process of the namespaces ends, everything in them is gone.
"""

import glob
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(TREE, ".cache")
# Debian suite and packages: sid's runc and iptables need a newer C library than older machines have.
PACKAGES = [
    ("sid", ["docker.io", "containerd"]),
    ("bookworm", ["runc", "tini", "iptables", "libip4tc2", "libip6tc2", "libxtables12", "libnetfilter-conntrack3",
                  "libnfnetlink0", "libmnl0", "libnftnl11"]),
]
# What the names of iptables mean: the one that speaks nftables.
XTABLES = [family + what for family in ("iptables", "ip6tables") for what in ("", "-save", "-restore")]
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
# The host has one uplink; at its other end is a machine in a namespace of its own, which serves names and pages.
SETTLE = """
set -e
mount --make-r{propagation} /
mount -t tmpfs tmpfs /run
ip netns add outside
ip link set lo up
ip link add up0 type veth peer name up1 netns outside
ip address add 192.0.2.2/24 dev up0
ip address add 2001:db8:2::2/64 dev up0 nodad
ip link set up0 up
ip netns exec outside python3 {here}/outside.py serve up1 $ROOT/outside &
until [ -e $ROOT/outside ]; do sleep 0.05; done
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8:2::1
ip netns exec outside ip route add 10.88.0.0/13 via 192.0.2.2
ip netns exec outside ip -6 route add fd00:88::/32 via 2001:db8:2::2
echo nameserver 192.0.2.1 >$ROOT/resolv.conf
mount --bind $ROOT/resolv.conf /etc/resolv.conf
registry() {{
    mkdir $ROOT/registry$1
    printf 'version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nhttp: {{addr: "127.0.0.1:%s"}}\nstorage:\n  delete: {{enabled: true}}\n  filesystem: {{rootdirectory: %s}}\n' \
        $1 $ROOT/registry$1 >$ROOT/registry$1.yml
    echo "$2" >>$ROOT/registry$1.yml
    {registry} serve $ROOT/registry$1.yml &
}}
echo '{password}' >$ROOT/password
registry 5000
registry 5001 "auth: {{htpasswd: {{realm: here, path: $ROOT/password}}}}"
"""
# User `user`, password `secret`, as registries keep it.
PASSWORD = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
DOCKERD = """
echo '{}' >$ROOT/none.json
exec dockerd --host unix://$ROOT/d.sock --data-root $ROOT/data --exec-root $ROOT/exec --pidfile $ROOT/pid \
    --config-file $ROOT/none.json --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /arca/conformance
"""
ARCA = """
trap 'arca daemon stop --all' EXIT
trap exit TERM
arca daemon start
sleep infinity & wait
"""


class Missing(Exception):
    """Why there is no such engine here."""


class Engine:
    """A running engine; `stop` ends it and removes its folder."""

    def __init__(self, name, script, environment, sock, propagation):
        self.name = name
        self.root = tempfile.mkdtemp(prefix="x-conf-", dir="/tmp")
        self.socket = os.path.join(self.root, sock)
        self.log = open(os.path.join(self.root, "log.txt"), "w+", encoding="utf-8")
        environment = {**os.environ, **{key: value.replace("ROOT", self.root) for key, value in environment.items()}}
        # The shell inside is the first process there; signals for it pass through unshare only as its end.
        self.process = subprocess.Popen(
            [*NAMESPACES, "bash", "-c", SETTLE.format(propagation=propagation, here=HERE, registry=registry(), password=PASSWORD) + script],
            env={**environment, "ROOT": self.root}, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def pid(self):
        """The first process of the namespaces, by its number here."""
        inside = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return inside.stdout.split()[0] if inside.stdout.split() else ""

    def places(self):
        """How a shell line reaches this engine's host and the machine outside: `$HOST fetch.py URL`, `$OUTSIDE ...`."""
        fetch = f"python3 {HERE}/outside.py fetch"
        return {"HOST": f"nsenter -t {self.pid()} -n {fetch}",
                "OUTSIDE": f"nsenter -t {self.pid()} -n -m ip netns exec outside {fetch}"}

    def wait(self, seconds=60):
        """Until the socket answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket(socket.AF_UNIX) as stream:
                try:
                    stream.connect(self.socket)
                    return
                except OSError:
                    time.sleep(0.05)
        self.log.seek(0)
        tail = "".join(self.log.readlines()[-8:])
        self.stop()
        raise Missing(f"{self.name} did not start:\n{tail}")

    def stop(self):
        """Ends everything in its namespaces."""
        if pid := self.pid():
            os.kill(int(pid), 15)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.root, ignore_errors=True)
        # Docker's engine leaves the parent of its containers' cgroups, empty.
        for parent in glob.glob("/sys/fs/cgroup/arca/conformance") + glob.glob("/sys/fs/cgroup/*/arca/conformance"):
            for folder, _, _ in os.walk(parent, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


def registry():
    """Debian's docker-registry, unpacked; each engine has two of its own on its loopback, one that asks for a login."""
    folder = os.path.join(CACHE, "tools/registry")
    program = os.path.join(folder, "usr/bin/docker-registry")
    if not os.path.exists(program):
        stage = folder + ".new"
        shutil.rmtree(stage, ignore_errors=True)
        done = subprocess.run([os.path.join(TREE, "helpervm-image/unpack"), "bookworm", os.path.join(CACHE, "apt"), stage,
                               "docker-registry"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing(done.stderr.strip() or done.stdout.strip())
        os.rename(stage, folder)
    return program


def reference():
    """Docker's own engine; Missing where it cannot be had."""
    if os.geteuid() != 0:
        raise Missing("needs root")
    folder = os.path.join(CACHE, "reference")
    if not os.path.exists(os.path.join(folder, "usr/sbin/iptables")):
        stage = folder + ".new"
        shutil.rmtree(stage, ignore_errors=True)
        for suite, packages in PACKAGES:
            done = subprocess.run([os.path.join(TREE, "helpervm-image/unpack"), suite, os.path.join(CACHE, "apt"), stage,
                                   *packages], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise Missing(done.stderr.strip() or done.stdout.strip())
        for name in XTABLES:
            os.symlink("xtables-nft-multi", os.path.join(stage, "usr/sbin", name))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(stage, folder)
    libraries = f"{folder}/usr/lib/{os.uname().machine}-linux-gnu"
    environment = {"PATH": f"{folder}/usr/sbin:{folder}/usr/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries,
                   "XTABLES_LIBDIR": f"{libraries}/xtables"}
    return Engine("docker", DOCKERD, environment, "d.sock", "shared")


def arca():
    """The engine of this tree: ARCA_BIN_DIR has its programs."""
    binaries = os.environ.get("ARCA_BIN_DIR", os.path.join(TREE, "target/release"))
    if not os.path.exists(os.path.join(binaries, "arca")):
        sys.exit(f"conformance: no arca in {binaries}: build it with ./dev build, or set ARCA_BIN_DIR")
    helper = os.environ.get("ARCA_HELPER_ROOT", os.path.join(CACHE, "helper-image/rootfs"))
    environment = {"PATH": f"{binaries}:{os.environ['PATH']}", "ARCA_HOME": "ROOT", "ARCA_HELPER_ROOT": helper}
    return Engine("arca", ARCA, environment, "arca.sock", "private")
