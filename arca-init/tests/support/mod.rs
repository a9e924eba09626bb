// SPDX-License-Identifier: Apache-2.0
//! What the tests of arca-init share: private namespaces, a machine launched as arca-api does it, a small root.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use arca_machine::{ContainerSpec, Kind, Machine, Machines, Network};
use arca_proto::{
    init::v1::{
        AttachInput, AttachOpen, AttachOutput, CreateWorkloadRequest, ExecRequest, OverlayRoot, ProcessRef,
        StartWorkloadRequest, WaitRequest, attach_input, attach_output, init_client::InitClient,
    },
    machine::v1::ExitStatus,
    ports,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

const INSIDE: &str = "ARCA_TEST_INSIDE";
const BUSYBOX: &str = "/bin/busybox";

/// Runs `test` in namespaces of its own, where its end ends everything it started. `name` is the test's name.
pub fn private(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_none() {
        if let Some(reason) = unsuitable() {
            eprintln!("SKIP {name}: {reason}");
            return;
        }
        // Unique in this process by the name, on this machine by the process.
        let sum = name.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let tag = format!("{:x}-{sum:x}", std::process::id());
        let inside = Command::new("unshare")
            .args(["-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().expect("own path"))
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env(INSIDE, &tag)
            .status()
            .expect("run unshare");
        // After a failure what is outside the namespaces must go too.
        let _ = fs::remove_dir_all(folder(&tag));
        for cgroup in cgroups(&cgroup(&tag)) {
            for below in fs::read_dir(&cgroup).expect("read cgroup").flatten().filter(|entry| entry.path().is_dir()) {
                let _ = fs::remove_dir(below.path());
            }
            let _ = fs::remove_dir(cgroup);
        }
        assert!(inside.success(), "{name} failed inside its namespaces");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test takes too long");
    });
}

/// The only folder that a test writes to; short for the sake of socket paths.
pub fn folder(tag: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/ai-{tag}"))
}

/// Path of a test's cgroups below each hierarchy's root.
fn cgroup(tag: &str) -> String {
    format!("arca/test-{tag}")
}

/// Names this test's run.
pub fn tag() -> String {
    std::env::var(INSIDE).expect("inside the namespaces")
}

fn unsuitable() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some("needs a static /bin/busybox".into());
    }
    let crun = std::env::var("ARCA_CRUN").unwrap_or_else(|_| "crun".into());
    Command::new(&crun).arg("--version").output().is_err().then(|| format!("needs {crun}"))
}

/// A machine and the folders that it uses.
pub struct Lab {
    pub machines: Machines,
    pub machine: Machine,
    pub client: InitClient<Channel>,
    /// Path of this test's cgroups below each hierarchy's root.
    pub cgroup: String,
    pub folder: PathBuf,
}

pub fn spec(folder: &Path, host_network: bool) -> ContainerSpec {
    ContainerSpec {
        id: "machine-under-test".into(),
        socket_directory: folder.join("s"),
        state_directory: folder.join("state"),
        guest_directory: folder.join("guest"),
        network: if host_network { Network::Host } else { Network::Links },
        size: arca_machine::Size::default(),
        environment: Vec::new(),
        log_level: "debug,h2=info".into(),
        ready_timeout: Duration::from_secs(10),
    }
}

/// Folders, guest programs and a root with busybox in it.
pub fn prepare(folder: &Path) {
    fs::create_dir_all(folder.join("guest")).expect("make folder");
    symlink(env!("CARGO_BIN_EXE_arca-init"), folder.join("guest/arca-init")).expect("link arca-init");
    let root = folder.join("lower");
    for part in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(part)).expect("make folder");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("copy busybox");
    let applets = "sh cat true false echo sleep ls id dd head stty tty kill yes printf env wc sha256sum trap nc ps";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet)).expect("link applet");
    }
    fs::write(root.join("bin/not-executable"), "#!/bin/sh\n").expect("write");
    fs::write(root.join("bin/garbage"), "garbage").expect("write");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("bin/garbage"), fs::Permissions::from_mode(0o755)).expect("chmod");
}

impl Lab {
    pub async fn new() -> Self {
        let folder = folder(&tag());
        prepare(&folder);
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        let machine = machines.launch_container(&spec(&folder, true)).await.expect("launch");
        Self::around(machines, machine)
    }

    pub fn around(machines: Machines, machine: Machine) -> Self {
        let client = InitClient::new(machine.channel(ports::INIT)).max_decoding_message_size(1 << 24);
        Self { machines, machine, client, cgroup: cgroup(&tag()), folder: folder(&tag()) }
    }

    /// A request to create workload `id` running `arguments`.
    pub fn request(&self, id: &str, arguments: &[&str]) -> CreateWorkloadRequest {
        let part = |name: &str| {
            let path = self.folder.join(id).join(name);
            fs::create_dir_all(&path).expect("make folder");
            path.to_string_lossy().into_owned()
        };
        CreateWorkloadRequest {
            workload_id: id.into(),
            oci_spec: oci(arguments, |_| {}),
            root: Some(OverlayRoot {
                lower_directories: vec![self.folder.join("lower").to_string_lossy().into_owned()],
                upper_directory: part("upper"),
                work_directory: part("work"),
            }),
            state_directory: part("state"),
            log_output: true,
            cgroup_path: format!("{}/{id}", self.cgroup),
            ..CreateWorkloadRequest::default()
        }
    }

    pub async fn start(&mut self, id: &str) {
        self.client.start_workload(StartWorkloadRequest { workload_id: id.into() }).await.expect("start");
    }

