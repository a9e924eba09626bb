// SPDX-License-Identifier: Apache-2.0
//! Which programs the helper machine runs, in the order of their start, and how patient to be with each.

use std::path::Path;
use std::time::Duration;

use arca_proto::listen::ListenOn;

use crate::layout::Layout;
use crate::vswitch::Datapath;

/// A program to keep running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// As in the status report.
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) arguments: Vec<String>,
    /// Longest delay before a restart.
    pub(super) patience: Duration,
    /// Its log lines are taken apart; the agent writes its own log.
    pub(super) captured: bool,
}

/// OVN's agent on this chassis.
pub(super) const CONTROLLER: &str = "ovn-controller";

/// Delay before the first restart; it doubles with each early end.
pub(super) const RESTART_MIN: Duration = Duration::from_millis(10);
/// Running that long makes earlier failures forgotten.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

/// Traffic stops while the database of ovs-vswitchd is away; the others come when they come.
const DATABASE: Duration = Duration::from_millis(100);
const DAEMON: Duration = Duration::from_secs(1);

/// File of a database: (file, schema in the image, socket).
pub(super) struct DatabaseFile {
    pub(super) file: std::path::PathBuf,
    pub(super) schema: &'static str,
    /// Contents survive the machine.
    pub(super) kept: bool,
}

pub(super) fn database_files(layout: &Layout) -> [DatabaseFile; 3] {
    [
        DatabaseFile {
            file: layout.ovs_run().join("conf.db"),
            schema: "/usr/share/openvswitch/vswitch.ovsschema",
            kept: false,
        },
        DatabaseFile { file: layout.data.join("nb.db"), schema: "/usr/share/ovn/ovn-nb.ovsschema", kept: true },
        DatabaseFile { file: layout.ovn_run().join("sb.db"), schema: "/usr/share/ovn/ovn-sb.ovsschema", kept: false },
    ]
}

/// The three database servers.
pub(super) fn databases(layout: &Layout) -> Vec<Program> {
    let names = ["ovsdb-server conf", "ovsdb-server nb", "ovsdb-server sb"];
    let sockets = [layout.conf_socket(), layout.nb_socket(), layout.sb_socket()];
    let files = database_files(layout);
    let server = |((name, socket), file): ((&'static str, std::path::PathBuf), &DatabaseFile)| {
        let mut arguments = common();
        arguments.push(format!("--pidfile={}", socket.with_extension("pid").display()));
        arguments.push(format!("--unixctl={}", socket.with_extension("ctl").display()));
        arguments.push(format!("--remote=punix:{}", socket.display()));
        arguments.push(file.file.display().to_string());
        Program { name, path: "/usr/sbin/ovsdb-server", arguments, patience: DATABASE, captured: true }
    };
    names.into_iter().zip(sockets).zip(&files).map(server).collect()
}

/// What needs the databases: OVS, and OVN's translator.
pub(super) fn daemons(layout: &Layout, datapath: Datapath) -> Vec<Program> {
    let mut vswitchd = vec![remote(&layout.conf_socket())];
    if datapath == Datapath::User {
        // No module: asking for it at every step costs time and fills the log.
        vswitchd.push("--disable-system".into());
    }
    let northd = vec![
        format!("--ovnnb-db={}", remote(&layout.nb_socket())),
        format!("--ovnsb-db={}", remote(&layout.sb_socket())),
    ];
    vec![
        daemon("ovs-vswitchd", "/usr/sbin/ovs-vswitchd", &layout.vswitchd_pid(), vswitchd),
        daemon("ovn-northd", "/usr/bin/ovn-northd", &layout.ovn_run().join("ovn-northd.pid"), northd),
    ]
}

/// OVN's agent on this chassis. Started when br-int stands: an attempt before costs it a second of back-off.
pub(super) fn controller(layout: &Layout) -> Program {
    let pid_file = layout.ovn_run().join("ovn-controller.pid");
    daemon(CONTROLLER, "/usr/bin/ovn-controller", &pid_file, vec![remote(&layout.conf_socket())])
}

fn remote(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

fn daemon(name: &'static str, path: &'static str, pid_file: &Path, more: Vec<String>) -> Program {
    let mut arguments = common();
    arguments.push(format!("--pidfile={}", pid_file.display()));
    arguments.push(format!("--unixctl={}", pid_file.with_extension("ctl").display()));
    arguments.extend(more);
    Program { name, path, arguments, patience: DAEMON, captured: true }
}

/// The agent: this very program. Only the first start says READY.
pub(super) fn agent(listen: &ListenOn, log_level: &str, first: bool) -> Program {
    let mut arguments = vec!["agent".to_owned(), format!("--listen={listen}"), format!("--log-level={log_level}")];
    if first {
        arguments.push("--ready".into());
    }
    Program { name: "arca-helper-agent", path: "/proc/self/exe", arguments, patience: DAEMON, captured: false }
}

/// In the foreground, warnings to standard error: the supervisor sees ends and log lines itself.
fn common() -> Vec<String> {
    ["--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"].map(Into::into).into()
}

/// Log lines by which OVN tells of faults that it reports nowhere else, and the likely causes.
const FAULTS: [&str; 6] = [
    "error parsing actions",
    "bad exclude_ips",
    "address space has been exhausted",
    "Required DHCPv",
    "Duplicate IP",
    "could not open network device",
];

/// Whether a log line tells of such a fault.
pub(super) fn is_fault(line: &str) -> bool {
    FAULTS.iter().any(|fault| line.contains(fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_start_of_the_agent_says_ready() {
        let listen = "sockets:/vsock".parse().unwrap();
        assert!(agent(&listen, "info", true).arguments.contains(&"--ready".to_owned()));
        assert!(!agent(&listen, "info", false).arguments.contains(&"--ready".to_owned()));
    }

    #[test]
    fn database_servers_restart_fastest_and_only_nb_is_kept() {
        let layout = Layout::default();
        assert!(databases(&layout).iter().all(|p| p.patience <= Duration::from_millis(100)));
        let kept: Vec<_> = database_files(&layout).into_iter().filter(|f| f.kept).map(|f| f.file).collect();
        assert_eq!(kept, [std::path::PathBuf::from("/var/lib/arca/nb.db")]);
    }

    #[test]
    fn faults_are_told_from_other_warnings() {
        assert!(is_fault("2026|00012|lflow|WARN|error parsing actions \"next;\": Syntax error"));
        assert!(!is_fault("2026|00001|timeval|WARN|Unreasonably long 1200ms poll interval"));
    }
}
