// SPDX-License-Identifier: Apache-2.0
//! The leak check itself: shown one leak of each kind on purpose, it must report it.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::ensure;
use arca_tests::{
    isolation::run,
    leaks::{Kind, Snapshot},
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[("reports_a_leak_of_each_kind", each_kind)];

fn each_kind() -> anyhow::Result<()> {
    let before = Snapshot::take()?;
    let expect = |kind: Kind, what: &str| -> anyhow::Result<()> {
        let leaked = Snapshot::take()?.leaked_since(&before);
        ensure!(
            leaked.iter().any(|(found, name)| *found == kind && name.contains(what)),
            "{kind:?} {what} should have been reported: {leaked:?}"
        );
        Ok(())
    };

    let mut process =
        Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    {
        use std::io::{BufRead as _, BufReader, Write as _};
        // The echo tells that it has its own namespace by now.
        process.stdin.as_mut().expect("piped").write_all(b"x\n")?;
        BufReader::new(process.stdout.as_mut().expect("piped")).read_line(&mut String::new())?;
    }
    expect(Kind::Process, "cat")?;
    expect(Kind::NetworkNamespace, "net:[")?;
    process.kill()?;
    // Not waited for yet: a zombie is a leak as well.
    expect(Kind::Process, "")?;
    process.wait()?;

    run("ip", &["tuntap", "add", "dev", "leak0", "mode", "tap"])?;
    expect(Kind::Interface, "leak0")?;
    run("ip", &["link", "delete", "leak0"])?;

    run("mount", &["-t", "tmpfs", "leak", "/mnt"])?;
    expect(Kind::Mount, "/mnt")?;
    run("umount", &["/mnt"])?;

    run("nft", &["add", "table", "ip", "leak"])?;
    expect(Kind::Table, "table ip leak")?;
    run("nft", &["delete", "table", "ip", "leak"])?;

    let root = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find(|root| fs::metadata(root).is_ok());
    let group = format!("{}/arca/leak-check", root.expect("control groups"));
    let parent_was_there = fs::metadata(format!("{}/arca", root.expect("control groups"))).is_ok();
    fs::create_dir_all(&group)?;
    expect(Kind::ControlGroup, "leak-check")?;
    fs::remove_dir(&group)?;
    if !parent_was_there {
        fs::remove_dir(format!("{}/arca", root.expect("control groups")))?;
    }

    let leaked = Snapshot::take()?.leaked_since(&before);
    ensure!(leaked.is_empty(), "everything was removed again: {leaked:?}");
    Ok(())
}
