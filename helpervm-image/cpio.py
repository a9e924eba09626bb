# SPDX-License-Identifier: Apache-2.0
"""Writes initramfs archives (cpio, format `newc`: the kernel's Documentation/driver-api/early-userspace/buffer-format).

The same contents always give the same bytes: entries are sorted, owned by root, without times, numbered in order.
"""

import os
import stat


class Archive:
    """Entries by path; written once by `bytes`."""

    def __init__(self):
        self.entries = {"": (stat.S_IFDIR | 0o755, b"", (0, 0))}

    def _add(self, path, mode, data=b"", device=(0, 0)):
        path = path.strip("/")
        parent = os.path.dirname(path)
        if parent not in self.entries:
            self.folder(parent)
        self.entries[path] = (mode, data, device)

    def folder(self, path, mode=0o755):
        """A folder; its parents come with it."""
        if path.strip("/"):
            self._add(path, stat.S_IFDIR | mode)

    def link(self, path, target):
        """A symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path, major, minor, mode=0o600):
        """A character device."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def file(self, path, source, mode=0o755):
        """A file with the bytes of `source`: a path, or bytes."""
        if not isinstance(source, bytes):
            with open(source, "rb") as stream:
                source = stream.read()
        self._add(path, stat.S_IFREG | mode, source)

    def tree(self, root):
        """All that lies below `root`: folders, files, links. Times and owners are left behind."""
        for folder, folders, names in os.walk(root):
            for name in folders + names:
                path = os.path.join(folder, name)
                place, info = os.path.relpath(path, root), os.lstat(path)
                if stat.S_ISLNK(info.st_mode):
                    self.link(place, os.readlink(path))
                elif stat.S_ISDIR(info.st_mode):
                    self.folder(place, stat.S_IMODE(info.st_mode))
                elif stat.S_ISREG(info.st_mode):
                    self.file(place, path, stat.S_IMODE(info.st_mode))

    def listing(self):
        """Lines `mode size path`, and the sum of the files' sizes."""
        lines, total = [], 0
        for path, (mode, data, _) in sorted(self.entries.items()):
            total += len(data)
            arrow = " -> " + data.decode() if stat.S_ISLNK(mode) else ""
            lines.append(f"{stat.filemode(mode)} {len(data):>9} /{path}{arrow}")
        return lines, total

    def bytes(self):
        """The archive."""
        parts = []
        for number, (path, (mode, data, device)) in enumerate(sorted(self.entries.items()), start=1):
            parts.append(_entry(number, path or ".", mode, data, device))
        parts.append(_entry(0, "TRAILER!!!", 0, b"", (0, 0)))
        whole = b"".join(parts)
        return whole + b"\0" * (-len(whole) % 512)


def _entry(number, path, mode, data, device):
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, time, size, device of the file system, device, length of the name, no checksum
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head) + _padded(data)


def _padded(data):
    return data + b"\0" * (-len(data) % 4)
