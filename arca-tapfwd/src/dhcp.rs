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
    CLIENT_PORT, Decodable, Decoder, DhcpOption, Encodable, Flags, HType, Message, MessageType, Opcode, OptionCode,
    SERVER_PORT,
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
/// carry an unfinished one by right (`virtio_net_hdr`), and it never left this host's memory.
fn parse(packet: &[u8], id: u32, address: Ipv4Addr) -> Option<Result<Lease, DhcpError>> {
    let bytes = udp::payload(packet, SERVER_PORT, CLIENT_PORT)?;
    let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
    if message.opcode() != Opcode::BootReply || message.xid() != id {
        return None;
    }
    let options = message.opts();
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]),
    };
    match options.msg_type()? {
        MessageType::Ack if message.yiaddr() == address => {}
        MessageType::Ack => return Some(Err(DhcpError::Other { server, address, got: message.yiaddr() })),
        MessageType::Nak => {
            let reason = match options.get(OptionCode::Message) {
                Some(DhcpOption::Message(text)) => format!(": {text}"),
                _ => String::new(),
            };
            return Some(Err(DhcpError::Refused { server, address, reason }));
        }
        _ => return None,
    }
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(list)) => list.first().copied(),
        _ => None,
    };
    let dns_servers = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(list)) => list.clone(),
        _ => Vec::new(),
    };
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) => Some(*mtu),
        _ => None,
    };
    let seconds = match options.get(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) => *seconds,
        _ => 0,
    };
    Some(Ok(Lease { address, router, dns_servers, mtu, seconds, server }))
}

#[cfg(test)]
mod tests;
