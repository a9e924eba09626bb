// SPDX-License-Identifier: Apache-2.0
//! veth pairs: making one, moving its other end between network namespaces, and which offloads it may use.
//!
//! For [`crate::cable`]. What must be done in another namespace, or must be done when this returns, is said to the kernel
//! in plain netlink messages (linux/rtnetlink.h) on a socket opened there.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use arca_link::{LinkNumber, Offloads};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use rtnetlink::{LinkUnspec, LinkVeth};

use crate::kernel::{Kernel, KernelError};
use crate::settings::Settings;

/// A pair by its near end. Dropping it removes both ends.
#[derive(Debug)]
pub(crate) struct Pair {
    index: u32,
}

impl Pair {
    /// The pair of an interface that exists.
    pub(crate) fn of(index: u32) -> Self {
        Self { index }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Leaves the pair to the next process.
    pub(crate) fn leave(&mut self) {
        self.index = 0;
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.index != 0
            && let Err(error) = request(RTM_DELLINK, self.index, None)
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            tracing::error!(%error, index = self.index, "a veth pair remains");
        }
    }
}

/// Name of a link's far end, the same wherever it is.
pub(crate) fn far_name(link: LinkNumber) -> String {
    format!("arca{link}")
}

impl Kernel {
    /// Makes the pair of a network: the near end with MAC and MTU, the far one still here, both down.
    pub(crate) async fn make_pair(&self, settings: &Settings) -> Result<Pair, KernelError> {
        let (near, far) = (settings.interface.as_str(), far_name(settings.link));
        let failed = |operation| {
            let object = near.to_owned();
            move |source| KernelError::Netlink { operation, object, source }
        };
        let made = self.handle().link().add(LinkVeth::new(near, &far).build()).execute().await;
        made.map_err(failed("make a veth pair (is the module veth there?)"))?;
        let pair = Pair::of(self.index(near).await?);
        let far = self.index(&far).await?;
        let ends = [
            LinkUnspec::new_with_index(pair.index).address(settings.mac.octets().to_vec()).mtu(settings.mtu).build(),
            LinkUnspec::new_with_index(far).mtu(settings.mtu).build(),
        ];
        for end in ends {
            self.handle().link().set(end).execute().await.map_err(failed("set MAC and MTU"))?;
        }
        let limited = limit_offloads(near, Offloads::TSO);
        limited.map_err(|source| KernelError::Offloads { interface: near.to_owned(), source })?;
        Ok(pair)
    }
}

const RTM_SETLINK: u16 = 19;
const RTM_DELLINK: u16 = 17;
const IFLA_NET_NS_FD: u16 = 28;

/// Sends one request about interface `index` and waits for the kernel's answer.
fn request(kind: u16, index: u32, namespace: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut message = vec![0; 32];
    // nlmsghdr: length, type, NLM_F_REQUEST | NLM_F_ACK, sequence, port; ifinfomsg: index at its byte 4.
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&5u16.to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    if let Some(namespace) = namespace {
        message.extend(8u16.to_ne_bytes());
        message.extend(IFLA_NET_NS_FD.to_ne_bytes());
        message.extend(namespace.as_raw_fd().to_ne_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or_default();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // nlmsgerr: a negative errno behind the header, 0 for success.
    let code = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("the kernel's answer was cut short")),
    }
}

/// Whether two descriptors are of the same namespace.
fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    let identity = |fd: BorrowedFd<'_>| {
        let metadata = File::from(fd.try_clone_to_owned()?).metadata()?;
        Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
    };
    Ok(identity(a)? == identity(b)?)
}

