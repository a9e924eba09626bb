// SPDX-License-Identifier: Apache-2.0
//! The machine's face, its control socket and its life, over a stand-in for the framework.

mod stand_in;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use arca_proto::{
    dial::{Address, DialError, dial},
    keeper::Role,
    ports,
};
use arca_vz::{end::End, face::guest_socket, keeper, lease::Lease, spec::Spec};
use stand_in::StandIn;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};

/// A machine that is kept, and what ends it.
struct Kept {
    folder: tempfile::TempDir,
    spec: Spec,
    machine: StandIn,
    kept: JoinHandle<anyhow::Result<End>>,
    signal: Option<oneshot::Sender<()>>,
    launcher: Option<tokio::io::DuplexStream>,
}

fn spec(folder: &Path, role: Role) -> Spec {
    Spec {
        id: "m".into(),
        role,
        kernel: "/kernel".into(),
        image: "/image".into(),
        command_line: String::new(),
        memory: 256 << 20,
        cpus: 1,
        disks: Vec::new(),
        sockets: folder.to_path_buf(),
        state: folder.to_path_buf(),
        nic: None,
    }
}

impl Kept {
    fn start(role: Role, machine: StandIn) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let spec = spec(folder.path(), role);
        let (signal, signalled) = oneshot::channel();
        let (launcher, pipe) = tokio::io::duplex(64);
        let kept = tokio::spawn({
            let (spec, machine) = (spec.clone(), Arc::new(machine.clone()));
            async move {
                let signalled = async move {
                    if signalled.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                keeper::keep(&spec, machine, Lease::of(pipe), signalled).await
            }
        });
        Self { folder, spec, machine, kept, signal: Some(signal), launcher: Some(launcher) }
    }

    /// One whose guest echoes on port 7, ready to be dialled.
    async fn running(role: Role) -> Self {
        let machine = StandIn::new();
        machine.serve(7, echo);
        let kept = Self::start(role, machine);
        assert_eq!(kept.ask("\"state\"").await["state"]["accelerator"], "vz");
        kept
    }

    fn address(&self) -> Address {
        Address::Hybrid(self.spec.face())
    }

