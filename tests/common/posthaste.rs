//! The real program as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthaste::model::Secret;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What `serve` logs once its port is open.
const LISTENING: &str = "listening on http://";
/// What it logs once that of health and metrics is, where it is another one.
const OPERATIONS: &str = "health and metrics on http://";

/// The program itself.
const PROGRAM: &str = env!("CARGO_BIN_EXE_posthaste");

/// Whether a start waits for `/readyz`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    Wait,
    DoNotWait,
}

/// A running `posthaste`. Dropping it kills it; if the test fails, its log is printed.
pub struct Posthaste {
    child: Child,
    log: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Posthaste {
    /// `posthaste serve` on the database at `url`, ready. Loopback is allowed, polling is frequent.
    pub async fn serve(url: &Secret) -> Posthaste {
        Posthaste::serve_with(url, &[]).await
    }

    /// [`Posthaste::serve`] with further environment variables, or other values for those it sets itself.
    pub async fn serve_with(url: &Secret, environment: &[(&str, &str)]) -> Posthaste {
        let mut all = vec![("DATABASE_URL", url.reveal())];
        all.extend_from_slice(environment);
        let program = Posthaste::spawn(&["serve"], &all);
        program.ready().await;
        program
    }

    /// [`Posthaste::serve`] with a hard limit of open files.
    pub async fn serve_within(files: u32, url: &Secret) -> Posthaste {
        let mut command = command_of("sh", &[("DATABASE_URL", url.reveal())]);
        command.args(["-c", "ulimit -n $0 && exec \"$1\" serve", &files.to_string(), PROGRAM]);
        let program = Posthaste::start(command);
        program.ready().await;
        program
    }

    /// [`Posthaste::serve`] by a shell that has run `before` itself.
    pub async fn serve_under(before: &str, url: &Secret) -> Posthaste {
        let mut command = command_of("sh", &[("DATABASE_URL", url.reveal())]);
        command.args(["-c", &format!("{before}; exec \"$0\" serve"), PROGRAM]);
        let program = Posthaste::start(command);
        program.ready().await;
        program
    }

    /// Any command, with a clean environment: only what a dispatcher on loopback needs, and `environment`.
    pub fn spawn(arguments: &[&str], environment: &[(&str, &str)]) -> Posthaste {
        Posthaste::start(command(arguments, environment))
    }

    fn start(mut command: Command) -> Posthaste {
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let readers = outputs.map(|output| {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&String::from_utf8_lossy(&line));
                    log.push('\n');
                }
            })
        });
        Posthaste { child, log, readers: readers.into() }
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        super::eventually("posthaste is ready", async || {
            assert!(!self.log().contains("panicked"), "posthaste panicked");
            let address = self.operations_address();
            self.get_from(address, "/readyz").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    /// Where its HTTP server listens, once it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address_after(LISTENING)
    }

    /// Where its health and metrics are, once they are.
    pub fn operations_address(&self) -> Option<SocketAddr> {
        self.address_after(OPERATIONS).or_else(|| self.address())
    }

    fn address_after(&self, words: &str) -> Option<SocketAddr> {
        let log = self.log();
        let (_, after) = log.split_once(words)?;
        after.split(|c: char| c.is_whitespace() || "/,\"".contains(c)).next()?.parse().ok()
    }

    /// GETs a path from its HTTP server: status and body; `None` while nothing answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        self.get_from(self.address(), path).await
    }

    /// The same from one of its two servers.
    pub async fn get_from(&self, address: Option<SocketAddr>, path: &str) -> Option<(u16, String)> {
        let (status, _, body) = request(address?, "GET", path, &[], b"").await?;
        Some((status, body))
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Fails when one of `secrets` stands in the log, in whatever form.
    pub fn assert_silent_about(&self, secrets: &[&str]) {
        super::assert_silent("the log", &self.log(), secrets);
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exit().await
    }

    /// Waits for the end.
    pub async fn exit(&mut self) -> ExitStatus {
        let mut status = None;
        super::eventually("posthaste ends", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        status.unwrap()
    }
}

impl Drop for Posthaste {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the log of posthaste ---\n{}---", self.log());
        }
    }
}

/// Runs a command to its end: `run(&["migrate"], &[("DATABASE_URL", url)])`.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(arguments, environment).output().unwrap()
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = command_of(PROGRAM, environment);
    command.args(arguments);
    command
}

fn command_of(program: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    // Neither the variables of whoever runs the tests nor a .env file above the directory may matter.
    command.env_clear().current_dir("/");
    for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs([
        ("POSTHASTE_LISTEN", "127.0.0.1:0"),
        ("POSTHASTE_ALLOW_NETWORKS", "127.0.0.0/8"),
        ("POSTHASTE_POLL_INTERVAL", "1s"),
        ("RUST_LOG", "info,posthaste=debug"),
        ("RUST_BACKTRACE", "1"),
    ]);
    command.envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Sends one request, and reads its answer: status, head and body; `None` when nothing answers in time.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<(u16, String, String)> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: posthaste\r\nconnection: close\r\ncontent-length: {length}\r\n\
         {headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    // Who refuses a body may not read it.
    stream.write_all(body).await.ok();
    let mut response = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut response)).await.ok()?.ok();
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, head.to_ascii_lowercase(), body.to_owned()))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
