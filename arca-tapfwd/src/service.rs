// SPDX-License-Identifier: Apache-2.0
//! gRPC `arca.tap.v1`: contract types to domain types and back, errors to status.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::Arc;

use arca_proto::ports::LinkNumber;
use arca_proto::tap::v1 as proto;
use arca_proto::tap::v1::tap_server::Tap;
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::attach::{AttachError, Progress, StepError};
use crate::configure::{Configuration, ConfigureError};
use crate::dhcp::{DhcpError, Lease};
use crate::extras::{Extras, ExtrasError};
use crate::machine::{self, Machine};
use crate::settings::{InvalidSettings, Settings, timeout};

/// The service over one [`Machine`].
#[derive(Debug, Clone)]
pub struct Service {
    machine: Arc<Machine>,
}

impl Service {
    /// Serves `machine`.
    #[must_use]
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine }
    }
}

#[tonic::async_trait]
impl Tap for Service {
    type AttachNetworkStream = Pin<Box<dyn Stream<Item = Result<proto::AttachProgress, Status>> + Send>>;

    async fn attach_network(
        &self,
        request: Request<proto::AttachNetworkRequest>,
    ) -> Result<Response<Self::AttachNetworkStream>, Status> {
        let request = request.into_inner();
        let settings = Settings::try_from(&request).map_err(ServiceError::from)?;
        let limit = timeout(&request).map_err(ServiceError::from)?;
        let (to_caller, answers) = mpsc::channel(4);
        let machine = Arc::clone(&self.machine);
        // A task of its own: when the caller drops the stream, `attach` must still run to undo what it did.
        tokio::spawn(async move {
            let (report, mut progress) = mpsc::channel(1);
            let attach = machine.attach(settings, limit, &report);
            tokio::pin!(attach);
            loop {
                tokio::select! {
                    // Progress before the end, so that nothing is said after CONFIRMED or an error.
                    biased;
                    // Cancel-safe: a message is taken only when it is returned.
                    Some(step) = progress.recv() => {
                        if to_caller.send(Ok(step.into())).await.is_err() {
                            progress.close();
                        }
                    }
                    // Cancel-safe: a reference to the pinned future.
                    result = &mut attach => {
                        while let Ok(step) = progress.try_recv() {
                            // The caller may be gone; attach has reported to us, which is what it promised.
                            let _ = to_caller.send(Ok(step.into())).await;
                        }
                        if let Err(error) = result {
                            let status = Status::from(ServiceError::Attach(Box::new(error)));
                            tracing::warn!("{}", status.message());
                            let _ = to_caller.send(Err(status)).await;
                        }
                        return;
                    }
                    // Cancel-safe: it only looks.
                    () = to_caller.closed(), if !progress.is_closed() => progress.close(),
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn detach_network(
        &self,
        request: Request<proto::DetachNetworkRequest>,
    ) -> Result<Response<proto::DetachNetworkResponse>, Status> {
        let link = LinkNumber::try_from(request.into_inner().link)
            .map_err(|e| ServiceError::from(InvalidSettings::from(e)))?;
        let machine = Arc::clone(&self.machine);
        // A task of its own: half a detach would be worse than one nobody waits for.
        let done = tokio::spawn(async move { machine.detach(link).await }).await;
        done.map_err(|e| Status::internal(format!("detach link {link}: {e}")))?;
        Ok(Response::new(proto::DetachNetworkResponse {}))
    }

    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        let request = request.into_inner();
        let wanted = configuration(&request)?;
        // Of use only where it is an address.
        let kept = request.resolver_kept_v4.parse().ok().map(IpAddr::V4);
        let machine = Arc::clone(&self.machine);
        let done = tokio::spawn(async move { machine.configure_or_keep(wanted, kept).await }).await;
        done.map_err(|e| Status::internal(format!("configure: {e}")))?.map_err(ServiceError::from)?;
        Ok(Response::new(proto::ConfigureResponse {}))
    }

    async fn set_interface(
        &self,
        request: Request<proto::SetInterfaceRequest>,
    ) -> Result<Response<proto::SetInterfaceResponse>, Status> {
        let extras = Extras::try_from(request.into_inner()).map_err(ServiceError::from)?;
        extras.apply(&self.machine.kernel).await.map_err(ServiceError::from)?;
        Ok(Response::new(proto::SetInterfaceResponse {}))
    }

    async fn list_interfaces(
        &self,
        _: Request<proto::ListInterfacesRequest>,
    ) -> Result<Response<proto::ListInterfacesResponse>, Status> {
        let interfaces = self.machine.status().into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListInterfacesResponse { interfaces }))
    }
}

/// Whatever a call may fail with.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Invalid(#[from] InvalidSettings),
    #[error("resolver `{0}` is not an address of its family that can answer")]
    Resolver(String),
    #[error(transparent)]
    Attach(Box<AttachError>),
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    #[error(transparent)]
    Extras(#[from] ExtrasError),
}

/// The one place where errors become gRPC codes.
impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        let code = match &error {
            ServiceError::Invalid(_) | ServiceError::Resolver(_) => Code::InvalidArgument,
            ServiceError::Attach(error) => match error.as_ref() {
                AttachError::Conflict { .. } => Code::AlreadyExists,
                AttachError::Abandoned { .. } => Code::Aborted,
                AttachError::Step { step, .. } => match step {
                    StepError::Link { .. } | StepError::Dhcp(DhcpError::Silent { .. }) => Code::DeadlineExceeded,
                    StepError::Dhcp(DhcpError::Refused { .. } | DhcpError::Other { .. }) => Code::FailedPrecondition,
                    _ => Code::Internal,
                },
            },
            ServiceError::Extras(ExtrasError::Invalid(_) | ExtrasError::Foreign(..)) => Code::InvalidArgument,
            ServiceError::Extras(_) => Code::Internal,
            ServiceError::Configure(ConfigureError::NotAttached(_)) => Code::FailedPrecondition,
            ServiceError::Configure(_) => Code::Internal,
        };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        Self::new(code, text)
    }
}

