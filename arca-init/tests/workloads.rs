// SPDX-License-Identifier: Apache-2.0
//! arca-init with a real crun: exit codes, streams, terminals, exec, limits. Root; each test in namespaces of its own.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, clippy::wildcard_imports)]

mod support;

use std::time::Duration;

use arca_proto::init::v1::{attach_input::Kind, *};
use serde_json::json;
use sha2::Digest as _;
use support::{Lab, exit_record, logged, oci, private, process};
use tonic::Code;

#[test]
fn exit_codes_and_both_output_streams() {
    private("exit_codes_and_both_output_streams", async {
        let mut lab = Lab::new().await;
        let (exit, stdout, stderr) = lab.run("ok", &["sh", "-c", "echo out; echo err >&2"]).await;
        assert_eq!((exit.code, exit.signal, stdout.as_str(), stderr.as_str()), (0, 0, "out\n", "err\n"));
        let (exit, ..) = lab.run("seven", &["sh", "-c", "exit 7"]).await;
        assert_eq!(exit.code, 7);
        assert_eq!(exit_record(&lab.folder, "seven")["code"], 7);
        let (exit, ..) = lab.run("killed", &["sh", "-c", "kill -9 $$; sleep 1; kill -9 1; exit 3"]).await;
        assert_eq!(exit.code, 3, "process 1 of a container does not die of its own SIGKILL");
        let (exit, _, stderr) = lab.run("format", &["/bin/garbage"]).await;
        assert_eq!((exit.code, stderr.as_str()), (1, "exec container process `/bin/garbage`: Exec format error\n"));
        assert!(logged(&lab.folder, "ok").contains("out\n"));
        lab.end().await;
    });
}

#[test]
fn what_cannot_be_executed_is_refused_with_dockers_words() {
    private("what_cannot_be_executed_is_refused_with_dockers_words", async {
        let mut lab = Lab::new().await;
        let cases = [
            ("nosuch", Code::NotFound, "exec: \"nosuch\": executable file not found in $PATH"),
            ("/nosuch", Code::NotFound, "exec: \"/nosuch\": stat /nosuch: no such file or directory"),
            ("/bin/not-executable", Code::PermissionDenied, "exec: \"/bin/not-executable\": permission denied"),
            ("/etc", Code::PermissionDenied, "exec: \"/etc\": is a directory: permission denied"),
        ];
        for (executable, code, text) in cases {
            let request = lab.request("bad", &[executable]);
            let refused = lab.client.create_workload(request).await.expect_err("must be refused");
            assert_eq!((refused.code(), refused.message()), (code, text));
            assert!(support::cgroups(&format!("{}/bad", lab.cgroup)).is_empty(), "cgroup left by a refused create");
        }
        let request = lab.request("sleeper", &["sleep", "100"]);
        lab.client.create_workload(request.clone()).await.expect("create");
        assert_eq!(lab.client.create_workload(request).await.expect_err("twice").code(), Code::AlreadyExists);
        let early = lab.exec_request("sleeper", "e0", &["true"]);
        assert_eq!(lab.client.exec(early).await.expect_err("not running").code(), Code::FailedPrecondition);
        lab.start("sleeper").await;
        for (executable, code, text) in cases {
            let request = lab.exec_request("sleeper", "e1", &[executable]);
            let refused = lab.client.exec(request).await.expect_err("must be refused");
            assert_eq!((refused.code(), refused.message()), (code, text));
        }
        let unknown = DeleteWorkloadRequest { workload_id: "nobody".into(), force: true };
        assert_eq!(lab.client.delete_workload(unknown).await.expect_err("unknown").code(), Code::NotFound);
        let running = DeleteWorkloadRequest { workload_id: "sleeper".into(), force: false };
        assert_eq!(lab.client.delete_workload(running).await.expect_err("runs").code(), Code::FailedPrecondition);
        for bad in [&b""[..], b"{", b"[]", b"{\"process\":{\"args\":[\"x\"]},\"linux\":7}"] {
            let request = CreateWorkloadRequest { oci_spec: bad.to_vec(), ..lab.request("bad", &[]) };
            assert_eq!(lab.client.create_workload(request).await.expect_err("bad").code(), Code::InvalidArgument);
        }
        lab.end().await;
    });
}

