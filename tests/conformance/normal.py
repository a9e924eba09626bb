# SPDX-License-Identifier: Apache-2.0
"""Takes out of an answer what no two runs have in common: ids, times, hardware addresses, folders.

Used by `run`. Whatever stays is compared as it is, so a missing key, `null` for `{}`, another word or another order of
events shows.
"""

import re

# In this order: an id inside a path is named before the path is.
TEXT = [
    (re.compile(r"\b[0-9a-f]{64}\b"), "<id>"),
    (re.compile(r'"execDuration":"\d+"'), '"execDuration":"<seconds>"'),
    (re.compile(r"execDuration=\d+"), "execDuration=<seconds>"),
    (re.compile(r"\b0001-01-01T00:00:00Z"), "<never>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d)( [A-Z]{3})?)?"), "<time>"),
    (re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"), "<mac>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<short>"),
    (re.compile(r"\b(Up|Exited \(\d+\)|Created|Restarting \(\d+\)) (Less than a second|About an? \w+|\d+ \w+)( ago)?"),
     r"\1 <while>"),
    (re.compile(r"\b(Less than a second|About an? \w+|\d+ (seconds?|minutes?|hours?|months?|years?)) ago"), "<while> ago"),
    # The kernel's numbers of interfaces count what came and went before.
    (re.compile(r"^\d+: (?=\S+ +inet )", re.M), "<index>: "),
    (re.compile(r"\b(32[7-9]\d\d|3[3-9]\d{3}|[45]\d{4}|60\d{3})\b"), "<port>"),
]
# Fields that differ from machine to machine, from engine to engine by nature, or from run to run.
MASKED = {
    "Pid", "SizeRootFs", "time", "timeNano", "execDuration", "SandboxKey", "NEventsListener", "NFd", "NGoroutines",
    "SystemTime", "Created", "LastTagTime",
}


def normal(value, replaced, key=""):
    """`value` with volatile parts named; `replaced` is [(text, name)] of this engine's own folders and sockets."""
    if isinstance(value, dict):
        return {normal(name, replaced): normal(part, replaced, name) for name, part in value.items()}
    if isinstance(value, list):
        return ordered([normal(part, replaced, key) for part in value], key)
    if key in MASKED and value not in (None, "", 0):
        return f"<{key}:{type(value).__name__}>"
    if isinstance(value, str):
        for text, name in replaced:
            value = value.replace(text, name)
        for pattern, name in TEXT:
            value = pattern.sub(name, value)
    return value


def ordered(items, key):
    """Lists that Docker builds from maps have no order: networks, volumes, mounts, ports, what a prune removed."""
    if key in ("NetworksDeleted", "ContainersDeleted"):
        return sorted(items)
    if items and all(isinstance(item, dict) and "Destination" in item for item in items):
        return sorted(items, key=lambda item: item["Destination"])
    if items and all(isinstance(item, dict) and ("PrivatePort" in item or {"Name", "Driver"} <= set(item)) for item in items):
        return sorted(items, key=lambda item: str([item.get(part) for part in ("PrivatePort", "Type", "IP", "Name")]))
    return items


def outcome(answer):
    """Status or exit code with what was said about it."""
    body = answer.get("body")
    said = body.get("message", "") if isinstance(body, dict) else body if isinstance(body, str) else ""
    return f"{answer.get('status', answer.get('code'))} {said or answer.get('stderr', '') or answer.get('error', '')}".strip()


def told(docker, arca):
    """The differences of two answers; where one failed and the other did not, that alone."""
    if any(docker.get(key) != arca.get(key) for key in ("status", "code")):
        return [(".outcome", outcome(docker), outcome(arca))]
    return differences(docker, arca)


def differences(docker, arca, path=""):
    """[(path, docker's, arca's)] of two normalised answers."""
    if isinstance(docker, dict) and isinstance(arca, dict):
        found = []
        for key in [*docker, *(key for key in arca if key not in docker)]:
            where = f"{path}.{key}"
            if key not in arca:
                found.append((where, docker[key], "(absent)"))
            elif key not in docker:
                found.append((where, "(absent)", arca[key]))
            else:
                found += differences(docker[key], arca[key], where)
        return found
    if isinstance(docker, list) and isinstance(arca, list) and len(docker) == len(arca):
        found = []
        for index, (left, right) in enumerate(zip(docker, arca)):
            found += differences(left, right, f"{path}[{index}]")
        return found
    same = type(docker) is type(arca) and docker == arca
    return [] if same else [(path, docker, arca)]
