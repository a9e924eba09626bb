// SPDX-License-Identifier: Apache-2.0
//! Confirms an address with the network's DHCP server: one INIT-REBOOT exchange (RFC 2131 section 3.2).
//!
//! Called by [`crate::attach`] when the link is up. The address is already on the interface; what is asked is whether
//! OVN agrees, and the answer proves the path to OVN and back. OVN's leases are static, one per port, so nothing is
//! renewed and no DISCOVER cycle exists here yet. The exchange goes over a packet socket, not over UDP port 68: a
//! workload's own DHCP client may have that port. The server is asked to broadcast its answer, as the kernel would
//! answer a unicast one with an ICMP error.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, Encodable, Flags, HType, Message, MessageType, Opcode, OptionCode, SERVER_PORT,
};
use tokio::time::{Instant, timeout_at};

use crate::packet_socket::PacketSocket;
use crate::settings::MacAddr;
use crate::udp;

/// First wait for an answer; doubled for each request that follows.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Least length of a BOOTP message (RFC 951); some servers drop shorter ones.
const BOOTP_MIN: usize = 300;
/// Bytes before the options (RFC 2131 section 2), and what those begin with.
const BOOTP_HEADER: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// Why an address was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The packet socket failed.
    #[error("DHCP: cannot {operation}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// DHCPNAK.
    #[error("DHCP server {server} refused {address}{reason}; does the network's port have another address?")]
    Refused {
        /// Who said so.
        server: Ipv4Addr,
        /// Address asked for.
        address: Ipv4Addr,
        /// `: text` when the server gave one.
        reason: String,
    },
    /// DHCPACK for something else.
    #[error("DHCP server {server} gave {got} instead of {address}")]
    Other {
        /// Who said so.
        server: Ipv4Addr,
        /// Address asked for.
        address: Ipv4Addr,
        /// Address given.
        got: Ipv4Addr,
    },
    /// No answer.
    #[error(
        "no DHCP answer for {address} to {requests} requests; has the network's port DHCP options, is its link up?"
    )]
    Silent {
        /// Address asked for.
        address: Ipv4Addr,
        /// Requests sent.
        requests: u32,
    },
}

/// What the server said with its ACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The confirmed address.
    pub address: Ipv4Addr,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns_servers: Vec<Ipv4Addr>,
    /// Bytes of IP packet.
    pub mtu: Option<u16>,
    /// Time of the lease.
    pub seconds: u32,
    /// The server.
    pub server: Ipv4Addr,
}

/// Asks until the server answers or `deadline` passes.
///
/// # Errors
/// See [`DhcpError`]. Dropping the future ends the exchange.
pub async fn confirm(index: u32, mac: MacAddr, address: Ipv4Addr, deadline: Instant) -> Result<Lease, DhcpError> {
    let socket =
        PacketSocket::open(index).map_err(|source| DhcpError::Socket { operation: "open a socket", source })?;
    let id = transaction_id();
    let request = request(id, mac, address);
    let mut wait = FIRST_WAIT;
    let mut requests = 0;
    while Instant::now() < deadline {
        socket.send(&request).await.map_err(|source| DhcpError::Socket { operation: "send the request", source })?;
        requests += 1;
        let until = deadline.min(Instant::now() + wait);
        // Cancel-safe: a packet not returned is a packet not read.
        match timeout_at(until, answer(&socket, id, address)).await {
            Ok(answer) => return answer,
            Err(_) => wait = (wait * 2).min(LONGEST_WAIT),
        }
    }
    Err(DhcpError::Silent { address, requests })
}

async fn answer(socket: &PacketSocket, id: u32, address: Ipv4Addr) -> Result<Lease, DhcpError> {
    let mut buffer = [0; 1600];
    loop {
        let length = socket
            .receive(&mut buffer)
            .await
            .map_err(|source| DhcpError::Socket { operation: "read the answer", source })?;
        if let Some(answer) = parse(&buffer[..length], id, address) {
            return answer;
        }
    }
}