    pub async fn wait(&mut self, id: &str, exec: &str) -> ExitStatus {
        let request = WaitRequest { process: Some(process(id, exec)) };
        self.client.wait(request).await.expect("wait").into_inner().exit.expect("an exit")
    }

    pub async fn attach(&mut self, id: &str, exec: &str, stdin: bool) -> Attached {
        let (input, receiver) = mpsc::channel(4);
        let open = AttachOpen { process: Some(process(id, exec)), stdin, stdout: true, stderr: true };
        input.send(AttachInput { kind: Some(attach_input::Kind::Open(open)) }).await.expect("send");
        let mut output = self.client.attach(ReceiverStream::new(receiver)).await.expect("attach").into_inner();
        let first = output.message().await.expect("a message").expect("not the end");
        assert!(matches!(first.kind, Some(attach_output::Kind::Attached(_))), "{first:?}");
        Attached { input: Some(input), output, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// Creates, attaches to, starts and sees through one workload.
    pub async fn run(&mut self, id: &str, arguments: &[&str]) -> (ExitStatus, String, String) {
        let request = self.request(id, arguments);
        self.client.create_workload(request).await.expect("create");
        let attached = self.attach(id, "", false).await;
        self.start(id).await;
        let (exit, stdout, stderr) = attached.finish().await;
        assert_eq!(self.wait(id, "").await, exit, "Wait and Attach agree");
        (exit, String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned())
    }

    pub fn exec_request(&self, id: &str, exec: &str, arguments: &[&str]) -> ExecRequest {
        let spec: Value = serde_json::from_slice(&oci(arguments, |_| {})).expect("JSON");
        ExecRequest {
            process: Some(process(id, exec)),
            oci_process: spec["process"].to_string().into_bytes(),
            ..ExecRequest::default()
        }
    }

    /// Destroys the machine; everything must be gone then.
    pub async fn end(self) {
        self.machine.destroy(Duration::from_secs(2)).await.expect("destroy");
        self.machines
            .release_cgroups(&self.machine.record().guest_directory, &self.cgroup)
            .await
            .expect("release cgroups");
        self.assert_clean();
    }

    pub fn assert_clean(&self) {
        assert_eq!(cgroups(&self.cgroup), Vec::<PathBuf>::new(), "cgroups left");
        assert!(!self.folder.join("s").exists(), "socket directory left");
        assert!(!self.folder.join("state/machine.json").exists(), "machine record left");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("read mounts");
        assert!(!mounts.contains(self.folder.to_str().expect("UTF-8")), "mounts left: {mounts}");
        let mine = std::process::id();
        let others: Vec<String> = fs::read_dir("/proc")
            .expect("read /proc")
            .flatten()
            .filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok())
            .filter(|pid| *pid != mine && *pid != 1)
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(others, Vec::<String>::new(), "processes left");
    }
}

/// Every cgroup folder with this path.
pub fn cgroups(path: &str) -> Vec<PathBuf> {
    let roots = fs::read_dir("/sys/fs/cgroup").expect("read cgroups").flatten().map(|entry| entry.path());
    roots.chain([PathBuf::from("/sys/fs/cgroup")]).map(|root| root.join(path)).filter(|path| path.is_dir()).collect()
}

pub fn process(id: &str, exec: &str) -> ProcessRef {
    ProcessRef { workload_id: id.into(), exec_id: exec.into() }
}

/// An attached client.
pub struct Attached {
    pub input: Option<mpsc::Sender<AttachInput>>,
    pub output: Streaming<AttachOutput>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Attached {
    pub async fn send(&self, kind: attach_input::Kind) {
        self.input.as_ref().expect("input").send(AttachInput { kind: Some(kind) }).await.expect("send");
    }

    /// Reads until standard output contains `text`.
    pub async fn until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let so_far = String::from_utf8_lossy(&self.stdout).into_owned();
            match self.output.message().await.expect("a message").and_then(|message| message.kind) {
                Some(attach_output::Kind::Stdout(data)) => self.stdout.extend(data),
                Some(attach_output::Kind::Stderr(data)) => self.stderr.extend(data),
                other => panic!("{other:?} before {text:?} came; so far {so_far:?}"),
            }
        }
    }

    /// Reads to the end; the exit must be the last message.
    pub async fn finish(mut self) -> (ExitStatus, Vec<u8>, Vec<u8>) {
        let mut exit = None;
        while let Some(message) = self.output.message().await.expect("a message") {
            assert_eq!(exit, None, "{message:?} after the exit");
            match message.kind {
                Some(attach_output::Kind::Stdout(data)) => self.stdout.extend(data),
                Some(attach_output::Kind::Stderr(data)) => self.stderr.extend(data),
                Some(attach_output::Kind::Exit(status)) => exit = Some(status),
                other => panic!("unexpected {other:?}"),
            }
        }
        (exit.expect("an exit"), self.stdout, self.stderr)
    }
}

/// An OCI configuration like arca-api's, with a change.
pub fn oci(arguments: &[&str], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_FOWNER"];
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": arguments, "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true
        },
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "resources": {}
        }
    });
    change(&mut spec);
    spec.to_string().into_bytes()
}

/// The exit record of a workload.
pub fn exit_record(folder: &Path, id: &str) -> Value {
    let text = fs::read_to_string(folder.join(id).join("state/exit.json")).expect("exit.json");
    serde_json::from_str(&text).expect("JSON")
}

/// What `docker logs` would print.
pub fn logged(folder: &Path, id: &str) -> String {
    let text = fs::read_to_string(folder.join(id).join("state/output.log")).expect("output.log");
    let line = |line: &str| -> Value { serde_json::from_str(line).expect("a whole JSON line") };
    text.lines().map(|text| line(text)["log"].as_str().expect("a string").to_owned()).collect()
}
