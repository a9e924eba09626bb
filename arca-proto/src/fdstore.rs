// SPDX-License-Identifier: Apache-2.0
//! The descriptor store: what lets a killed arca-tapfwd come back with the same TAPs and listening sockets.
//!
//! arca-init holds the [`Store`], arca-tapfwd is its [`Client`]. They talk over one `SOCK_SEQPACKET` socket pair per
//! run of the client; the client inherits its end, whose number is in [`ENV`]. One packet is one message: a JSON
//! header, with the descriptors beside it (`SCM_RIGHTS`).
//!
//! ```text
//! store  -> client   PUT name state +descriptors   (each held entry)   then END
//! client -> store    PUT name state +descriptors   replaces an entry of that name
//! client -> store    REMOVE name
//! store  -> client   REMOVED name                   its descriptors are closed
//! ```
//!
//! A PUT needs no answer: once sent, it is in the socket's queue and survives the sender's death. The store therefore
//! reads a dead client's queue to its end ([`Session::serve`] returns then) before the next run starts. A REMOVE is
//! answered, because a TAP's name and a listener's port are free only when the last descriptor is closed.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Environment variable with the number of the client's inherited descriptor.
pub const ENV: &str = "ARCA_FDSTORE";
/// Descriptors one entry may hold.
pub const MAX_DESCRIPTORS: usize = 8;
/// Bytes of one message's JSON.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Entries a store holds; a client that wants more is told so by its log, not by a growing arca-init.
pub const MAX_ENTRIES: usize = 1024;

/// Why the two ends could not talk.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// A system call on the socket failed.
    #[error("descriptor store: cannot {operation}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: Errno,
    },
    /// The variable does not hold the number of an open descriptor.
    #[error("{ENV}={0} is not the number of an inherited descriptor")]
    Environment(String),
    /// A message that is no message of this protocol.
    #[error("descriptor store: malformed message: {0}")]
    Malformed(String),
    /// An entry with more descriptors or a larger state than the protocol carries.
    #[error("descriptor store: entry {name} is too large ({descriptors} descriptors, {bytes} bytes)")]
    TooLarge {
        /// Entry name.
        name: String,
        /// Descriptors in it.
        descriptors: usize,
        /// Bytes of its JSON.
        bytes: usize,
    },
    /// The other end is gone before END was read.
    #[error("descriptor store: closed before all entries came; did the parent die?")]
    Closed,
}

/// One kept thing: its descriptors and what their owner needs to know to go on with them.
#[derive(Debug)]
pub struct Entry {
    /// Key in the store, for example `link-7`.
    pub name: String,
    /// The owner's own record.
    pub state: Value,
    /// In the order in which they were put.
    pub descriptors: Vec<OwnedFd>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Message {
    Put { name: String, state: Value },
    Remove { name: String },
    Removed { name: String },
    End,
}

/// The keeping side. It lives as long as arca-init and never looks into an entry.
#[derive(Debug, Default)]
pub struct Store {
    entries: Mutex<BTreeMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    state: Value,
    descriptors: Vec<OwnedFd>,
}

/// One run of the client, before and while it runs.
#[derive(Debug)]
pub struct Session {
    store: Arc<Store>,
    parent: OwnedFd,
    child: OwnedFd,
}

impl Store {
    /// Opens the socket pair for one run of the client.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn session(self: &Arc<Self>) -> Result<Session, FdStoreError> {
        let (parent, child) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|source| FdStoreError::Socket { operation: "make a socket pair", source })?;
        Ok(Session { store: Arc::clone(self), parent, child })
    }

    /// Names of the held entries, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        // Every change is one insert or remove, so a panic elsewhere cannot leave the map half-changed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replay(&self, to: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        for (name, held) in self.lock().iter() {
            let message = Message::Put { name: name.clone(), state: held.state.clone() };
            let descriptors: Vec<BorrowedFd<'_>> = held.descriptors.iter().map(AsFd::as_fd).collect();
            send(to, &message, &descriptors)?;
        }
        send(to, &Message::End, &[])
    }

    /// Does what the client asks and gives the answer, if there is one.
    fn apply(&self, message: Message, descriptors: Vec<OwnedFd>) -> Option<Message> {
        let mut entries = self.lock();
        match message {
            Message::Put { name, .. } if entries.len() >= MAX_ENTRIES && !entries.contains_key(&name) => {
                tracing::error!(%name, "descriptor store is full; entry not kept");
            }
            Message::Put { name, state } => {
                entries.insert(name, Held { state, descriptors });
            }
            Message::Remove { name } => {
                entries.remove(&name);
                return Some(Message::Removed { name });
            }
            Message::Removed { .. } | Message::End => {
                tracing::warn!("descriptor store: the client sent what only the store sends");
            }
        }
        None
    }
}

