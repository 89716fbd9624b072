//! Receivers that misbehave, byte by byte: what is recorded of each, and that it costs nobody else anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually, read_request};
use crate::{deliveries_of, state};

/// What a receiver does with a request.
enum Act {
    /// Sends this and closes.
    Says(Vec<u8>),
    /// Sends this and waits to be given up.
    Hangs(&'static str),
    /// Sends this and then a byte now and then, without end.
    Drips(&'static str),
    /// Sends this and resets the connection.
    Resets(&'static str),
    /// Sends the first and then the second again and again, as fast as it is taken.
    Floods(&'static str, Vec<u8>),
}

/// What comes of it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Comes {
    /// A delivery.
    Delivered,
    /// A charged failure of the event.
    Charged,
    /// A charged failure of the destination, which counts for its breaker.
    Tripped,
}

use Act::{Drips, Floods, Hangs, Resets, Says};
use Comes::{Charged, Delivered, Tripped};

const SILENT: &str = "response_status IS NULL
    AND error_message = 'timed out after 3000 ms while waiting for the answer'";
const HEAD_TIMED_OUT: &str = "response_status IS NULL
    AND error_message = 'timed out after 3000 ms while reading the answer'";
const BODY_TIMED_OUT: &str = "response_status = 500 AND response_body = 'half' AND error_message =
    'the receiver answered 500, but its answer broke off: timed out after 3000 ms while reading the answer'";
const NOT_HTTP: &str = "response_status IS NULL AND error_message LIKE 'the answer is not HTTP%'";
const TOO_LARGE: &str =
    "response_status IS NULL AND error_message LIKE 'the head of the answer is larger than 128 KiB%'";
const INCOMPLETE: &str = "response_status IS NULL AND error_message LIKE '%before the answer was complete'";
const BODY_INCOMPLETE: &str = "response_body = 'half'
    AND error_message LIKE '% but its answer broke off: %before the answer was complete'";
/// A 2xx counts as soon as its head is complete, whatever becomes of its body.
const HEAD_KEPT: &str = "response_status = 200 AND response_body = '' AND error_message IS NULL";
const HALF_KEPT: &str = "response_status = 200 AND response_body = 'half' AND error_message IS NULL";
const DRIPS_KEPT: &str = "response_status = 200 AND response_body LIKE '...%' AND error_message IS NULL";
const PREFIX_KEPT: &str = "response_status = 200 AND response_body = repeat('x', 4096)";

/// A thousand letters in 29 bytes.
const GZIP: &[u8] =
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03KL\x1c\x05\xa3`\x14\x0cw\x00\x00\x03\xda8\x9a\xe8\x03\x00\x00";

fn flood(length: usize) -> Vec<u8> {
    vec![b'x'; length]
}

fn line(length: usize) -> Vec<u8> {
    [b"x-filler: ".to_vec(), flood(length), b"\r\n".to_vec()].concat()
}

fn gzipped() -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", GZIP.len());
    [head.as_bytes(), GZIP].concat()
}

fn says(text: &str) -> Act {
    Says(text.as_bytes().to_vec())
}

/// The misbehaviour, what is recorded of it, and what comes of it.
type Row = (Act, &'static str, Comes);

fn table() -> Vec<Row> {
    [silent_or_endless(), malformed(), odd_but_valid()].into_iter().flatten().collect()
}

fn silent_or_endless() -> Vec<Row> {
    vec![
        (Hangs(""), SILENT, Tripped),
        (Hangs("HTTP/1.1 200 OK\r\nx-half: "), HEAD_TIMED_OUT, Tripped),
        (Hangs("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"), HEAD_KEPT, Delivered),
        (Hangs("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf"), HALF_KEPT, Delivered),
        (Hangs("HTTP/1.1 200 OK\r\n\r\n"), HEAD_KEPT, Delivered),
        (Hangs("HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\nhalf"), BODY_TIMED_OUT, Tripped),
        (Hangs("HTTP/1.1 100 Continue\r\n\r\n"), SILENT, Tripped),
        (Drips("HTTP/1.1 200 OK\r\nx-slow: "), HEAD_TIMED_OUT, Tripped),
        (Drips("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"), DRIPS_KEPT, Delivered),
        (Resets(""), "error_message LIKE '%broke: Connection reset%'", Tripped),
        (Resets("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"), HALF_KEPT, Delivered),
        (
            Resets("HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nhalf"),
            "response_status = 500 AND error_message LIKE '%reset%'",
            Tripped,
        ),
        (says(""), INCOMPLETE, Tripped),
        (says("HTTP/1.1 200 OK\r\nx-half: "), INCOMPLETE, Tripped),
        (says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"), HALF_KEPT, Delivered),
        (says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"), HALF_KEPT, Delivered),
        (says("HTTP/1.1 400 No\r\ncontent-length: 9\r\n\r\nhalf"), BODY_INCOMPLETE, Charged),
        (
            says("HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
            BODY_INCOMPLETE,
            Tripped,
        ),
        (
            Floods("HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n", flood(1 << 16)),
            PREFIX_KEPT,
            Delivered,
        ),
        (Floods("HTTP/1.1 200 OK\r\n\r\n", flood(1 << 16)), PREFIX_KEPT, Delivered),
        (
            Floods("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffff\r\n", flood(1 << 16)),
            PREFIX_KEPT,
            Delivered,
        ),
        (
            Floods("HTTP/1.1 500 No\r\n\r\n", flood(1 << 16)),
            "response_status = 500 AND response_body = repeat('x', 4096)",
            Tripped,
        ),
        (Floods("HTTP/1.1 200 OK\r\n", line(1000)), TOO_LARGE, Tripped),
        (Floods("HTTP/1.1 200 OK\r\nx-long: ", flood(1 << 16)), TOO_LARGE, Tripped),
        (Floods("", flood(1 << 16)), NOT_HTTP, Tripped),
        (
            Floods("", b"HTTP/1.1 103 Hints\r\n\r\n".to_vec()),
            "error_message LIKE '%interim status 103'",
            Tripped,
        ),
    ]
}

fn malformed() -> Vec<Row> {
    vec![
        (Says((0..=255).cycle().take(1 << 16).collect()), NOT_HTTP, Tripped),
        (says("220 mail.example.com ESMTP\r\n"), NOT_HTTP, Tripped),
        (says("HTTP/2 200\r\n\r\n"), NOT_HTTP, Tripped),
        (says("HTTP/1.1 099 Early\r\n\r\n"), NOT_HTTP, Tripped),
        (says("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n"), NOT_HTTP, Tripped),
        (says("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), NOT_HTTP, Tripped),
        (says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"), NOT_HTTP, Tripped),
        (says("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"), NOT_HTTP, Tripped),
        (
            says("HTTP/1.1 422 No\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
            "response_status = 422 AND error_message LIKE '%the body of the answer is broken%'",
            Charged,
        ),
        (
            says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"),
            HALF_KEPT,
            Delivered,
        ),
    ]
}

fn odd_but_valid() -> Vec<Row> {
    vec![
        (says("HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n"), "response_status = 999", Tripped),
        (says("HTTP/1.1 101 Switching\r\n\r\n"), "error_message LIKE '%interim status 101'", Tripped),
        (
            says("HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"),
            "response_status = 302 AND error_message = 'the receiver answered 302'",
            Tripped,
        ),
        (Hangs("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok and more"), "response_body = 'ok'", Delivered),
        (
            says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok"),
            "response_status = 201 AND response_body = 'ok'",
            Delivered,
        ),
        (
            says("HTTP/1.1 103 Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 422 No\r\n\r\nwhy not"),
            "response_status = 422 AND response_body = 'why not'",
            Charged,
        ),
        (says("HTTP/1.1 200 OK\r\n\r\nuntil the end"), "response_body = 'until the end'", Delivered),
        (
            says("HTTP/1.1 400 No\r\ncontent-length: 4\r\n\r\na\0\u{7f}b"),
            "response_status = 400 AND response_body = E'a\\x7fb'",
            Charged,
        ),
        (Says(gzipped()), "response_status = 200 AND length(response_body) < 30", Delivered),
    ]
}

/// Serves every act of the table under its number as the path, for as long as the test lasts.
fn start() -> SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let acts = Arc::new(table());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let acts = acts.clone();
                // How a connection ends is the other side's affair.
                tokio::spawn(async move { perform(stream, &acts).await.ok() });
            }
        });
    });
    address.recv().unwrap()
}

async fn perform(mut stream: TcpStream, acts: &[(Act, &str, Comes)]) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let Some(request) = read_request(&mut stream, &mut buffer, 0).await? else { return Ok(()) };
    let number: usize = request.path.trim_start_matches('/').parse().unwrap();
    match &acts[number].0 {
        Says(bytes) => stream.write_all(bytes).await?,
        Hangs(text) => {
            stream.write_all(text.as_bytes()).await?;
            read_request(&mut stream, &mut buffer, 0).await?;
        }
        Drips(text) => {
            stream.write_all(text.as_bytes()).await?;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(b".").await?;
            }
        }
        Resets(text) => {
            stream.write_all(text.as_bytes()).await?;
            stream.set_zero_linger()?;
        }
        Floods(text, again) => {
            stream.write_all(text.as_bytes()).await?;
            loop {
                stream.write_all(again).await?;
            }
        }
    }
    Ok(())
}

/// The most memory that the program ever had, in MiB.
fn peak_memory(program: &Posthaste) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn each_misbehaviour_is_recorded_as_what_it_is_and_costs_nobody_else_anything() {
    let (db, healthy, hostile) = (Db::new().await, Receiver::start(), start());
    let (org, neighbour) = (db.org().await, db.org().await);
    db.destination(neighbour, healthy.url("/")).retry(0, 100).insert().await;
    let mut destinations = Vec::new();
    for (number, (act, _, comes)) in table().iter().enumerate() {
        let is_given_up = matches!(act, Hangs(_) | Drips(_)) && *comes == Tripped;
        let timeout = if is_given_up { 3_000 } else { 30_000 };
        let destination = db.destination(org, format!("http://{hostile}/{number}"));
        destinations.push(destination.timeout_ms(timeout).retry(0, 100).insert().await);
    }
    let program = Posthaste::serve_with(&db.url, &[("POSTHASTE_BREAKER_THRESHOLD", "1")]).await;
    let before = peak_memory(&program);
    db.events(org, 1).await;
    db.events(neighbour, 200).await;
    db.settled().await;
    assert_eq!(healthy.accepted().len(), 200);
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, {
        let delivered = table().iter().filter(|(_, _, comes)| *comes == Delivered).count();
        200 + delivered as i64
    });
    for (number, ((_, recorded, comes), destination)) in table().into_iter().zip(destinations).enumerate() {
        let status = if comes == Delivered { "delivered" } else { "dead" };
        let found = "SELECT concat_ws(' | ', status, attempts, response_status, error_message,
            left(response_body, 50)) FROM webhook_deliveries WHERE destination_id";
        let found = db.text(&format!("{found} = '{destination}'")).await;
        let as_expected = format!("status = '{status}' AND attempts = 1 AND {recorded}");
        assert_eq!(deliveries_of(&db, destination, &as_expected).await, 1, "{number}: {found:?}");
        if comes == Tripped {
            let tripped = async || state(&db, destination, "tripped_at").await.is_some();
            eventually(&format!("{number} tripped its breaker"), tripped).await;
        } else {
            assert_eq!(state(&db, destination, "tripped_at").await, None, "{number}");
        }
    }
    let grown = peak_memory(&program) - before;
    assert!(grown < 16, "grown by {grown} MiB");
    assert!(!program.log().contains("panicked"));
    check_invariants(&db, &[&healthy]).await;
}
