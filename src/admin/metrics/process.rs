//! What Linux says about this process. Elsewhere these figures are left out.

use std::fs;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::families::{CPU, MAX_FDS, OPEN_FDS, RESIDENT, START_TIME, VIRTUAL};
use super::page::Page;
use crate::clock;

/// Writes what can be found out.
pub fn write(page: &mut Page) {
    if let Some(stat) = stat() {
        page.value(&CPU, "", stat.cpu_seconds);
        page.value(&RESIDENT, "", stat.resident_bytes);
        page.value(&VIRTUAL, "", stat.virtual_bytes);
        page.value(&START_TIME, "", boot_time() + stat.started_seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        page.value(&OPEN_FDS, "", open.count().saturating_sub(1));
    }
    page.values(&MAX_FDS, getrlimit(Resource::Nofile).current.map(|most| ("", most)));
}

struct Stat {
    cpu_seconds: f64,
    /// After the machine.
    started_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

/// `/proc/self/stat`: proc(5) numbers its fields from 1; those after the name start with the third.
fn stat() -> Option<Stat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold spaces and parentheses, but it ends at the last one.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
    Some(Stat {
        cpu_seconds: seconds(field(14)? + field(15)?),
        started_seconds: seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_size() as u64,
    })
}

/// When the machine started, in seconds since 1970. Read once, as clocks are set; and not from `/proc/stat`,
/// which a service need not see.
fn boot_time() -> f64 {
    static BOOTED: OnceLock<f64> = OnceLock::new();
    *BOOTED.get_or_init(|| {
        let since_1970 = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        since_1970.saturating_sub(clock::since_boot()).as_secs_f64()
    })
}
