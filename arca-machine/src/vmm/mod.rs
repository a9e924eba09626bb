// SPDX-License-Identifier: Apache-2.0
//! arca-vmm: the keeper of one virtual machine.
//!
//! The launcher starts it as process 1 of a process namespace, with a mount namespace and a session of its own: it outlives
//! arca-api and arca-netd, and whatever ends it ends QEMU, the vsock daemon and virtiofsd, too.
//!
//! ```text
//!            control socket (expose, root, stop, state, balloon)
//!                     │
//!  guest ── QEMU ── arca-vmm ── console.log, vm-exit.json
//!            │  └── QMP ┘
//!            ├─ vhost-device-vsock   <sockets>/vsock, once it is READY: CONNECT port; READY is passed on to the launcher
//!            └─ virtiofsd            <state>/vm/share
//! ```
//!
//! If any of the three ends, or the guest gives no sign of life for too long, the machine ends.

mod accelerator;
mod child;
mod console;
mod guest;
mod mounts;
mod qemu;
mod qmp;
mod serve;
mod tap;
#[cfg(target_arch = "x86_64")]
#[path = "tsc_x86_64.rs"]
mod tsc;
#[cfg(not(target_arch = "x86_64"))]
#[path = "tsc_other.rs"]
mod tsc;

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::Path,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use arca_daemon::shutdown::Shutdown;
use arca_proto::{keeper, listen::bind_unix};
use nix::sys::resource::{Resource, setrlimit};
use tokio::{net::UnixStream, sync::mpsc, time::Instant};

pub(crate) use self::accelerator::Accelerator;
use self::{
    child::{Confined, Running},
    console::Console,
    mounts::Mounts,
    qemu::Descriptors,
    qmp::Qmp,
    tsc::Tsc,
};
use crate::vm::plan::{Card, End, Plan};

/// From its start until the vsock daemon takes QEMU's connection.
const DAEMON: Duration = Duration::from_secs(10);
/// What a guest may need beyond the grace it was given.
const CLEANUP: Duration = Duration::from_secs(10);
/// From QEMU's letting go of a daemon to its own end.
const CLOSES: Duration = Duration::from_secs(2);
/// Open files that virtiofsd may have: one for each that the guest knows. As many as a process may have by default.
const FILES: u64 = 1 << 20;
/// SIGTERM gives the guest this long.
const GRACE: Duration = Duration::from_secs(10);

/// What happens to the machine.
#[derive(Debug)]
enum Event {
    /// Somebody wants it to end.
    Stop(Duration),
    /// It is of no use any more.
    Lost(String),
}

