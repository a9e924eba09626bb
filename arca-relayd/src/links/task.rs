// SPDX-License-Identifier: Apache-2.0
//! The life of one link: dial both ends, join them, wait for the end, again. Ends only by being aborted, which closes
//! both streams.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arca_proto::{
    dial::{DialError, dial},
    hello::{Agreement, Carrier, Offloads},
    ports::LinkNumber,
};
use tokio::{
    sync::{broadcast, watch},
    time::{sleep, timeout},
};

use super::{
    Ends, Phase, Progress, Snapshot,
    count::Count,
    handed::Handed,
    joint::{Joint, JointConfig, State},
};

/// First pause after a failure; doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(250);
/// A connection that lived as long as this was no failure: the next one is tried at once.
const LIVED: Duration = Duration::from_millis(250);
/// How long an end may take to accept, and then to say hello.
const STEP: Duration = Duration::from_secs(2);

pub(super) struct Publish {
    pub(super) link: LinkNumber,
    pub(super) ends: Ends,
    pub(super) counting: Arc<Count>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) changes: broadcast::Sender<Snapshot>,
}

impl Publish {
    fn update(&self, change: impl FnOnce(&mut Progress)) {
        let changed = self.progress.send_if_modified(|progress| {
            let before = progress.clone();
            change(progress);
            // An attempt's epoch alone is no news.
            (before.phase, &before.last_error) != (progress.phase, &progress.last_error)
        });
        if changed {
            // Nobody may be watching.
            let _ = self.changes.send(Snapshot {
                link: self.link,
                ends: self.ends.clone(),
                progress: self.progress.borrow().clone(),
                to_helper: self.counting.to_helper(),
                to_container: self.counting.to_container(),
                stuck: self.counting.here.stuck(),
            });
        }
    }
}

/// Why an attempt did not come up.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{end} end: {}", chain(.source))]
    Dial { end: &'static str, source: DialError },
    #[error("{0} end: does not accept")]
    Slow(&'static str),
    #[error("{0} end: {1}")]
    Descriptor(&'static str, std::io::Error),
    #[error("start the relay thread: {0}")]
    Thread(std::io::Error),
    #[error("{0}")]
    Hello(Arc<str>),
    #[error("the ends have not said hello within two seconds")]
    Silent,
    #[error("{0}")]
    Handed(String),
}

/// What stands while a link is up.
enum Joined {
    /// Frames pass here.
    Frames(Joint),
    /// They do not.
    Handed(Box<Handed>),
}

/// The whole chain in one line: this text travels as a string.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(super) async fn run(publish: Publish) {
    let mut pause = FIRST_PAUSE;
    let (mut epoch, mut connections) = (0, 0);
    loop {
        // Greater than any before, also than those of an earlier process.
        epoch = now_ns().max(epoch + 1);
        publish.progress.send_modify(|progress| progress.epoch = epoch);
        let why = match connect(&publish, epoch).await {
            Ok((joined, agreement)) => {
                let since = Instant::now();
                publish.update(|progress| {
                    progress.phase = Phase::Up;
                    progress.offloads = agreement.offloads;
                    progress.reconnects = connections;
                    progress.last_error.clear();
                });
                let (link, carrier) = (publish.link, publish.ends.carrier);
                tracing::info!(%link, %carrier, epoch, offloads = %agreement.offloads, "link up");
                connections += 1;
                let why = match joined {
                    Joined::Frames(joint) => ended(&joint).await,
                    Joined::Handed(handed) => handed.ended(&publish.counting).await,
                };
                if since.elapsed() >= LIVED {
                    pause = FIRST_PAUSE;
                }
                why.to_string()
            }
            Err(failed) => failed.to_string(),
        };
        tracing::info!(link = %publish.link, epoch, why, "link down; dialling again");
        publish.update(|progress| {
            progress.phase = Phase::Connecting;
            progress.offloads = Offloads::NONE;
            progress.last_error = why;
        });
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

async fn connect(publish: &Publish, epoch: u64) -> Result<(Joined, Agreement), Failed> {
    let Publish { link, ends, .. } = publish;
    let one = async |end, address, port| {
        let stream = timeout(STEP, dial(address, port)).await.map_err(|_| Failed::Slow(end))?;
        stream.map_err(|source| Failed::Dial { end, source })
    };
    let (container, helper) = tokio::try_join!(
        one("container", &ends.container, link.container_port()),
        one("helper", &ends.helper, link.helper_port()),
    )?;
    if ends.carrier != Carrier::Stream {
        let handed = Handed::join(*link, epoch, ends.carrier, container, helper).await.map_err(Failed::Handed)?;
        return Ok((Joined::Handed(Box::new(handed.0)), handed.1));
    }
    let container = container.into_fd().map_err(|error| Failed::Descriptor("container", error))?;
    let helper = helper.into_fd().map_err(|error| Failed::Descriptor("helper", error))?;
    let counters = publish.counting.here.clone();
    let joint =
        Joint::start(JointConfig { link: *link, epoch, container, helper, counters }).map_err(Failed::Thread)?;
    let mut state = joint.watch();
    let said = timeout(STEP, state.wait_for(|state| *state != State::Connecting)).await.map_err(|_| Failed::Silent)?;
    let agreement = match said.as_deref() {
        Ok(State::Up(agreement)) => *agreement,
        Ok(State::Ended(why)) => return Err(Failed::Hello(why.clone())),
        Ok(State::Connecting) | Err(_) => return Err(Failed::Hello("the relay thread ended".into())),
    };
    drop(said);
    Ok((Joined::Frames(joint), agreement))
}

async fn ended(joint: &Joint) -> Arc<str> {
    let mut state = joint.watch();
    match state.wait_for(|state| matches!(state, State::Ended(_))).await.as_deref() {
        Ok(State::Ended(why)) => why.clone(),
        _ => "the relay thread ended".into(),
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX - 1)
}
