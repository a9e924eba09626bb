# SPDX-License-Identifier: Apache-2.0
"""Fetch and unpack Debian packages of any suite without installing anything.

Called by `build` (the helper machine's root) and by `unpack` (tools for `./dev`, the small test image). Everything
apt needs lives in one folder of ours: its own sources, lists, cache and an empty dpkg status, so the machine's own
package state is neither read nor changed. The mirror is the one the machine's own apt uses; indices are verified with
Debian's archive keyring.
"""

import glob
import hashlib
import os
import re
import subprocess
import sys
import time

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASES = {
    "sid", "unstable", "testing", "stable", "oldstable", "forky", "trixie", "bookworm", "bullseye",
}
# Only how to reach a mirror is taken over from the machine's apt configuration, never its hooks or pins.
TAKEN_OVER = re.compile(r"^Acquire::(http|https|Retries|ForceIPv[46]|Check-Valid-Until|Check-Date|Max-FutureTime)\b")
# Package lists younger than this many seconds are used as they are.
LISTS_FRESH = 3600


class Failure(Exception):
    """A step that failed, in one line that names the object and the likely cause."""


def run(argv, **kwargs):
    """Runs a program; its output becomes part of the error when it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        raise Failure(f"{' '.join(argv[:4])} ... ended with {done.returncode}:\n{tail}")
    return done.stdout


def sha256(path):
    """Hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def parse_one_line(text):
    """Entries (uri, suite, components) of the one-line format (sources.list(5))."""
    entries = []
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match:
            entries.append((match.group(1), match.group(2), match.group(3).split()))
    return entries


def parse_deb822(text):
    """Entries (uri, suite, components) of the deb822 format (sources.list(5))."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    entries = []
    for stanza in re.split(r"\n\s*\n", text):
        fields, name = {}, None
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and name:
                fields[name] += " " + line.strip()
            elif ":" in line:
                name, value = line.split(":", 1)
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                entries.append((uri, suite, fields.get("components", "").split()))
    return entries


def machine_entries():
    """All package sources that the machine's own apt has configured."""
    shell = run(["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"])
    paths = dict(re.findall(r"^(\w+)='([^']*)'", shell, re.M))
    files = [paths.get("LIST", "/etc/apt/sources.list")]
    parts = paths.get("PARTS", "/etc/apt/sources.list.d").rstrip("/")
    files += sorted(glob.glob(parts + "/*.list") + glob.glob(parts + "/*.sources"))
    entries = []
    for path in files:
        try:
            with open(path, encoding="utf-8") as stream:
                text = stream.read()
        except FileNotFoundError:
            continue
        entries += parse_deb822(text) if path.endswith(".sources") else parse_one_line(text)
    return entries


def choose_mirrors(entries):
    """(main mirror, security mirror or None) among (uri, suite, components) entries."""
    main, security = [], []
    for uri, suite, components in entries:
        if "main" not in components:
            continue
        base, _, kind = suite.replace("/", "-").partition("-")
        if base not in RELEASES or kind not in ("", "updates", "security", "backports"):
            continue
        (security if kind == "security" else main).append(uri)
    # A third party's archive may use Debian's suite names; Debian's own mirrors end in /debian.
    main.sort(key=lambda uri: "debian" not in uri.rstrip("/").rsplit("/", 2)[-1])
    return (main[0] if main else None), (security[0] if security else None)


def mirrors():
    """The mirrors to use: ARCA_DEBIAN_MIRROR if set, else those of the machine's apt."""
    main, security = choose_mirrors(machine_entries())
    main = os.environ.get("ARCA_DEBIAN_MIRROR", main)
    if not main:
        raise Failure("no Debian mirror in this machine's apt sources: set ARCA_DEBIAN_MIRROR to the URI of one")
    return main, security


def architecture(name=""):
    """Debian's name of an architecture by any of its names; empty: this machine's."""
    if not name:
        return run(["dpkg", "--print-architecture"]).strip()
    known = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    if name not in known:
        raise Failure(f"no architecture {name}: x86_64 or arm64")
    return known[name]


