// SPDX-License-Identifier: Apache-2.0
//! The socket of the keeper of one network, where a network dies with the process that made it. One line asks, one answers:
//!
//! - `plug MTU`: a machine's keeper wants its card plugged in. `service NAME` (the network is handed out by this mach service),
//!   `frames` with a datagram socket beside it, or `no REASON`. The end of the connection unplugs the card.
//! - `end`: the keeper ends, and the network with it.
//! - nothing: who connects and goes only asked whether somebody is here.

use std::{
    io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, mpsc},
    thread,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// What ends it.
pub(super) const END: &str = "end";
/// Longest question.
const LINE: u64 = 64;

/// How a card is connected with the network.
#[derive(Debug)]
pub(super) enum Way {
    /// The network is handed out by this mach service.
    Service(String),
    /// Frames go by this datagram socket, one each.
    Frames(OwnedFd),
}

/// A network that cards are plugged into. A plug is unplugged when it is dropped.
pub(super) trait Network: Send + Sync + 'static {
    type Plug: Send;
    /// Makes room for one card.
    fn plug(&self, mtu: u32) -> Result<(Way, Self::Plug), String>;
}

/// Serves until somebody says so; cards that are plugged in then lose their network.
pub(super) fn serve(listener: UnixListener, network: impl Network) -> io::Result<()> {
    let network = Arc::new(network);
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let (network, end) = (Arc::clone(&network), end.clone());
            // A thread each: a card holds its connection for as long as its machine lives.
            thread::spawn(move || match attend(&connection, &*network) {
                Ok(true) => drop(end.send(())),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a question to the keeper of a network"),
            });
        }
    });
    ended.recv().map_err(io::Error::other)
}

/// Answers one connection; true if the end was asked for.
fn attend<N: Network>(mut connection: &UnixStream, network: &N) -> io::Result<bool> {
    let mut line = String::new();
    BufReader::new(connection.take(LINE)).read_line(&mut line)?;
    let said = line.trim_end();
    if said == END {
        return Ok(true);
    }
    let Some(mtu) = said.strip_prefix("plug ").and_then(|mtu| mtu.parse().ok()) else { return Ok(false) };
    match network.plug(mtu) {
        Ok((way, plug)) => {
            match way {
                Way::Service(name) => writeln!(connection, "service {name}")?,
                Way::Frames(socket) => {
                    let descriptors = [socket.as_raw_fd()];
                    let rights = [ControlMessage::ScmRights(&descriptors)];
                    let parts = [IoSlice::new(b"frames\n")];
                    sendmsg::<()>(connection.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None)?;
                }
            }
            // Until the machine's keeper goes, or says what nobody asked it.
            let _ = connection.read(&mut [0; 1]);
            drop(plug);
        }
        Err(reason) => writeln!(connection, "no {}", reason.replace('\n', " "))?,
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::net::UnixDatagram,
        path::PathBuf,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    struct Stand {
        plugged: Arc<AtomicUsize>,
        unplugged: mpsc::Sender<()>,
    }

    struct Plug(Arc<AtomicUsize>, mpsc::Sender<()>);

    impl Drop for Plug {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
            let _ = self.1.send(());
        }
    }

    impl Network for Stand {
        type Plug = Plug;
        fn plug(&self, mtu: u32) -> Result<(Way, Plug), String> {
            if mtu > 1500 {
                return Err("too\nlarge".into());
            }
            self.plugged.fetch_add(1, Ordering::SeqCst);
            Ok((Way::Service("dev.arca".into()), Plug(Arc::clone(&self.plugged), self.unplugged.clone())))
        }
    }

    fn ask(path: &PathBuf, question: &str) -> (String, UnixStream) {
        let mut stream = UnixStream::connect(path).expect("connect");
        writeln!(stream, "{question}").expect("ask");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("read");
        (line, stream)
    }

    #[test]
    fn cards_are_plugged_in_as_long_as_their_machines_live_and_the_end_is_the_end() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("n.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let plugged = Arc::new(AtomicUsize::new(0));
        let (unplugged, told) = mpsc::channel();
        let stand = Stand { plugged: Arc::clone(&plugged), unplugged };
        let serving = thread::spawn(move || serve(listener, stand));
        drop(UnixStream::connect(&path).expect("who only asks whether somebody is here"));
        let (one, first) = ask(&path, "plug 1500");
        let (two, _second) = ask(&path, "plug 1400");
        assert_eq!((one.as_str(), two.as_str()), ("service dev.arca\n", "service dev.arca\n"));
        assert_eq!(plugged.load(Ordering::SeqCst), 2);
        drop(first);
        told.recv().expect("unplugged");
        assert_eq!(plugged.load(Ordering::SeqCst), 1);
        assert_eq!(ask(&path, "plug 9000").0, "no too large\n");
        for odd in ["plug", "plug x", "", "reboot"] {
            assert_eq!(ask(&path, odd).0, "", "{odd}");
        }
        let mut last = UnixStream::connect(&path).expect("connect");
        writeln!(last, "{END}").expect("say");
        serving.join().expect("thread").expect("served");
    }

    struct Frames(UnixDatagram);

    impl Network for Frames {
        type Plug = ();
        fn plug(&self, _mtu: u32) -> Result<(Way, ()), String> {
            Ok((Way::Frames(self.0.try_clone().map_err(|error| error.to_string())?.into()), ()))
        }
    }

    #[test]
    fn a_socket_of_frames_travels_with_its_word() {
        use nix::{cmsg_space, sys::socket::recvmsg};
        let (ours, theirs) = UnixDatagram::pair().expect("pair");
        let (asker, keeper) = UnixStream::pair().expect("pair");
        let attending = thread::spawn(move || attend(&keeper, &Frames(theirs)).expect("answered"));
        writeln!(&asker, "plug 1500").expect("ask");
        let mut buffer = [0; 16];
        let mut space = cmsg_space!([i32; 1]);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<()>(asker.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).expect("receive");
        assert_eq!(message.cmsgs().expect("control").count(), 1);
        drop(asker);
        assert!(!attending.join().expect("thread"));
        drop(ours);
    }
}
