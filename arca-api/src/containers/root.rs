// SPDX-License-Identifier: Apache-2.0
//! A look into a container's file system: work that reads or writes its files runs on a thread whose root it is.
//!
//! That thread cannot reach anything outside: a path, a link or an archive entry that leads out of the container leads to
//! its root instead. A container that runs is entered as its processes see it. One that does not is mounted for the
//! thread alone, volumes included, and does not start before the thread has ended.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    containers::Container,
    engine::Engine,
    http::{ApiError, ApiResult},
};

#[cfg(target_os = "linux")]
#[path = "root/enter_linux.rs"]
mod enter;
#[cfg(not(target_os = "linux"))]
#[path = "root/enter_other.rs"]
mod enter;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything, as the container's processes see it.
    Whole,
    /// The image and what was written over it, without mounts.
    Bare,
}

/// How a thread comes into the container.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "read where a root can be entered"))]
enum Place {
    /// Its root is there, seen through a process that has it mounted. That process is in a cgroup with `within` in its
    /// path, or it is another one that got its number meanwhile.
    There { pid: u32, path: PathBuf, within: Option<String> },
    /// Its root is mounted by its machine's keeper, the process `pid`, in a mount namespace of its own; what is mounted
    /// over it is not. Source, and path in the container.
    Kept { pid: u32, path: PathBuf, binds: Vec<(PathBuf, String)> },
    /// It has to be mounted.
    Mount(Mount),
}

/// An overlay, and what is mounted over it.
#[derive(Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "read where a root can be entered"))]
struct Mount {
    /// Topmost first.
    lower: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
    /// Source, and path in the container.
    binds: Vec<(PathBuf, String)>,
}

/// Runs `work` inside, and holds back start and stop of a stopped container meanwhile. `work` is told if it is not inside
/// and answers by its own means.
pub fn within(
    engine: Arc<Engine>,
    container: Arc<Container>,
    view: View,
    work: impl FnOnce(ApiResult<()>) + Send + 'static,
) {
    tokio::spawn(async move {
        let op = container.ops.lock().await;
        let place = place(&engine, &container, view);
        let mounted = match &place {
            Place::Mount(mount) => Some((op, mount.target.clone())),
            Place::There { .. } | Place::Kept { .. } => None,
        };
        let (done, ended) = oneshot::channel::<()>();
        let id = container.id.clone();
        let thread = std::thread::Builder::new().name("container-root".into()).spawn(move || {
            work(enter::enter(&place).map_err(|error| refused(&id, &error)));
            drop(done);
        });
        if let Err(error) = thread {
            tracing::error!(container_id = container.id, %error, "a thread for the container's files");
        }
        // An error: the thread has ended, as it should.
        let _ = ended.await;
        if let Some((op, target)) = mounted {
            let _ = std::fs::remove_dir(target);
            drop(op);
        }
    });
}

fn refused(id: &str, error: &io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::Unsupported {
        return ApiError::absent("files of a container in a virtual machine");
    }
    ApiError::internal(format!("enter the file system of container {id}: {error}"))
}

fn place(engine: &Engine, container: &Container, view: View) -> Place {
    let record = container.record();
    let folder = engine.folder(&record.id);
    let points = record.mounts.iter().filter(|point| view == View::Whole && point.kind != "tmpfs");
    let binds = points.map(|point| (point.source.clone(), point.destination.clone())).collect();
    if let Some(live) = container.live().filter(|_| record.state.is_running()) {
        if let Some(path) = live.machine.root_on_host(&record.id) {
            return Place::Kept { pid: live.machine.pid(), path, binds };
        }
        return match view {
            View::Whole => Place::There { pid: record.state.pid, path: "/".into(), within: Some(record.id) },
            // The overlay alone is mounted where the machine's own first process sees it.
            View::Bare => Place::There { pid: live.machine.pid(), path: folder.join("bundle/rootfs"), within: None },
        };
    }
    Place::Mount(Mount {
        binds,
        lower: record.layers,
        upper: folder.join("upper"),
        work: folder.join("work"),
        target: folder.join("view"),
    })
}

/// As [`within`], for work that gives one answer.
///
/// # Errors
/// What `work` returns, and what kept it from entering.
pub async fn ask<T: Send + 'static>(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    view: View,
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let (answer, answered) = oneshot::channel();
    within(engine.clone(), container.clone(), view, move |entered| {
        let _ = answer.send(entered.and_then(|()| work()));
    });
    answered.await.map_err(|_| ApiError::internal("the thread for the container's files ended early"))?
}
