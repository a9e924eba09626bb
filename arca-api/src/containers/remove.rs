// SPDX-License-Identifier: Apache-2.0
//! `docker rm`, and what `--rm` does after the exit.

use std::sync::Arc;

use crate::{
    containers::{Container, Status, stop},
    engine::Engine,
    http::{ApiError, ApiResult},
};

/// How to remove.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Kill it first if it runs.
    pub force: bool,
    /// Remove its anonymous volumes too.
    pub volumes: bool,
}

impl Options {
    /// As `--rm` removes: it does not run, and its anonymous volumes go.
    pub fn auto() -> Self {
        Self { force: false, volumes: true }
    }
}

/// Removes a container. Removing one that is already gone is no error.
///
/// # Errors
/// 409 if it runs and `force` is not set; 500 if its files cannot be removed (it is then `dead`).
pub async fn remove(engine: &Arc<Engine>, container: &Arc<Container>, options: Options) -> ApiResult<()> {
    let name = container.with(|record| record.name.clone());
    let _op = loop {
        end(engine, container, &name, options).await?;
        let op = container.ops.lock().await;
        if container.phase.borrow().removed {
            return Ok(());
        }
        if !container.with(|record| record.state.is_running()) {
            break op;
        }
        // Somebody started it again between its end and our turn.
        if !options.force {
            return Err(ApiError::conflict(format!(
                "cannot remove container \"{name}\": container is running: stop the container before removing or force remove"
            )));
        }
    };
    let folder = engine.folder(&container.id);
    let removed = Engine::blocking(move || match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ApiError::internal(format!("remove {}: {error}", folder.display())))
        }
        _ => Ok(()),
    })
    .await;
    if let Err(error) = removed {
        container.update(engine, |record| record.state.status = Status::Dead).await?;
        return Err(error);
    }
    engine.store.delete("container", &container.id).await.map_err(|error| ApiError::internal(error.to_string()))?;
    engine.containers.remove(&container.id);
    sweep(engine).await;
    if options.volumes {
        for volume in container.with(|record| record.anonymous_volumes.clone()) {
            if let Err(error) = engine.volumes.remove(&volume).await {
                tracing::warn!(container_id = container.id, volume, %error, "an anonymous volume stays");
            }
        }
    }
    container.emit(engine, "destroy", &[]);
    container.clients.dismiss();
    container.phase.send_modify(|phase| phase.removed = true);
    Ok(())
}

/// Images that were removed by force go with the last container that stood on them.
pub async fn sweep(engine: &Arc<Engine>) {
    let (images, users) = (engine.images.clone(), crate::routes::images::users(engine));
    if let Err(error) = Engine::blocking(move || Ok(images.sweep(&users)?)).await {
        tracing::warn!(%error, "an image that was removed stays on the disk");
    }
}

/// Kills it if it runs and may be killed.
async fn end(engine: &Arc<Engine>, container: &Arc<Container>, name: &str, options: Options) -> ApiResult<()> {
    let status = container.with(|record| record.state.status);
    if matches!(status, Status::Running | Status::Paused | Status::Restarting) {
        if !options.force {
            let advice = match status {
                Status::Paused => "container is paused and must be unpaused first".to_owned(),
                _ => format!("container is {}: stop the container before removing or force remove", status.word()),
            };
            return Err(ApiError::conflict(format!("cannot remove container \"{name}\": {advice}")));
        }
        if status == Status::Restarting {
            stop::stop(engine, container, "", Some(0)).await?;
        } else if let Err(error) = stop::kill(engine, container, name, "KILL").await {
            tracing::debug!(container_id = container.id, %error, "it ended by itself");
        }
    }
    Ok(())
}
