// SPDX-License-Identifier: Apache-2.0
//! Settings of an interface beyond what every network needs: sysctls and further addresses. They live in the kernel with
//! the interface, so nothing is remembered here.

use arca_proto::tap::v1 as proto;

use crate::kernel::{Kernel, KernelError, sysctl};
use crate::settings::{Cidr, InterfaceName, InvalidSettings};

/// What shall be set; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extras {
    interface: InterfaceName,
    sysctls: Vec<(String, String)>,
    addresses: Vec<Cidr>,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum ExtrasError {
    /// A field that cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidSettings),
    /// A sysctl of something else.
    #[error("`{0}` is no sysctl of interface {1}")]
    Foreign(String, InterfaceName),
    /// There is no such sysctl.
    #[error("/proc/sys/net/{0} is not a sysctl file")]
    Missing(String),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl TryFrom<proto::SetInterfaceRequest> for Extras {
    type Error = ExtrasError;

    fn try_from(request: proto::SetInterfaceRequest) -> Result<Self, ExtrasError> {
        let interface = InterfaceName::try_from(request.interface.as_str())?;
        let mut sysctls = Vec::new();
        for entry in request.sysctls {
            // "ipv4/conf/eth0/name": nothing above, and nothing of another interface.
            let parts: Vec<&str> = entry.name.split('/').collect();
            let plain = |part: &str| {
                !part.is_empty()
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
            };
            match parts.as_slice() {
                ["ipv4" | "ipv6" | "mpls", group, name, key]
                    if plain(group) && *name == interface.as_str() && plain(key) => {}
                _ => return Err(ExtrasError::Foreign(entry.name, interface)),
            }
            sysctls.push((entry.name, entry.value));
        }
        let addresses = request.addresses.iter().map(|text| Cidr::try_from(text.as_str())).collect::<Result<_, _>>()?;
        Ok(Self { interface, sysctls, addresses })
    }
}

impl Extras {
    /// Sets them, in order; an address that is there already is as wanted.
    ///
    /// # Errors
    /// [`ExtrasError`]; what came before it is set.
    pub async fn apply(&self, kernel: &Kernel) -> Result<(), ExtrasError> {
        for (name, value) in &self.sysctls {
            match sysctl(name, value) {
                Err(KernelError::Sysctl { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Err(ExtrasError::Missing(name.clone()));
                }
                other => other?,
            }
        }
        let index = kernel.index(self.interface.as_str()).await?;
        for cidr in &self.addresses {
            kernel.add_address(index, *cidr).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> Result<Extras, ExtrasError> {
        let sysctls = vec![proto::Sysctl { name: name.into(), value: "1".into() }];
        Extras::try_from(proto::SetInterfaceRequest { interface: "eth0".into(), sysctls, addresses: Vec::new() })
    }

    #[test]
    fn only_sysctls_of_the_interface_are_taken() {
        assert!(read("ipv4/conf/eth0/log_martians").is_ok());
        for bad in [
            "ipv4/conf/eth1/log_martians",
            "ipv4/conf/all/log_martians",
            "ipv4/ip_forward",
            "../kernel/eth0/x",
            "ipv4/../eth0/x",
            "ipv4/conf/eth0/../x",
            "ipv4/conf/eth0/",
            "",
        ] {
            assert!(matches!(read(bad), Err(ExtrasError::Foreign(..))), "{bad}");
        }
    }
}
