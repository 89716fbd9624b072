//! The proxy itself: a fault that does nothing would make every test of it pass.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use posthaste::model::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::{DEADLINE, End, Fault, Proxy, eventually};

/// How long a silence must last to count.
const MOMENT: Duration = Duration::from_millis(200);

/// A proxy before a server that says everything back.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Secret::new(format!("echo://{}", listener.local_addr().unwrap()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    Proxy::before(&url)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    try_connect(proxy).await.unwrap()
}

async fn try_connect(proxy: &Proxy) -> std::io::Result<TcpStream> {
    let url = url::Url::parse(proxy.url().reveal()).unwrap();
    let pair = |name| url.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    TcpStream::connect((pair("host"), pair("port").parse().unwrap())).await
}

/// What comes next.
async fn hear(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut buffer = [0; 100];
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut buffer)).await.unwrap()?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

/// What comes back of `said`.
async fn say(stream: &mut TcpStream, said: &str) -> String {
    stream.write_all(said.as_bytes()).await.unwrap();
    hear(stream).await.unwrap()
}

/// Whether nothing comes back of `said` for a moment.
async fn is_silent(stream: &mut TcpStream, said: &str) -> bool {
    stream.write_all(said.as_bytes()).await.unwrap();
    tokio::time::timeout(MOMENT, hear(stream)).await.is_err()
}

#[tokio::test]
async fn a_stall_loses_nothing_and_a_half_open_connection_everything() {
    let proxy = echo().await;
    let (mut stalled, mut dead) = (connect(&proxy).await, connect(&proxy).await);
    for stream in [&mut stalled, &mut dead] {
        assert_eq!(say(stream, "one").await, "one");
    }
    proxy.set(Fault::Stall);
    assert!(is_silent(&mut stalled, "two").await);
    proxy.set(Fault::None);
    assert_eq!(hear(&mut stalled).await.unwrap(), "two");

    proxy.set(Fault::HalfOpen);
    let mut born_dead = connect(&proxy).await;
    for stream in [&mut stalled, &mut dead, &mut born_dead] {
        assert!(is_silent(stream, "three").await);
    }
    proxy.set(Fault::None);
    for stream in [&mut stalled, &mut dead, &mut born_dead] {
        assert!(is_silent(stream, "four").await, "dead for ever");
    }
    assert_eq!(say(&mut connect(&proxy).await, "five").await, "five");
    drop((stalled, dead, born_dead));
    eventually("only the dead are left: nobody tells the server", async || proxy.connections() == 3).await;
    proxy.hang_up(End::Close);
    eventually("not even these", async || proxy.connections() == 0).await;
}

#[tokio::test]
async fn connections_end_as_the_fault_says() {
    let proxy = echo().await;
    for (end, fault) in [(End::Close, Fault::Cut), (End::Reset, Fault::Reset)] {
        let mut hung_up = connect(&proxy).await;
        assert_eq!(say(&mut hung_up, "one").await, "one");
        proxy.hang_up(end);
        let mut ends = vec![hear(&mut hung_up).await];
        let mut cut = connect(&proxy).await;
        assert_eq!(say(&mut cut, "two").await, "two", "new ones are not touched");
        proxy.set(fault);
        ends.push(hear(&mut cut).await);
        // The reset may come while it is still connecting.
        ends.push(match try_connect(&proxy).await {
            Ok(mut late) => hear(&mut late).await,
            Err(error) => Err(error),
        });
        proxy.set(Fault::None);
        for heard in ends {
            match end {
                End::Close => assert_eq!(heard.unwrap(), ""),
                End::Reset => assert_eq!(heard.unwrap_err().kind(), ErrorKind::ConnectionReset),
            }
        }
    }
}

#[tokio::test]
async fn a_limit_ends_in_the_middle_and_slowness_costs_time() {
    let proxy = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::CloseAfter(10));
    assert_eq!(say(&mut stream, "one").await, "one");
    // Six bytes have passed, three more go there, one comes back.
    assert_eq!(say(&mut stream, "two").await, "t");
    assert_eq!(hear(&mut stream).await.unwrap(), "");

    let pause = Duration::from_millis(50);
    proxy.set(Fault::Slow(pause));
    let mut stream = connect(&proxy).await;
    let start = Instant::now();
    stream.write_all(b"three").await.unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert!(start.elapsed() >= 2 * pause, "there and back");
}
