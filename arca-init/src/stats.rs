// SPDX-License-Identifier: Apache-2.0
//! What a workload uses: read from its cgroup (version 1 or 2) and from the machine's /proc at the moment of asking.
//!
//! A file that is not there (a controller that is off, an older kernel) leaves its figures at zero.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use arca_proto::init::v1::{BlockCounter, InterfaceCounters, StatsResponse};

use crate::cgroup;

/// Clock ticks of /proc/stat a second: fixed for user space (`USER_HZ`).
const TICKS: u64 = 100;

/// Figures of the workload in `cgroup`, in whose network namespace `pid` is.
pub(crate) fn read(cgroup: &Path, pid: u32) -> StatsResponse {
    let mut stats = StatsResponse::default();
    let root = Path::new(cgroup::ROOT);
    if cgroup::is_v2(root) {
        version_2(&root.join(cgroup), &mut stats);
    } else {
        version_1(&|controller| root.join(controller).join(cgroup), &mut stats);
    }
    machine(&text(Path::new("/proc/stat")), &text(Path::new("/proc/meminfo")), &mut stats);
    stats.interfaces = interfaces(&text(&PathBuf::from(format!("/proc/{pid}/net/dev"))));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    stats.read_at_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    stats
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A file of one number; `max` is the greatest one.
fn number(path: &Path) -> u64 {
    match text(path).trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

/// A file of lines `name number`.
fn table(path: &Path) -> HashMap<String, u64> {
    let text = text(path);
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
}

fn version_2(folder: &Path, stats: &mut StatsResponse) {
    let cpu = table(&folder.join("cpu.stat"));
    let nanoseconds = |name: &str| cpu.get(name).map_or(0, |microseconds| microseconds.saturating_mul(1000));
    stats.cpu_total_ns = nanoseconds("usage_usec");
    stats.cpu_user_ns = nanoseconds("user_usec");
    stats.cpu_kernel_ns = nanoseconds("system_usec");
    stats.throttle_periods = cpu.get("nr_periods").copied().unwrap_or(0);
    stats.throttled_periods = cpu.get("nr_throttled").copied().unwrap_or(0);
    stats.throttled_ns = nanoseconds("throttled_usec");
    stats.memory_usage = number(&folder.join("memory.current"));
    stats.memory_limit = number(&folder.join("memory.max"));
    stats.memory = table(&folder.join("memory.stat"));
    stats.pids = number(&folder.join("pids.current"));
    stats.pids_limit = number(&folder.join("pids.max"));
    stats.block = text(&folder.join("io.stat")).lines().flat_map(io_stat).collect();
}

/// `8:0 rbytes=1 wbytes=2 ...`.
fn io_stat(line: &str) -> Vec<BlockCounter> {
    let mut words = line.split_whitespace();
    let Some((major, minor)) = words.next().and_then(device) else { return Vec::new() };
    let names = [("rbytes", "read"), ("wbytes", "write")];
    let counters = words.filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        let operation = names.iter().find(|(known, _)| *known == name)?.1.to_owned();
        Some(BlockCounter { major, minor, operation, bytes: value.parse().ok()? })
    });
    counters.collect()
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn version_1(folder: &dyn Fn(&str) -> PathBuf, stats: &mut StatsResponse) {
    let (cpuacct, memory, pids) = (folder("cpuacct"), folder("memory"), folder("pids"));
    stats.cpu_total_ns = number(&cpuacct.join("cpuacct.usage"));
    stats.cpu_each_ns = text(&cpuacct.join("cpuacct.usage_percpu")).split_whitespace().flat_map(str::parse).collect();
    let ticks = table(&cpuacct.join("cpuacct.stat"));
    let nanoseconds = |name: &str| ticks.get(name).map_or(0, |ticks| ticks.saturating_mul(1_000_000_000 / TICKS));
    stats.cpu_user_ns = nanoseconds("user");
    stats.cpu_kernel_ns = nanoseconds("system");
    let throttled = table(&folder("cpu").join("cpu.stat"));
    stats.throttle_periods = throttled.get("nr_periods").copied().unwrap_or(0);
    stats.throttled_periods = throttled.get("nr_throttled").copied().unwrap_or(0);
    stats.throttled_ns = throttled.get("throttled_time").copied().unwrap_or(0);
    stats.memory_usage = number(&memory.join("memory.usage_in_bytes"));
    stats.memory_peak = number(&memory.join("memory.max_usage_in_bytes"));
    stats.memory_limit = number(&memory.join("memory.limit_in_bytes"));
    stats.memory = table(&memory.join("memory.stat"));
    stats.pids = number(&pids.join("pids.current"));
    let limit = number(&pids.join("pids.max"));
    stats.pids_limit = if limit == u64::MAX { 0 } else { limit };
    let file = folder("blkio").join("blkio.throttle.io_service_bytes_recursive");
    stats.block = text(&file).lines().filter_map(service_bytes).collect();
}

/// `8:0 Read 4096`; the last line, a sum, has two words.
fn service_bytes(line: &str) -> Option<BlockCounter> {
    let mut words = line.split_whitespace();
    let (major, minor) = device(words.next()?)?;
    let operation = words.next()?.to_lowercase();
    Some(BlockCounter { major, minor, operation, bytes: words.next()?.parse().ok()? })
}

/// The machine's own clock and memory.
fn machine(stat: &str, meminfo: &str, stats: &mut StatsResponse) {
    for line in stat.lines().filter(|line| line.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        if words.next() == Some("cpu") {
            // user, nice, system, idle, iowait, irq, softirq.
            let ticks: u64 = words.take(7).filter_map(|word| word.parse::<u64>().ok()).sum();
            stats.machine_cpu_ns = ticks.saturating_mul(1_000_000_000 / TICKS);
        } else {
            stats.online_cpus += 1;
        }
    }
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kilobytes = total.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    stats.machine_memory = kilobytes.saturating_mul(1024);
}

/// /proc/net/dev without the loopback interface.
fn interfaces(text: &str) -> Vec<InterfaceCounters> {
    let one = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = name.trim().to_owned();
        let values: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
            *values.as_slice()
        else {
            return None;
        };
        (name != "lo").then_some(InterfaceCounters {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    text.lines().skip(2).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("write");
        };
        write("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 5\n");
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\ninactive_file 2\n");
        write("pids.current", "3\n");
        write("pids.max", "max\n");
        write("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nnonsense\n");
        let mut two = StatsResponse::default();
        version_2(folder.path(), &mut two);
        assert_eq!((two.cpu_total_ns, two.cpu_user_ns, two.cpu_kernel_ns, two.throttled_ns), (7000, 4000, 3000, 5000));
        assert_eq!((two.memory_usage, two.memory_limit, two.memory["inactive_file"]), (4096, u64::MAX, 2));
        assert_eq!((two.pids, two.pids_limit), (3, u64::MAX));
        let read = BlockCounter { major: 8, minor: 0, operation: "read".into(), bytes: 1 };
        assert_eq!(two.block, [read.clone(), BlockCounter { operation: "write".into(), bytes: 2, ..read.clone() }]);

        write("cpuacct/cpuacct.usage", "9\n");
        write("cpuacct/cpuacct.usage_percpu", "4 5 \n");
        write("cpuacct/cpuacct.stat", "user 1\nsystem 2\n");
        write("memory/memory.usage_in_bytes", "10\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("pids/pids.max", "max\n");
        write("blkio/blkio.throttle.io_service_bytes_recursive", "8:0 Read 1\nTotal 1\n");
        let mut one = StatsResponse::default();
        version_1(&|controller| folder.path().join(controller), &mut one);
        assert_eq!((one.cpu_total_ns, one.cpu_each_ns.as_slice()), (9, [4, 5].as_slice()));
        assert_eq!((one.cpu_user_ns, one.cpu_kernel_ns, one.memory_usage), (10_000_000, 20_000_000, 10));
        assert_eq!((one.pids_limit, one.block), (0, vec![read]));
    }

    #[test]
    fn the_machine_and_its_interfaces() {
        let mut stats = StatsResponse::default();
        let stat = "cpu  1 2 3 4 5 6 7 99 99 99\ncpu0 1 1\ncpu1 1 1\nintr 5\n";
        machine(stat, "MemTotal:        2 kB\nMemFree: 1 kB\n", &mut stats);
        assert_eq!((stats.machine_cpu_ns, stats.online_cpus, stats.machine_memory), (280_000_000, 2, 2048));
        let dev = "Inter-|\n face |\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n bad: x\n";
        let found = interfaces(dev);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].rx_bytes, found[0].rx_dropped), ("eth0", 1, 4));
        assert_eq!((found[0].tx_bytes, found[0].tx_dropped), (5, 8));
    }
}