#[test]
fn exec_has_its_own_streams_and_exit_code() {
    private("exec_has_its_own_streams_and_exit_code", async {
        let mut lab = Lab::new().await;
        let request = lab.request("c", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("c").await;
        let request = lab.exec_request("c", "e1", &["sh", "-c", "echo from exec; echo err >&2; exit 9"]);
        lab.client.exec(request).await.expect("exec");
        // Ended long before its client comes: nothing may be lost.
        assert_eq!(lab.wait("c", "e1").await.code, 9);
        let (exit, stdout, stderr) = lab.attach("c", "e1", false).await.finish().await;
        assert_eq!((exit.code, &stdout[..], &stderr[..]), (9, &b"from exec\n"[..], &b"err\n"[..]));
        // Input goes in, comes out, and its end ends cat.
        let request = ExecRequest { stdin: true, ..lab.exec_request("c", "e2", &["cat"]) };
        lab.client.exec(request).await.expect("exec");
        let attached = lab.attach("c", "e2", true).await;
        attached.send(Kind::Stdin(b"to exec\n".to_vec())).await;
        attached.send(Kind::CloseStdin(CloseStdin {})).await;
        let (exit, stdout, _) = attached.finish().await;
        assert_eq!((exit.code, &stdout[..]), (0, &b"to exec\n"[..]));
        // A background process that keeps the pipe open does not keep the exec.
        let request = lab.exec_request("c", "e3", &["sh", "-c", "sleep 50 & echo done"]);
        lab.client.exec(request).await.expect("exec");
        let (exit, stdout, _) = lab.attach("c", "e3", false).await.finish().await;
        assert_eq!((exit.code, &stdout[..]), (0, &b"done\n"[..]));
        let twice = lab.exec_request("c", "e3", &["true"]);
        assert_eq!(lab.client.exec(twice).await.expect_err("taken").code(), Code::AlreadyExists);
        // A signal to the exec'd process alone.
        let request = lab.exec_request("c", "e4", &["sleep", "100"]);
        lab.client.exec(request).await.expect("exec");
        let kill = SignalRequest { process: Some(process("c", "e4")), signal: 9, all: false };
        lab.client.signal(kill.clone()).await.expect("signal");
        let exit = lab.wait("c", "e4").await;
        assert_eq!((exit.code, exit.signal), (137, 9));
        assert_eq!(lab.client.signal(kill).await.expect_err("gone").code(), Code::FailedPrecondition);
        lab.end().await;
    });
}

#[test]
fn a_terminal_has_a_size_and_echoes() {
    private("a_terminal_has_a_size_and_echoes", async {
        let mut lab = Lab::new().await;
        let mut request = lab.request("t", &["sh"]);
        (request.terminal, request.stdin, request.rows, request.columns) = (true, true, 33, 101);
        lab.client.create_workload(request).await.expect("create");
        let mut attached = lab.attach("t", "", true).await;
        lab.start("t").await;
        attached.send(Kind::Stdin(b"stty size\n".to_vec())).await;
        attached.until("33 101").await;
        let resize = ResizeRequest { process: Some(process("t", "")), rows: 44, columns: 122 };
        lab.client.resize(resize).await.expect("resize");
        attached.send(Kind::Stdin(b"stty size\n".to_vec())).await;
        attached.until("44 122").await;
        // A terminal is not closed by the end of one client's input.
        attached.send(Kind::CloseStdin(CloseStdin {})).await;
        attached.send(Kind::Stdin(b"tty; exit 5\n".to_vec())).await;
        let (exit, stdout, stderr) = attached.finish().await;
        let text = String::from_utf8_lossy(&stdout).into_owned();
        assert!(text.contains("stty size\r\n"), "echo is missing: {text}");
        assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
        assert_eq!((exit.code, stderr.len()), (5, 0));
        // The same for exec.
        let request = lab.request("c", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("c").await;
        let mut request = lab.exec_request("c", "e", &["sh", "-c", "read line; stty size; echo got $line"]);
        (request.terminal, request.stdin, request.rows, request.columns) = (true, true, 20, 70);
        lab.client.exec(request).await.expect("exec");
        let mut attached = lab.attach("c", "e", true).await;
        attached.send(Kind::Stdin(b"hello\n".to_vec())).await;
        attached.until("20 70").await;
        attached.until("got hello").await;
        assert_eq!(attached.finish().await.0.code, 0);
        lab.end().await;
    });
}

#[test]
fn stdin_once_ends_with_its_client_and_otherwise_stays_open() {
    private("stdin_once_ends_with_its_client_and_otherwise_stays_open", async {
        let mut lab = Lab::new().await;
        let mut request = lab.request("once", &["cat"]);
        (request.stdin, request.stdin_once) = (true, true);
        lab.client.create_workload(request).await.expect("create");
        let attached = lab.attach("once", "", true).await;
        lab.start("once").await;
        attached.send(Kind::Stdin(b"a line\n".to_vec())).await;
        attached.send(Kind::CloseStdin(CloseStdin {})).await;
        let (exit, stdout, _) = attached.finish().await;
        assert_eq!((exit.code, &stdout[..]), (0, &b"a line\n"[..]));
        let request = CreateWorkloadRequest { stdin: true, ..lab.request("open", &["cat"]) };
        lab.client.create_workload(request).await.expect("create");
        let first = lab.attach("open", "", true).await;
        lab.start("open").await;
        first.send(Kind::CloseStdin(CloseStdin {})).await;
        drop(first);
        let mut second = lab.attach("open", "", true).await;
        second.send(Kind::Stdin(b"still open\n".to_vec())).await;
        second.until("still open").await;
        // Without stdin it is /dev/null: cat ends at once.
        let (exit, stdout, _) = lab.run("null", &["cat"]).await;
        assert_eq!((exit.code, stdout.as_str()), (0, ""));
        lab.end().await;
    });
}

#[test]
fn sixty_four_mebibytes_arrive_whole_and_are_logged_whole() {
    private("sixty_four_mebibytes_arrive_whole_and_are_logged_whole", async {
        let mut lab = Lab::new().await;
        let script = "yes $(printf %01023d 7) | head -c 67108864";
        let started = std::time::Instant::now();
        let request = lab.request("big", &["sh", "-c", script]);
        lab.client.create_workload(request).await.expect("create");
        let attached = lab.attach("big", "", false).await;
        lab.start("big").await;
        let (exit, stdout, _) = attached.finish().await;
        assert_eq!((exit.code, stdout.len()), (0, 64 << 20));
        eprintln!("64 MiB through log and one client: {} ms", started.elapsed().as_millis());
        let line = format!("{:01023}\n", 7);
        let want: Vec<u8> = line.bytes().cycle().take(64 << 20).collect();
        let sum = |data: &[u8]| sha2::Sha256::digest(data);
        assert_eq!(sum(&stdout), sum(&want));
        assert_eq!(sum(logged(&lab.folder, "big").as_bytes()), sum(&want));
        lab.end().await;
    });
}

#[test]
fn limits_are_seen_and_enforced() {
    private("limits_are_seen_and_enforced", async {
        let mut lab = Lab::new().await;
        let limit = 32 << 20;
        let mut request = lab.request("oom", &[]);
        // head keeps what it reads in one growing buffer: tail of an endless line.
        request.oci_spec = oci(&["sh", "-c", "x=a; while true; do x=$x$x; done"], |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": limit, "swap": limit}});
        });
        lab.client.create_workload(request).await.expect("create");
        let file = std::path::Path::new("/sys/fs/cgroup/memory").join(&lab.cgroup).join("oom/memory.limit_in_bytes");
        if file.exists() {
            assert_eq!(std::fs::read_to_string(file).expect("read").trim(), limit.to_string());
        }
        lab.start("oom").await;
        let exit = lab.wait("oom", "").await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, true));
        assert_eq!(exit_record(&lab.folder, "oom")["oom_killed"], true);
        let mut request = lab.request("pids", &[]);
        request.oci_spec = oci(&["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait"], |spec| {
            spec["linux"]["resources"] = json!({"pids": {"limit": 5}});
        });
        lab.client.create_workload(request).await.expect("create");
        let attached = lab.attach("pids", "", false).await;
        lab.start("pids").await;
        let (exit, _, stderr) = attached.finish().await;
        assert!(String::from_utf8_lossy(&stderr).contains("can't fork"), "the pids limit did not bite");
        assert!(!exit.oom_killed);
        lab.end().await;
    });
}

