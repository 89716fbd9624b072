//! A receiver, seen from the driver: a child process that is asked what has arrived.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::program::Program;
use crate::responder::Arrival;
use crate::{LoadError, RECEIVE, process};

/// How often a receiver is asked: each answer costs it some 50 µs.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long nothing may arrive before a run is given up.
const STALLED: Duration = Duration::from_secs(60);

/// A running receiver; dropping it ends it.
pub struct Receiver {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: u16,
}

/// What has arrived so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Events, each as often as it came.
    pub events: u64,
    /// The first arrival, microseconds since 1970.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Receiver {
    /// Starts one, on a port of its own.
    pub async fn start() -> Result<Receiver, LoadError> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(RECEIVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the driver, which ends it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (commands, answers) = pipes.ok_or_else(|| LoadError::Other("no pipes".into()))?;
        let mut receiver = Receiver { child, commands, answers: BufReader::new(answers), port: 0 };
        receiver.port = receiver.numbers().await?.first().map_or(0, |port| *port as u16);
        Ok(receiver)
    }

    /// The URL of the destination with this number that behaves in this way.
    pub fn url(&self, behaviour: &str, destination: u32) -> String {
        format!("http://127.0.0.1:{}/{behaviour}/{destination}", self.port)
    }

    /// CPU time that it has used so far.
    pub fn cpu(&self) -> Option<Duration> {
        process::cpu(self.child.id()?.cast_signed())
    }

    /// What has arrived so far.
    pub async fn count(&mut self) -> Result<Count, LoadError> {
        self.commands.write_all(b"count\n").await?;
        match self.numbers().await?[..] {
            [events, first, last] => Ok(Count { events, first, last }),
            _ => Err(LoadError::Other("the receiver does not answer as it should".into())),
        }
    }

    /// Everything that has arrived, which is forgotten with it.
    pub async fn take(&mut self) -> Result<Vec<Arrival>, LoadError> {
        self.commands.write_all(b"take\n").await?;
        let arrivals = self.numbers().await?.first().copied().unwrap_or(0);
        let mut bytes = vec![0; arrivals as usize * Arrival::BYTES];
        self.answers.read_exact(&mut bytes).await?;
        let (arrivals, _) = bytes.as_chunks();
        Ok(arrivals.iter().map(Arrival::from_bytes).collect())
    }

    /// Waits until `events` have arrived.
    ///
    /// # Errors
    /// When nothing arrives for a minute, or the program ends.
    pub async fn until(&mut self, events: u64, program: &mut Program) -> Result<Count, LoadError> {
        let mut seen = (Instant::now(), 0);
        loop {
            let count = self.count().await?;
            if count.events >= events {
                return Ok(count);
            }
            if count.events != seen.1 {
                seen = (Instant::now(), count.events);
            }
            program.check()?;
            if seen.0.elapsed() > STALLED {
                let what = format!("only {} of {events} events arrived", count.events);
                return Err(program.trouble(&what));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn numbers(&mut self) -> Result<Vec<u64>, LoadError> {
        let mut line = String::new();
        self.answers.read_line(&mut line).await?;
        Ok(line.split_whitespace().filter_map(|number| number.parse().ok()).collect())
    }
}
