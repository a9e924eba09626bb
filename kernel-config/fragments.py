# SPDX-License-Identifier: Apache-2.0
"""The configuration fragments of this folder: which there are, what they say, whether a configuration keeps to them.

Used by `build` and by `verify`.
"""

import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}


def architecture(name):
    """The architecture that is meant by any of its names; empty: this machine's."""
    known = NAMES.get(name or os.uname().machine)
    if not known:
        raise ValueError(f"no kernel fragment for the architecture {name or os.uname().machine}: x86_64 or arm64")
    return known


def paths(arch):
    """Files of the fragments, in the order of merging."""
    return [os.path.join(HERE, name + ".config") for name in ("common", arch)]


def read(path):
    """Maps each symbol of a configuration to its value, `None` where it is off; the last line about a symbol counts."""
    found = {}
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            on = re.match(r"CONFIG_(\w+)=(.*)$", line.rstrip("\n"))
            off = re.match(r"# CONFIG_(\w+) is not set$", line.rstrip("\n"))
            if on:
                found[on.group(1)] = on.group(2)
            elif off:
                found[off.group(1)] = None
    return found


def wanted(arch):
    """All that the fragments ask for."""
    return {symbol: value for path in paths(arch) for symbol, value in read(path).items()}


def differences(arch, config, modules=False):
    """Lines about symbols that the configuration has otherwise; `modules`: a module is as good as built in."""
    have = read(config)
    lines = []
    for symbol, value in sorted(wanted(arch).items()):
        found = have.get(symbol)
        if found != value and not (modules and value == "y" and found == "m"):
            lines.append(f"CONFIG_{symbol}: asked for {value or 'n'}, is {found or 'n'}")
    return lines


def count(config):
    """How many options are on."""
    return sum(value == "y" for value in read(config).values())