#[test]
fn pause_signal_watch_and_forced_delete() {
    private("pause_signal_watch_and_forced_delete", async {
        use workload_status::State;
        let mut lab = Lab::new().await;
        let mut watch = lab.client.watch_workloads(WatchWorkloadsRequest {}).await.expect("watch").into_inner();
        let script = "trap 'echo caught; exit 4' USR1; echo ready; while true; do sleep 0.05; done";
        let request = lab.request("c", &["sh", "-c", script]);
        lab.client.create_workload(request).await.expect("create");
        let mut attached = lab.attach("c", "", false).await;
        lab.start("c").await;
        attached.until("ready").await;
        let pause = |frozen| PauseRequest { workload_id: "c".into(), frozen };
        lab.client.pause(pause(true)).await.expect("pause");
        assert_eq!(lab.client.pause(pause(true)).await.expect_err("twice").code(), Code::FailedPrecondition);
        let usr1 = SignalRequest { process: Some(process("c", "")), signal: 10, all: false };
        lab.client.signal(usr1).await.expect("signal");
        let silent = tokio::time::timeout(Duration::from_millis(300), attached.output.message()).await;
        assert!(silent.is_err(), "a frozen workload spoke: {silent:?}");
        lab.client.pause(pause(false)).await.expect("thaw");
        let (exit, stdout, _) = attached.finish().await;
        assert_eq!((exit.code, &stdout[..]), (4, &b"ready\ncaught\n"[..]));
        // Forced deletion of a frozen workload.
        let request = lab.request("f", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("f").await;
        lab.client.pause(PauseRequest { workload_id: "f".into(), frozen: true }).await.expect("pause");
        let delete = |id: &str| DeleteWorkloadRequest { workload_id: id.into(), force: true };
        lab.client.delete_workload(delete("f")).await.expect("delete");
        lab.client.delete_workload(delete("c")).await.expect("delete");
        // A workload that was never started.
        let request = lab.request("n", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.client.delete_workload(delete("n")).await.expect("delete");
        let mut seen = Vec::new();
        while !seen.contains(&("n".to_owned(), State::Deleted)) {
            let status = watch.message().await.expect("a message").expect("not the end");
            seen.push((status.workload_id.clone(), status.state()));
        }
        let of = |id: &str| -> Vec<State> { seen.iter().filter(|(i, _)| i == id).map(|(_, state)| *state).collect() };
        let frozen_and_back =
            [State::Created, State::Running, State::Paused, State::Running, State::Stopped, State::Deleted];
        assert_eq!(of("c"), frozen_and_back);
        assert_eq!(of("f"), [State::Created, State::Running, State::Paused, State::Stopped, State::Deleted]);
        assert_eq!(of("n"), [State::Created, State::Stopped, State::Deleted]);
        for id in ["c", "f", "n"] {
            assert!(support::cgroups(&format!("{}/{id}", lab.cgroup)).is_empty(), "cgroup of {id} left");
            assert!(!lab.folder.join(id).join("state/bundle").exists(), "bundle of {id} left");
        }
        lab.end().await;
    });
}

#[test]
fn a_root_of_many_layers_is_one_file_system() {
    private("a_root_of_many_layers_is_one_file_system", async {
        let mut lab = Lab::new().await;
        let mut request = lab.request("layers", &["sh", "-c", "cat /layer-*; echo written > /new; cat /new"]);
        let root = request.root.as_mut().expect("a root");
        for number in 0..100 {
            // With a comma, a colon and a backslash: overlayfs gives them a meaning.
            let layer = lab.folder.join(format!("{number:02}{}a,b:c\\d", "x".repeat(60)));
            std::fs::create_dir_all(&layer).expect("make folder");
            std::fs::write(layer.join(format!("layer-{number:02}")), "x").expect("write");
            root.lower_directories.insert(0, layer.to_string_lossy().into_owned());
        }
        lab.client.create_workload(request).await.expect("create");
        let attached = lab.attach("layers", "", false).await;
        lab.start("layers").await;
        let (exit, stdout, stderr) = attached.finish().await;
        assert_eq!(exit.code, 0, "{}", String::from_utf8_lossy(&stderr));
        assert_eq!(String::from_utf8_lossy(&stdout), format!("{}written\n", "x".repeat(100)));
        assert!(lab.folder.join("layers/upper/new").exists(), "the write must be in the upper directory");
        lab.end().await;
    });
}