    /// Asks over the control socket, as soon as it is there; the socket is bound before anything else can happen.
    async fn ask(&self, question: &str) -> serde_json::Value {
        let mut stream = loop {
            match UnixStream::connect(self.spec.control()).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream.write_all(format!("{question}\n").as_bytes()).await.expect("ask");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.expect("an answer");
        serde_json::from_str(&line).expect("json")
    }

    async fn end(self) -> (End, StandIn) {
        let end = self.kept.await.expect("the keeper").expect("its end");
        for socket in [self.spec.face(), self.spec.control()] {
            assert!(!socket.exists(), "{} is left", socket.display());
        }
        (end, self.machine)
    }
}

fn echo(guest: UnixStream) {
    tokio::spawn(async move {
        let (mut from, mut to) = guest.into_split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_face_is_hybrid_vsock_for_any_port_at_any_time() {
    let kept = Kept::running(Role::Container).await;
    let address = kept.address();
    // Many at once, more bytes than any buffer holds.
    let clients = (0_u8..16).map(|number| {
        let address = address.clone();
        tokio::spawn(async move {
            let stream = dial(&address, 7).await.expect("dial");
            let (mut from, mut to) = tokio::io::split(stream);
            let sent = vec![number; 300_000];
            let writing = tokio::spawn({
                let sent = sent.clone();
                async move {
                    to.write_all(&sent).await.expect("write");
                    to
                }
            });
            let mut got = vec![0; sent.len()];
            from.read_exact(&mut got).await.expect("read");
            drop(writing.await);
            assert!(got == sent);
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client");
    }
    // A port that nobody serves closes without a word; one that is served from now on is there.
    assert!(matches!(dial(&address, 20_001).await, Err(DialError::Refused { port: 20_001, .. })));
    kept.machine.serve(20_001, echo);
    let mut late = dial(&address, 20_001).await.expect("a port that came later");
    late.write_all(b"x").await.expect("write");
    assert_eq!(late.read_u8().await.expect("read"), b'x');
    // Nonsense is not carried to the guest.
    let connects = kept.machine.said().iter().filter(|call| *call == "connect").count();
    let mut stream = UnixStream::connect(kept.spec.face()).await.expect("connect");
    stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("write");
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert_eq!(kept.machine.said().iter().filter(|call| *call == "connect").count(), connects);
    kept.machine.end(Ok(()));
    let (end, _) = kept.end().await;
    assert!(!end.asked && end.reason.contains("by itself"), "{end:?}");
}

#[tokio::test]
async fn either_sides_end_is_the_others_after_the_last_byte_and_objects_live_as_long() {
    let kept = Kept::running(Role::Container).await;
    kept.machine.serve(8, |mut guest| {
        tokio::spawn(async move {
            guest.write_all(b"all of it").await.expect("write");
        });
    });
    let mut stream = dial(&kept.address(), 8).await.expect("dial");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read to the end");
    assert_eq!(text, "all of it");
    drop(stream);

    let (gone, told) = oneshot::channel();
    let gone = std::sync::Mutex::new(Some(gone));
    kept.machine.serve(9, move |mut guest| {
        let gone = gone.lock().expect("lock").take();
        tokio::spawn(async move {
            let mut text = String::new();
            let _ = guest.read_to_string(&mut text).await;
            gone.map(|gone| gone.send(text));
        });
    });
    let mut stream = dial(&kept.address(), 9).await.expect("dial");
    assert!(kept.machine.held.load(Ordering::SeqCst) >= 1, "the object of a connection in use is alive");
    stream.write_all(b"bye").await.expect("write");
    drop(stream);
    assert_eq!(told.await.expect("the guest sees the end"), "bye");
    while kept.machine.held.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    kept.machine.end(Ok(()));
    kept.end().await;
}

#[tokio::test]
async fn the_guests_call_reaches_who_listens_beside_the_face() {
    let kept = Kept::running(Role::Container).await;
    // Nobody listens: dropped.
    let mut nobody = kept.machine.call(ports::READY).expect("listened for before the guest runs");
    assert_eq!(nobody.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let listener = UnixListener::bind(guest_socket(&kept.spec.face(), ports::READY)).expect("bind");
    let mut guest = kept.machine.call(ports::READY).expect("a call");
    guest.write_all(b"READY\n").await.expect("write");
    let (mut host, _) = listener.accept().await.expect("accept");
    let mut said = [0; 6];
    host.read_exact(&mut said).await.expect("read");
    assert_eq!(&said, b"READY\n");
    assert!(kept.machine.call(5).is_none(), "other ports of the host are not listened on");
    let said = kept.machine.said();
    let first = |call: &str| said.iter().position(|said| said == call);
    assert!(first("listen") < first("start"), "{said:?}");
    kept.machine.end(Ok(()));
    kept.end().await;
}

#[tokio::test]
async fn control_exposes_tells_and_refuses_as_arca_vmm_does() {
    let kept = Kept::running(Role::Container).await;
    let host: PathBuf = kept.folder.path().join("volume");
    std::fs::create_dir(&host).expect("make");
    std::fs::write(host.join("hosts"), "x").expect("write");
    let expose = |path: &Path, read_only: bool| {
        serde_json::json!({"expose": {"path": path, "read_only": read_only}}).to_string()
    };
    assert_eq!(kept.ask(&expose(&host, true)).await, serde_json::json!({"path": "/arca/1"}));
    assert_eq!(kept.ask(&expose(&host.join("hosts"), false)).await, serde_json::json!({"path": "/arca/2/hosts"}));
    let shared = kept.machine.shared();
    assert!(shared.len() == 2 && shared.iter().any(|(name, folder)| name == "1" && folder.read_only), "{shared:?}");
    // What the framework refuses is not there, and its place is not lost.
    let other = kept.folder.path().join("other");
    std::fs::create_dir(&other).expect("make");
    kept.machine.refuse("share", "no more");
    assert_eq!(kept.ask(&expose(&other, false)).await, serde_json::json!({"failed": "share: no more"}));
    assert_eq!(kept.ask(&expose(&other, false)).await, serde_json::json!({"path": "/arca/3"}));
    let missing = kept.ask(&expose(Path::new("/does/not/exist"), false)).await;
    assert!(missing["failed"].as_str().is_some_and(|text| text.starts_with("expose /does/not/exist:")), "{missing}");

    let state = kept.ask("\"state\"").await["state"].clone();
    assert_eq!((&state["status"], &state["memory"]), (&"running".into(), &(256 << 20).into()));
    assert_eq!(kept.ask(r#"{"balloon":{"bytes":1048576}}"#).await, "done");
    assert!(kept.machine.said().ends_with(&["balloon".into(), "1048576".into()]));
    let root = kept.ask(r#"{"root":{"name":"r","lower":["/l"],"upper":"/u","work":"/w"}}"#).await;
    assert!(root["failed"].as_str().is_some_and(|text| text.contains("overlay")), "{root}");
    for odd in ["{}", "nonsense", "{\"reboot\":{}}"] {
        assert!(kept.ask(odd).await["failed"].is_string(), "{odd}");
    }
    kept.machine.end(Ok(()));
    kept.end().await;
}

#[tokio::test]
async fn a_guest_is_asked_to_end_and_stopped_when_its_grace_is_over() {
    // One that hears: asked by arca-init's port, not stopped.
    let kept = Kept::running(Role::Container).await;
    let machine = kept.machine.clone();
    kept.machine.serve(ports::INIT, move |_| machine.end(Ok(())));
    assert_eq!(kept.ask(r#"{"stop":{"grace_ms":600000}}"#).await, "done");
    let (end, machine) = kept.end().await;
    assert!(end.asked && end.reason == "it was asked to end", "{end:?}");
    assert!(!machine.said().contains(&"stop".into()));

    // One that does not: stopped, at once where there is no grace or nothing to lose.
    for (role, grace) in [(Role::Container, 20), (Role::Container, 0), (Role::Helper, 600_000)] {
        let kept = Kept::running(role).await;
        assert_eq!(kept.ask(&format!("{{\"stop\":{{\"grace_ms\":{grace}}}}}")).await, "done");
        let (end, machine) = kept.end().await;
        assert!(end.asked && machine.said().contains(&"stop".into()), "{end:?}");
    }

    // Asked again, more urgently.
    let kept = Kept::running(Role::Container).await;
    kept.ask(r#"{"stop":{"grace_ms":600000}}"#).await;
    kept.ask(r#"{"stop":{"grace_ms":0}}"#).await;
    assert!(kept.end().await.1.said().contains(&"stop".into()));
}

#[tokio::test]
async fn it_outlives_its_launcher_once_it_is_on_record_and_not_before() {
    let mut kept = Kept::running(Role::Container).await;
    drop(kept.launcher.take());
    let (end, machine) = kept.end().await;
    assert!(end.reason.contains("launcher died") && machine.said().contains(&"stop".into()), "{end:?}");

    let mut kept = Kept::running(Role::Container).await;
    let mut launcher = kept.launcher.take().expect("the pipe");
    launcher.write_all(b"keep\n").await.expect("write");
    drop(launcher);
    assert_eq!(kept.ask("\"state\"").await["state"]["status"], "running");
    let machine = kept.machine.clone();
    kept.machine.serve(ports::INIT, move |_| machine.end(Ok(())));
    kept.signal.take().map(|signal| signal.send(()));
    let (end, _) = kept.end().await;
    assert_eq!(end.reason, "a signal ended it");
}

#[tokio::test]
async fn ends_that_nobody_asked_for_are_told_and_a_failed_start_leaves_nothing() {
    let kept = Kept::running(Role::Container).await;
    kept.machine.end(Err("the guest crashed".into()));
    let (end, _) = kept.end().await;
    assert!(!end.asked && end.reason.contains("the guest crashed"), "{end:?}");

    let machine = StandIn::new();
    machine.refuse("start", "com.apple.security.virtualization is missing");
    let kept = Kept::start(Role::Container, machine);
    let error = kept.kept.await.expect("the keeper").expect_err("no start");
    assert!(format!("{error:#}").contains("com.apple.security.virtualization"), "{error:#}");
    assert!(!kept.spec.face().exists() && !kept.spec.control().exists());

    let folder = tempfile::tempdir().expect("folder");
    assert_eq!(End::load(folder.path()), None);
    let end = End::now("so", true);
    end.store(folder.path()).expect("store");
    assert_eq!(End::load(folder.path()), Some(end));
    End::remove(folder.path()).and_then(|()| End::remove(folder.path())).expect("removing twice is no error");
}

#[test]
fn elsewhere_than_on_a_mac_the_program_says_so() {
    if cfg!(target_os = "macos") {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("vm.json");
    let spec = spec(folder.path(), Role::Container);
    std::fs::write(&path, serde_json::to_vec(&spec).expect("json")).expect("write");
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_arca-vz")).arg("--spec").arg(&path).output().expect("run");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() == Some(69) && said.contains("is a part of macOS"), "{ran:?}");
    let end = End::load(folder.path()).expect("a record");
    assert!(!end.asked && end.reason.contains("macOS"), "{end:?}");
}
