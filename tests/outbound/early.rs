//! Receivers that answer before they have read the request.

use std::sync::Arc;
use std::time::Duration;

use actix_rt::net::TcpStream;
use posthaste::model::{Answer, Destination};
use posthaste::outbound::{Network, Request, Sender, Target};
use posthaste::policy::egress::Rules;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::authority::{self, Authority, params};
use crate::receiver::Receiver;
use crate::{HASTY, attempt, delivery, destination, now, response};

/// Bytes of the largest body here: more than the buffers of a connection hold.
const LARGE: usize = 8 << 20;

/// Reads the head of a request, and nothing behind it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("a head in UTF-8")
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), status: u16, more: &str) {
    let answer = format!("HTTP/1.1 {status} Early\r\n{more}content-length: 5\r\n\r\nearly");
    stream.write_all(answer.as_bytes()).await.expect("an open connection");
    stream.flush().await.expect("an open connection");
}

async fn attempt_of(sender: &Sender, bytes: usize) -> Answer {
    let mut delivery = delivery(1);
    Arc::get_mut(&mut delivery.event).expect("nobody else has it").payload =
        format!("\"{}\"", "x".repeat(bytes));
    let request = Request { deliveries: &[delivery], batch: false, attempt_number: 1, started_at: now() };
    sender.attempt(request).await.answer
}

fn sender(destination: &Destination, authority: &Authority) -> Sender {
    let rules = Rules { allow: vec!["127.0.0.0/8".parse().expect("a network")], ..Rules::default() };
    let network =
        Arc::new(Network::new(rules, Some(authority.file().path())).expect("a file with a certificate"));
    Sender::new(Target::compile(destination, &network).expect("a destination without fault"), &network)
}

#[actix_rt::test]
async fn an_answer_that_comes_before_the_body_is_read_counts_although_the_receiver_closes() {
    let authority = Authority::new();
    for tls in [false, true] {
        for status in [200, 413, 429, 410] {
            let config = authority::server(authority.issue(&params("localhost")), None);
            let receiver = Receiver::start(move |mut stream: TcpStream, _, _| {
                let config = config.clone();
                async move {
                    // What a close overtakes in the receiver's own system was never sent.
                    stream.set_nodelay(true).expect("an open connection");
                    if !tls {
                        read_head(&mut stream).await;
                        return answer(&mut stream, status, "").await;
                    }
                    let mut stream = authority::accept(config, stream).await.expect("a handshake");
                    read_head(&mut stream).await;
                    answer(&mut stream, status, "").await;
                }
            })
            .await;
            let scheme = if tls { "https" } else { "http" };
            let url = format!("{scheme}://localhost:{}/", receiver.addr.port());
            let sender = sender(&destination(url), &authority);
            for bytes in [100_000, 400_000, 2_000_000, LARGE, 100_000].repeat(10) {
                let answer = attempt_of(&sender, bytes).await;
                let Answer::Response { status: found, .. } = answer else {
                    panic!("{scheme}, {status}, {bytes} bytes: {answer:?}");
                };
                assert_eq!(found, status);
            }
        }
    }
}

#[actix_rt::test]
async fn an_answer_counts_although_the_receiver_reads_no_more_and_goes_on_holding_the_connection() {
    let authority = Authority::new();
    for tls in [false, true] {
        for status in [200, 413, 503] {
            let config = authority::server(authority.issue(&params("localhost")), None);
            let receiver = Receiver::start(move |mut stream: TcpStream, number, receiver| {
                let config = config.clone();
                async move {
                    if tls {
                        let mut stream = authority::accept(config, stream).await.expect("a handshake");
                        read_head(&mut stream).await;
                        answer(&mut stream, status, "").await;
                        return std::future::pending().await;
                    }
                    // Whatever is connected to after the first time may carry a whole request.
                    if number > 0 {
                        receiver.read(&mut stream, number).await;
                    } else {
                        read_head(&mut stream).await;
                    }
                    answer(&mut stream, status, "").await;
                    std::future::pending().await
                }
            })
            .await;
            let scheme = if tls { "https" } else { "http" };
            let url = format!("{scheme}://localhost:{}/", receiver.addr.port());
            let sender = sender(&destination(url), &authority);
            assert_eq!(attempt_of(&sender, LARGE).await, response(status, "early"), "{scheme}");
            if !tls {
                // A connection on which the end of a request is missing carries no other.
                assert_eq!(attempt(&sender).await, response(status, "early"));
                assert_eq!(receiver.connections(), [1]);
            }
        }
    }
}

#[actix_rt::test]
async fn a_receiver_that_accepts_early_and_reads_on_gets_everything() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        let head = read_head(&mut stream).await;
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        answer(&mut stream, 202, "").await;
        let mut body = vec![0; length.expect("a length").parse().expect("a number")];
        stream.read_exact(&mut body).await.expect("the whole body");
        let line = String::new();
        let request = crate::receiver::Received { line, headers: Default::default(), body };
        receiver.received.borrow_mut().push((number, request));
    })
    .await;
    let sender = crate::sender(&destination(receiver.url()));
    assert_eq!(attempt_of(&sender, LARGE).await, response(202, "early"));
    while receiver.received.borrow().is_empty() {
        actix_rt::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(receiver.only().body.len() > LARGE);
}

#[actix_rt::test]
async fn a_request_whose_time_is_over_while_it_is_written_is_delivered_if_it_was_accepted() {
    let receiver = Receiver::start(|mut stream, _, _| async move {
        read_head(&mut stream).await;
        answer(&mut stream, 200, "").await;
        std::future::pending().await
    })
    .await;
    let mut destination = destination(receiver.url());
    destination.timeout = HASTY;
    let answer = attempt_of(&crate::sender(&destination), LARGE).await;
    let broken = Some("timed out after 300 ms while sending the request".to_owned());
    assert_eq!(answer, Answer::Response { status: 200, body: String::new(), retry_after: None, broken });
}
