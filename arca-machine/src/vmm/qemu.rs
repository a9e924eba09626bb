// SPDX-License-Identifier: Apache-2.0
//! QEMU's command line. Everything it talks to is a descriptor that it is given; it opens kernel and image in its jail and
//! nothing else.

use std::{
    ffi::OsString,
    os::fd::RawFd,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{accelerator::Accelerator, mounts};
use crate::{
    Role,
    files::KernelFormat,
    vm::plan::{Card, Plan},
};

/// Where the guest's virtiofs share is named in QEMU and in the guest.
const TAG: &str = "arca";
/// Translated code that TCG keeps, MiB: the default takes up to a gigabyte in each machine.
const TRANSLATIONS: u32 = 64;

/// Descriptors that QEMU is given, by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptors {
    /// Connected to the vsock daemon.
    pub(super) vsock: RawFd,
    /// Connected to virtiofsd.
    pub(super) share: Option<RawFd>,
    /// Our end is [`super::qmp::Qmp`].
    pub(super) qmp: RawFd,
    /// Our end is [`super::console::Console`].
    pub(super) console: RawFd,
    /// An open TAP.
    pub(super) tap: Option<RawFd>,
    /// /dev/vhost-net: the kernel then carries the TAP's frames.
    pub(super) vhost: Option<RawFd>,
}

/// The kind of computer that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Board {
    /// The smallest: virtio on plain memory, no PCI, no ACPI. The kernel must be one of ours.
    Microvm,
    /// A PC.
    Q35,
    /// Of arm64.
    Virt,
}

impl Board {
    fn of(format: KernelFormat) -> Self {
        match format {
            KernelFormat::Elf => Self::Microvm,
            KernelFormat::ElfPci | KernelFormat::BzImage => Self::Q35,
            KernelFormat::Arm64 => Self::Virt,
        }
    }

    /// The options of `-M`. Without ACPI because with it microvm was seen to hang at boot on a loaded host.
    fn machine(self) -> &'static str {
        match self {
            Self::Microvm => "microvm,acpi=off,rtc=on,memory-backend=mem",
            Self::Q35 => "q35,smbus=off,sata=off,memory-backend=mem",
            Self::Virt => "virt,gic-version=max,memory-backend=mem",
        }
    }

    /// A virtio device is called by the bus it is on.
    fn device(self, name: &str) -> String {
        let bus = if self == Self::Microvm { "device" } else { "pci" };
        format!("{name}-{bus}")
    }

    fn console(self) -> &'static str {
        if self == Self::Virt { "ttyAMA0" } else { "ttyS0" }
    }
}

