// SPDX-License-Identifier: Apache-2.0
//! [`Framework`] over VZVirtualMachine.

use std::{
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::Mutex,
};

use async_trait::async_trait;
use block2::RcBlock;
use objc2::{Message as _, rc::Retained, runtime::ProtocolObject};
use objc2_foundation::NSError;
use objc2_virtualization::{
    VZVirtioFileSystemDevice, VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioTraditionalMemoryBalloonDevice, VZVirtualMachine, VZVirtualMachineState,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    configuration,
    delegates::{ListenerDelegate, MachineDelegate},
    nic,
    queue::{HeldOnQueue, OnQueue},
    refused,
};
use crate::{
    framework::{Connection, Ended, Framework, FrameworkError},
    shares::Shares,
    spec::Spec,
};

/// A machine of the framework.
pub(super) struct Machine {
    machine: OnQueue,
    ended: watch::Sender<Ended>,
    /// Delegates are held weakly by whom they are delegates of.
    delegates: Mutex<Vec<HeldOnQueue<Delegates>>>,
    /// Its end would unplug the card.
    _card: Option<StdStream>,
}

/// Both kinds, and what they belong to.
enum Delegates {
    Machine(#[allow(dead_code, reason = "held, not read")] Retained<MachineDelegate>),
    Listener(
        #[allow(dead_code, reason = "held, not read")] Retained<VZVirtioSocketListener>,
        #[allow(dead_code, reason = "held, not read")] Retained<ListenerDelegate>,
    ),
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("ended", &*self.ended.borrow()).finish_non_exhaustive()
    }
}

fn absent(action: &'static str, device: &str) -> FrameworkError {
    FrameworkError { action, reason: format!("the machine has no {device}") }
}

/// Its socket device; on the queue only.
fn sockets(machine: &VZVirtualMachine) -> Option<Retained<VZVirtioSocketDevice>> {
    // SAFETY: the caller is on the machine's queue.
    let devices = unsafe { machine.socketDevices() };
    devices.firstObject()?.downcast().ok()
}

/// The bytes of a connection, by a duplicate of its descriptor: the object closes its own when it goes.
fn stream(connection: &VZVirtioSocketConnection) -> std::io::Result<StdStream> {
    // SAFETY: the connection is alive and its descriptor open while it is borrowed; what comes back is a duplicate.
    let duplicate: OwnedFd = unsafe { BorrowedFd::borrow_raw(connection.fileDescriptor()) }.try_clone_to_owned()?;
    Ok(duplicate.into())
}

impl Machine {
    /// Builds it; it does not run yet.
    pub(super) fn new(spec: &Spec) -> anyhow::Result<Self> {
        let card = spec.nic.as_ref().map(nic::plug).transpose()?;
        let configuration = configuration::build(spec, card.as_ref())?;
        let machine = OnQueue::new(&format!("dev.arca.vz.{}", spec.id), &configuration);
        let (ended, _) = watch::channel(None);
        Ok(Self { machine, ended, delegates: Mutex::default(), _card: card.map(|card| card.hold) })
    }

    fn keep(&self, delegates: HeldOnQueue<Delegates>) {
        self.delegates.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(delegates);
    }

    /// Begins something that the framework answers by a block of one error, and waits for it.
    async fn answered(
        &self,
        action: &'static str,
        begin: impl FnOnce(&VZVirtualMachine, &RcBlock<dyn Fn(*mut NSError)>) + Send + 'static,
    ) -> Result<(), FrameworkError> {
        let (done, result) = oneshot::channel();
        self.machine.begin(move |machine| {
            let done = Mutex::new(Some(done));
            let handler = RcBlock::new(move |error: *mut NSError| {
                // SAFETY: null or an error that lives as long as the call.
                let outcome = match unsafe { error.as_ref() } {
                    Some(error) => Err(refused(action, error)),
                    None => Ok(()),
                };
                let waiting = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                waiting.map(|waiting| waiting.send(outcome));
            });
            begin(machine, &handler);
        });
        result.await.map_err(|_| FrameworkError { action, reason: "the framework does not answer".into() })?
    }
}

#[async_trait]
impl Framework for Machine {
    async fn start(&self) -> Result<(), FrameworkError> {
        let ended = self.ended.clone();
        let on = self.machine.clone();
        let delegate = self.machine.run(move |machine| {
            let delegate = MachineDelegate::new(ended);
            // SAFETY: on the queue; the delegate is kept by the caller as long as the machine.
            unsafe { machine.setDelegate(Some(ProtocolObject::from_ref(&*delegate))) };
            on.hold(Delegates::Machine(delegate))
        });
        let delegate = delegate.await?;
        self.keep(delegate);
        self.answered("start the machine", |machine, handler| {
            // SAFETY: on the queue.
            unsafe { machine.startWithCompletionHandler(handler) };
        })
        .await
    }

