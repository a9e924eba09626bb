# SPDX-License-Identifier: Apache-2.0
"""Copies programs out of unpacked packages together with every shared library that they need.

Used by `build` (the helper machine's root) and by `initramfs` (the container machines' image).
"""

import os
import re
import shutil

from debian import Failure, run


def index_libraries(tree):
    """Maps each library's file name to its path in the unpacked packages (links included)."""
    found = {}
    for top in ("usr/lib", "lib", "usr/lib64", "lib64"):
        for folder, _, names in os.walk(os.path.join(tree, top)):
            for name in names:
                if ".so" in name:
                    found.setdefault(name, os.path.join(folder, name))
    return found


def needed(path):
    """(interpreter or None, NEEDED sonames) of one ELF file, as readelf reads them."""
    text = run(["readelf", "-W", "-l", "-d", path], env={**os.environ, "LC_ALL": "C"})
    interpreter = re.search(r"Requesting program interpreter: ([^\]]+)\]", text)
    return (interpreter.group(1) if interpreter else None), re.findall(r"\(NEEDED\).*\[([^\]]+)\]", text)


def check_static(path):
    """A guest program must run without any library: the images promise it none."""
    if not os.path.isfile(path):
        raise Failure(f"{path}: no such guest program; `./dev guests` builds it")
    interpreter, names = needed(path)
    if interpreter or names:
        raise Failure(f"{path} is not a static binary (needs {interpreter or ', '.join(names)})")


def copy(source, root, place):
    """Copies one file's bytes and mode (links followed)."""
    target = os.path.join(root, place)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.exists(source):
        raise Failure(f"{place}: the packages do not bring {source}")
    shutil.copy(os.path.realpath(source), target)
    return target


def copy_closure(tree, root, programs):
    """Copies every shared library that the programs at `programs` in `root` need, and theirs in turn."""
    library_of = index_libraries(tree)
    queue = [os.path.join(root, place) for place in programs]
    copied, missing = {}, []
    while queue:
        user = queue.pop()
        interpreter, names = needed(user)
        wanted = [(os.path.basename(name), None) for name in names]
        if interpreter:
            wanted.append((os.path.basename(interpreter), interpreter))
        for name, fixed_place in wanted:
            if name in copied:
                continue
            source = library_of.get(name)
            if source is None:
                missing.append(f"{name} (needed by {os.path.basename(user)})")
                continue
            # The interpreter's path is baked into every program; libraries lie where ld.so looks by default.
            relative = os.path.relpath(source, tree)
            place = (fixed_place or relative).lstrip("/")
            if not place.startswith("usr/"):
                place = "usr/" + place
            copied[name] = copy(source, root, place)
            queue.append(copied[name])
    if missing:
        raise Failure("no package in the list brings " + ", ".join(sorted(set(missing))))
    return copied


def stripper(architecture):
    """The `strip` that knows the architecture's files, or None."""
    own = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    cross = {"amd64": "x86_64-linux-gnu-strip", "arm64": "aarch64-linux-gnu-strip"}
    return shutil.which("strip" if own == architecture else cross.get(architecture, ""))


def strip_all(paths, architecture):
    """Removes debug symbols where this machine has `strip` for the architecture."""
    strip = stripper(architecture)
    if strip:
        run([strip, "--strip-unneeded", *paths])
