// SPDX-License-Identifier: Apache-2.0
//! `arca.relay.v1`: proto messages in, domain values on, and back. The only module here that knows both.

use std::{pin::Pin, sync::Arc, time::Duration};

use arca_daemon::{metrics::Figures, shutdown::Shutdown};
use arca_proto::{
    dial::Address,
    hello::{Carrier, UnknownCarrier},
    ports::LinkNumber,
    relay::v1::{self as proto, relay_server::Relay},
};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    figures, hops,
    links::{Ends, Links, NotUp, Phase, Snapshot},
    publish::Publisher,
};

const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// Messages under way to a watcher before it holds up its own task.
const WATCH_BUFFER: usize = 64;

pub(crate) struct Service {
    links: Links,
    publisher: Publisher,
    shutdown: Shutdown,
}

impl Service {
    pub(crate) fn new(links: Links, publisher: Publisher, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self { links, publisher, shutdown })
    }

    /// See [`Publisher::follow_neighbours`].
    pub(crate) async fn follow_neighbours(&self) {
        self.publisher.follow_neighbours().await;
    }

    /// Everything this daemon shows to Prometheus, the ends of links included.
    pub(crate) async fn figures(&self) -> Figures {
        let mut links: Vec<proto::Link> = self.links.list().await.into_iter().map(message).collect();
        hops::fill(&mut links).await;
        figures::of(&links, &self.publisher.list().await)
    }

    /// The end of the daemon.
    pub(crate) async fn close(&self) {
        self.links.close_all().await;
        self.publisher.close().await;
    }
}

/// Why a link request was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("open link: {0}")]
    Number(#[from] arca_proto::ports::InvalidLinkNumber),
    #[error("open link: {0} end: {1}")]
    Address(&'static str, String),
    #[error("open link: {0}")]
    Carrier(#[from] UnknownCarrier),
    #[error(transparent)]
    NotUp(#[from] NotUp),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Number(_) | Refused::Address(..) | Refused::Carrier(_) => Self::invalid_argument(text),
            Refused::NotUp(_) => Self::unavailable(text),
        }
    }
}

fn end(name: &'static str, address: Option<arca_proto::machine::v1::Address>) -> Result<Address, Refused> {
    let address = address.ok_or_else(|| Refused::Address(name, "no address given".to_owned()))?;
    Address::try_from(address).map_err(|e| Refused::Address(name, e.to_string()))
}

fn message(snapshot: Snapshot) -> proto::Link {
    use proto::link::State;
    let Snapshot { link, ends, progress, to_helper, to_container, stuck } = snapshot;
    let state = match progress.phase {
        Phase::Connecting => State::Connecting,
        Phase::Up => State::Up,
        Phase::Closed => State::Closed,
    };
    proto::Link {
        link: link.get(),
        carrier: proto::Carrier::from(ends.carrier).into(),
        state: state.into(),
        epoch: progress.epoch,
        offloads: progress.offloads.bits(),
        to_helper: Some(to_helper.into()),
        to_container: Some(to_container.into()),
        reconnects: progress.reconnects,
        last_error: progress.last_error,
        container: Some(ends.container.into()),
        helper: Some(ends.helper.into()),
        stuck,
        ..proto::Link::default()
    }
}

#[tonic::async_trait]
impl Relay for Service {
    async fn open_link(&self, request: Request<proto::OpenLinkRequest>) -> Result<Response<proto::Link>, Status> {
        let request = request.into_inner();
        let carrier = Carrier::try_from(request.carrier).map_err(Refused::from)?;
        let link = LinkNumber::try_from(request.link).map_err(Refused::from)?;
        let ends =
            Ends { carrier, container: end("container", request.container)?, helper: end("helper", request.helper)? };
        let patience = match request.timeout_ms {
            0 => DEFAULT_PATIENCE,
            ms => Duration::from_millis(ms.into()),
        };
        let snapshot = self.links.open(link, ends, patience).await.map_err(Refused::from)?;
        Ok(Response::new(message(snapshot)))
    }

    async fn close_link(
        &self,
        request: Request<proto::CloseLinkRequest>,
    ) -> Result<Response<proto::CloseLinkResponse>, Status> {
        let link = LinkNumber::try_from(request.into_inner().link).map_err(Refused::from)?;
        // Closing what is not open is no error: the caller wants it gone.
        self.links.close(link).await;
        Ok(Response::new(proto::CloseLinkResponse {}))
    }

    async fn list_links(
        &self,
        request: Request<proto::ListLinksRequest>,
    ) -> Result<Response<proto::ListLinksResponse>, Status> {
        let mut links: Vec<proto::Link> = self.links.list().await.into_iter().map(message).collect();
        if request.into_inner().with_hops {
            hops::fill(&mut links).await;
        }
        Ok(Response::new(proto::ListLinksResponse { links }))
    }

    type WatchLinksStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::Link, Status>> + Send>>;

    async fn watch_links(
        &self,
        _: Request<proto::WatchLinksRequest>,
    ) -> Result<Response<Self::WatchLinksStream>, Status> {
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let (links, shutdown) = (self.links.clone(), self.shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                // All three are dropped at an await; nothing is lost that anybody still wants.
                () = watch(&links, &sender) => {}
                () = sender.closed() => {}
                // An open stream would hold up the end of the daemon.
                () = shutdown.wait() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn publish(&self, request: Request<proto::PublishRequest>) -> Result<Response<proto::Publication>, Status> {
        self.publisher.publish(request.into_inner()).await.map(Response::new)
    }

    async fn unpublish(
        &self,
        request: Request<proto::UnpublishRequest>,
    ) -> Result<Response<proto::UnpublishResponse>, Status> {
        self.publisher.unpublish(&request.into_inner().id).await?;
        Ok(Response::new(proto::UnpublishResponse {}))
    }

    async fn list_publications(
        &self,
        _: Request<proto::ListPublicationsRequest>,
    ) -> Result<Response<proto::ListPublicationsResponse>, Status> {
        Ok(Response::new(proto::ListPublicationsResponse { publications: self.publisher.list().await }))
    }
}

/// All links, then changes; all again if this watcher was too slow for the changes. Ends when the watcher is gone.
async fn watch(links: &Links, sender: &mpsc::Sender<Result<proto::Link, Status>>) {
    loop {
        // Before the list: a change in between is then told twice rather than not at all.
        let mut changes = links.changes();
        for snapshot in links.list().await {
            if sender.send(Ok(message(snapshot))).await.is_err() {
                return;
            }
        }
        loop {
            match changes.recv().await {
                Ok(snapshot) => {
                    if sender.send(Ok(message(snapshot))).await.is_err() {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
            }
        }
    }
}