    async fn connect(&self, port: u32) -> Result<Connection, FrameworkError> {
        const ACTION: &str = "connect to the guest";
        type Outcome = Result<(StdStream, HeldOnQueue<Retained<VZVirtioSocketConnection>>), FrameworkError>;
        let (done, result) = oneshot::channel::<Outcome>();
        let on = self.machine.clone();
        self.machine.begin(move |machine| {
            let done = Mutex::new(Some(done));
            let answer = move |outcome| {
                let waiting = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                waiting.map(|waiting: oneshot::Sender<Outcome>| waiting.send(outcome));
            };
            let Some(device) = sockets(machine) else { return answer(Err(absent(ACTION, "socket device"))) };
            let handler = RcBlock::new(move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
                // SAFETY: each is null or an object that lives as long as the call; the framework calls on the queue.
                let outcome = match unsafe { (connection.as_ref(), error.as_ref()) } {
                    (Some(connection), _) => match stream(connection) {
                        Ok(stream) => Ok((stream, on.hold(connection.retain()))),
                        Err(error) => Err(FrameworkError { action: ACTION, reason: error.to_string() }),
                    },
                    (None, Some(error)) => Err(refused(ACTION, error)),
                    (None, None) => Err(FrameworkError { action: ACTION, reason: "neither yes nor no".into() }),
                };
                answer(outcome);
            });
            // SAFETY: on the queue.
            unsafe { device.connectToPort_completionHandler(port, &handler) };
        });
        let gone = |_| FrameworkError { action: ACTION, reason: "the framework does not answer".into() };
        let (stream, hold) = result.await.map_err(gone)??;
        let made = Connection::new(stream, Box::new(hold));
        made.map_err(|error| FrameworkError { action: ACTION, reason: error.to_string() })
    }

    async fn listen(&self, port: u32) -> Result<mpsc::UnboundedReceiver<Connection>, FrameworkError> {
        const ACTION: &str = "listen for the guest";
        let (calls, taken) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Handle::current();
        let on = self.machine.clone();
        let listener = self.machine.run(move |machine| {
            let Some(device) = sockets(machine) else { return Err(absent(ACTION, "socket device")) };
            let holder = on.clone();
            let delegate = ListenerDelegate::new(Box::new(move |connection| {
                // Sockets of the runtime are made where it can be found.
                let _entered = runtime.enter();
                let hold = Box::new(holder.hold(connection.retain()));
                match stream(connection).and_then(|stream| Connection::new(stream, hold)) {
                    Ok(connection) => calls.send(connection).is_ok(),
                    Err(error) => {
                        tracing::warn!(port, %error, "a call of the guest was lost");
                        false
                    }
                }
            }));
            // SAFETY: on the queue; delegate and listener are kept by the caller.
            let listener = unsafe {
                let listener = VZVirtioSocketListener::new();
                listener.setDelegate(Some(ProtocolObject::from_ref(&*delegate)));
                device.setSocketListener_forPort(&listener, port);
                listener
            };
            Ok(on.hold(Delegates::Listener(listener, delegate)))
        });
        let listener = listener.await??;
        self.keep(listener);
        Ok(taken)
    }

    async fn share(&self, shares: &Shares) -> Result<(), FrameworkError> {
        const ACTION: &str = "share a folder";
        let shares = shares.clone();
        let shared = self.machine.run(move |machine| {
            let directories = configuration::directories(&shares)
                .map_err(|error| FrameworkError { action: ACTION, reason: format!("{error:#}") })?;
            // SAFETY: on the queue. The share of a running device may be replaced (VZVirtioFileSystemDevice.h).
            unsafe {
                let device = machine.directorySharingDevices().firstObject();
                let device = device.and_then(|device| device.downcast::<VZVirtioFileSystemDevice>().ok());
                device.ok_or_else(|| absent(ACTION, "file system device"))?.setShare(Some(&directories));
            }
            Ok(())
        });
        shared.await?
    }

    async fn balloon(&self, bytes: u64) -> Result<(), FrameworkError> {
        let set = self.machine.run(move |machine| {
            // SAFETY: on the queue.
            unsafe {
                let device = machine.memoryBalloonDevices().firstObject();
                let device = device.and_then(|device| device.downcast::<VZVirtioTraditionalMemoryBalloonDevice>().ok());
                let device = device.ok_or_else(|| absent("size the guest's memory", "balloon"))?;
                device.setTargetVirtualMachineMemorySize(bytes);
            }
            Ok(())
        });
        set.await?
    }

    async fn state(&self) -> String {
        // SAFETY: on the queue.
        let state = self.machine.run(|machine| unsafe { machine.state() }).await;
        let word = match state {
            Ok(VZVirtualMachineState::Running) => "running",
            Ok(VZVirtualMachineState::Stopped) => "stopped",
            Ok(VZVirtualMachineState::Paused) => "paused",
            Ok(VZVirtualMachineState::Starting) => "starting",
            Ok(VZVirtualMachineState::Stopping) => "stopping",
            Ok(VZVirtualMachineState::Error) => "error",
            Ok(_) | Err(_) => "unknown",
        };
        word.to_owned()
    }

    async fn stop(&self) -> Result<(), FrameworkError> {
        let stopped = self.answered("stop the machine", |machine, handler| {
            // SAFETY: on the queue.
            unsafe { machine.stopWithCompletionHandler(handler) };
        });
        stopped.await?;
        // The delegate hears of ends that nobody asked for only.
        self.ended.send_replace(Some(Ok(())));
        Ok(())
    }

    fn ended(&self) -> watch::Receiver<Ended> {
        self.ended.subscribe()
    }
}
