// SPDX-License-Identifier: Apache-2.0
//! What holds over all networks of the machine: the link with the default routes, and where 127.0.0.11 leads.

use std::net::IpAddr;

use arca_proto::fdstore::Client;
use arca_proto::ports::LinkNumber;

use crate::kernel::{Family, KernelError};
use crate::machine::Machine;
use crate::redirect::{self, RedirectError, Target};
use crate::restore;
use crate::stub::Stub;

/// The present configuration. A machine begins with neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Link whose gateway is the IPv4 default route's next hop.
    pub default_route: Option<LinkNumber>,
    /// Link whose gateway is the IPv6 default route's next hop.
    pub default_route_v6: Option<LinkNumber>,
    /// What answers at 127.0.0.11:53.
    pub resolver: Option<IpAddr>,
}

/// Why it could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The link is not there.
    #[error("link {0} is not attached, so it cannot carry the default routes")]
    NotAttached(LinkNumber),
    /// Routes.
    #[error("set the default routes")]
    Routes(#[source] KernelError),
    /// Redirect.
    #[error("redirect 127.0.0.11")]
    Redirect(#[source] RedirectError),
}

impl Configuration {
    /// The kernel has dropped the routes of a link together with its interface.
    pub(crate) fn forget(&mut self, link: LinkNumber, store: Option<&Client>) {
        let before = *self;
        for route in [&mut self.default_route, &mut self.default_route_v6] {
            if *route == Some(link) {
                *route = None;
            }
        }
        if *self != before {
            self.keep(store);
        }
    }

    fn keep(self, store: Option<&Client>) {
        if let Some(store) = store
            && let Err(error) = restore::put_configuration(store, self)
        {
            // What is configured holds all the same; only a restart of this process would not know it.
            tracing::error!(%error, "the descriptor store has an older configuration");
        }
    }
}

impl Machine {
    /// Puts `wanted` in force. Asking again for what is in force changes nothing that a packet would see.
    ///
    /// # Errors
    /// [`ConfigureError`]; of routes and redirect, the part that worked stays and is remembered.
    pub async fn configure(&self, wanted: Configuration) -> Result<(), ConfigureError> {
        self.configure_or_keep(wanted, None).await
    }

    /// As [`Machine::configure`]; where 127.0.0.11 would lead nowhere any more it leads to `kept`.
    ///
    /// # Errors
    /// As [`Machine::configure`].
    pub async fn configure_or_keep(
        &self,
        mut wanted: Configuration,
        kept: Option<IpAddr>,
    ) -> Result<(), ConfigureError> {
        // Only this lock while the slot's is taken: detach takes them the other way round, but never both at once.
        let mut configuration = self.configuration.lock().await;
        wanted.resolver = wanted.resolver.or(kept.filter(|_| configuration.resolver.is_some()));
        for (family, link) in [(Family::V4, wanted.default_route), (Family::V6, wanted.default_route_v6)] {
            match link {
                Some(link) => {
                    let slot = self.slot(link);
                    let done = match slot.attached.lock().await.as_ref() {
                        Some(attached) => {
                            let route =
                                self.kernel.set_default_route(family, Some((attached.index, &attached.settings)));
                            route.await.map_err(ConfigureError::Routes)
                        }
                        None => Err(ConfigureError::NotAttached(link)),
                    };
                    self.release(link, slot);
                    done?;
                }
                None => self.kernel.set_default_route(family, None).await.map_err(ConfigureError::Routes)?,
            }
        }
        configuration.default_route = wanted.default_route;
        configuration.default_route_v6 = wanted.default_route_v6;
        if configuration.resolver != wanted.resolver {
            if let Err(error) = self.redirect(wanted.resolver).await {
                configuration.keep(self.store.as_deref());
                return Err(ConfigureError::Redirect(error));
            }
            configuration.resolver = wanted.resolver;
        }
        configuration.keep(self.store.as_deref());
        Ok(())
    }

    /// Leads 127.0.0.11 to `resolver`. What carried queries before ends only afterwards.
    pub(crate) async fn redirect(&self, resolver: Option<IpAddr>) -> Result<(), RedirectError> {
        let mut stub = self.stub.lock().await;
        let next = match resolver {
            Some(IpAddr::V6(resolver)) => Some(Stub::start(resolver).await.map_err(RedirectError::Stub)?),
            Some(IpAddr::V4(_)) | None => None,
        };
        let target = match (resolver, &next) {
            (_, Some(stub)) => Some(Target::Stub(stub.ports)),
            (Some(IpAddr::V4(resolver)), None) => Some(Target::Address(resolver)),
            (Some(IpAddr::V6(_)) | None, None) => None,
        };
        redirect::set(target).await?;
        *stub = next;
        Ok(())
    }
}
