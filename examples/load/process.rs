//! What the kernel says about processes: CPU time, memory, descriptors. Elsewhere than on Linux it says
//! nothing, and the figures are left out.

use std::fs;
use std::time::Duration;

/// The unit of times in `/proc`: 10 ms on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// The fields of `/proc/<pid>/stat` that are used here.
struct Stat {
    name: String,
    parent: i32,
    /// Ticks of the process itself.
    own: u64,
    /// Ticks of its children that have ended.
    ended: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses, but it ends at the last one.
    let (name, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some(Stat {
        name: name.split_once('(')?.1.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        own: number(11)? + number(12)?,
        ended: number(13)? + number(14)?,
    })
}

/// CPU time, user and system, that a process has used. Exact to 10 ms.
pub fn cpu(pid: i32) -> Option<Duration> {
    stat(pid).map(|stat| ticks(stat.own))
}

/// CPU time that a process, its living children and its ended ones have used.
pub fn cpu_of_family(pid: i32) -> Option<Duration> {
    let parent = stat(pid)?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = pids.filter_map(stat).filter(|child| child.parent == pid);
    Some(ticks(parent.own + parent.ended + children.map(|child| child.own + child.ended).sum::<u64>()))
}

/// The process that started the backend `pid`, if that is a PostgreSQL process of this machine.
pub fn parent_of_postgres(pid: i32) -> Option<i32> {
    let backend = stat(pid).filter(|backend| backend.name.starts_with("postgres"))?;
    stat(backend.parent).filter(|parent| parent.name.starts_with("postgres")).map(|_| backend.parent)
}

/// Memory in use, in MB (10^6 bytes).
pub fn resident_mb(pid: i32) -> Option<f64> {
    memory(pid, "VmRSS:")
}

/// The most memory that was ever in use, in MB (10^6 bytes).
pub fn peak_resident_mb(pid: i32) -> Option<f64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: i32, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024.0 / 1e6)
}

/// Open descriptors.
pub fn descriptors(pid: i32) -> Option<f64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64)
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / TICKS_PER_SECOND)
}
