// SPDX-License-Identifier: Apache-2.0
//! Starts a process in namespaces of its own, detached from its launcher.
//!
//! The launcher has threads, so between clone and exec the child may only make system calls: everything it needs (steps,
//! arguments, environment, descriptors) is made before, and an error comes back as numbers through a pipe that exec
//! closes. `clone3` instead of `fork`: the child starts inside its namespaces (a new pid namespace only takes
//! children) and a pidfd comes with it, free of races.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc::{self, c_char, c_int, c_ulong},
    unistd::pipe2,
};

/// Something the child does before exec, in order.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// mount(2).
    Mount { source: CString, target: CString, kind: CString, flags: c_ulong, data: CString },
    /// mkdir(2); an existing directory is fine.
    Mkdir(CString),
    /// Makes an empty file as the target of a bind mount.
    Touch(CString),
    /// mknod(2) of a character device, mode 0666.
    Device { path: CString, major: u32, minor: u32 },
    /// symlink(2); an existing one is fine.
    Symlink { target: CString, path: CString },
    /// chdir(2).
    Chdir(CString),
    /// Makes the current directory the root and lets go of the old one (pivot_root(2), "pivot_root(".", ".")").
    PivotHere,
    /// sethostname(2).
    Hostname(CString),
}

/// A process to start.
#[derive(Debug)]
pub(crate) struct Program {
    /// Path as the child sees it after its steps.
    pub(crate) path: CString,
    /// With the name first.
    pub(crate) arguments: Vec<CString>,
    /// The whole environment, `NAME=value`.
    pub(crate) environment: Vec<CString>,
    /// `CLONE_NEW*`.
    pub(crate) namespaces: c_int,
    /// Before exec.
    pub(crate) steps: Vec<Step>,
    /// Standard output and error.
    pub(crate) log: File,
}

/// A child that runs its program.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// The step that failed, in words, and why.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(crate) step: String,
    pub(crate) source: io::Error,
}

/// Argument of clone3(2), first version of the structure (64 bytes, Linux 5.3).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

// Numbers of what is not a `Step`, as sent through the pipe.
const DETACH: i32 = -1;
const EXEC: i32 = -2;

/// Starts `program` as leader of a session of its own, with standard input from /dev/null and no other descriptor of
/// ours. Returns once exec has succeeded.
pub(crate) fn spawn(program: &Program) -> Result<Spawned, SpawnError> {
    let fail = |step: &str, source: io::Error| SpawnError { step: step.to_owned(), source };
    let null = File::open("/dev/null").map_err(|e| fail("open /dev/null", e))?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|e| fail("make a pipe", e.into()))?;
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let plan = Plan {
        program,
        arguments: &arguments,
        environment: &environment,
        input: null.as_raw_fd(),
        output: program.log.as_raw_fd(),
        report: writer.as_raw_fd(),
    };
    let mut pidfd: RawFd = -1;
    let mut clone = CloneArguments {
        // The namespace flags are small positive numbers.
        flags: u64::from(program.namespaces.unsigned_abs()) | u64::from(libc::CLONE_PIDFD.unsigned_abs()),
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM and without a stack this is fork: the child has its own copy of memory, and `Plan::run`
    // only makes system calls on data prepared above, takes no lock and allocates nothing.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut clone), size_of::<CloneArguments>());
        if pid == 0 {
            plan.run();
        }
        pid
    };
    let pid = u32::try_from(pid).map_err(|_| fail("create the namespaces (clone3)", io::Error::last_os_error()))?;
    // SAFETY: clone3 succeeded, so it stored a new descriptor that nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(writer);
    let mut report = [0u8; 8];
    let mut reader = File::from(reader);
    match reader.read_exact(&mut report) {
        // End of input: exec closed the pipe.
        Err(_) => Ok(Spawned { pid, pidfd }),
        Ok(()) => {
            reap(pid);
            let [a, b, c, d, e, f, g, h] = report;
            let step = i32::from_ne_bytes([a, b, c, d]);
            let source = io::Error::from_raw_os_error(i32::from_ne_bytes([e, f, g, h]));
            Err(SpawnError { step: program.describe(step), source })
        }
    }
}

