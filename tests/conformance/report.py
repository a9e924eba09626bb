# SPDX-License-Identifier: Apache-2.0
"""Writes docs/conformance.md: how many cases of each group are equal, and why the others differ.

Used by `run`. Only counts and reasons, in the order of the case files, so that two runs differ only where answers do.
"""

import collections

Counts = collections.namedtuple("Counts", "groups cases equal reasoned unexplained")
HEAD = """# Comparison with Docker's engine

Written by `./dev conformance --report`; do not edit. The same requests go to Docker's own engine (Debian's docker.io 28.5,
API 1.51, unpacked and started in namespaces, with iptables) and to Arca, and the answers are compared field by field: status,
headers, bodies, exit codes, output, events, and what containers see and reach. Ids, times and hardware addresses are taken out
first. Cases are lines of `tests/conformance/cases`; what may differ stands with its reason in `tests/conformance/wanted.py`
and in [compatibility.md](compatibility.md).

"""


def counts(judged):
    """Sums over cases: equal, different with a reason for each difference, different without."""
    unexplained = sum(any(not reason for *_, reason in found) for _, _, found in judged)
    equal = sum(not found for _, _, found in judged)
    groups = len({name for name, _, _ in judged})
    return Counts(groups, len(judged), equal, len(judged) - equal - unexplained, unexplained)


def reasons(judged):
    """[(reason, [(group, case)])], the most frequent first."""
    found = collections.defaultdict(list)
    for name, line, differences in judged:
        for reason in dict.fromkeys(reason for *_, reason in differences if reason):
            found[reason].append((name, line))
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))


def cell(text):
    """A case as code in a table cell, cut."""
    text = text.replace("\n", " ").replace("`", "'").replace("|", "\\|")
    return f"`{text[:100]}{'…' if len(text) > 100 else ''}`"


def write(path, judged):
    """Writes the report."""
    whole = counts(judged)
    lines = [HEAD + f"**{whole.cases} cases in {whole.groups} groups: {whole.equal} equal, {whole.reasoned} different with a "
             f"reason, {whole.unexplained} different without one.**", "", "| group | cases | equal | with a reason | without |",
             "|---|---|---|---|---|"]
    for group in dict.fromkeys(name for name, _, _ in judged):
        part = counts([entry for entry in judged if entry[0] == group])
        lines.append(f"| {group} | {part.cases} | {part.equal} | {part.reasoned or ''} | {part.unexplained or ''} |")
    lines += ["", "## Why cases differ", "", "| reason | cases | for example |", "|---|---|---|"]
    for reason, cases in reasons(judged):
        lines.append(f"| {reason} | {len(cases)} | {cases[0][0]}: {cell(cases[0][1])} |")
    open_ones = [(name, line, found) for name, line, found in judged if any(not reason for *_, reason in found)]
    if open_ones:
        lines += ["", "## Without a reason", ""]
        lines += [f"- {name}: {cell(line)}" for name, line, _ in open_ones]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
