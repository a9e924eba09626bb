# SPDX-License-Identifier: Apache-2.0
"""The kernel for machines of those who have not built one: Debian's cloud kernel, with the modules that machines need.

`unpack` fetches the package, takes the kernel out of its wrapping where the VMM starts it unwrapped, and resolves the
order in which modules are loaded. `initramfs` puts these modules into its images; a kernel of our own needs none.
"""

import lzma
import os
import re
import shutil
import struct
import subprocess

import debian
from debian import Failure

SUITE = "trixie"
META = {"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}

# What every machine needs. Names as modprobe(8) takes them; what the kernel has built in is skipped.
BOTH = [
    "virtio_pci", "virtio_mmio", "vmw_vsock_virtio_transport", "vsock_diag", "virtio_rng", "virtio_balloon", "virtio_blk",
    "virtio_net", "virtio_console", "virtiofs", "overlay", "erofs", "ext4", "tun", "veth", "unix_diag", "inet_diag",
    "tcp_diag", "udp_diag", "af_packet", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir",
    "nft_reject_inet", "nft_limit", "nft_log", "nft_fib_inet", "nft_numgen", "nft_hash",
]
# By image.
MODULES = {
    # iptables of an image, tc of a container that may.
    "vminit": BOTH + [
        "nft_compat", "xt_conntrack", "xt_comment", "xt_tcpudp", "xt_addrtype", "xt_multiport", "xt_MASQUERADE", "xt_nat",
        "bridge", "macvlan", "8021q", "sch_netem", "sch_tbf",
    ],
    "helpervm": BOTH + [
        "openvswitch", "vport-geneve", "vport-vxlan", "nf_conntrack_netlink", "nf_nat", "sch_htb", "sch_ingress", "sch_fq_codel",
        "cls_basic", "cls_matchall", "cls_flower", "cls_u32", "act_police", "act_gact", "act_mirred", "nft_fwd_netdev",
    ],
}


def unpack(arch, out, apt_folder):
    """Folder with `vmlinux`, `config`, `release` and `modules/` of Debian's kernel; fetched once per version."""
    architecture = debian.architecture(arch)
    target = os.path.join(out, "debian", arch)
    suite = debian.Suite(SUITE, apt_folder, architecture)
    package = real_package(suite, META[architecture])
    stamp = os.path.join(target, "package")
    if os.path.exists(stamp) and open(stamp, encoding="utf-8").read() == package + RECIPE:
        return target
    print(f"kernel: fetching {package} of Debian {SUITE}", flush=True)
    stage = target + ".new"
    shutil.rmtree(stage, ignore_errors=True)
    tree = os.path.join(stage, "tree")
    suite.unpack([package], tree)
    release = package.removeprefix("linux-image-")
    with open(f"{tree}/boot/vmlinuz-{release}", "rb") as stream:
        kernel = stream.read()
    write(os.path.join(stage, "vmlinux"), unwrapped(kernel) if architecture == "amd64" else kernel)
    shutil.copy(f"{tree}/boot/config-{release}", os.path.join(stage, "config"))
    write(os.path.join(stage, "release"), release.encode())
    os.makedirs(os.path.join(stage, "modules"))
    top = next(path for path in (f"{tree}/usr/lib/modules/{release}", f"{tree}/lib/modules/{release}") if os.path.isdir(path))
    wanted = sorted({name for names in MODULES.values() for name in names})
    for name, path in resolve(top, wanted):
        write(os.path.join(stage, "modules", name + ".ko"), read_module(path))
    shutil.copy(os.path.join(top, "modules.builtin"), stage)
    write(os.path.join(stage, "package"), (package + RECIPE).encode())
    shutil.rmtree(tree)
    # Images of another version would not find their modules.
    shutil.rmtree(target, ignore_errors=True)
    os.rename(stage, target)
    return target


def load_order(folder, image):
    """Module files of an image, in the order of loading."""
    available = {plain(name[:-3]): os.path.join(folder, "modules", name) for name in os.listdir(folder + "/modules")}
    order = []
    for name in MODULES[image]:
        _append(plain(name), available, order, ())
    return order


def _append(name, available, order, above):
    path = available.get(name)
    if path is None or path in order or name in above:
        return
    with open(path, "rb") as stream:
        data = stream.read()
    for other in depends(data):
        _append(other, available, order, (*above, name))
    order.append(path)


def real_package(suite, meta):
    """The package that Debian's name for `the current kernel` stands for."""
    suite.update()
    text = suite.show(meta)
    found = re.search(r"^Depends: (linux-image-[^ ,]+)", text, re.M)
    if not found:
        raise Failure(f"{meta} of Debian {SUITE} names no kernel")
    return found.group(1)


def resolve(top, wanted):
    """(name, file) of the wanted modules and of all that they depend on; those built in are left out."""
    files = {}
    for folder, _, names in os.walk(os.path.join(top, "kernel")):
        for name in names:
            if re.search(r"\.ko(\.xz|\.zst)?$", name):
                files[plain(name.split(".ko")[0])] = os.path.join(folder, name)
    with open(os.path.join(top, "modules.builtin"), encoding="utf-8") as stream:
        built_in = {plain(os.path.basename(line.strip()).removesuffix(".ko")) for line in stream}
    found, queue = {}, [plain(name) for name in wanted]
    while queue:
        name = queue.pop()
        if name in found or name in built_in:
            continue
        if name not in files:
            # Options that are part of another file (af_packet, virtiofs) have no entry of their own.
            if name in {plain(item) for item in wanted}:
                continue
            raise Failure(f"Debian's kernel has no module {name}, which another needs")
        found[name] = files[name]
        queue += depends(read_module(files[name]))
    return sorted(found.items())


def plain(name):
    """modprobe takes both."""
    return name.replace("-", "_")


def depends(module):
    """Names in a module's own list of what it needs (.modinfo)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [plain(name) for name in found.group(1).decode().split(",") if name] if found else []


def read_module(path):
    """A module's bytes, uncompressed: the image is compressed as a whole."""
    with open(path, "rb") as stream:
        data = stream.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".zst"):
        return zstd(data)
    return data


def unwrapped(image):
    """The ELF file in a bzImage (Documentation/arch/x86/boot.rst): QEMU starts it without the guest unpacking it."""
    setup = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup + 1) * 512 + offset
    payload = image[start:start + length]
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        # The last four bytes are the unpacked size.
        return zstd(payload[:-4])
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.decompress(payload[:-4])
    raise Failure("Debian's kernel is compressed in a way that is not known here")


def zstd(data):
    """Unpacks by the program zstd."""
    done = subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise Failure(f"zstd: {done.stderr.decode().strip()}")
    return done.stdout


def write(path, data):
    """A whole file."""
    with open(path, "wb") as stream:
        stream.write(data)


# Part of the stamp: another recipe unpacks again.
RECIPE = "\n" + debian.hashlib.sha256(open(__file__, "rb").read()).hexdigest()
