// SPDX-License-Identifier: Apache-2.0
//! How a machine gets its card's network from the network's keeper, which is a process of its own.
//!
//! The machine's keeper connects to the network keeper's socket and says `plug MTU`. One line comes back:
//! - `service NAME`: the network is handed out as an XPC object by the mach service NAME (macOS 26);
//! - `frames`, with a descriptor beside it: a datagram socket, one Ethernet frame each (before);
//! - `no REASON`.
//!
//! The connection stays open as long as the card is used: its end unplugs it.

use std::{
    io::{self, IoSliceMut, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// A place in a network.
#[derive(Debug)]
pub struct Plugged {
    /// What the card is connected with.
    pub way: Way,
    /// Its end unplugs the card.
    pub hold: UnixStream,
}

/// How frames get from the card to the network.
#[derive(Debug)]
pub enum Way {
    /// The framework carries them: the network is asked for at this mach service.
    Service(String),
    /// By this datagram socket.
    Frames(OwnedFd),
}

/// Longest answer.
const LINE: usize = 1024;

/// Asks the keeper at `socket` for a place. Blocks for as long as the keeper takes.
///
/// # Errors
/// Nobody is there, or says no.
pub fn plug(socket: &Path, mtu: u32) -> io::Result<Plugged> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "plug {mtu}")?;
    let mut line = Vec::new();
    let mut frames = None;
    while line.last() != Some(&b'\n') && line.len() < LINE {
        let mut buffer = [0; LINE];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else knows them.
                frames = descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next_back();
            }
        }
        let length = message.bytes;
        if length == 0 {
            break;
        }
        line.extend_from_slice(buffer.get(..length).unwrap_or_default());
    }
    let said = String::from_utf8_lossy(&line);
    let way = match (said.trim_end().split_once(' '), frames) {
        (Some(("service", name)), _) => Way::Service(name.to_owned()),
        (Some(("no", reason)), _) => return Err(io::Error::other(reason.to_owned())),
        (None, Some(frames)) if said.trim_end() == "frames" => Way::Frames(frames),
        _ => return Err(io::Error::other(format!("the keeper of the network answers {said:?}"))),
    };
    Ok(Plugged { way, hold: stream })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, IoSlice},
        os::unix::net::{UnixDatagram, UnixListener},
    };

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn answered(answer: &'static str, with: Option<UnixDatagram>) -> io::Result<Plugged> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("n.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let keeper = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept");
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).expect("read");
            assert_eq!(asked, "plug 1500\n");
            let descriptors: Vec<i32> = with.iter().map(|socket| socket.as_raw_fd()).collect();
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
            let parts = [IoSlice::new(answer.as_bytes())];
            sendmsg::<()>(stream.as_raw_fd(), &parts, rights, MsgFlags::empty(), None).expect("send");
        });
        let plugged = plug(&path, 1500);
        keeper.join().expect("the keeper");
        plugged
    }

    #[test]
    fn a_service_a_socket_and_a_refusal_are_told_apart() {
        let service = answered("service dev.arca.vmnet.b1\n", None).expect("a service");
        assert!(matches!(service.way, Way::Service(name) if name == "dev.arca.vmnet.b1"));
        let (ours, theirs) = UnixDatagram::pair().expect("pair");
        let Way::Frames(socket) = answered("frames\n", Some(theirs)).expect("a socket").way else {
            panic!("a service")
        };
        UnixDatagram::from(socket).send(b"frame").expect("send");
        let mut buffer = [0; 16];
        assert_eq!(ours.recv(&mut buffer).expect("receive"), 5);
        assert_eq!(answered("no status 1009\n", None).expect_err("refused").to_string(), "status 1009");
        for odd in ["frames\n", "", "maybe\n"] {
            assert!(answered(odd, None).is_err(), "{odd:?}");
        }
    }
}
