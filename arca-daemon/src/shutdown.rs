// SPDX-License-Identifier: Apache-2.0
//! The end of a daemon: SIGTERM or SIGINT, once, seen by everything that waits for it.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Fires once. Clones all see it, also when they were made later.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Makes a [`Shutdown`] fire.
#[derive(Clone, Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Trigger {
    /// Fires; firing again changes nothing.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// A shutdown that the returned trigger fires; for tests and for daemons that end themselves.
    #[must_use]
    pub fn manual() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// A shutdown that SIGTERM, SIGINT or the returned trigger fires.
    ///
    /// # Errors
    /// If the signal handlers cannot be set.
    pub fn on_signals() -> io::Result<(Trigger, Self)> {
        let (trigger, shutdown) = Self::manual();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let fire = trigger.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Both are cancel-safe: a signal not received here stays pending in its stream.
                _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
                _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
            }
            fire.fire();
        });
        Ok((trigger, shutdown))
    }

    /// Returns once fired. If every trigger is gone without firing this waits for ever.
    pub async fn wait(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|fired| *fired).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it has fired.
    #[must_use]
    pub fn fired(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clone_made_after_firing_sees_it() {
        let (trigger, shutdown) = Shutdown::manual();
        assert!(!shutdown.fired());
        trigger.fire();
        shutdown.clone().wait().await;
        assert!(shutdown.fired());
    }
}
