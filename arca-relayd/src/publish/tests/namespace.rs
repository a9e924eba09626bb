// SPDX-License-Identifier: Apache-2.0
//! Network namespaces that live as long as a thread.

use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread with a network namespace of its own, loopback up.
pub(super) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIP no private network namespace ({error}): needs root");
            return;
        }
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Output of a shell command in the caller's namespace.
pub(super) fn run(command: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

type Job = Box<dyn FnOnce() + Send>;

/// A further host: a thread with a namespace of its own.
#[derive(Clone)]
pub(super) struct Namespace {
    jobs: mpsc::Sender<Job>,
    thread: nix::unistd::Pid,
}

impl Namespace {
    pub(super) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (started, is_started) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            started.send(nix::unistd::gettid()).unwrap();
            // Ends when the last handle is dropped.
            for job in queue {
                job();
            }
        });
        let thread = is_started.recv().unwrap();
        Self { jobs, thread }
    }

    /// For `ip link set ... netns`.
    pub(super) fn id(&self) -> nix::unistd::Pid {
        self.thread
    }

    /// Runs `job` in this namespace. Threads that it starts stay there.
    pub(super) fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        let job = move || sender.send(job()).unwrap();
        self.jobs.send(Box::new(job)).unwrap();
        result.recv().unwrap()
    }
}