/// Keeps the machine whose plan lies at `plan`; what arca-vmm's `main` does.
///
/// # Errors
/// The machine could not be started, or ended unasked: one line.
pub(crate) fn run(plan: &Path) -> anyhow::Result<()> {
    let tsc = Tsc::begin();
    // Where less is allowed, less must do.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES);
    let plan = Plan::load(plan).with_context(|| format!("read {}", plan.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let kept = Mounts::new(&plan).and_then(|mounts| runtime.block_on(keep(&plan, mounts, &tsc)));
    // Not waited for: a thread may still read the guest's console.
    runtime.shutdown_background();
    let (reason, asked) = match kept {
        Ok(end) => end,
        Err(error) => (format!("{error:#}"), false),
    };
    let at_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    let end = End { reason, asked, at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX) };
    end.store(&plan.state).with_context(|| format!("write how it ended into {}", plan.state.display()))?;
    anyhow::ensure!(end.asked, "{}", end.reason);
    Ok(())
}

/// Starts everything and sees it to its end: why, and whether it was asked to.
async fn keep(plan: &Plan, mounts: Mounts, tsc: &Tsc) -> anyhow::Result<(String, bool)> {
    let (_, terminated) = Shutdown::on_signals().context("set signal handlers")?;
    let control = bind_unix(&plan.sockets.join(keeper::SOCKET), 0o600).context("listen for control")?;
    let ready = guest::Ready::bind(plan).context("listen for READY")?;
    let accelerator = Accelerator::find();
    let jail = mounts.jail();
    let confined = Confined { jail: &jail, uid: plan.uid };

    let mut vsock = start_vsock(plan, &confined).context("start vhost-device-vsock")?;
    let mut share = match &plan.virtiofsd {
        Some(program) => Some(start_share(program, &mounts).context("start virtiofsd")?),
        None => None,
    };
    let vsock_stream = connect_vsock(plan, &mut vsock).await?;
    let (qmp_ours, qmp_theirs) = pair().context("make QEMU's control connection")?;
    let (console_ours, console_theirs) = pair().context("make the console")?;
    let tap = match &plan.card {
        Some(Card::Tap { interface }) => {
            Some(tap::open(interface).with_context(|| format!("open the TAP interface {interface}"))?)
        }
        _ => None,
    };
    // Emulated processors are not told by the kernel that a frame came; there QEMU carries them itself.
    let vhost = tap.is_some() && accelerator == Accelerator::Kvm;
    let vhost = if vhost { tap::vhost() } else { None };
    let share_stream = share.as_mut().and_then(|(_, stream)| stream.take());
    let descriptors = Descriptors {
        vsock: vsock_stream.as_raw_fd(),
        share: share_stream.as_ref().map(AsRawFd::as_raw_fd),
        qmp: qmp_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        tap: tap.as_ref().map(AsRawFd::as_raw_fd),
        vhost: vhost.as_ref().map(AsRawFd::as_raw_fd),
    };
    // KVM has a clock for its guests.
    let clock = if accelerator == Accelerator::Tcg { tsc.word() } else { None };
    let arguments = qemu::arguments(plan, accelerator, &descriptors, clock);
    tracing::info!(machine_id = plan.id, accelerator = accelerator.word(), ?arguments, "QEMU");
    let given = [Some(vsock_stream), share_stream, Some(qmp_theirs), Some(console_theirs), tap, vhost];
    let given = given.into_iter().flatten().collect();
    let mut qemu = child::start("QEMU", &plan.qemu, arguments, Some(&confined), given).context("start QEMU")?;

    let console = Console::default();
    let recording = tokio::spawn(console.clone().record(console_ours, plan.state.join("console.log")));
    let qmp = Arc::new(Qmp::new(qmp_ours));
    let (events, mut happened) = mpsc::channel(8);
    tokio::spawn(serve::serve(
        control,
        serve::Served {
            plan: plan.clone(),
            accelerator,
            mounts: Arc::new(Mutex::new(mounts)),
            qmp: Arc::clone(&qmp),
            events: events.clone(),
        },
    ));
    tokio::spawn(guest::attend(plan.clone(), ready, events));

    let mut asked = false;
    let mut last_call = pin!(tokio::time::sleep(Duration::ZERO));
    let mut end = None;
    while end.is_none() {
        let stop = tokio::select! {
            // All arms are cancel-safe: ends stay ends, events stay in the channel, times stay set.
            said = qemu.ended() => { end = Some(said); None }
            said = vsock.ended() => { end = Some(after(&mut qemu, said).await); None }
            said = of_share(share.as_mut()) => { end = Some(after(&mut qemu, said).await); None }
            Some(event) = happened.recv() => match event {
                Event::Stop(grace) => Some(grace),
                Event::Lost(reason) => { end = Some(reason); None }
            },
            () = terminated.wait(), if !asked => Some(GRACE),
            () = &mut last_call, if asked => {
                end = Some("it was asked to end and did not in time".to_owned());
                None
            }
        };
        if let Some(grace) = stop.filter(|_| !asked) {
            asked = true;
            last_call.as_mut().reset(Instant::now() + grace + CLEANUP);
            tokio::spawn(guest::ask_to_end(plan.clone(), Arc::clone(&qmp), grace));
        }
    }
    // QEMU that ended well did so because its guest did, and the guest's last words say why.
    let by_itself = qemu.succeeded();
    qemu.kill().await;
    let _ = tokio::time::timeout(CLOSES, recording).await;
    let reason = match console.last_words() {
        _ if asked => "it was asked to end".to_owned(),
        Some(words) if by_itself => format!("the guest ended: {words}"),
        None if by_itself => "the guest ended or rebooted by itself".to_owned(),
        _ => end.unwrap_or_default(),
    };
    Ok((reason, asked))
}

/// Why a daemon ended: mostly because QEMU did, whose own reason is the better one.
async fn after(qemu: &mut Running, said: String) -> String {
    tokio::time::timeout(CLOSES, qemu.ended()).await.unwrap_or(said)
}

fn start_vsock(plan: &Plan, confined: &Confined<'_>) -> io::Result<Running> {
    let option = |name: &str, file: &str| {
        let mut text = OsString::from(name);
        text.push(plan.sockets.join(file));
        text
    };
    let arguments = vec!["--guest-cid=3".into(), option("--socket=", "vhost"), option("--uds-path=", guest::BOOTING)];
    child::start("vhost-device-vsock", &plan.vhost_vsock, arguments, Some(confined), Vec::new())
}

/// Connects QEMU's end as soon as the daemon listens.
async fn connect_vsock(plan: &Plan, daemon: &mut Running) -> anyhow::Result<OwnedFd> {
    let path = plan.sockets.join("vhost");
    let connected = async {
        // The file is there before anybody listens on it, and of the latter there is no event.
        let mut pause = Duration::from_millis(1);
        loop {
            if let Ok(stream) = StdStream::connect(&path) {
                return stream;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    };
    tokio::select! {
        // Tried once; neither is gone back to.
        stream = connected => Ok(stream.into()),
        said = daemon.ended() => anyhow::bail!(said),
        () = tokio::time::sleep(DAEMON) => anyhow::bail!("vhost-device-vsock does not listen on {}", path.display()),
    }
}

/// virtiofsd as root, because it acts on files for every user of the guest, but with no other root than the share. Gives
/// QEMU's end of its connection.
fn start_share(program: &Path, mounts: &Mounts) -> io::Result<(Running, Option<OwnedFd>)> {
    let socket = Path::new("share.sock");
    let listener = StdListener::bind(socket)?;
    let stream = StdStream::connect(socket)?;
    std::fs::remove_file(socket)?;
    let mut shared = OsString::from("--shared-dir=");
    shared.push(mounts.share());
    let arguments = vec![
        shared,
        format!("--fd={}", listener.as_raw_fd()).into(),
        "--sandbox=chroot".into(),
        "--cache=auto".into(),
        "--xattr".into(),
        "--log-level=warn".into(),
    ];
    let running = child::start("virtiofsd", program, arguments, None, vec![listener.into()])?;
    Ok((running, Some(stream.into())))
}

async fn of_share(share: Option<&mut (Running, Option<OwnedFd>)>) -> String {
    match share {
        Some((running, _)) => running.ended().await,
        None => std::future::pending().await,
    }
}

/// Our end for the runtime, theirs to be given away.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
