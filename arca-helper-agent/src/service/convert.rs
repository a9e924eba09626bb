// SPDX-License-Identifier: Apache-2.0
//! Observations to messages and keys from messages.

use arca_proto::helper::v1 as proto;

use super::observe::Observation;
use super::state::{Key, Kind, Refusal};

/// A key with its generation; `None` for an unknown kind.
pub(super) fn key(sent: proto::ObjectKey) -> Option<(Key, u64)> {
    let kind = match sent.kind() {
        proto::ObjectKind::Unspecified => return None,
        proto::ObjectKind::Network => Kind::Network,
        proto::ObjectKind::Endpoint => Kind::Endpoint,
        proto::ObjectKind::PublishedPort => Kind::PublishedPort,
    };
    Some((Key { kind, id: sent.id }, sent.generation))
}

/// An observation as it is sent.
pub(super) fn message(o: &Observation) -> proto::Observation {
    let kind = match o.key.kind {
        Kind::Network => proto::ObjectKind::Network,
        Kind::Endpoint => proto::ObjectKind::Endpoint,
        Kind::PublishedPort => proto::ObjectKind::PublishedPort,
    };
    let error_kind = match &o.refusal {
        None => proto::ErrorKind::Unspecified,
        Some(Refusal::Invalid(_)) => proto::ErrorKind::Invalid,
        Some(Refusal::AddressInUse { .. }) => proto::ErrorKind::AddressInUse,
        Some(Refusal::UnknownNetwork(_)) => proto::ErrorKind::UnknownNetwork,
        Some(Refusal::Exhausted { .. }) => proto::ErrorKind::PoolExhausted,
        Some(Refusal::Internal(_)) => proto::ErrorKind::Internal,
    };
    proto::Observation {
        key: Some(proto::ObjectKey { kind: kind.into(), id: o.key.id.clone(), generation: o.generation }),
        address_v4: o.v4.map(|(address, prefix)| format!("{address}/{prefix}")).unwrap_or_default(),
        address_v6: o.v6.map(|(address, prefix)| format!("{address}/{prefix}")).unwrap_or_default(),
        up: o.up,
        error: o.refusal.as_ref().map(ToString::to_string).unwrap_or_default(),
        removed: o.removed,
        error_kind: error_kind.into(),
    }
}
