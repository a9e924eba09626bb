// SPDX-License-Identifier: Apache-2.0
//! A container's end of a link, and the relay in between, spoken by hand: frames go in and come out as bytes.

use std::net::Ipv4Addr;
use std::time::Duration;

use arca_proto::dial::{Stream, dial};
use arca_proto::hello::{Hello, Kind, Offloads};
use arca_proto::ports::LinkNumber;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::Machine;

const VNET_HDR: usize = 12;
const PATIENCE: Duration = Duration::from_millis(500);

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];

pub struct Wire {
    stream: Stream,
    pub mac: Mac,
}

impl Wire {
    /// Dials the helper's port and exchanges hellos; `None` while nobody listens there.
    pub async fn connect(link: u32, epoch: u64, mac: Mac) -> Option<Self> {
        let link = LinkNumber::try_from(link).unwrap();
        let mut stream = dial(&Machine::address(), link.helper_port()).await.ok()?;
        stream.write_all(&Hello::relay(link, epoch).encode()).await.ok()?;
        stream.write_all(&Hello::end(Kind::Container, link, 65_562, Offloads::NONE).encode()).await.ok()?;
        let mut bytes = [0; Hello::SIZE];
        timeout(PATIENCE, stream.read_exact(&mut bytes)).await.ok()?.ok()?;
        let hello = Hello::expect(&bytes, Kind::Helper, link).unwrap();
        assert!(!hello.offloads.contains(Offloads::USO4), "the netdev datapath does not segment UDP");
        Some(Self { stream, mac })
    }

    pub async fn send(&mut self, frame: &[u8]) -> bool {
        let mut bytes = u32::try_from(VNET_HDR + frame.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend([0; VNET_HDR]);
        bytes.extend(frame);
        self.stream.write_all(&bytes).await.is_ok()
    }

    /// The first frame in which `pick` finds something.
    pub async fn find<T>(&mut self, pick: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let search = async {
            loop {
                let length = self.stream.read_u32_le().await.ok()?;
                let mut frame = vec![0; usize::try_from(length).unwrap()];
                self.stream.read_exact(&mut frame).await.ok()?;
                if let Some(found) = pick(&frame[VNET_HDR..]) {
                    return Some(found);
                }
            }
        };
        timeout(PATIENCE, search).await.ok()?
    }

    fn ethernet(&self, to: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&to[..], &self.mac, &kind.to_be_bytes(), payload].concat()
    }

    fn ip(&self, to: Mac, protocol: u8, from_ip: Ipv4Addr, to_ip: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        header[2..4].copy_from_slice(&u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
        header.extend(from_ip.octets());
        header.extend(to_ip.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(payload);
        self.ethernet(to, 0x0800, &header)
    }

    /// DHCPDISCOVER; the offered address.
    pub async fn discover(&mut self) -> Option<Ipv4Addr> {
        let mut bootp = vec![0; 240];
        bootp[..3].copy_from_slice(&[1, 1, 6]);
        bootp[4..8].copy_from_slice(b"arca");
        bootp[28..34].copy_from_slice(&self.mac);
        bootp[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        bootp.extend([53, 1, 1, 255]);
        bootp.resize(300, 0);
        let mut udp = [68u16, 67, u16::try_from(8 + bootp.len()).unwrap(), 0].map(u16::to_be_bytes).concat();
        udp.extend(bootp);
        let frame = self.ip(BROADCAST, 17, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp);
        self.send(&frame).await;
        // Ethernet, IP, UDP to port 68, then the transaction id at 4 and yiaddr at 16.
        self.find(|f| {
            let offer = f.get(12..14)? == [8, 0] && f.get(36..38)? == [0, 68] && f.get(46..50)? == b"arca";
            offer.then(|| <[u8; 4]>::try_from(&f[58..62]).unwrap().into())
        })
        .await
    }

    /// ARP; the answering address.
    pub async fn resolve(&mut self, own: Ipv4Addr, wanted: Ipv4Addr) -> Option<Mac> {
        let (own, wanted) = (own.octets(), wanted.octets());
        let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &self.mac, &own, &[0; 6], &wanted].concat();
        let frame = self.ethernet(BROADCAST, 0x0806, &request);
        self.send(&frame).await;
        self.find(|f| {
            let answer = f.get(12..14)? == [8, 6] && f.get(20..22)? == [0, 2] && f.get(28..32)? == wanted;
            answer.then(|| f[22..28].try_into().unwrap())
        })
        .await
    }

    /// An echo request is sent, nothing is waited for.
    pub async fn echo(&mut self, to: Mac, own: Ipv4Addr, host: Ipv4Addr, sequence: u16) -> bool {
        let mut icmp = [0x0800u16, 0, 0x4a4a, sequence].map(u16::to_be_bytes).concat();
        icmp.extend(b"0123456789abcdef");
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let frame = self.ip(to, 1, own, host, &icmp);
        self.send(&frame).await
    }

    /// Echo and its reply.
    pub async fn ping(&mut self, to: Mac, own: Ipv4Addr, host: Ipv4Addr, sequence: u16) -> Option<()> {
        self.echo(to, own, host, sequence).await.then_some(())?;
        let (host, sequence) = (host.octets(), sequence.to_be_bytes());
        self.find(|f| {
            let reply = f.get(23)? == &1 && f.get(26..30)? == host && f.get(34)? == &0 && f.get(40..42)? == sequence;
            reply.then_some(())
        })
        .await
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
