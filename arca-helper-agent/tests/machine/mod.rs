// SPDX-License-Identifier: Apache-2.0
//! A helper machine for tests: the real image below an overlay, the agent of this build, in namespaces of its own. The
//! test itself runs in a sandbox (network, mount and pid namespace), so one kill ends everything and nothing stays.

// A test may fail where it stands, says when it skips, and each test program uses its part of this.
#![allow(clippy::unwrap_used, clippy::print_stdout, unreachable_pub, dead_code)]

pub mod wire;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arca_helper_agent::status::{Supervised, supervised};
use arca_proto::dial::{Address, channel};
use arca_proto::helper::v1::helper_client::HelperClient;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tonic::transport::Channel;

const SANDBOX: &str = "ARCA_TEST_SANDBOX";

/// Runs `body` in a sandbox: this very test, started again in namespaces. SKIPs without root or without an image.
pub fn in_sandbox(test: &str, body: impl AsyncFnOnce(Machine)) {
    let root = std::env::var_os("ARCA_HELPER_ROOT").map(PathBuf::from);
    let Some(root) = root.filter(|root| root.join("usr/sbin/ovs-vswitchd").exists()) else {
        println!("SKIP {test}: ARCA_HELPER_ROOT names no helper image");
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root to make namespaces");
        return;
    }
    if std::env::var_os(SANDBOX).is_none() {
        let status = Command::new("timeout")
            .args(["120", "unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"])
            .args(["--mount-proc", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(SANDBOX, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{test} failed in its sandbox");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { body(Machine::boot(&root).await).await });
}

/// The root: image below, tmpfs above; libgcc because the agent of a test build is not static. Image and agent are
/// opened first: they may lie below the /tmp that is hidden here.
const PREPARE: &str = r#"
set -e
exec 8<"$ROOT" 9<"$AGENT"
mount -t tmpfs tmpfs /tmp
mkdir -p /tmp/u /tmp/w /tmp/r /tmp/s /tmp/d
mount -t overlay overlay -o "lowerdir=/proc/self/fd/8,upperdir=/tmp/u,workdir=/tmp/w" /tmp/r
for folder in proc sys dev run vsock var/lib/arca tmp; do mkdir -p /tmp/r/$folder; done
cp /proc/self/fd/9 /tmp/r/sbin/arca-helper-agent
for library in /lib/*/libgcc_s.so.1; do cp "$library" /tmp/r/usr/lib/; done
mount --bind /tmp/s /tmp/r/vsock
mount --bind /tmp/d /tmp/r/var/lib/arca
mount -t tmpfs tmpfs /tmp/r/dev
for node in null:1:3 zero:1:5 random:1:8 urandom:1:9; do
    IFS=: read -r name major minor <<END
$node
END
    mknod "/tmp/r/dev/$name" c "$major" "$minor"
done
ip link set lo up
"#;
const BOOT: &str = "mount -t sysfs sysfs /tmp/r/sys && mount -t tmpfs tmpfs /tmp/r/run && \
                    exec chroot /tmp/r /sbin/arca-helper-agent init --listen=sockets:/vsock --log-level=warn";

pub struct Machine {
    keeper: Child,
    /// Process id of the machine's first process, as seen here.
    pub init: u32,
    /// From spawn to READY.
    pub ready: Duration,
    /// When it was spawned.
    pub spawned: Instant,
}

impl Machine {
    async fn boot(root: &Path) -> Self {
        // The static guest program where there is one, else the one that cargo has built for this test.
        let guest = std::env::var_os("ARCA_GUEST_DIR").map(|dir| PathBuf::from(dir).join("arca-helper-agent"));
        let agent = guest.unwrap_or_else(|| env!("CARGO_BIN_EXE_arca-helper-agent").into());
        let agent = agent.display();
        run("sh", &["-c", &format!("ROOT='{}' AGENT='{agent}'\n{PREPARE}", root.canonicalize().unwrap().display())]);
        Self::start().await
    }

    /// Boots (again) on what is in /tmp.
    pub async fn start() -> Self {
        let _ = std::fs::remove_file("/tmp/s/9000");
        let host = UnixListener::bind("/tmp/s/9000").unwrap();
        let spawned = Instant::now();
        let keeper = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"])
            .args(["--mount-proc=/tmp/r/proc", "sh", "-c", BOOT])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        let ready = async { host.accept().await.unwrap().0.read_exact(&mut word).await.unwrap() };
        tokio::time::timeout(Duration::from_secs(10), ready).await.expect("READY within 10 s");
        assert_eq!(&word, b"READY\n");
        let ready = spawned.elapsed();
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.id())).unwrap();
        let init = children.trim().parse().unwrap();
        Self { keeper, init, ready, spawned }
    }

    pub fn address() -> Address {
        Address::Sockets("/tmp/s".into())
    }

    pub fn client() -> HelperClient<Channel> {
        HelperClient::new(channel(&Self::address(), arca_proto::ports::HELPER))
    }

    /// A path inside, reached from here.
    pub fn inside(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.init).into()
    }

    /// Runs a program of this machine in the helper's network namespace; gives its output.
    pub fn in_network(&self, program: &str) -> String {
        run("nsenter", &["-n", "-t", &self.init.to_string(), "sh", "-c", program])
    }

    pub async fn supervised(&self) -> Supervised {
        supervised(&self.inside("/run/arca-supervisor.sock")).await.expect("the supervisor answers")
    }

    /// Kills a program of the machine by its pid inside.
    pub fn kill(&self, pid: u32) {
        let inner = pid.to_string();
        let found = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let outer: i32 = entry.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
            let pids: Vec<_> = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?.split_whitespace().collect();
            (pids.len() > 1 && pids.last() == Some(&inner.as_str())).then_some(outer)
        });
        let outer = nix::unistd::Pid::from_raw(found.expect("the process is there"));
        nix::sys::signal::kill(outer, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// SIGTERM: exit code and time.
    pub async fn stop(&mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        let init = nix::unistd::Pid::from_raw(i32::try_from(self.init).unwrap());
        nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = loop {
            if let Some(status) = self.keeper.try_wait().unwrap() {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        (status.code(), started.elapsed())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Runs a program that must succeed; gives its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tries until `attempt` gives something; fails the test after `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