/// The arguments; `tsc` is a word for the kernel.
pub(super) fn arguments(
    plan: &Plan,
    accelerator: Accelerator,
    descriptors: &Descriptors,
    tsc: Option<String>,
) -> Vec<OsString> {
    let board = Board::of(plan.format);
    let megabytes = plan.memory >> 20;
    let mut line: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-name", &plan.id, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    add(&["-M", board.machine()]);
    match accelerator {
        Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => add(&["-accel", &format!("tcg,tb-size={TRANSLATIONS}"), "-cpu", "max"]),
    }
    add(&["-smp", &plan.cpus.to_string(), "-m", &format!("{megabytes}M")]);
    // Shared with the daemons that serve its devices.
    add(&["-object", &format!("memory-backend-memfd,id=mem,size={megabytes}M,share=on")]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", descriptors.qmp), "-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", &format!("socket,id=console,fd={}", descriptors.console), "-serial", "chardev:console"]);
    add(&["-chardev", &format!("socket,id=vsock,fd={}", descriptors.vsock)]);
    add(&["-device", &format!("{},chardev=vsock", board.device("vhost-user-vsock"))]);
    if let Some(share) = descriptors.share {
        add(&["-chardev", &format!("socket,id=share,fd={share}")]);
        add(&["-device", &format!("{},chardev=share,tag={TAG}", board.device("vhost-user-fs"))]);
    }
    add(&["-device", &board.device("virtio-rng")]);
    // What the guest frees goes back to the host.
    add(&["-device", &format!("{},id=balloon,free-page-reporting=on", board.device("virtio-balloon"))]);
    if plan.disk.is_some() {
        add(&["-drive", &format!("if=none,id=disk,file={},format=raw,cache=writeback", mounts::DISK)]);
        add(&["-device", &format!("{},drive=disk", board.device("virtio-blk"))]);
    }
    let netdev = match (&plan.card, descriptors.tap) {
        (Some(Card::Tap { .. }), Some(tap)) => {
            let vhost = descriptors.vhost.map_or("vhost=off".to_owned(), |vhost| format!("vhost=on,vhostfd={vhost}"));
            Some(format!("tap,id=card,fd={tap},{vhost}"))
        }
        (Some(Card::User { options }), _) => Some(format!("user,id=card,{options}")),
        _ => None,
    };
    if let Some(netdev) = netdev {
        add(&["-netdev", &netdev]);
        add(&["-device", &format!("{},netdev=card,mac={}", board.device("virtio-net"), mac(&plan.id))]);
    }
    add(&["-kernel", mounts::KERNEL, "-initrd", mounts::IMAGE]);
    add(&["-append", &command_line(plan, board, tsc)]);
    line.into_iter().map(OsString::from).collect()
}

fn command_line(plan: &Plan, board: Board, tsc: Option<String>) -> String {
    let role = match plan.role {
        Role::Container => "container",
        Role::Helper => "helper",
    };
    // A panic and a reboot both end QEMU (`-no-reboot`): nothing that is broken stays.
    let mut words = vec![format!(
        "console={} quiet panic=-1 reboot=t no_timer_check dummy.numdummies=0 NO_COLOR=1",
        board.console()
    )];
    words.extend(tsc);
    words.push(format!("arca.role={role} arca.id={}", plan.id));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    words.push(format!("arca.time={now}"));
    words.extend(plan.words.iter().cloned());
    words.join(" ")
}

/// A hardware address of the locally administered kind, the same for the same machine (FNV-1a).
fn mac(id: &str) -> String {
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(format: KernelFormat) -> Plan {
        Plan {
            id: "m1".into(),
            role: Role::Container,
            kernel: "/k".into(),
            format,
            image: "/i".into(),
            words: vec!["arca.log=info".into()],
            memory: 256 << 20,
            cpus: 2,
            sockets: "/s".into(),
            state: "/t".into(),
            qemu: "/usr/bin/qemu".into(),
            vhost_vsock: "/usr/bin/v".into(),
            virtiofsd: Some("/usr/libexec/f".into()),
            tools: None,
            uid: 1,
            card: None,
            disk: None,
            port: 5556,
            patience_ms: 1000,
        }
    }

    fn line(plan: &Plan, accelerator: Accelerator) -> String {
        let descriptors = Descriptors {
            vsock: 5,
            share: Some(6),
            qmp: 7,
            console: 8,
            tap: Some(9),
            vhost: (accelerator == Accelerator::Kvm).then_some(10),
        };
        let words = arguments(plan, accelerator, &descriptors, Some("tsc_early_khz=1".into()));
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_own_kernel_gets_the_smallest_board_and_another_a_pc() {
        let own = line(&plan(KernelFormat::Elf), Accelerator::Tcg);
        assert!(own.contains("-M microvm,acpi=off") && own.contains("vhost-user-vsock-device"), "{own}");
        assert!(
            own.contains("tsc_early_khz=1 arca.role=container arca.id=m1 arca.time=")
                && own.ends_with(" arca.log=info"),
            "{own}"
        );
        let other = line(&plan(KernelFormat::BzImage), Accelerator::Kvm);
        assert!(
            other.contains("-M q35") && other.contains("vhost-user-fs-pci") && other.contains("-cpu host"),
            "{other}"
        );
    }

    #[test]
    fn a_machine_has_one_card_or_none() {
        let mut plan = plan(KernelFormat::Elf);
        assert!(!line(&plan, Accelerator::Tcg).contains("-netdev"));
        plan.card = Some(Card::User { options: "ipv6=off".into() });
        assert!(line(&plan, Accelerator::Tcg).contains("-netdev user,id=card,ipv6=off"));
        plan.card = Some(Card::Tap { interface: "t".into() });
        assert!(line(&plan, Accelerator::Tcg).contains("-netdev tap,id=card,fd=9,vhost=off "));
        assert!(line(&plan, Accelerator::Kvm).contains("-netdev tap,id=card,fd=9,vhost=on,vhostfd=10 "));
        assert_ne!(mac("a"), mac("b"));
    }
}
