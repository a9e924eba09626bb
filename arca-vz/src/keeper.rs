// SPDX-License-Identifier: Apache-2.0
//! The life of the machine.
//!
//! ```text
//!  sockets bound ─> guest's calls listened for ─> started ─> served ──────────────────────────────> ended ─> sockets gone
//!                                                              │ asked (control, signal, lease lost)   ^
//!                                                              └─> guest asked to end ─ grace over: stopped
//! ```

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use arca_proto::{
    dial::{self, Address},
    init::v1::{ShutdownRequest, init_client::InitClient},
    keeper::Role,
    listen::bind_unix,
    ports,
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::Instant,
};

use crate::{
    control::{self, Served},
    end::End,
    face,
    framework::{Ended, Framework},
    lease::Lease,
    shares::Shares,
    spec::Spec,
};

/// SIGTERM gives the guest this long.
const GRACE: Duration = Duration::from_secs(10);
/// What a guest may need beyond the grace it was given, and the framework to stop it.
const CLEANUP: Duration = Duration::from_secs(10);
/// How long a guest may take to hear that it should end.
const HEARS: Duration = Duration::from_secs(5);

/// Starts the machine and sees it to its end: how that came.
///
/// # Errors
/// It could not be started.
pub async fn keep(
    spec: &Spec,
    framework: Arc<dyn Framework>,
    lease: Lease,
    terminated: impl Future<Output = ()>,
) -> anyhow::Result<End> {
    let face = bind_unix(&spec.face(), 0o600).context("listen for those who want the guest's ports")?;
    let control = bind_unix(&spec.control(), 0o600).context("listen for control")?;
    let kept = run(spec, &framework, lease, terminated, (face, control)).await;
    for socket in [spec.face(), spec.control()] {
        let _ = std::fs::remove_file(socket);
    }
    kept
}

async fn run(
    spec: &Spec,
    framework: &Arc<dyn Framework>,
    lease: Lease,
    terminated: impl Future<Output = ()>,
    (face, control): (arca_proto::listen::Listener, arca_proto::listen::Listener),
) -> anyhow::Result<End> {
    let (stop, mut stops) = mpsc::channel(4);
    let shares = Arc::new(Mutex::new(Shares::new(spec.state.join("files"))));
    // Before the first instruction of the guest: its one call is READY, and nobody calls twice.
    let calls = framework.listen(ports::READY).await?;
    let mut ended = framework.ended();
    let served = Served { framework: Arc::clone(framework), shares, memory: spec.memory, stop };
    let tasks = [
        tokio::spawn(face::carry(calls, spec.face(), ports::READY)),
        tokio::spawn(async move { drop(control::serve(control, served).await) }),
        tokio::spawn({
            let framework = Arc::clone(framework);
            async move {
                let error = face::serve(face, framework).await;
                tracing::error!(%error, "the machine's ports are out of reach");
            }
        }),
    ];
    let booted = framework.start().await;
    let end = match booted {
        Ok(()) => {
            tracing::info!(machine_id = spec.id, "started");
            let (mut lost, mut terminated) = (pin!(lease.lost()), pin!(terminated));
            let mut last_call = pin!(tokio::time::sleep(Duration::ZERO));
            let (mut asked, mut stopped, mut deadline) = (None::<&str>, false, None::<Instant>);
            loop {
                let grace = tokio::select! {
                    // All arms are cancel-safe: ends stay ends, questions stay in the channel, times stay set.
                    how = end(&mut ended) => break end_of(how, asked),
                    Some(grace) = stops.recv() => { asked.get_or_insert("it was asked to end"); grace }
                    () = &mut terminated, if asked.is_none() => { asked = Some("a signal ended it"); GRACE }
                    () = &mut lost, if asked.is_none() => {
                        asked = Some("its launcher died before it was on record");
                        Duration::ZERO
                    }
                    () = &mut last_call, if deadline.is_some() => {
                        if stopped {
                            break End::now("the framework does not stop it; its process ends instead", true);
                        }
                        stopped = true;
                        last_call.as_mut().reset(Instant::now() + CLEANUP);
                        if let Err(error) = framework.stop().await {
                            tracing::warn!(machine_id = spec.id, %error, "it is not stopped");
                        }
                        continue;
                    }
                };
                // Asked again it may only become more urgent.
                let grace = if spec.role == Role::Container { grace } else { Duration::ZERO };
                let at = Instant::now() + grace;
                if !stopped && deadline.is_none_or(|deadline| at < deadline) {
                    deadline = Some(at);
                    last_call.as_mut().reset(at);
                }
                if !grace.is_zero() {
                    tokio::spawn(ask_to_end(Address::Hybrid(spec.face()), grace));
                }
            }
        }
        Err(error) => {
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            return Err(error.into());
        }
    };
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    tracing::info!(machine_id = spec.id, reason = end.reason, "ended");
    Ok(end)
}

/// How the machine ended, once it has.
async fn end(ended: &mut watch::Receiver<Ended>) -> Option<Result<(), String>> {
    ended.wait_for(Option::is_some).await.ok().and_then(|how| how.clone())
}

fn end_of(how: Option<Result<(), String>>, asked: Option<&str>) -> End {
    match (how, asked) {
        (_, Some(why)) => End::now(why, true),
        (Some(Err(reason)), None) => End::now(format!("the framework stopped it: {reason}"), false),
        (Some(Ok(())) | None, None) => End::now("the guest ended by itself", false),
    }
}

/// Asks arca-init to end its workloads and the machine. One that cannot be asked is stopped when the grace is over.
async fn ask_to_end(address: Address, grace: Duration) {
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    let mut init = InitClient::new(dial::channel(&address, ports::INIT));
    match tokio::time::timeout(HEARS, init.shutdown(ShutdownRequest { grace_ms })).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => tracing::warn!(error = status.message(), "the guest cannot be asked to end"),
        Err(_) => tracing::warn!("the guest does not hear that it should end"),
    }
}
