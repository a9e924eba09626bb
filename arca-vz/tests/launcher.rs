// SPDX-License-Identifier: Apache-2.0
//! arca-machine's launcher with this keeper, over a stand-in for the framework: the whole way that a machine takes on macOS, but
//! for the framework itself.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use arca_machine::{ContainerSpec, MachineError, Network, Nic, Size, VmFiles, vz::Launcher};
use arca_proto::{dial::Address, ports};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The programs beside each other, and a kernel and an image that pass for such.
fn files(folder: &Path) -> VmFiles {
    let programs = Path::new(env!("CARGO_BIN_EXE_arca-vz")).parent().expect("a folder");
    let bin = folder.join("bin");
    fs::create_dir(&bin).expect("make");
    symlink(programs.join("examples/stand_in"), bin.join("arca-vz")).expect("link");
    let (kernel, image) = (folder.join("kernel"), folder.join("image"));
    let mut head = vec![0; 0x1000];
    if cfg!(target_arch = "aarch64") {
        head[56..60].copy_from_slice(b"ARM\x64");
    } else {
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
    }
    fs::write(&kernel, head).expect("write");
    fs::write(&image, [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 4096]].concat()).expect("write");
    VmFiles { kernel, init_image: image.clone(), helper_image: image, tools: None, keeper: bin.join("arca-vmm") }
}

fn spec(folder: &Path, log_level: &str) -> ContainerSpec {
    ContainerSpec {
        id: "m1".into(),
        socket_directory: folder.join("s"),
        state_directory: folder.join("state"),
        guest_directory: folder.join("bin"),
        network: Network::Native(Nic { wire: "/wire".into(), mtu: 1400 }),
        size: Size { memory: Some(100 << 20), cpus: Some(2) },
        environment: Vec::new(),
        log_level: log_level.into(),
        ready_timeout: Duration::from_secs(30),
    }
}

fn folder() -> tempfile::TempDir {
    // Short: sockets lie below.
    tempfile::Builder::new().prefix("x-vz-").tempdir_in("/tmp").expect("folder")
}

fn end(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("state/vm-exit.json")).expect("a record")).expect("json")
}

#[tokio::test]
async fn a_machine_is_launched_used_found_again_and_ended() {
    let folder = folder();
    let launcher = Launcher::new(files(folder.path()));
    let machine = launcher.launch_container(&spec(folder.path(), "info")).await.expect("launched");
    assert_eq!(machine.address(), &Address::Hybrid(folder.path().join("s/vsock")));
    let told: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.path().join("state/vm.json")).expect("a plan")).expect("json");
    assert_eq!((&told["nic"]["wire"], &told["nic"]["mtu"], &told["cpus"]), (&"/wire".into(), &1400.into(), &2.into()));
    let memory = told["memory"].as_u64().expect("bytes");
    assert!(memory > 100 << 20 && memory.is_multiple_of(1 << 20), "{memory}");
    let line = told["command_line"].as_str().unwrap_or_default();
    assert!(line.contains("arca.role=container arca.id=m1") && line.contains("arca.network=native"), "{line}");

    let mut stream = machine.dial(ports::INIT).await.expect("dial");
    stream.write_all(b"hello").await.expect("write");
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.expect("read");
    assert_eq!(&said, b"hello");
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).expect("make");
    assert_eq!(machine.expose(&volume, true).await.expect("exposed"), PathBuf::from("/arca/1"));
    let again = launcher.launch_container(&spec(folder.path(), "info")).await;
    assert!(matches!(again, Err(MachineError::Running { .. })), "{again:?}");

    // The next daemon finds it, and both see its end.
    let found = launcher.adopt(&folder.path().join("state")).expect("the record").expect("it runs");
    assert_eq!(found.id(), "m1");
    found.destroy(Duration::from_secs(30)).await.expect("ended");
    machine.wait_exit().await;
    assert_eq!(end(folder.path())["reason"], "it was asked to end");
    assert!(!folder.path().join("s").exists(), "sockets are left");
    assert!(launcher.adopt(&folder.path().join("state")).expect("no record").is_none());
    machine.destroy(Duration::ZERO).await.expect("twice is no error");

    // One that ends by itself.
    let machine = launcher.launch_container(&spec(folder.path(), "info")).await.expect("launched");
    machine.dial(ports::INIT).await.expect("dial").write_all(b"die").await.expect("write");
    machine.wait_exit().await;
    machine.destroy(Duration::ZERO).await.expect("cleaned up");
    assert_eq!(end(folder.path())["asked"], false);
}

#[tokio::test]
async fn what_does_not_boot_leaves_nothing_and_says_why() {
    let folder = folder();
    let launcher = Launcher::new(files(folder.path()));
    let broken = launcher.launch_container(&spec(folder.path(), "broken")).await.expect_err("it does not start");
    assert!(broken.to_string().contains("the kernel does not start"), "{broken}");
    assert!(!folder.path().join("s").exists() && launcher.adopt(&folder.path().join("state")).expect("read").is_none());

    let mute = ContainerSpec { ready_timeout: Duration::from_millis(300), ..spec(folder.path(), "mute") };
    let mute = launcher.launch_container(&mute).await.expect_err("it never gets ready");
    assert!(matches!(mute, MachineError::NotReady { .. }), "{mute}");
    assert!(!folder.path().join("s").exists());

    fs::remove_file(folder.path().join("bin/arca-vz")).expect("remove");
    let missing = launcher.launch_container(&spec(folder.path(), "info")).await.expect_err("no keeper");
    assert!(missing.to_string().contains("just sign"), "{missing}");
}
