// SPDX-License-Identifier: Apache-2.0
//! Carrier cable: the other end of the veth pair goes where the helper's end lends its network namespace.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use arca_proto::fdstore::Store;
use arca_proto::frame::MAX_FRAME;
use arca_proto::hello::{Carrier, Carriers, Hello, Kind, Offloads};
use arca_proto::note::{self, Note, Reader};
use arca_proto::ports::LinkNumber;
use arca_proto::tap::v1::attach_progress::Step;
use arca_proto::tap::v1::{AttachNetworkRequest, DetachNetworkRequest, ListInterfacesRequest};
use common::{Tapfwd, addresses, attach, in_namespace, ip, request, until};
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

fn wanted() -> AttachNetworkRequest {
    AttachNetworkRequest { cable: true, confirm_dhcp: false, ..request(1) }
}

/// A network namespace that only this descriptor keeps.
fn namespace() -> File {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

/// Index of the far end in a namespace, 0 if it is not there.
fn far_end(namespace: &File) -> u32 {
    let look = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        nix::net::if_::if_nametoindex("arca1").unwrap_or(0)
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap())
}

/// What relay and helper end say on one connection, until the cable is plugged in; or what the container's end says
/// against it.
async fn lend(directory: &Path, epoch: u64, carrier: Carrier, namespace: &File) -> Result<UnixStream, String> {
    lend_for(directory, epoch, carrier, namespace, Offloads::TSO).await
}

async fn lend_for(
    directory: &Path,
    epoch: u64,
    carrier: Carrier,
    namespace: &File,
    offloads: Offloads,
) -> Result<UnixStream, String> {
    let link = LinkNumber::try_from(1).unwrap();
    let mut dialled = None;
    until("the link listens", || {
        dialled = UnixStream::connect(directory.join("20001")).ok();
        dialled.is_some()
    })
    .await;
    let namespace = namespace.try_clone().unwrap();
    let talk = move || {
        let mut stream = dialled.unwrap();
        stream.write_all(&Hello::relay(link, epoch).carrying(carrier).encode()).unwrap();
        let helper = Hello::end(Kind::Helper, link, MAX_FRAME, offloads).carrying(Carriers::CABLE);
        stream.write_all(&helper.encode()).unwrap();
        let mut hello = [0; Hello::SIZE];
        stream.read_exact(&mut hello).unwrap();
        Hello::expect(&hello, Kind::Container, link).unwrap().can(Carrier::Cable).unwrap();
        // An end that refuses has closed by now.
        note::send(&stream, &Note::Lend, Some(namespace.as_fd())).map_err(|error| error.to_string())?;
        match Reader::default().read(&stream).map_err(|error| error.to_string())? {
            Some((Note::Taken, _)) => {}
            other => return Err(format!("{other:?}")),
        }
        note::send(&stream, &Note::Taken, None).unwrap();
        Ok(stream)
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

/// linux/ethtool.h: TCP segmentation is left to the device.
const ETHTOOL_GTSO: u32 = 0x1e;
/// linux/ethtool.h: so are checksums.
const ETHTOOL_GTXCSUM: u32 = 0x16;

/// Whether an interface of this thread's namespace has a feature.
fn has(interface: &str, feature: u32) -> bool {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut value = [feature, 0];
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: `request` and the value it points to live across the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    value[1] != 0
}

#[test]
fn a_cable_goes_from_helper_to_helper_and_the_interface_stays() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let mut tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let first = namespace();
        let (steps, lent) = tokio::join!(attach(&mut client, wanted()), lend(&directory, 1, Carrier::Cable, &first));
        let live = lent.unwrap();
        assert_eq!(steps.unwrap().last().unwrap().step(), Step::Confirmed);
        assert!(far_end(&first) != 0);
        let link = ip("-d link show dev eth0");
        assert_eq!(link[0]["linkinfo"]["info_kind"], json!("veth"));
        assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&json!("02:42:ac:12:00:02"), &json!(1442)));
        assert_eq!(addresses("eth0"), ["172.18.0.2/16", "fd00:18::2/64"]);
        let index = link[0]["ifindex"].clone();

        // An older epoch and another carrier are refused; what stands stays.
        lend(&directory, 1, Carrier::Cable, &first).await.unwrap_err();
        lend(&directory, 2, Carrier::Stream, &first).await.unwrap_err();

        // A helper that cannot finish them gets no segments and no checksums to finish; the next one does again.
        let left_undone = || [ETHTOOL_GTSO, ETHTOOL_GTXCSUM].map(|feature| has("eth0", feature));
        assert_eq!(left_undone(), [true, true]);
        for (epoch, offloads, left) in [(2, Offloads::NONE, [false; 2]), (3, Offloads::TSO, [true; 2])] {
            let _plain = lend_for(&directory, epoch, Carrier::Cable, &first, offloads).await.unwrap();
            assert_eq!(left_undone(), left, "{offloads}");
        }

        // The helper dies: nothing but this program and the store keeps its namespace. Then this program dies too.
        drop(live);
        drop(first);
        tapfwd.kill();
        assert_eq!(ip("link show dev eth0")[0]["ifindex"], index);
        assert_eq!(addresses("eth0"), ["172.18.0.2/16", "fd00:18::2/64"]);
        tapfwd = Tapfwd::start(&directory, &store).await;
        let second = namespace();
        let _live = lend(&directory, 4, Carrier::Cable, &second).await.unwrap();
        assert!(far_end(&second) != 0, "moved on from a namespace nobody lives in");
        let mut client = tapfwd.client();
        let listed = client.list_interfaces(ListInterfacesRequest {}).await.unwrap().into_inner().interfaces;
        assert_eq!(listed[0].settings, Some(AttachNetworkRequest { timeout_ms: 0, ..wanted() }));
        assert_eq!(ip("link show dev eth0")[0]["ifindex"], index);

        // One of that name in the way is said, not overwritten.
        let third = namespace();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                setns(third.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                common::run("ip link add arca1 type veth peer name other");
            });
        });
        let refused = lend(&directory, 5, Carrier::Cable, &third).await.unwrap_err();
        assert!(refused.contains("move arca1"), "{refused}");
        assert!(far_end(&second) != 0);

        client.detach_network(DetachNetworkRequest { link: 1 }).await.unwrap();
        assert_eq!(ip("link show").as_array().unwrap().len(), 1, "lo alone");
        assert_eq!((far_end(&second), store.names().len()), (0, 0));
    });
}

#[test]
fn a_cable_nobody_plugs_in_leaves_nothing() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let given_up = attach(&mut tapfwd.client(), AttachNetworkRequest { timeout_ms: 300, ..wanted() }).await;
        assert!(given_up.unwrap_err().message().contains("step link"));
        assert_eq!(ip("link show").as_array().unwrap().len(), 1, "lo alone");
        assert_eq!(store.names().len(), 0);
        assert!(!directory.join("20001").exists());
    });
}
