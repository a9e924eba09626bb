// SPDX-License-Identifier: Apache-2.0
//! A sequence of steps that leaves nothing behind when one of them fails.

use async_trait::async_trait;

use crate::error::{Error, Result};

/// One step over a context that the steps share.
#[async_trait]
pub trait Step<C: Send>: Send + Sync {
    /// What errors call it.
    fn name(&self) -> &'static str;
    /// Does it. A step that fails has cleaned up after itself or leaves it to its own `undo`, which is called too.
    async fn run(&self, context: &mut C) -> Result<()>;
    /// Takes it back, as far as it came. The default is for steps that change nothing.
    async fn undo(&self, _context: &mut C) -> Result<()> {
        Ok(())
    }
}

/// Runs `steps` in order. If one fails, it and those before it are undone, last first, past failures of that too.
///
/// # Errors
/// The name of the step that failed and its error.
pub async fn run_all<C: Send>(steps: &[&dyn Step<C>], context: &mut C) -> Result<(), (&'static str, Error)> {
    for (index, step) in steps.iter().enumerate() {
        let Err(error) = step.run(context).await else { continue };
        for done in steps[..=index].iter().rev() {
            if let Err(worse) = done.undo(context).await {
                tracing::warn!(step = done.name(), error = %worse, "a step could not be undone; reconciliation will");
            }
        }
        return Err((step.name(), error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Log(&'static str, bool);

    #[async_trait]
    impl Step<Vec<String>> for Log {
        fn name(&self) -> &'static str {
            self.0
        }
        async fn run(&self, log: &mut Vec<String>) -> Result<()> {
            log.push(format!("+{}", self.0));
            if self.1 { Ok(()) } else { Err(Error::Failed("no".into())) }
        }
        async fn undo(&self, log: &mut Vec<String>) -> Result<()> {
            log.push(format!("-{}", self.0));
            Err(Error::Failed("not undone".into()))
        }
    }

    #[tokio::test]
    async fn a_failure_undoes_last_first_and_goes_on_past_failures() {
        let mut log = Vec::new();
        let (name, _) = run_all(&[&Log("a", true), &Log("b", true), &Log("c", false), &Log("d", true)], &mut log)
            .await
            .unwrap_err();
        assert_eq!((name, log.join(" ").as_str()), ("c", "+a +b +c -c -b -a"));
    }
}