impl Session {
    /// Makes `command` inherit the client's end. Call once, then spawn, then [`Session::serve`].
    pub fn pass_to(&self, command: &mut Command) {
        let number = self.child.as_raw_fd();
        command.env(ENV, number.to_string());
        // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe, on a descriptor that
        // the parent holds open until `serve`.
        unsafe {
            command.pre_exec(move || {
                let fd = BorrowedFd::borrow_raw(number);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
    }

    /// Sends the held entries, then keeps what the client puts, until the client and every copy of its end are gone.
    /// Blocks: give it a thread of its own, and join that before the next [`Store::session`].
    ///
    /// # Errors
    /// The socket failed. What was put before is kept.
    pub fn serve(self) -> Result<(), FdStoreError> {
        let Self { store, parent, child } = self;
        // The child has its own copy by now; ours would keep the end of input from ever coming.
        drop(child);
        if let Err(error) = store.replay(parent.as_fd()) {
            // A client that died early is the next run's business; what it put must still be read.
            tracing::warn!(%error, "descriptor store: client went away during the replay");
        }
        loop {
            match receive(parent.as_fd()) {
                Ok(Some((message, descriptors))) => {
                    if let Some(answer) = store.apply(message, descriptors) {
                        // A client that is gone needs no answer.
                        let _ = send(parent.as_fd(), &answer, &[]);
                    }
                }
                Ok(None) => return Ok(()),
                // Said once, when the client died with unread entries in its queue; ours is still to be read.
                Err(FdStoreError::Socket { source: Errno::ECONNRESET, .. }) => {}
                Err(FdStoreError::Malformed(text)) => tracing::error!("descriptor store: {text}"),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The side of the one whose descriptors are kept.
#[derive(Debug)]
pub struct Client {
    // Locked from a request to its answer.
    socket: Mutex<OwnedFd>,
}

impl Client {
    /// Takes the inherited descriptor named by [`ENV`]; `None` without that variable (a run without a parent that
    /// keeps anything). Call once, early: the descriptor is closed on exec from then on.
    ///
    /// # Errors
    /// The variable does not name an open descriptor.
    pub fn from_env() -> Result<Option<Self>, FdStoreError> {
        let Some(value) = std::env::var_os(ENV) else { return Ok(None) };
        let value = value.to_string_lossy().into_owned();
        let number: RawFd =
            value.parse().ok().filter(|n| *n > 2).ok_or_else(|| FdStoreError::Environment(value.clone()))?;
        // SAFETY: F_GETFD below rejects a closed number, and by contract the parent opened this one for us alone.
        let socket = unsafe {
            let fd = BorrowedFd::borrow_raw(number);
            fcntl(fd, FcntlArg::F_GETFD).map_err(|_| FdStoreError::Environment(value))?;
            OwnedFd::from_raw_fd(number)
        };
        Self::new(socket).map(Some)
    }

    /// A client on a socket that is already owned.
    ///
    /// # Errors
    /// `fcntl` refused the descriptor.
    pub fn new(socket: OwnedFd) -> Result<Self, FdStoreError> {
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|source| FdStoreError::Socket { operation: "mark the socket close-on-exec", source })?;
        Ok(Self { socket: Mutex::new(socket) })
    }

    /// Reads what the store held when this run began. Call once, before the first [`Client::put`]. Blocks for the
    /// parent, which sends at once.
    ///
    /// # Errors
    /// The parent is gone, or does not speak this protocol.
    pub fn restore(&self) -> Result<Vec<Entry>, FdStoreError> {
        let socket = self.lock();
        let mut entries = Vec::new();
        loop {
            match receive(socket.as_fd())? {
                Some((Message::Put { name, state }, descriptors)) => entries.push(Entry { name, state, descriptors }),
                Some((Message::End, _)) => return Ok(entries),
                Some((Message::Remove { name } | Message::Removed { name }, _)) => {
                    return Err(FdStoreError::Malformed(format!("{name} is removed before END")));
                }
                None => return Err(FdStoreError::Closed),
            }
        }
    }

    /// Has the store keep duplicates of `descriptors` under `name`, in place of what it had there.
    ///
    /// # Errors
    /// Too large for one message, or the parent is gone.
    pub fn put(&self, name: &str, state: Value, descriptors: &[BorrowedFd<'_>]) -> Result<(), FdStoreError> {
        send(self.lock().as_fd(), &Message::Put { name: name.to_owned(), state }, descriptors)
    }

    /// Has the store close what it keeps under `name`, and waits until that is done (the parent answers at once).
    /// Removing what is not kept is no error.
    ///
    /// # Errors
    /// The parent is gone.
    pub fn remove(&self, name: &str) -> Result<(), FdStoreError> {
        let socket = self.lock();
        send(socket.as_fd(), &Message::Remove { name: name.to_owned() }, &[])?;
        match receive(socket.as_fd())? {
            Some((Message::Removed { name: removed }, _)) if removed == name => Ok(()),
            Some((message, _)) => Err(FdStoreError::Malformed(format!("{message:?} instead of REMOVED {name}"))),
            None => Err(FdStoreError::Closed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, OwnedFd> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(to: BorrowedFd<'_>, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), FdStoreError> {
    let bytes = serde_json::to_vec(message).map_err(|e| FdStoreError::Malformed(e.to_string()))?;
    if descriptors.len() > MAX_DESCRIPTORS || bytes.len() > MAX_MESSAGE {
        let (Message::Put { name, .. } | Message::Remove { name } | Message::Removed { name }) = message else {
            return Err(FdStoreError::Malformed("END is too large".to_owned()));
        };
        let (descriptors, bytes) = (descriptors.len(), bytes.len());
        return Err(FdStoreError::TooLarge { name: name.clone(), descriptors, bytes });
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(FdStoreError::Socket { operation: "send to the other end", source }),
        }
    }
}

/// One message, or `None` at the end of input.
fn receive(from: BorrowedFd<'_>) -> Result<Option<(Message, Vec<OwnedFd>)>, FdStoreError> {
    let mut bytes = vec![0u8; MAX_MESSAGE + 1];
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let (length, flags, descriptors) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(received) => {
                let mut descriptors = Vec::new();
                if let Ok(messages) = received.cmsgs() {
                    for message in messages {
                        if let ControlMessageOwned::ScmRights(numbers) = message {
                            // SAFETY: the kernel has just made these for us, and nothing else knows them.
                            descriptors.extend(numbers.into_iter().map(|n| unsafe { OwnedFd::from_raw_fd(n) }));
                        }
                    }
                }
                break (received.bytes, received.flags, descriptors);
            }
            Err(Errno::EINTR) => {}
            Err(source) => return Err(FdStoreError::Socket { operation: "read from the other end", source }),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(FdStoreError::Malformed(format!("a message of more than {MAX_MESSAGE} bytes")));
    }
    let message = serde_json::from_slice(&bytes[..length]).map_err(|e| FdStoreError::Malformed(e.to_string()))?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests;
