//! The receiver's own process: the least HTTP/1.1 that a receiver can be, on one thread, so that it takes as
//! little as possible of the machine that is being measured.
//!
//! The first segment of a path says how to behave, the second is the number of the destination:
//! `/ok/17`, `/slow/3`, `/hang/1`, `/drip/1`, `/reset/1`, `/500/1`, `/flaky/1`. It prints its port, then
//! obeys lines on its standard input (`count`, `take`) and ends when that ends, so that it never outlives the
//! driver.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use uuid::Uuid;

use crate::clock;

/// How long `/slow` takes to answer.
const SLOW: Duration = Duration::from_millis(200);
/// Pause between two bytes of `/drip`.
const DRIP: Duration = Duration::from_millis(100);
/// One of so many requests to `/flaky` fails.
const FLAKY_ONE_IN: u64 = 3;
/// Room for the usual request; it grows for batches.
const BUFFER_BYTES: usize = 4 << 10;
/// Connections that may wait to be accepted. With the usual 128, a thousand that come at once are tried again
/// after 1 s.
const WAITING_CONNECTIONS: u32 = 4_096;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const FAILED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
const ENDLESS: &[u8] = b"HTTP/1.1 500 No\r\ncontent-length: 1000000\r\n\r\n";

/// A request, as it is reported to the driver.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The event's id; 0 for a batch.
    pub event: u128,
    /// When the whole of it had been read, microseconds since 1970.
    pub at: u64,
    /// The number in the path.
    pub destination: u32,
    /// Events in it.
    pub events: u32,
}

impl Arrival {
    pub const BYTES: usize = 32;

    fn to_bytes(self) -> [u8; Arrival::BYTES] {
        let mut bytes = [0; Arrival::BYTES];
        bytes[..16].copy_from_slice(&self.event.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.at.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.destination.to_le_bytes());
        bytes[28..].copy_from_slice(&self.events.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Arrival::BYTES]) -> Arrival {
        fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        Arrival {
            event: u128::from_le_bytes(part(bytes, 0)),
            at: u64::from_le_bytes(part(bytes, 16)),
            destination: u32::from_le_bytes(part(bytes, 24)),
            events: u32::from_le_bytes(part(bytes, 28)),
        }
    }
}

/// What has arrived and was answered with 200.
#[derive(Default)]
struct Log {
    arrivals: Vec<Arrival>,
    events: u64,
    requests: u64,
    /// Requests answered otherwise, or not at all.
    refused: u64,
    first: u64,
    last: u64,
}

impl Log {
    fn add(&mut self, arrival: Arrival) {
        if self.requests == 0 {
            self.first = arrival.at;
        }
        self.last = arrival.at;
        self.requests += 1;
        self.events += u64::from(arrival.events);
        self.arrivals.push(arrival);
    }
}

type SharedLog = Arc<Mutex<Log>>;

fn lock(log: &SharedLog) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the process.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the receiver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let log = SharedLog::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        socket.listen(WAITING_CONNECTIONS)?
    };
    println!("{}", listener.local_addr()?.port());
    let shared = log.clone();
    std::thread::spawn(move || runtime.block_on(accept(listener, shared)));
    obey(&log)
}

/// Does what the driver writes, until it stops writing.
fn obey(log: &SharedLog) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "count" => {
                let log = lock(log);
                writeln!(out, "{} {} {}", log.events, log.first, log.last)?;
            }
            // Everything so far; from here on it begins anew.
            "take" => {
                let taken = std::mem::take(&mut *lock(log));
                writeln!(out, "{}", taken.arrivals.len())?;
                let mut out = io::BufWriter::new(&mut out);
                for arrival in taken.arrivals {
                    out.write_all(&arrival.to_bytes())?;
                }
                out.flush()?;
            }
            other => return Err(io::Error::other(format!("unknown command {other:?}"))),
        }
        out.flush()?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, log: SharedLog) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let log = log.clone();
        // A connection that breaks is the other side's affair.
        tokio::spawn(async move { converse(stream, &log).await.ok() });
    }
}

/// What a request is about.
struct Head {
    behaviour: Behaviour,
    arrival: Arrival,
    /// Bytes of head and body.
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Behaviour {
    Ok,
    Slow,
    Hang,
    Drip,
    Reset,
    Fail,
    Flaky,
}

async fn converse(mut stream: TcpStream, log: &SharedLog) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let head = loop {
            match parse(&buffer).filter(|head| buffer.len() >= head.bytes) {
                Some(head) => break head,
                None if stream.read_buf(&mut buffer).await? == 0 => return Ok(()),
                None => {}
            }
        };
        buffer.drain(..head.bytes);
        let arrival = Arrival { at: clock::micros(), ..head.arrival };
        match head.behaviour {
            Behaviour::Ok => {}
            Behaviour::Slow => tokio::time::sleep(SLOW).await,
            Behaviour::Flaky if !every_third(log) => {}
            Behaviour::Flaky | Behaviour::Fail => {
                lock(log).refused += 1;
                stream.write_all(FAILED).await?;
                continue;
            }
            Behaviour::Hang => {
                lock(log).refused += 1;
                // Until the other side gives up.
                while stream.read(&mut [0; 1024]).await? > 0 {}
                return Ok(());
            }
            Behaviour::Reset => {
                lock(log).refused += 1;
                return stream.set_zero_linger();
            }
            Behaviour::Drip => {
                lock(log).refused += 1;
                stream.write_all(ENDLESS).await?;
                loop {
                    tokio::time::sleep(DRIP).await;
                    stream.write_all(b".").await?;
                }
            }
        }
        lock(log).add(arrival);
        stream.write_all(OK).await?;
    }
}

fn every_third(log: &SharedLog) -> bool {
    let log = lock(log);
    (log.requests + log.refused).is_multiple_of(FLAKY_ONE_IN)
}

/// The head in `buffer`, once it is complete. What makes no sense counts as an event for destination 0.
fn parse(buffer: &[u8]) -> Option<Head> {
    let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let mut lines = buffer[..end].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let path = text(lines.next()?).split(' ').nth(1).unwrap_or_default();
    let mut segments = path.split('/').skip(1);
    let behaviour = match segments.next().unwrap_or_default() {
        "slow" => Behaviour::Slow,
        "hang" => Behaviour::Hang,
        "drip" => Behaviour::Drip,
        "reset" => Behaviour::Reset,
        "500" => Behaviour::Fail,
        "flaky" => Behaviour::Flaky,
        _ => Behaviour::Ok,
    };
    let destination = segments.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let mut head =
        Head { behaviour, arrival: Arrival { event: 0, at: 0, destination, events: 1 }, bytes: end + 4 };
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], text(line[colon + 1..].trim_ascii()));
        if name.eq_ignore_ascii_case(b"content-length") {
            head.bytes += value.parse().unwrap_or(0);
        } else if name.eq_ignore_ascii_case(b"webhook-id") {
            // A batch has another kind of id.
            head.arrival.event = Uuid::try_parse(value).map_or(0, |id| id.as_u128());
        } else if name.eq_ignore_ascii_case(b"posthaste-batch-size") {
            head.arrival.events = value.parse().unwrap_or(1);
        }
    }
    Some(head)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