/// Takes the exit status of a child that has ended; one that is not (or no longer) ours is left alone.
pub(crate) fn reap(pid: u32) {
    let Ok(pid) = i32::try_from(pid) else { return };
    // SAFETY: waitpid with a null status pointer touches no memory.
    while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } == -1 && Errno::last() == Errno::EINTR {}
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

impl Program {
    fn describe(&self, step: i32) -> String {
        let text = |s: &CStr| s.to_string_lossy().into_owned();
        match step {
            EXEC => format!("execute {}", text(&self.path)),
            step => match usize::try_from(step).ok().and_then(|index| self.steps.get(index)) {
                Some(Step::Mount { source, target, kind, .. }) => {
                    format!("mount {} {} on {}", text(kind), text(source), text(target))
                }
                Some(Step::Mkdir(path)) => format!("make directory {}", text(path)),
                Some(Step::Touch(path)) => format!("make file {}", text(path)),
                Some(Step::Device { path, .. }) => format!("make device {}", text(path)),
                Some(Step::Symlink { path, .. }) => format!("make link {}", text(path)),
                Some(Step::Chdir(path)) => format!("change to {}", text(path)),
                Some(Step::PivotHere) => "change the root".to_owned(),
                Some(Step::Hostname(_)) => "set the host name".to_owned(),
                None => "detach from the launcher".to_owned(),
            },
        }
    }
}

/// What the child works with: pointers and numbers only.
struct Plan<'a> {
    program: &'a Program,
    arguments: &'a [*const c_char],
    environment: &'a [*const c_char],
    input: RawFd,
    output: RawFd,
    report: RawFd,
}

impl Plan<'_> {
    /// The child. Never returns.
    ///
    /// # Safety
    /// Only in a process that has just been cloned.
    unsafe fn run(&self) -> ! {
        // SAFETY: as the caller promises; all pointers outlive the call, and the calls are async-signal-safe.
        unsafe {
            if !self.detach() {
                self.fail(DETACH);
            }
            for (index, step) in (0i32..).zip(&self.program.steps) {
                if !step.run() {
                    self.fail(index);
                }
            }
            libc::execve(self.program.path.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
            self.fail(EXEC)
        }
    }

    unsafe fn detach(&self) -> bool {
        // SAFETY: plain system calls on valid numbers and on a local signal set.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            // What the launcher blocked or ignored must not be inherited.
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            libc::setsid() != -1
                && libc::dup2(self.input, 0) != -1
                && libc::dup2(self.output, 1) != -1
                && libc::dup2(self.output, 2) != -1
                && libc::syscall(libc::SYS_close_range, 3, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) != -1
        }
    }

    unsafe fn fail(&self, step: i32) -> ! {
        let errno = Errno::last_raw();
        let report: [[u8; 4]; 2] = [step.to_ne_bytes(), errno.to_ne_bytes()];
        // SAFETY: writes eight bytes of a local array and ends the process without running its exit handlers.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), 8);
            libc::_exit(127)
        }
    }
}

impl Step {
    unsafe fn run(&self) -> bool {
        // SAFETY: plain system calls on C strings that live in the plan.
        unsafe {
            match self {
                Self::Mount { source, target, kind, flags, data } => {
                    libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), *flags, data.as_ptr().cast()) == 0
                }
                Self::Mkdir(path) => libc::mkdir(path.as_ptr(), 0o755) == 0 || Errno::last() == Errno::EEXIST,
                Self::Touch(path) => {
                    let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o755);
                    fd != -1 && libc::close(fd) == 0
                }
                Self::Device { path, major, minor } => {
                    let mode = libc::S_IFCHR | 0o666;
                    libc::mknod(path.as_ptr(), mode, libc::makedev(*major, *minor)) == 0
                        && libc::chmod(path.as_ptr(), 0o666) == 0
                }
                Self::Symlink { target, path } => {
                    libc::symlink(target.as_ptr(), path.as_ptr()) == 0 || Errno::last() == Errno::EEXIST
                }
                Self::Chdir(path) => libc::chdir(path.as_ptr()) == 0,
                Self::PivotHere => {
                    libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) == 0
                        && libc::umount2(c".".as_ptr(), libc::MNT_DETACH) == 0
                        && libc::chdir(c"/".as_ptr()) == 0
                }
                Self::Hostname(name) => libc::sethostname(name.as_ptr(), name.as_bytes().len()) == 0,
            }
        }
    }
}
