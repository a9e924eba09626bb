// SPDX-License-Identifier: Apache-2.0
//! One query to one answer, without IO: bytes in, bytes out or "ask elsewhere". Called by the sockets of [`super`].

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;

use super::names::{Known, NameTable};

/// Seconds an answer may be kept, as with Docker's resolver.
const TTL: u32 = 600;
/// Largest UDP answer offered and sent: fits every MTU (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// Largest UDP answer to a client without EDNS (RFC 1035 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// Length of a header.
const HEADER: usize = 12;

/// What becomes of a packet.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask a forwarder.
    Forward(Box<Query>),
    /// Not a query at all: answering could start a loop.
    Drop,
}

/// A query that somebody else must answer.
#[derive(Debug)]
pub(super) struct Query {
    message: Message,
    /// Largest answer the client takes.
    limit: usize,
}

/// How the client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Judges a packet from `source`.
pub(super) fn answer(names: &NameTable, source: IpAddr, packet: &[u8], transport: Transport) -> Verdict {
    // Bit 7 of byte 2 marks an answer.
    if packet.len() < HEADER || packet[2] & 0x80 != 0 {
        return Verdict::Drop;
    }
    let Ok(message) = Message::from_vec(packet) else {
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        return encode(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), None);
    };
    let limit = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => {
            let offered = message.edns.as_ref().map_or(PLAIN_PAYLOAD, Edns::max_payload);
            usize::from(offered.clamp(PLAIN_PAYLOAD, UDP_PAYLOAD))
        }
    };
    let query = Box::new(Query { message, limit });
    if query.message.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return query.fail(ResponseCode::BADVERS);
    }
    if query.message.metadata.op_code != OpCode::Query {
        return query.fail(ResponseCode::NotImp);
    }
    let [question] = query.message.queries.as_slice() else { return query.fail(ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN {
        return query.fail(ResponseCode::Refused);
    }
    let name = question.name().to_lowercase().to_ascii();
    match names.lookup(source, name.trim_end_matches('.')) {
        None => query.fail(ResponseCode::Refused),
        Some(Known::Host(addresses)) => query.answer_host(addresses),
        Some(Known::Reverse(host)) => query.answer_reverse(host),
        Some(Known::Vacant) => query.fail(ResponseCode::NXDomain),
        Some(Known::Unknown { forward: true }) => Verdict::Forward(query),
        Some(Known::Unknown { forward: false }) => query.nobody_knows(),
    }
}

impl Query {
    /// For the name servers of the root: a question that every resolver can answer at once.
    pub(super) fn for_root() -> Self {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Question::query(Name::root(), RecordType::NS));
        Self { message, limit: usize::from(u16::MAX) }
    }

    /// The question for a forwarder, under another id so that answers cannot be guessed.
    pub(super) fn forwarded(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = self.message.clone();
        message.metadata.id = id;
        message.to_vec().ok()
    }

    /// Whether a packet answers [`Query::forwarded`] with that id.
    pub(super) fn matches(&self, id: u16, packet: &[u8]) -> bool {
        Message::from_vec(packet).is_ok_and(|answer| {
            answer.metadata.id == id
                && answer.metadata.message_type == MessageType::Response
                && answer.queries == self.message.queries
        })
    }

    /// A forwarder's answer for the client.
    pub(super) fn relay(&self, mut packet: Vec<u8>) -> Verdict {
        if packet.len() > self.limit {
            let mut reply = self.reply(ResponseCode::NoError);
            reply.metadata.truncation = true;
            return encode(&reply, None);
        }
        packet[..2].copy_from_slice(&self.message.metadata.id.to_be_bytes());
        Verdict::Reply(packet)
    }

    /// An answer that says only why there is none.
    pub(super) fn fail(&self, code: ResponseCode) -> Verdict {
        encode(&self.reply(code), None)
    }

    /// There is nobody to ask. A single label can only have been a name of this engine, so it does not exist: SERVFAIL
    /// would make some clients (musl) wait for their whole five seconds. Of any other name nothing is known.
    pub(super) fn nobody_knows(&self) -> Verdict {
        let single = self.message.queries.first().is_some_and(|question| question.name().num_labels() == 1);
        self.fail(if single { ResponseCode::NXDomain } else { ResponseCode::ServFail })
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = Message::response(self.message.metadata.id, self.message.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&self.message.metadata);
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        // Only the question that is answered: an answer never grows with the query.
        reply.add_queries(self.message.queries.iter().take(1).cloned());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_rcode_high(code.high());
            reply.set_edns(edns);
        }
        reply
    }

    fn answer_host(&self, addresses: &[IpAddr]) -> Verdict {
        let Some(question) = self.message.queries.first() else { return Verdict::Drop };
        let kind = question.query_type();
        let wanted = |address: &IpAddr| match kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        };
        let mut addresses: Vec<IpAddr> = addresses.iter().copied().filter(wanted).collect();
        addresses.shuffle(&mut rand::rng());
        let data = addresses.into_iter().map(|address| match address {
            IpAddr::V4(a) => RData::A(A(a)),
            IpAddr::V6(a) => RData::AAAA(AAAA(a)),
        });
        self.answer(question.name(), data)
    }

    fn answer_reverse(&self, host: &str) -> Verdict {
        let Some(question) = self.message.queries.first() else { return Verdict::Drop };
        let wanted = matches!(question.query_type(), RecordType::PTR | RecordType::ANY);
        // Names were checked when they were declared; without one the answer is "no such data".
        let host = Name::from_ascii(format!("{host}.")).ok().filter(|_| wanted);
        self.answer(question.name(), host.map(|h| RData::PTR(PTR(h))))
    }

    fn answer(&self, name: &Name, data: impl IntoIterator<Item = RData>) -> Verdict {
        // Without authority, as OVN answers and Docker's resolver does.
        let mut reply = self.reply(ResponseCode::NoError);
        reply.add_answers(data.into_iter().map(|d| Record::from_rdata(name.clone(), TTL, d)));
        encode(&reply, Some(self.limit))
    }
}

fn encode(message: &Message, limit: Option<usize>) -> Verdict {
    match message.to_vec() {
        Ok(bytes) if limit.is_none_or(|limit| bytes.len() <= limit) => Verdict::Reply(bytes),
        Ok(_) => encode(&message.truncate(), None),
        Err(e) => {
            tracing::debug!(error = %e, "a DNS answer cannot be encoded");
            Verdict::Drop
        }
    }
}