fn configuration(request: &proto::ConfigureRequest) -> Result<Configuration, ServiceError> {
    let link = |number| match number {
        0 => Ok(None),
        link => LinkNumber::try_from(link).map(Some).map_err(InvalidSettings::from),
    };
    let default_route = link(request.default_route_link)?;
    let default_route_v6 = link(request.default_route_link_v6.unwrap_or(request.default_route_link))?;
    let usable4 = |a: &Ipv4Addr| !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !a.is_broadcast();
    let usable6 = |a: &Ipv6Addr| !a.is_unspecified() && !a.is_loopback() && !a.is_multicast();
    let resolver = match (request.resolver_v4.as_str(), request.resolver_v6.as_str()) {
        ("", "") => None,
        ("", text) => Some(text.parse().ok().filter(usable6).map(IpAddr::V6).ok_or(text)),
        (text, _) => Some(text.parse().ok().filter(usable4).map(IpAddr::V4).ok_or(text)),
    };
    let resolver = resolver.transpose().map_err(|text| ServiceError::Resolver(text.to_owned()))?;
    Ok(Configuration { default_route, default_route_v6, resolver })
}

impl From<Progress> for proto::AttachProgress {
    fn from(progress: Progress) -> Self {
        use proto::attach_progress::Step;
        let (step, lease) = match progress {
            Progress::Listening => (Step::Listening, None),
            Progress::Linked => (Step::Linked, None),
            Progress::Confirmed(lease) => (Step::Confirmed, lease.map(Into::into)),
        };
        Self { step: step.into(), lease }
    }
}

impl From<Lease> for proto::Lease {
    fn from(lease: Lease) -> Self {
        Self {
            address: lease.address.to_string(),
            router: lease.router.map(|r| r.to_string()).unwrap_or_default(),
            dns_servers: lease.dns_servers.iter().map(ToString::to_string).collect(),
            mtu: lease.mtu.map(u32::from).unwrap_or_default(),
            lease_seconds: lease.seconds,
            server_id: lease.server.to_string(),
        }
    }
}

impl From<machine::Status> for proto::Interface {
    fn from(status: machine::Status) -> Self {
        Self {
            settings: Some(status.settings.to_request()),
            linked: status.link.linked,
            epoch: status.link.epoch,
            offloads: status.link.offloads.bits(),
            to_stream: Some(status.to_stream.into()),
            from_stream: Some(status.from_stream.into()),
            reconnects: status.link.connections.saturating_sub(1),
        }
    }
}
