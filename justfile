# SPDX-License-Identifier: Apache-2.0
# Every recipe of the project. Run them as `./dev RECIPE`, which installs what is missing first.

set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

tree := justfile_directory()
target := env("CARGO_TARGET_DIR", tree / "target")
guest_target := arch() + "-unknown-linux-musl"
guest_dir := target / guest_target / "guest"
cache := tree / ".cache"
guests := "-p arca-init -p arca-tapfwd -p arca-helper-agent"

export CARGO_TARGET_DIR := target
# Guest programs are the same bytes wherever the tree, the target folder and cargo's home lie.
unplaced := "--remap-path-prefix=" + env("CARGO_HOME", home_directory() / ".cargo") + "=cargo" \
    + " --remap-path-prefix=" + tree + "=." + " --remap-path-prefix=" + target + "=target"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS := unplaced
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS := unplaced
# Where hosts find what they boot machines with.
export ARCA_GUEST_DIR := env("ARCA_GUEST_DIR", guest_dir)
export ARCA_HELPER_ROOT := env("ARCA_HELPER_ROOT", cache / "helper-image/rootfs")
export ARCA_KERNEL_PATH := env("ARCA_KERNEL_PATH", cache / "vm/vmlinux")
export ARCA_INIT_IMAGE := env("ARCA_INIT_IMAGE", cache / "vm/vminit")
export ARCA_HELPER_IMAGE := env("ARCA_HELPER_IMAGE", cache / "vm/helpervm")
export ARCA_VM_TOOLS := env("ARCA_VM_TOOLS", cache / "vm/tools")
# The engine of `up` lives beside an installed one: files and sockets of its own, below a short path.
export ARCA_HOME := env("ARCA_HOME", env("HOME", "/root") / ".cache/arca-dev")

# List the recipes
default:
    @just --list

# Build everything: host programs (release), guest programs (static), helper image
build: hosts guests image

# Build the host programs; they find the guest programs through the link `guest` beside them
hosts:
    cargo build --locked --release --workspace --bins --exclude arca-tests {{ replace(guests, "-p", "--exclude") }}
    ln -sfn ../{{ guest_target }}/guest {{ target }}/release/guest

# Build the guest programs: static, without C and without TLS
guests:
    cargo build --locked --profile guest --target {{ guest_target }} {{ guests }}

# Build the helper machine's image with the agent in it (incremental)
image: guests
    helpervm-image/build --quiet --agent {{ guest_dir }}/arca-helper-agent

# Build the kernel of virtual machines from Debian's source, verify it, install it as ~/.arca/vmlinux: [x86_64|arm64]
kernel *arguments:
    kernel-config/build --install {{ env("HOME", "/root") }}/.arca/vmlinux "$@"

# Build the image that container machines boot: arca-init, arca-tapfwd, crun, nft: [x86_64|arm64] [--install FILE]
vminit arch=arch() *arguments: (vm-guests arch)
    helpervm-image/initramfs vminit "$1" --guests {{ target }}/{{ replace(arch, "arm64", "aarch64") }}-unknown-linux-musl/guest "${@:2}"

# Build the image that the helper machine boots: OVS, OVN, arca-helper-agent: [x86_64|arm64] [--install FILE]
helpervm arch=arch() *arguments: (vm-guests arch)
    helpervm-image/build --quiet --arch "$1" --agent {{ target }}/{{ replace(arch, "arm64", "aarch64") }}-unknown-linux-musl/guest/arca-helper-agent --out {{ cache }}/helper-image{{ if replace(arch, "arm64", "aarch64") == arch() { "" } else { "-" + arch } }}
    helpervm-image/initramfs helpervm "$1" --root {{ cache }}/helper-image{{ if replace(arch, "arm64", "aarch64") == arch() { "" } else { "-" + arch } }}/rootfs --guests {{ target }}/{{ replace(arch, "arm64", "aarch64") }}-unknown-linux-musl/guest "${@:2}"

# Build all that virtual machines boot with: Debian's kernel unless there is one of ours, and both images
vm: (vminit arch() "--quiet") (helpervm arch() "--quiet")

# Build the guest programs for an architecture
[private]
vm-guests arch:
    @CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER={{ if arch() == "aarch64" { "cc" } else { "aarch64-linux-gnu-gcc" } }} \
        cargo build --locked --profile guest --target {{ replace(arch, "arm64", "aarch64") }}-unknown-linux-musl {{ guests }}

# Make the small busybox image for `docker load` (prints its path)
test-image:
    tests/images/busybox

# Run an engine in the foreground; prints DOCKER_HOST=unix://...
up: build
    {{ target }}/release/arca daemon run

# Stop the engine of `up` with its containers and its helper machine
down:
    {{ target }}/release/arca daemon stop --all

# Play the story on an engine of its own, with the real docker CLI; cleans up: [--machine vm] makes every machine a virtual one
demo *arguments: build test-image
    case " $* " in *" --machine vm "*) just --justfile {{ justfile() }} vm ;; esac
    tests/demo/run "$@"

# Run every test: prepares with network, then tests without; ends with the count. --machine vm: those of containers, in VMs
[no-exit-message]
test *arguments:
    tests/checks/suite "$@"

# Compare with Docker's own engine: the same requests to both; unwanted differences fail
conformance *arguments: build test-image
    ARCA_BIN_DIR={{ target }}/release tests/conformance/run "$@"

# Measure against the budgets (a bench prints, it does not fail); `bench path` compares carriers and peers, `bench scale` many endpoints
bench *arguments: build test-image
    which=figures; case "${1-}" in path | scale) which=$1; shift ;; esac; \
        ARCA_BIN_DIR={{ target }}/release cargo bench --locked -p arca-tests --bench "$which" -- "$@"

# Make the pages of docs/ that are made from the sources
docs:
    cargo run --locked --quiet -p arca-api --bin arca -- config reference > docs/configuration.md

# Walk a random sequence of operations against a model, in memory and with a whole engine
model seed="1" steps="300": build test-image
    ARCA_MODEL_SEED={{ seed }} ARCA_MODEL_STEPS={{ steps }} cargo test --locked -q -p arca-netd --test engine model
    ARCA_MODEL_SEED={{ seed }} ARCA_MODEL_STEPS={{ steps }} ARCA_BIN_DIR={{ target }}/release \
        cargo test --locked -q -p arca-tests --test e2e -- model::

# Run the fuzz targets longer than the tests do: seconds for each target
fuzz seconds="60":
    tests/checks/fuzz {{ seconds }}

# Static checks: format, clippy, arrows, licences, macOS types
check: format clippy tree-checks deny macos

# Check the formatting
format:
    cargo fmt --all --check

# Lint everything; warnings are errors
clippy:
    cargo clippy --locked --workspace --all-targets -- -D warnings

# Check the tree itself: crate arrows, file length, licence heads, shell scripts
tree-checks:
    tests/checks/all

# Check licences, sources and advisories of the dependencies (needs cargo-deny)
deny:
    @if cargo deny --version >/dev/null 2>&1; then cargo deny --locked --offline check bans licenses sources; \
    else echo "SKIP deny: cargo-deny is not installed (cargo install --locked cargo-deny)"; fi

# Sign the macOS machines' keeper with its entitlement (ad hoc; say an identity for another); after every build
sign identity="-":
    packaging/macos/sign {{ target }}/release/arca-vz {{ identity }}

# Type-check for macOS the crates that run there
macos:
    @tests/checks/macos
