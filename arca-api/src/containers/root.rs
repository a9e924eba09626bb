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
enum Place {
    /// Its root is there, seen through a process that has it mounted.
    There(PathBuf),
    /// It has to be mounted.
    Mount(Mount),
}

/// An overlay, and what is mounted over it.
#[derive(Debug)]
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
            Place::There(_) => None,
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
    if let Some(live) = container.live().filter(|_| record.state.is_running()) {
        let root = |pid: u32| PathBuf::from(format!("/proc/{pid}/root"));
        return Place::There(match view {
            View::Whole => root(record.state.pid),
            // The overlay alone is mounted where the machine's own first process sees it.
            View::Bare => {
                let rootfs = folder.join("bundle/rootfs");
                root(live.machine.pid()).join(rootfs.strip_prefix("/").unwrap_or(&rootfs))
            }
        });
    }
    let points = record.mounts.iter().filter(|point| view == View::Whole && point.kind != "tmpfs");
    Place::Mount(Mount {
        binds: points.map(|point| (point.source.clone(), point.destination.clone())).collect(),
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
