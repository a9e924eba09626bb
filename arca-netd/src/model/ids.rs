// SPDX-License-Identifier: Apache-2.0
//! Identifiers and hardware addresses.

use std::{fmt, fs::File, io::Read, str::FromStr};

use serde::{Deserialize, Serialize};

/// Text that is no 64-digit hexadecimal identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} id {text:?} is not 64 lower-case hexadecimal digits")]
pub struct InvalidId {
    what: &'static str,
    text: String,
}

/// Random bytes from the kernel.
fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh random identifier.
            ///
            /// # Errors
            /// If the kernel gives no random bytes.
            pub fn random() -> std::io::Result<Self> {
                Ok(Self(hex(&random::<32>()?)))
            }

            /// All 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, as people see it.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                let valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if valid { Ok(Self(text)) } else { Err(InvalidId { what: $what, text }) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

hex_id!(/** A network. */ NetworkId, "network");
hex_id!(/** An endpoint: one workload on one network. */ EndpointId, "endpoint");
hex_id!(/** A workload, that is a container. */ WorkloadId, "container");
hex_id!(/** A published port. */ PublicationId, "publication");

/// A machine; several workloads may live in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// The identifier as given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MachineId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let valid = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if valid { Ok(Self(text)) } else { Err(InvalidId { what: "machine", text }) }
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// Text that is no unicast Ethernet address. Docker's text has nothing before it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid MAC address {0}")]
pub struct InvalidMac(pub String);

impl MacAddr {
    /// A random, locally administered address that begins with `02:42`, as Docker's.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn random() -> std::io::Result<Self> {
        let [a, b, c, d] = random::<4>()?;
        Ok(Self([0x02, 0x42, a, b, c, d]))
    }

    /// EUI-64 interface identifier (RFC 4291 appendix A), which OVN uses for IPv6 addresses.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(if text.contains('-') { '-' } else { ':' });
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        // A multicast or all-zero address could never be a station's.
        if parts.next().is_some() || octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(invalid());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_mac_is_local_and_survives_its_text() {
        let mac = MacAddr::random().unwrap();
        assert!(mac.to_string().starts_with("02:42:"), "{mac}");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn what_is_no_station_address_is_refused_in_dockers_words() {
        for bad in
            ["zz", "", "02:42:ac", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:ac:12:00:02:03", "02:42:ac:12:0:2"]
        {
            assert_eq!(bad.parse::<MacAddr>().unwrap_err().to_string(), format!("invalid MAC address {bad}"));
        }
    }

    #[test]
    fn ids_are_64_hexadecimal_digits() {
        let id = NetworkId::random().unwrap();
        assert_eq!(NetworkId::try_from(id.to_string()), Ok(id.clone()));
        assert_eq!(id.short().len(), 12);
        assert!(NetworkId::try_from("A".repeat(64)).is_err());
        assert!(NetworkId::try_from("a".repeat(63)).is_err());
    }
}
