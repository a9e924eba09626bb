# SPDX-License-Identifier: Apache-2.0
"""Drives the engine of DOCKER_HOST with docker-py as its users do: networks, containers, exec, streams, events, files.

Called by tests/e2e/clients.rs with the interpreter that tests/clients/prepare made. Ends with 0 and `docker-py: done`,
or with the assertion that failed; whoever called it removes what a failure leaves.
"""

import io
import socket
import tarfile
import threading

import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import EndpointConfig, Healthcheck, IPAMConfig, IPAMPool, Mount

client = docker.from_env(timeout=60)
api = client.api


def engine():
    """Version, info, ping, images."""
    assert client.ping() is True
    assert client.version()["ApiVersion"] and client.info()["OSType"] == "linux"
    assert [image.tags for image in client.images.list()] == [["busybox:latest"]]
    try:
        client.images.get("no-such-image")
        raise AssertionError("an image that is not there was found")
    except ImageNotFound:
        pass


def runs():
    """`containers.run`: output, exit codes, errors, automatic removal."""
    assert client.containers.run("busybox", ["echo", "hello"], remove=True) == b"hello\n"
    both = client.containers.run("busybox", "sh -c 'echo out; echo err >&2'", stdout=True, stderr=True, remove=True)
    assert sorted(both.split()) == [b"err", b"out"], both
    try:
        client.containers.run("busybox", "sh -c 'echo bad >&2; exit 9'", remove=True)
        raise AssertionError("exit code 9 was no error")
    except ContainerError as error:
        assert (error.exit_status, error.stderr) == (9, b"bad\n")
    try:
        client.containers.run("busybox", "nosuchprogram", remove=True)
        raise AssertionError("a program that is not there ran")
    except APIError as error:
        assert "executable file not found" in error.explanation, error
    # What was made and could not start is the client's to remove.
    left = client.containers.list(all=True)
    assert [container.status for container in left] == ["created"]
    left[0].remove()
    assert client.containers.list(all=True) == []


def networks():
    """Create with pools, connect with addresses and aliases, inspect, disconnect, conflicts, prune."""
    pool = IPAMPool(subnet="10.88.0.0/24", gateway="10.88.0.1", iprange="10.88.0.128/25")
    one = client.networks.create("py-one", ipam=IPAMConfig(pool_configs=[pool]), labels={"of": "py"})
    two = client.networks.create("py-two", internal=True)
    assert {network.name for network in client.networks.list(filters={"type": "custom"})} == {"py-one", "py-two"}
    assert [network.id for network in client.networks.list(filters={"label": "of=py"})] == [one.id]
    server = client.containers.create(
        "busybox", "httpd -f -p 80 -h /etc", name="py-server", network="py-one",
        networking_config={"py-one": EndpointConfig("1.45", aliases=["files"], ipv4_address="10.88.0.10")},
        healthcheck=Healthcheck(test=["CMD-SHELL", "wget -q -O - http://127.0.0.1/hostname"],
                                interval=60_000_000_000, start_period=60_000_000_000, start_interval=100_000_000))
    seen = events({"container": "py-server", "event": ["start", "health_status"]}, 2, server.start)
    assert [event["Action"] for event in seen] == ["start", "health_status: healthy"], seen
    server.reload()
    assert server.status == "running" and server.health == "healthy"
    assert server.attrs["NetworkSettings"]["Networks"]["py-one"]["IPAddress"] == "10.88.0.10"
    read = ["wget", "-q", "-O", "-", "http://files/hostname"]
    assert client.containers.run("busybox", read, network="py-one", remove=True).decode().strip() == server.short_id
    two.connect(server, aliases=["again"])
    read[-1] = "http://again/hostname"
    assert client.containers.run("busybox", read, network="py-two", remove=True).decode().strip() == server.short_id
    two.reload()
    assert [container.id for container in two.containers] == [server.id]
    two.disconnect(server)
    two.reload()
    assert two.containers == []
    try:
        one.remove()
        raise AssertionError("a network in use was removed")
    except APIError as error:
        assert error.status_code == 403 and "has active endpoints" in error.explanation, error
    server.remove(force=True)
    one.remove()
    assert client.networks.prune()["NetworksDeleted"] == ["py-two"]
    try:
        client.networks.get("py-one")
        raise AssertionError("a removed network was found")
    except NotFound:
        pass


def execs():
    """Exec: exit code, streams apart, environment, user, input and its end."""
    box = client.containers.run("busybox", "sleep 1000", name="py-exec", detach=True)
    assert box.exec_run("sh -c 'exit 4'").exit_code == 4
    assert said(box, "echo $A; id -u; exit 5", environment={"A": "b"}, user="65534") == (5, b"b\n65534\n", b"")
    assert said(box, "echo out; echo err >&2") == (0, b"out\n", b"err\n")
    made = api.exec_create(box.id, "cat", stdin=True)
    raw = plain(api.exec_start(made["Id"], socket=True))
    raw.sendall(b"there and back\n")
    raw.shutdown(socket.SHUT_WR)
    assert frames(raw) == {1: b"there and back\n"}
    assert api.exec_inspect(made["Id"])["ExitCode"] == 0
    assert "sleep" in str(box.top()["Processes"])
    box.remove(force=True)