/// Differs between exchanges; nothing secret hangs on it, for the peer is OVN's own logical port.
fn transaction_id() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(std::process::id());
    (bits >> 32) as u32
}

/// The whole IP packet: from 0.0.0.0 to everybody, as RFC 2131 table 5 has it for INIT-REBOOT.
fn request(id: u32, mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootRequest)
        .set_htype(HType::Eth)
        .set_xid(id)
        .set_flags(Flags::default().set_broadcast())
        .set_chaddr(&mac.octets());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Request));
    options.insert(DhcpOption::RequestedIpAddress(address));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::InterfaceMtu,
        OptionCode::AddressLeaseTime,
        OptionCode::ServerIdentifier,
    ]));
    // Encoding these options into memory has no way to fail; an empty payload would merely get no answer.
    let mut payload = message.to_vec().unwrap_or_default();
    payload.resize(payload.len().max(BOOTP_MIN), 0);
    udp::packet(Ipv4Addr::UNSPECIFIED, CLIENT_PORT, Ipv4Addr::BROADCAST, SERVER_PORT, &payload)
}

/// `None` for a packet that is not the answer to our request. Checksums are not looked at: a frame from a TAP may
/// carry an unfinished one by right (`virtio_net_hdr`), and it never left this host's memory. Taken apart by hand:
/// anybody on the network can send such a packet, and dhcproto's decoder panics on some.
fn parse(packet: &[u8], id: u32, address: Ipv4Addr) -> Option<Result<Lease, DhcpError>> {
    const BOOT_REPLY: u8 = 2;
    let message = udp::payload(packet, SERVER_PORT, CLIENT_PORT)?;
    let (header, options) = message.split_at_checked(BOOTP_HEADER)?;
    let options = options.strip_prefix(&MAGIC)?;
    if header[0] != BOOT_REPLY || header[4..8] != id.to_be_bytes() {
        return None;
    }
    let yours = v4(&header[16..20])?;
    let get = |code: OptionCode| option(options, code.into());
    let server = get(OptionCode::ServerIdentifier).and_then(v4).or_else(|| v4(&packet[12..16]))?;
    match MessageType::from(*get(OptionCode::MessageType)?.first()?) {
        MessageType::Ack if yours == address => {}
        MessageType::Ack => return Some(Err(DhcpError::Other { server, address, got: yours })),
        MessageType::Nak => {
            let text = get(OptionCode::Message).map(|text| format!(": {}", String::from_utf8_lossy(text)));
            return Some(Err(DhcpError::Refused { server, address, reason: text.unwrap_or_default() }));
        }
        _ => return None,
    }
    let dns_servers = get(OptionCode::DomainNameServer).unwrap_or_default().chunks_exact(4).filter_map(v4).collect();
    let mtu = get(OptionCode::InterfaceMtu).and_then(|mtu| Some(u16::from_be_bytes(mtu.try_into().ok()?)));
    let seconds = get(OptionCode::AddressLeaseTime).and_then(|time| Some(u32::from_be_bytes(time.try_into().ok()?)));
    let router = get(OptionCode::Router).and_then(v4);
    Some(Ok(Lease { address, router, dns_servers, mtu, seconds: seconds.unwrap_or_default(), server }))
}

/// Value of the first option of that code (RFC 2132 section 2); `None` if it is missing or cut off.
fn option(mut options: &[u8], code: u8) -> Option<&[u8]> {
    const PAD: u8 = 0;
    const END: u8 = 255;
    loop {
        let (found, rest) = options.split_first()?;
        options = match *found {
            PAD => rest,
            END => return None,
            found => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked((*length).into())?;
                if found == code {
                    return Some(value);
                }
                rest
            }
        };
    }
}

/// The first address in `bytes`.
fn v4(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

#[cfg(test)]
mod tests;
