//! What the figures depend on: the machine, the commit, PostgreSQL and its settings.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::place::Place;
use crate::{Args, LoadError};

/// Printed above the table and repeated in every line of JSON.
#[derive(Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    memory_mb: u64,
    kernel: String,
    /// A `+` after it: with changes that are not committed.
    commit: String,
    posthaste: &'static str,
    /// What `--env` told it.
    environment: BTreeMap<String, String>,
    postgresql: String,
    settings: BTreeMap<String, String>,
    scale: f64,
}

impl Machine {
    pub async fn describe(args: &Args, place: &Place) -> Result<Machine, LoadError> {
        let (postgresql, settings) = place.settings().await?;
        Ok(Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mb: field("/proc/meminfo", "MemTotal")
                .and_then(|text| text.trim_end_matches("kB").trim().parse::<u64>().ok())
                .map_or(0, |kibibytes| kibibytes / 1024),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".into()),
            posthaste: posthaste::VERSION,
            environment: args.env.iter().cloned().collect(),
            postgresql,
            settings: settings.into_iter().collect(),
            scale: args.scale,
        })
    }

    /// For people.
    pub fn header(&self) -> String {
        let settings: Vec<String> =
            self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut text = format!(
            "{} × {}, {} MB of memory, kernel {}\nposthaste {} at commit {}\nPostgreSQL {}: {}\n",
            self.cores,
            self.cpu,
            self.memory_mb,
            self.kernel,
            self.posthaste,
            self.commit,
            self.postgresql,
            settings.join(" ")
        );
        for (name, value) in &self.environment {
            text.push_str(&format!("{name}={value}\n"));
        }
        if self.scale != 1.0 {
            text.push_str(&format!("scaled by {}: not to be compared with full runs\n", self.scale));
        }
        text
    }
}

/// The value behind a name and a colon.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR")]).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { hash } else { hash + "+" })
}
