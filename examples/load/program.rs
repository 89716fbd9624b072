//! The real program, as a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use posthaste::model::Secret;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{Bench, LoadError, process};

/// What `serve` logs once its port is open.
const LISTENING: &str = "listening on http://";
/// How long a start may take, and how long a stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a program that starts.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Lines of its log that an error repeats.
const TOLD_LINES: usize = 15;

/// A running `posthaste serve`; dropping it kills it.
pub struct Program {
    child: Child,
    pid: i32,
    log: PathBuf,
    started: Instant,
}

impl Program {
    /// Starts it on the database at `url`. Loopback is allowed; everything else is as it comes, or as `--env`
    /// says.
    pub fn start(bench: &Bench, url: &Secret) -> Result<Program, LoadError> {
        let log = bench.scratch.path().join("posthaste.log");
        let output = File::create(&log)?;
        let mut command = Command::new(&bench.binary);
        command.arg("serve").env_clear().current_dir(bench.scratch.path());
        for name in ["PATH", "HOME", "TMPDIR", "RUST_LOG"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command
            .env("DATABASE_URL", url.reveal())
            .env("POSTHASTE_LISTEN", "127.0.0.1:0")
            .env("POSTHASTE_ALLOW_NETWORKS", "127.0.0.0/8")
            .envs(bench.args.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true);
        let started = Instant::now();
        let child = command.spawn()?;
        let pid = child.id().map_or(0, u32::cast_signed);
        Ok(Program { child, pid, log, started })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// CPU time that it has used so far.
    pub fn cpu(&self) -> Option<Duration> {
        process::cpu(self.pid)
    }

    /// Waits until `/readyz` says yes; how long that took from the start of the process.
    pub async fn ready(&mut self) -> Result<Duration, LoadError> {
        loop {
            self.check()?;
            if self.answers_ready().await {
                return Ok(self.started.elapsed());
            }
            if self.started.elapsed() > PATIENCE {
                return Err(self.trouble("it does not become ready"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks it to stop, as a service manager does, and waits until it has.
    pub async fn stop(mut self) -> Result<(), LoadError> {
        if let Some(pid) = Pid::from_raw(self.pid) {
            kill_process(pid, Signal::TERM).map_err(std::io::Error::from)?;
        }
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(_) => Err(self.trouble("it did not stop in order")),
            Err(_) => Err(self.trouble("it does not stop")),
        }
    }

    /// Ends it at once, with whatever it is doing.
    pub async fn kill(mut self) -> Result<(), LoadError> {
        Ok(self.child.kill().await?)
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<(), LoadError> {
        match self.child.try_wait()? {
            Some(status) => Err(self.trouble(&format!("it ended: {status}"))),
            None => Ok(()),
        }
    }

    /// An error that says what is wrong, with the end of the log.
    pub fn trouble(&self, what: &str) -> LoadError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n");
        LoadError::Other(format!("posthaste: {what}; its log ends with:\n{tail}"))
    }

    async fn answers_ready(&self) -> bool {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let address = log.split_once(LISTENING).and_then(|(_, after)| after.split_whitespace().next());
        let Some(address) = address else { return false };
        let ask = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n").await?;
            let mut response = String::new();
            stream.read_to_string(&mut response).await?;
            Ok::<_, std::io::Error>(response.starts_with("HTTP/1.1 200"))
        };
        ask.await.unwrap_or(false)
    }
}

/// The program to measure: `given`, or the one that stands beside this example.
///
/// # Errors
/// When it is missing, or older than its source.
pub fn find(given: Option<&Path>) -> Result<PathBuf, LoadError> {
    if let Some(path) = given {
        return Ok(path.canonicalize()?);
    }
    const BUILD: &str = "build it with: cargo build --release";
    let own = std::env::current_exe()?;
    let path = own.ancestors().nth(2).map(|dir| dir.join("posthaste")).unwrap_or_default();
    let Ok(built) = fs::metadata(&path).and_then(|data| data.modified()) else {
        return Err(LoadError::Other(format!("there is no {}; {BUILD}", path.display())));
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let newest = ["src", "migrations", "Cargo.lock"].iter().filter_map(|name| newest(&root.join(name))).max();
    if newest.is_some_and(|newest| newest > built) {
        return Err(LoadError::Other(format!("{} is older than its source; {BUILD}", path.display())));
    }
    if cfg!(debug_assertions) {
        eprintln!("this is not a release build: its figures are worth nothing");
    }
    Ok(path)
}

/// When a file, or the newest file below a directory, was changed.
fn newest(path: &Path) -> Option<SystemTime> {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().filter_map(|entry| newest(&entry.path())).max(),
        Err(_) => fs::metadata(path).and_then(|data| data.modified()).ok(),
    }
}
