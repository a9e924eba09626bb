#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The machine outside of an engine's host, and a client that tells how it went in one word.

Usage: outside.py serve INTERFACE READY_FILE    (192.0.2.1 and 2001:db8:2::1: names on port 53, pages on port 80)
       outside.py fetch URL                      (the page, or: refused, timeout, unreachable, closed)
Started by `engines.py` in a namespace of its own; case lines call the second form as `$HOST URL` and `$OUTSIDE URL`.
A page is the address that asked. Of the names `web.test` exists, `big.test` has many addresses, others do not exist.
"""

import http.server
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request

V4, V6 = "192.0.2.1", "2001:db8:2::1"
NAMES = {
    ("web.test", 1): [V4], ("web.test", 28): [V6],
    ("big.test", 1): [f"198.51.100.{last}" for last in range(1, 61)],
    ("web.search.test", 1): ["198.51.100.77"],
}


def answer(query, most):
    """A DNS answer to one question (RFC 1035 section 4.1); truncated if it is longer than `most` bytes."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += query[at] + 1
    kind, end = int.from_bytes(query[at + 1:at + 3], "big"), at + 5
    name = ".".join(labels).lower()
    known = any(other == name for other, _ in NAMES)
    records = b""
    found = NAMES.get((name, kind), [])
    for address in found:
        data = socket.inet_pton(socket.AF_INET if kind == 1 else socket.AF_INET6, address)
        records += b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\x01\0\0\0\x3c" + len(data).to_bytes(2, "big") + data
    flags = 0x8580 | (0 if known else 3)
    counts = b"\0\x01" + len(found).to_bytes(2, "big") + b"\0\0\0\0"
    if end + len(records) > most:
        flags, counts, records = flags | 0x200, b"\0\x01\0\0\0\0\0\0", b""
    return query[:2] + flags.to_bytes(2, "big") + counts + query[12:end] + records


class Datagram(socketserver.BaseRequestHandler):
    """Names over UDP."""

    def handle(self):
        self.request[1].sendto(answer(self.request[0], 512), self.client_address)


class Stream(socketserver.StreamRequestHandler):
    """Names over TCP, one question a connection."""

    def handle(self):
        size = int.from_bytes(self.rfile.read(2), "big")
        text = answer(self.rfile.read(size), 65535)
        self.wfile.write(len(text).to_bytes(2, "big") + text)


class Page(http.server.BaseHTTPRequestHandler):
    """Whoever asks is told its own address."""

    def do_GET(self):
        """Called by the server."""
        text = self.client_address[0].removeprefix("::ffff:").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Nothing is logged."""


class Pages(http.server.ThreadingHTTPServer):
    """Both families on one socket."""

    address_family = socket.AF_INET6


def serve(interface, ready):
    """Until it is killed."""
    for line in ("link set lo up", f"address add {V4}/24 dev {interface}", f"address add {V6}/64 dev {interface} nodad",
                 f"link set {interface} up"):
        subprocess.run(["ip", *line.split()], check=True)
    servers = [socketserver.ThreadingUDPServer((V4, 53), Datagram), socketserver.ThreadingTCPServer((V4, 53), Stream),
               Pages(("::", 80), Page)]
    for server in servers:
        threading.Thread(target=server.serve_forever).start()
    open(ready, "w", encoding="utf-8").close()


def fetch(url):
    """One word more often than not."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=3) as page:
            print(page.read().decode().strip())
    except urllib.error.HTTPError as failure:
        print(f"status {failure.code}")
    except OSError as failure:
        why = getattr(failure, "reason", failure)
        kinds = [(ConnectionRefusedError, "refused"), (TimeoutError, "timeout"), (ConnectionError, "closed")]
        print(next((word for kind, word in kinds if isinstance(why, kind)), "unreachable"))


if sys.argv[1:2] == ["serve"]:
    serve(*sys.argv[2:4])
elif sys.argv[1:2] == ["fetch"]:
    fetch(sys.argv[2])
else:
    sys.exit(__doc__)
