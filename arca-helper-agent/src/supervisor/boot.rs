// SPDX-License-Identifier: Apache-2.0
//! What happens once, at boot: loopback, database files, first rows.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rtnetlink::LinkUnspec;
use tokio::sync::mpsc;

use super::programs::{DatabaseFile, database_files};
use super::report::Board;
use crate::files;
use crate::layout::Layout;
use crate::ovsdb::Database;
use crate::vswitch::{self, Datapath};

const TOOL: &str = "/usr/bin/ovsdb-tool";
const LOOPBACK: u32 = 1;

/// Tunnels and programs expect it.
pub(super) async fn loopback_up() -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    let connection = tokio::spawn(connection);
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle.link().set(up).execute().await.context("set the loopback interface up")?;
    connection.abort();
    Ok(())
}

/// Makes the database files that are missing; brings a kept one up to this image's schema. A kept file that cannot be
/// read is put aside: arca-netd declares everything again.
pub(super) fn create_databases(layout: &Layout) -> anyhow::Result<()> {
    let mut making = Vec::new();
    for DatabaseFile { file, schema, kept } in database_files(layout) {
        if kept && file.exists() && usable(&file, schema)? {
            continue;
        }
        let child = tool(&["create"], &file, schema).spawn().with_context(|| format!("start {TOOL}"))?;
        making.push((file, child));
    }
    // They work side by side; nothing else has been started yet, so waiting here blocks nobody.
    for (file, child) in making {
        let output = child.wait_with_output().with_context(|| format!("wait for {TOOL}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "create database {}: {}", file.display(), text.trim());
    }
    Ok(())
}

fn usable(file: &Path, schema: &str) -> anyhow::Result<bool> {
    let answer = tool(&["needs-conversion"], file, schema).output().with_context(|| format!("start {TOOL}"))?;
    let outdated = String::from_utf8_lossy(&answer.stdout).trim() == "yes";
    if answer.status.success() && !outdated {
        return Ok(true);
    }
    let converted = outdated && {
        let answer = tool(&["convert"], file, schema).output().with_context(|| format!("start {TOOL}"))?;
        answer.status.success()
    };
    if !converted {
        let aside = file.with_extension("db.unusable");
        let why = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
        tracing::error!(file = %file.display(), aside = %aside.display(), why, "a database is put aside");
        std::fs::rename(file, &aside).with_context(|| format!("put {} aside", file.display()))?;
    }
    Ok(converted)
}

fn tool(verb: &[&str], file: &Path, schema: &str) -> Command {
    let mut command = Command::new(TOOL);
    command.args(verb).arg(file).arg(schema).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How far the boot has come.
pub(super) enum Stage {
    /// The databases serve and the first rows are in.
    Databases,
    /// ovs-vswitchd has made the bridges.
    Bridges,
}

/// Waits for the databases, writes the first rows, then waits for the bridges; says `go` at each stage. Gives the
/// connection to the switch's database.
pub(super) async fn first_rows(
    layout: Layout,
    datapath: Datapath,
    board: Board,
    go: mpsc::UnboundedSender<Stage>,
) -> anyhow::Result<Database> {
    for socket in [layout.conf_socket(), layout.nb_socket(), layout.sb_socket()] {
        files::wait_for_server(&socket).await.with_context(|| format!("wait for {}", socket.display()))?;
    }
    board.mark("databases serve");
    let conf = Database::connect(layout.conf_socket(), "Open_vSwitch", vswitch::monitors());
    conf.ready().await?;
    let system_id = std::fs::read_to_string(layout.system_id()).ok();
    let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    conf.transact(vswitch::first_rows(datapath, &layout, system_id.as_deref(), &hostname)).await?;
    // The receiver is the supervisor's loop, which is waiting for this very future.
    let _ = go.send(Stage::Databases);
    let socket = layout.bridge_socket(vswitch::BR_INT);
    files::wait_for_server(&socket).await.with_context(|| format!("wait for {}", socket.display()))?;
    let _ = go.send(Stage::Bridges);
    board.mark("br-int stands");
    Ok(conf)
}
