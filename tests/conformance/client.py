# SPDX-License-Identifier: Apache-2.0
"""Asks one engine what a case file says: shell lines with the docker CLI, raw HTTP over its unix socket.

Used by `run`. An answer is a plain structure (code, stdout, stderr; or status, headers, body) so that two engines'
answers can be compared field by field.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import urllib.parse

TIMEOUT = 30
# Left as they are in a path: what has a meaning there, and escapes.
SAFE = "/?&=%:@!*,+~-._"
# Headers whose presence and value belong to the API.
HEADERS = ("api-version", "builder-version", "cache-control", "content-type", "docker-experimental", "ostype", "pragma",
           "swarm", "upgrade", "connection", "docker-swarm")


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def parse_body(data, kind):
    """JSON where it is JSON (several values: a list of lines), frames of a multiplexed stream, else text."""
    text = data.decode("utf-8", "replace")
    if "multiplexed" in kind:
        return frames(data)
    if "json" in kind:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            return json.loads(text)
        except ValueError:
            try:
                return [json.loads(line) for line in lines]
            except ValueError:
                pass
    return text


def frames(data):
    """[(stream, text)] of a multiplexed stream, neighbours of one stream joined; what is no frame is kept as text."""
    out = []
    while data:
        if len(data) < 8 or data[0] > 3 or data[1:4] != b"\0\0\0":
            out.append(["raw", data.decode("utf-8", "replace")])
            break
        length = int.from_bytes(data[4:8], "big")
        stream, piece = ["stdin", "stdout", "stderr", "system"][data[0]], data[8:8 + length].decode("utf-8", "replace")
        data = data[8 + length:]
        if out and out[-1][0] == stream:
            out[-1][1] += piece
        else:
            out.append([stream, piece])
    return out


class Client:
    """One engine, and the variables its answers gave (`let X = ...`)."""

    def __init__(self, socket_path, folder, places):
        self.socket = socket_path
        self.places = places
        self.folder = folder
        self.variables = {}
        self.number = 0

    def environment(self):
        """What shell lines see: docker talks to this engine; HOST and OUTSIDE fetch a page at its host and beyond."""
        return {**os.environ, "DOCKER_HOST": "unix://" + self.socket, "DOCKER_CONFIG": self.folder, "LC_ALL": "C",
                "DOCKER_CLI_HINTS": "false", **self.places, **self.variables}

    def shell(self, line):
        """Runs a shell line; output and exit code."""
        try:
            done = subprocess.run(["bash", "-c", line], env=self.environment(), stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=TIMEOUT, cwd=self.folder, check=False)
        except subprocess.TimeoutExpired as late:
            return {"code": "timeout", "stdout": text(late.stdout), "stderr": text(late.stderr)}
        return {"code": done.returncode, "stdout": structure(text(done.stdout)), "stderr": text(done.stderr)}

    def http(self, method, path, body=None, headers=None):
        """One request; a JSON body brings its content type unless headers say otherwise."""
        connection = Connection(self.socket)
        sent = {"Content-Type": "application/json"} if body is not None and headers is None else dict(headers or {})
        try:
            body = body.encode() if body is not None else None
            connection.request(method, urllib.parse.quote(path, safe=SAFE), body=body, headers=sent)
            answer = connection.getresponse()
            kind = answer.getheader("Content-Type", "")
            head = {name: answer.getheader(name) for name in HEADERS if answer.getheader(name) is not None}
            return {"status": answer.status, "headers": head, "body": parse_body(answer.read(), kind)}
        except (OSError, http.client.HTTPException) as failure:
            return {"status": "none", "error": type(failure).__name__}
        finally:
            connection.close()

    def hijack(self, path, words, body):
        """Takes a connection over (attach, exec start), sends `words`, half-closes, reads to the end."""
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(8)
        stream.connect(self.socket)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                piece = stream.recv(65536)
                if not piece:
                    break
                data += piece
            stream.sendall(words.encode())
            stream.shutdown(socket.SHUT_WR)
            while piece := stream.recv(65536):
                data += piece
            end = "closed"
        except TimeoutError:
            end = "open"
        except (BrokenPipeError, ConnectionResetError):
            # The engine had ended it before all was sent.
            end = "closed"
        except OSError as failure:
            end = type(failure).__name__
        stream.close()
        first, _, rest = data.partition(b"\r\n\r\n")
        lines = first.decode("latin-1").split("\r\n")
        pairs = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        kept = {name: value for name, value in pairs.items() if name in HEADERS}
        output = frames(rest) if "101" in lines[0] and "raw" not in pairs.get("content-type", "") else rest.decode()
        return {"status": lines[0], "headers": kept, "output": output, "end": end}

    def step(self, line):
        """Runs one line of a case file."""
        name = None
        self.number += "$N" in line
        line = line.replace("$N", str(self.number))
        if match := re.match(r"let (\w+) = (.*)", line, re.S):
            name, line = match.groups()
        for variable, value in self.variables.items():
            if not line.startswith("$ "):
                line = line.replace("$" + variable, value)
        if line.startswith("$ "):
            answer = self.shell(line[2:])
            found = str(answer["stdout"]).strip()
        elif match := re.match(r"HIJACK (\S+)(?: (\{.*?\}))?(?: <<(.*))?$", line, re.S):
            words = (match[3] or "").encode().decode("unicode_escape")
            answer, found = self.hijack(match[1], words, match[2] or ""), ""
        elif match := re.match(r"([A-Z]+) (\S+)(?: \[(.*?)\])?(?: (.*))?$", line, re.S):
            headers = None if match[3] is None else dict(part.split(": ", 1) for part in match[3].split("; ") if part)
            answer = self.http(match[1], match[2], match[4], headers)
            body = answer.get("body")
            found = body.get("Id", "") if isinstance(body, dict) else ""
        else:
            raise ValueError(f"not a case: {line}")
        if name:
            self.variables[name] = found
            return {key: answer[key] for key in ("code", "status") if key in answer}
        return answer

    def clean(self):
        """Removes what a group left behind; images but the test image too."""
        self.variables = {}
        self.shell("docker rm -f -v $(docker ps -aq) ; docker network rm $(docker network ls -q --filter type=custom);"
                   "docker volume rm $(docker volume ls -q);"
                   "docker rmi -f $(docker images --format '{{.Repository}}:{{.Tag}} {{.ID}}' | "
                   "sed -e '/^busybox:latest /d' -e 's/^<none>.* //' -e 's/ .*//')")


def text(data):
    """Output as text."""
    return (data or b"").decode("utf-8", "replace")


def structure(output):
    """Output that is JSON line by line as its values, so that their fields are compared; else as it is."""
    try:
        values = [json.loads(line) for line in output.splitlines()]
    except ValueError:
        return output
    return values if any(isinstance(value, (dict, list)) for value in values) else output
