// SPDX-License-Identifier: Apache-2.0
//! What the engine changes in its own network namespace for a namespace helper: a veth to the helper's uplink,
//! forwarding, and the nftables table `arca`. Making it twice changes nothing; [`disconnect`] takes it back.

use std::{fs::File, io, net::IpAddr, os::fd::AsRawFd as _, path::Path, process::Stdio};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth,
    packet_route::link::{LinkFlags, LinkMessage},
};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    Uplink,
    uplink::{HELPER_INTERFACE, HOST_INTERFACE},
};
use crate::error::{Error, Result};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// A chain without a hook that says that forwarding was off before: it lives exactly as long as what it describes.
const WAS_OFF: &str = "forwarding-was-off";

/// Connects the host with the helper in `netns`. An uplink that is there is kept if the helper was `adopted`; otherwise
/// it leads to one that died, whose namespace the kernel may only be about to take away.
///
/// # Errors
/// Names the piece that could not be made, and what is probably missing.
pub async fn connect(uplink: Uplink, netns: &Path, adopted: bool) -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
    let netlink = tokio::spawn(connection);
    let made = veth(&handle, uplink, netns, adopted).await;
    netlink.abort();
    made?;
    nft(&rules(uplink)).await?;
    forward().await
}

/// Undoes [`connect`], as far as there is something to undo.
///
/// # Errors
/// The last piece that could not be removed; the others are gone.
pub async fn disconnect() -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
    let netlink = tokio::spawn(connection);
    let link = remove(&handle, HOST_INTERFACE).await;
    netlink.abort();
    if nft(&format!("list chain ip arca {WAS_OFF}\n")).await.is_ok() {
        tokio::fs::write(FORWARDING, "0").await.map_err(Error::io("switch IPv4 forwarding off again"))?;
    }
    // `add` first: deleting a table that is not there is an error.
    nft("add table ip arca\ndelete table ip arca\n").await.and(link)
}

fn refused(what: &str, error: &rtnetlink::Error) -> Error {
    Error::Failed(format!("{what} (interface {HOST_INTERFACE}): {error} (are root and CAP_NET_ADMIN there?)"))
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => Ok(None),
        Err(error) => Err(refused("look for the uplink", &error)),
    }
}

/// Removes an interface; one that is not there, or just went by itself, is gone as wanted.
async fn remove(handle: &Handle, name: &str) -> Result<()> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(link.header.index).execute().await {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::ENODEV => Ok(()),
        Err(error) => Err(refused("remove the uplink", &error)),
    }
}

async fn veth(handle: &Handle, uplink: Uplink, netns: &Path, adopted: bool) -> Result<()> {
    let netns = File::open(netns).map_err(Error::io("open the helper's network namespace"))?;
    // The inner end never left this namespace if an earlier attempt broke off in between.
    remove(handle, HELPER_INTERFACE).await?;
    if !adopted {
        remove(handle, HOST_INTERFACE).await?;
    }
    let link = match find(handle, HOST_INTERFACE).await? {
        Some(link) => link,
        None => {
            let pair = LinkVeth::new(HOST_INTERFACE, HELPER_INTERFACE).build();
            handle.link().add(pair).execute().await.map_err(|e| refused("make the uplink", &e))?;
            let inner = LinkUnspec::new_with_name(HELPER_INTERFACE).setns_by_fd(netns.as_raw_fd()).build();
            if let Err(error) = handle.link().set(inner).execute().await {
                let error = refused("move the uplink into the helper", &error);
                // The error to tell is the first one.
                return remove(handle, HOST_INTERFACE).await.and(Err(error));
            }
            let made = find(handle, HOST_INTERFACE).await?;
            made.ok_or_else(|| Error::Failed(format!("interface {HOST_INTERFACE} vanished right after it was made")))?
        }
    };
    let index = link.header.index;
    let address = handle.address().add(index, IpAddr::V4(uplink.host()), uplink.net().prefix_len()).execute().await;
    match address {
        Ok(()) => {}
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -nix::libc::EEXIST => {}
        Err(error) => return Err(refused("give the uplink its address", &error)),
    }
    if link.header.flags.contains(LinkFlags::Up) {
        return Ok(());
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(|e| refused("bring the uplink up", &e))
}

/// Flushing and filling own chains in one transaction; arca-relayd's chains in the same table are left alone.
fn rules(uplink: Uplink) -> String {
    let net = uplink.net();
    format!(
        "add table ip arca\n\
         add chain ip arca uplink {{ type nat hook postrouting priority srcnat; }}\n\
         flush chain ip arca uplink\n\
         add rule ip arca uplink ip saddr {net} oifname != \"{HOST_INTERFACE}\" masquerade\n"
    )
}

async fn forward() -> Result<()> {
    let now = tokio::fs::read_to_string(FORWARDING).await.map_err(Error::io("read IPv4 forwarding"))?;
    if now.trim() == "1" {
        return Ok(());
    }
    nft(&format!("add chain ip arca {WAS_OFF}\n")).await?;
    tokio::fs::write(FORWARDING, "1").await.map_err(Error::io("switch IPv4 forwarding on"))
}

async fn nft(script: &str) -> Result<()> {
    let run = async {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match run.await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(Error::Failed(format!("nftables refused a rule: {}", text.lines().next().unwrap_or("no reason given"))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::Failed("the program nft is not installed (package nftables)".into()))
        }
        Err(error) => Err(Error::Io { action: "run nft", source: error }),
    }
}