def streams():
    """Logs (whole, tail, follow), attach over a socket with input, wait, a terminal's size."""
    box = client.containers.create("busybox", "sh -c 'while read line; do echo got $line; done; exit 3'",
                                   name="py-attach", stdin_open=True)
    raw = plain(box.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}))
    box.start()
    raw.sendall(b"one\ntwo\n")
    follow, seen = box.logs(stream=True, follow=True), b""
    while seen.count(b"\n") < 2:
        seen += next(follow)
    box.kill()
    assert box.wait()["StatusCode"] == 137
    assert frames(raw) == {1: b"got one\ngot two\n"}
    assert seen + b"".join(follow) == b"got one\ngot two\n"
    assert box.logs() == b"got one\ngot two\n" and box.logs(tail=1) == b"got two\n"
    stamped = box.logs(timestamps=True).splitlines()
    assert len(stamped) == 2 and b"T" in stamped[0].split()[0]
    box.remove()


def lifecycle():
    """Rename, pause, restart, stop, filters, volumes and mounts, prune."""
    volume = client.volumes.create("py-volume", labels={"of": "py"})
    box = client.containers.run("busybox", "sh -c 'trap \"exit 0\" TERM; while :; do sleep 1000 & wait; done'",
                                name="py-life", detach=True, labels={"of": "py"}, environment=["A=b"],
                                mounts=[Mount("/data", "py-volume")], tmpfs={"/scratch": "size=1m"}, mem_limit="32m")
    box.rename("py-other")
    assert [found.name for found in client.containers.list(filters={"label": "of=py"})] == ["py-other"]
    box.pause()
    assert client.containers.get("py-other").status == "paused"
    box.unpause()
    assert box.exec_run("sh -c 'echo kept >/data/file'").exit_code == 0
    box.restart(timeout=0)
    assert said(box, "cat /data/file") == (0, b"kept\n", b"")
    box.stop(timeout=30)
    box.reload()
    assert box.status == "exited" and box.attrs["HostConfig"]["Memory"] == 32 << 20
    assert client.containers.prune(filters={"label": "of=py"})["ContainersDeleted"] == [box.id]
    assert [found.name for found in client.volumes.list(filters={"label": "of=py"})] == ["py-volume"]
    volume.remove()


def files():
    """Archives both ways, changes, export; stats and update."""
    box = client.containers.run("busybox", "sleep 1000", name="py-files", detach=True, mem_limit="64m")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("made/by")
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"python"))
    assert box.put_archive("/tmp", data.getvalue()) is True
    stream, facts = box.get_archive("/tmp/made")
    assert facts["name"] == "made" and facts["mode"] >> 31 == 1, facts
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        assert tar.extractfile("made/by").read() == b"python"
    try:
        box.get_archive("/nope")
        raise AssertionError("a path that is not there was found")
    except NotFound:
        pass
    assert {"Path": "/tmp/made/by", "Kind": 1} in box.diff()
    with tarfile.open(fileobj=io.BytesIO(b"".join(box.export()))) as tar:
        assert {"tmp/made/by", "bin/busybox"} <= set(tar.getnames())
    now = box.stats(stream=False)
    assert now["memory_stats"]["limit"] == 64 << 20 and now["pids_stats"]["current"] == 1, now
    assert now["read"] > now["preread"] > "2", "two samples"
    lines = box.stats(stream=True, decode=True)
    assert next(lines)["name"] == next(lines)["name"] == "/py-files"
    lines.close()
    box.update(mem_limit="32m", memswap_limit="48m", restart_policy={"Name": "always"})
    box.reload()
    assert box.attrs["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert box.stats(stream=False)["memory_stats"]["limit"] == 32 << 20
    assert {volume["Name"] for volume in client.df()["Volumes"] or []} == set()
    box.remove(force=True)


def events(filters, count, act):
    """The first events that `act` causes."""
    seen, stream = [], client.events(decode=True, filters=filters)

    def listen():
        for event in stream:
            seen.append(event)
            if len(seen) == count:
                return

    listener = threading.Thread(target=listen)
    listener.start()
    act()
    listener.join(60)
    stream.close()
    assert len(seen) == count, seen
    return seen


def plain(stream):
    """The socket below what docker-py gives."""
    return getattr(stream, "_sock", stream)


def said(box, script, **how):
    """Exit code and both outputs of a shell line. It begins when it is told to: docker-py drops what comes in one piece
    with the headers."""
    made = api.exec_create(box.id, ["sh", "-c", "read go; " + script], stdin=True, **how)
    raw = plain(api.exec_start(made["Id"], socket=True))
    raw.sendall(b"go\n")
    out = frames(raw)
    return api.exec_inspect(made["Id"])["ExitCode"], out.get(1, b""), out.get(2, b"")


def frames(raw):
    """What a multiplexed connection says until its end, by stream."""
    data, out = b"", {}
    raw.settimeout(60)
    while piece := raw.recv(65536):
        data += piece
    while data:
        length = int.from_bytes(data[4:8], "big")
        out[data[0]] = out.get(data[0], b"") + data[8:8 + length]
        data = data[8 + length:]
    raw.close()
    return out


for part in (engine, runs, networks, execs, streams, lifecycle, files):
    part()
    print(f"docker-py: {part.__name__}", flush=True)
print("docker-py: done")