/// Moves interface `name` from a namespace (`None`: this process's) to another. Blocks; the kernel waits for whoever still
/// looks at the interface.
///
/// # Errors
/// It is not there, or the other namespace has one of that name.
pub(crate) fn move_between(name: &str, from: Option<BorrowedFd<'_>>, to: BorrowedFd<'_>) -> io::Result<()> {
    let visit = || -> io::Result<()> {
        let already = match from {
            Some(from) => {
                setns(from, CloneFlags::CLONE_NEWNET)?;
                same(from, to)?
            }
            None => false,
        };
        let index = if_nametoindex(name)?;
        if already { Ok(()) } else { request(RTM_SETLINK, index, Some(to)) }
    };
    // A thread of its own: the namespace is a property of the thread.
    std::thread::scope(|scope| scope.spawn(visit).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that visits the namespace panicked")))
}

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const NAME: usize = 32;

/// Whether an interface may have a feature by which it leaves something undone, when the far side can finish `agreed`:
/// checksums of TCP and UDP, TCP segments. OVS's user-space datapath knows no other segmentation, and virtio_net_hdr can
/// tell it of none. `None`: the feature leaves nothing undone.
fn far_side_can(feature: &str, agreed: Offloads) -> Option<bool> {
    match feature {
        "tx-tcp-segmentation" | "tx-tcp-ecn-segmentation" | "tx-tcp-mangleid-segmentation" => {
            Some(agreed.contains(Offloads::TSO4))
        }
        "tx-tcp6-segmentation" => Some(agreed.contains(Offloads::TSO6)),
        "tx-checksum-sctp" | "tx-gso-list" | "tx-gso-partial" => Some(false),
        // What is the same on every interface, or a frame's own.
        "tx-checksum-fcoe-crc" => None,
        _ if feature.starts_with("tx-checksum-") => Some(agreed.contains(Offloads::CSUM)),
        _ if feature.starts_with("tx-") && feature.ends_with("-segmentation") => Some(false),
        _ => None,
    }
}

/// Switches off what the far side cannot finish: the kernel then does it before it sends. What it can is on.
pub(crate) fn limit_offloads(interface: &str, agreed: Offloads) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = words(&[ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0]);
    ethtool(&socket, interface, &mut info)?;
    let count = word(&info, 4) as usize;
    let mut names = words(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, word(&info, 4)]);
    names.resize(12 + count * NAME, 0);
    ethtool(&socket, interface, &mut names)?;
    let blocks = count.div_ceil(32);
    let mut features = vec![0u32; 2 + 2 * blocks];
    (features[0], features[1]) = (ETHTOOL_SFEATURES, u32::try_from(blocks).unwrap_or_default());
    for (number, name) in names[12..].chunks_exact(NAME).enumerate() {
        let name = CStr::from_bytes_until_nul(name).unwrap_or_default().to_string_lossy();
        if let Some(on) = far_side_can(&name, agreed) {
            // A block: which bits are meant, then their new values. The kernel passes over what an interface never has.
            features[2 + 2 * (number / 32)] |= 1 << (number % 32);
            features[3 + 2 * (number / 32)] |= u32::from(on) << (number % 32);
        }
    }
    ethtool(&socket, interface, &mut words(&features))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.get(4 * index..4 * index + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).unwrap_or_default()
}

#[allow(missing_docs, unreachable_pub, reason = "generated function")]
mod ioctl {
    use nix::libc;

    nix::ioctl_readwrite_bad!(ethtool, libc::c_ulong::from(0x8946u16), libc::ifreq);
}

/// One `SIOCETHTOOL` request (linux/ethtool.h); the answer is in `buffer`.
fn ethtool(socket: &OwnedFd, interface: &str, buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: `request` and the buffer live across the call, and the buffer is as long as its own header says.
    unsafe { ioctl::ethtool(socket.as_fd().as_raw_fd(), &raw mut request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_agreed_on_is_left_undone() {
        let can = |feature| [Offloads::TSO, Offloads::CSUM, Offloads::NONE].map(|agreed| far_side_can(feature, agreed));
        for segments in ["tx-tcp-segmentation", "tx-tcp6-segmentation"] {
            assert_eq!(can(segments), [Some(true), Some(false), Some(false)], "{segments}");
        }
        assert_eq!(can("tx-checksum-ip-generic"), [Some(true), Some(true), Some(false)]);
        for off in ["tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-gso-list", "tx-checksum-sctp"] {
            assert_eq!(can(off), [Some(false); 3], "{off}");
        }
        assert_eq!(can("tx-scatter-gather"), [None; 3]);
    }
}
