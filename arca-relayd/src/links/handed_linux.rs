// SPDX-License-Identifier: Apache-2.0
//! A link whose frames do not pass here: the ends hand each other a descriptor over the two streams (`arca_proto::note`)
//! and this only passes that on, notices when an end goes, and asks for counters.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use arca_proto::{
    dial::Stream,
    hello::{Agreement, Carrier, Hello, Kind},
    note::{self, Note, Reader},
    ports::LinkNumber,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

use super::{count::Count, joint::Counters};

/// How long an end may take to say hello and to take or lend what there is.
const STEP: Duration = Duration::from_secs(2);

/// Both ends of a link that is up.
#[derive(Debug)]
pub(super) struct Handed {
    container: End,
    helper: End,
}

#[derive(Debug)]
struct End {
    name: &'static str,
    stream: UnixStream,
    reader: Reader,
}

impl End {
    fn new(name: &'static str, stream: Stream) -> Result<Self, String> {
        match stream {
            Stream::Unix(stream) => Ok(Self { name, stream, reader: Reader::default() }),
            Stream::Vsock(_) => Err(format!("{name} end: is in another kernel, where descriptors do not go")),
        }
    }

    fn failed(&self, error: impl std::fmt::Display) -> String {
        format!("{} end: {error}", self.name)
    }

    /// Cancel-safe: what was read of a note stays in the reader.
    async fn note(&mut self) -> Result<(Note, Option<OwnedFd>), String> {
        let Self { name, stream, reader } = self;
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        let read = stream.async_io(Interest::READABLE, || reader.read(&*stream)?.ok_or_else(would_block)).await;
        match read {
            Ok((Note::Failed(text), _)) => Err(format!("{name} end: {text}")),
            Ok(note) => Ok(note),
            Err(error) => Err(format!("{name} end: {error}")),
        }
    }

    async fn expect(&mut self, wanted: &Note) -> Result<Option<OwnedFd>, String> {
        match self.note().await? {
            (note, descriptor) if note == *wanted => Ok(descriptor),
            (note, _) => Err(self.failed(format_args!("said {note:?} instead of {wanted:?}"))),
        }
    }

    async fn hello(&mut self, kind: Kind, link: LinkNumber, carrier: Carrier) -> Result<Hello, String> {
        let mut bytes = [0; Hello::SIZE];
        let read = self.stream.read_exact(&mut bytes).await;
        read.map_err(|error| self.failed(error))?;
        let hello = Hello::expect(&bytes, kind, link).map_err(|error| self.failed(error))?;
        hello.can(carrier).map_err(|error| self.failed(error))?;
        Ok(hello)
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), String> {
        let written = self.stream.write_all(bytes).await;
        written.map_err(|error| self.failed(error))
    }
}

impl Handed {
    /// Everything until the link is up.
    pub(super) async fn join(
        link: LinkNumber,
        epoch: u64,
        carrier: Carrier,
        container: Stream,
        helper: Stream,
    ) -> Result<(Self, Agreement), String> {
        let (mut container, mut helper) = (End::new("container", container)?, End::new("helper", helper)?);
        let joined = timeout(STEP, Self::steps(link, epoch, carrier, &mut container, &mut helper)).await;
        let agreement = joined.map_err(|_| "the ends have not come to terms within two seconds".to_owned())??;
        Ok((Self { container, helper }, agreement))
    }

    async fn steps(
        link: LinkNumber,
        epoch: u64,
        carrier: Carrier,
        container: &mut End,
        helper: &mut End,
    ) -> Result<Agreement, String> {
        let ours = Hello::relay(link, epoch).carrying(carrier).encode();
        container.say(&ours).await?;
        helper.say(&ours).await?;
        let ends =
            (container.hello(Kind::Container, link, carrier).await?, helper.hello(Kind::Helper, link, carrier).await?);
        helper.say(&ends.0.encode()).await?;
        container.say(&ends.1.encode()).await?;
        let (lender, borrower) = if carrier == Carrier::TapFd { (container, helper) } else { (helper, container) };
        let lent = lender.expect(&Note::Lend).await?;
        let lent = lent.ok_or_else(|| lender.failed("lent nothing"))?;
        let passed = note::send(&borrower.stream, &Note::Lend, Some(std::os::fd::AsFd::as_fd(&lent)));
        passed.map_err(|error| borrower.failed(error))?;
        drop(lent);
        if let Err(why) = borrower.expect(&Note::Taken).await {
            // The lender learns it too: it may be in the way. If it is gone there is nobody to tell.
            let _ = note::send(&lender.stream, &Note::Failed(why.clone()), None);
            return Err(why);
        }
        lender.say(&Note::Taken.encode()).await?;
        lender.expect(&Note::Taken).await?;
        borrower.say(&Note::Taken.encode()).await?;
        Ok(Agreement::between(&ends.0, &ends.1))
    }

    /// Until an end breaks, and why; meanwhile counters are asked for when they are wanted.
    pub(super) async fn ended(mut self, count: &Count) -> Arc<str> {
        count.ask(true);
        let why = loop {
            tokio::select! {
                // Each arm is cancel-safe: notes stay in their readers, a permit not taken stays.
                said = self.container.note() => match said {
                    Ok((note, _)) => break self.container.failed(format_args!("said {note:?} unasked")),
                    Err(why) => break why,
                },
                said = self.helper.note() => match said {
                    Ok((Note::Counters(counts), _)) => {
                        let one = |[frames, bytes, drops]: [u64; 3]| Counters { frames, bytes, drops };
                        count.report([one(counts.to_helper), one(counts.to_container)]);
                    }
                    Ok((note, _)) => break self.helper.failed(format_args!("said {note:?} unasked")),
                    Err(why) => break why,
                },
                () = count.wanted.notified() => {
                    if let Err(error) = note::send(&self.helper.stream, &Note::Ask, None) {
                        break self.helper.failed(error);
                    }
                }
            }
        };
        count.ask(false);
        why.into()
    }
}