class Suite:
    """One Debian suite with an apt state of its own below `folder`; of a foreign architecture in a folder of its own."""

    def __init__(self, name, folder, architecture_name=""):
        own = architecture()
        self.architecture = architecture_name or own
        self.name = name
        self.folder = os.path.join(os.path.abspath(folder), name)
        if self.architecture != own:
            self.folder += "-" + self.architecture
        self.conf = os.path.join(self.folder, "apt.conf")
        self.debs = os.path.join(self.folder, "debs")

    def _write_state(self, with_security):
        main, security = mirrors()
        for part in ("state/lists/partial", "cache/archives/partial", "debs"):
            os.makedirs(os.path.join(self.folder, part), exist_ok=True)
        stanza = "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {}\n"
        stanzas = [stanza.format(main, self.name, KEYRING)]
        if security and with_security and self.name not in ("sid", "unstable"):
            stanzas.append(stanza.format(security, self.name + "-security", KEYRING))
        open(os.path.join(self.folder, "state", "status"), "a", encoding="utf-8").close()
        with open(os.path.join(self.folder, "arca.sources"), "w", encoding="utf-8") as stream:
            stream.write("\n".join(stanzas))
        lines = [line for line in run(["apt-config", "dump"]).splitlines() if TAKEN_OVER.match(line)]
        for key, value in {
            "Dir::State": self.folder + "/state",
            "Dir::State::status": self.folder + "/state/status",
            "Dir::Cache": self.folder + "/cache",
            "Dir::Etc::sourcelist": self.folder + "/arca.sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::AllowInsecureRepositories": "false",
        }.items():
            lines.append(f'{key} "{value}";')
        # The configuration may carry a proxy's password.
        with open(os.open(self.conf, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")

    def _apt(self, *argv, cwd=None):
        return run(list(argv), cwd=cwd, env={**os.environ, "APT_CONFIG": self.conf, "LC_ALL": "C"})

    def update(self, force=False):
        """Brings the package lists up to date, unless they are fresh."""
        stamp = os.path.join(self.folder, "updated")
        try:
            if not force and time.time() - os.stat(stamp).st_mtime < LISTS_FRESH:
                return
        except FileNotFoundError:
            pass
        if not os.path.exists(KEYRING):
            raise Failure(f"{KEYRING} is missing: install the package debian-archive-keyring")
        self._write_state(with_security=True)
        try:
            self._apt("apt-get", "-q", "update")
        except Failure as failure:
            self._write_state(with_security=False)
            try:
                self._apt("apt-get", "-q", "update")
            except Failure:
                raise failure from None
            print(f"note: no {self.name}-security on this mirror, continuing without", file=sys.stderr)
        with open(stamp, "w", encoding="utf-8"):
            pass

    def show(self, package):
        """What apt knows about the newest version of a package, as text."""
        return self._apt("apt-cache", "show", "--no-all-versions", package)

    def download(self, packages):
        """Paths of the named packages' .deb files, fetched if not there yet."""
        self.update()
        try:
            return self._download(packages)
        except Failure:
            # The mirror may have moved on since the lists were fetched.
            self.update(force=True)
            return self._download(packages)

    def _download(self, packages):
        listing = self._apt("apt-get", "download", "--print-uris", *packages)
        files = re.findall(r"^'[^']+' (\S+\.deb) \d+", listing, re.M)
        if len(files) != len(set(packages)):
            raise Failure(f"apt knows {len(files)} of the {len(set(packages))} packages asked of {self.name}")
        missing = [name for name in files if not os.path.exists(os.path.join(self.debs, name))]
        wanted = [name.split("_", 1)[0] for name in missing]
        if wanted:
            self._apt("apt-get", "-q", "download", *wanted, cwd=self.debs)
        return [os.path.join(self.debs, name) for name in files]

    def unpack(self, packages, target):
        """Unpacks the named packages below `target`; returns the names of the .deb files (with versions)."""
        paths = self.download(packages)
        os.makedirs(target, exist_ok=True)
        for path in paths:
            run(["dpkg", "-x", path, target])
        return [os.path.basename(path) for path in paths]
