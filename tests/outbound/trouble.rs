//! Receivers that misbehave.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste::model::Answer;
use posthaste::outbound::{KEPT_BODY_BYTES, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::receiver::Receiver;
use crate::{HASTY, PATIENT, attempt, delivery, destination, failed, now, response, sender};

/// Sends `first`, then a byte every now and then, and never ends.
async fn dripping(first: &'static str) -> Receiver {
    Receiver::start(move |mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        if stream.write_all(first.as_bytes()).await.is_err() {
            return;
        }
        while stream.write_all(b"x").await.is_ok() {
            actix_rt::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[actix_rt::test]
async fn the_deadline_covers_a_receiver_that_never_answers() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut destination = destination(receiver.url());
    destination.timeout = HASTY;
    let began = Instant::now();
    let message = failed(attempt(&sender(&destination)).await);
    assert_eq!(message, "timed out after 300 ms while waiting for the answer");
    assert!((HASTY..PATIENT / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[actix_rt::test]
async fn the_deadline_covers_a_head_that_drips() {
    let receiver = dripping("HTTP/1.1 200 OK\r\nx-slow: ").await;
    let mut destination = destination(receiver.url());
    destination.timeout = HASTY;
    let message = failed(attempt(&sender(&destination)).await);
    assert_eq!(message, "timed out after 300 ms while reading the answer");
}

#[actix_rt::test]
async fn the_deadline_covers_a_body_that_drips() {
    let receiver = dripping("HTTP/1.1 500 No\r\ncontent-length: 100000\r\n\r\n").await;
    let mut destination = destination(receiver.url());
    destination.timeout = HASTY;
    let began = Instant::now();
    let answer = attempt(&sender(&destination)).await;
    assert!(began.elapsed() < PATIENT / 2, "{:?}", began.elapsed());
    let Answer::Response { status: 500, body, broken: Some(broken), .. } = answer else {
        panic!("expected a broken response, got {answer:?}");
    };
    assert!(body.starts_with("xx"), "{body}");
    assert_eq!(broken, "timed out after 300 ms while reading the answer");
}

#[actix_rt::test]
async fn the_body_of_a_2xx_that_does_not_end_holds_a_request_for_a_moment_only() {
    for (timeout, moment) in [(PATIENT, 1000), (HASTY, 300)] {
        let receiver = dripping("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        let mut destination = destination(receiver.url());
        destination.timeout = timeout;
        let (sender, began) = (sender(&destination), Instant::now());
        for _ in 0..2 {
            let answer = attempt(&sender).await;
            let Answer::Response { status: 200, body, broken: Some(broken), .. } = answer else {
                panic!("expected a broken response, got {answer:?}");
            };
            assert!(body.starts_with("xx"), "{body}");
            assert_eq!(broken, format!("timed out after {moment} ms while reading the answer"));
        }
        assert!(began.elapsed() < PATIENT / 2, "{:?}", began.elapsed());
        assert_eq!(receiver.connections(), [0, 1], "the rest was not read, so the connection was dropped");
    }
}

#[actix_rt::test]
async fn a_connection_whose_answer_was_garbled_is_not_used_again() {
    let receiver = Receiver::answering(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nwhat is this?\r\n",
    )
    .await;
    let sender = sender(&destination(receiver.url()));
    for _ in 0..2 {
        let answer = attempt(&sender).await;
        let Answer::Response { status: 200, body, broken: Some(broken), .. } = answer else {
            panic!("expected a broken response, got {answer:?}");
        };
        assert_eq!(body, "half");
        assert!(broken.starts_with("the body of the answer is broken: "), "{broken}");
    }
    assert_eq!(receiver.connections(), [0, 1]);
}

#[actix_rt::test]
async fn a_fresh_connection_that_is_reset_or_closed_fails_without_a_second_try() {
    for reset in [true, false] {
        let receiver = Receiver::start(move |mut stream, number, receiver| async move {
            if reset {
                // Closing with unread bytes makes the system send a reset.
                let mut byte = [0];
                assert_eq!(stream.read(&mut byte).await.expect("a byte"), 1);
                let request = crate::receiver::Received {
                    line: String::new(),
                    headers: Default::default(),
                    body: Vec::new(),
                };
                receiver.received.borrow_mut().push((number, request));
            } else {
                receiver.read(&mut stream, number).await;
            }
        })
        .await;
        let message = failed(attempt(&sender(&destination(receiver.url()))).await);
        let expected = if reset { "broke: Connection reset" } else { "closed by" };
        assert!(message.contains(expected) && message.contains(&receiver.addr.to_string()), "{message}");
        assert_eq!(receiver.connections(), [0], "no second request");
    }
}

#[actix_rt::test]
async fn a_refused_connection_names_the_address() {
    let addr = Receiver::closed().await;
    let message = failed(attempt(&sender(&destination(format!("http://{addr}/")))).await);
    assert_eq!(message, format!("connection refused by {addr}"));
}

#[actix_rt::test]
async fn a_kept_alive_connection_that_died_is_replaced_at_once() {
    // Every connection answers once and swallows its second request. Two requests at once leave two of these
    // connections in the pool, so a second try over the pool would fail as well.
    let both = Rc::new(tokio::sync::Barrier::new(2));
    let receiver = Receiver::start(move |mut stream, number, receiver| {
        let both = both.clone();
        async move {
            receiver.read(&mut stream, number).await;
            if number < 2 {
                both.wait().await;
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("an open connection");
            receiver.read(&mut stream, number).await;
        }
    })
    .await;
    let sender = sender(&destination(receiver.url()));
    let answers = futures_util::future::join(attempt(&sender), attempt(&sender)).await;
    assert_eq!(answers, (response(204, ""), response(204, "")));
    assert_eq!(attempt(&sender).await, response(204, ""));
    // Which of two that run at once is first, and whose connection is used again, is nobody's business.
    let connections = receiver.connections();
    assert!([[0, 1], [1, 0]].contains(&[connections[0], connections[1]]), "{connections:?}");
    assert!(connections[2] < 2 && connections[3..] == [2], "{connections:?}");
    let received = receiver.received.borrow();
    assert_eq!(received[2].1.body, received[3].1.body);
    assert_eq!(received[2].1.headers["webhook-id"], received[3].1.headers["webhook-id"]);
}

#[actix_rt::test]
async fn a_kept_alive_connection_that_dies_within_an_answer_is_a_failure() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("an open connection");
        receiver.read(&mut stream, number).await;
        stream.write_all(b"HTTP/1.1 2").await.expect("an open connection");
    })
    .await;
    let sender = sender(&destination(receiver.url()));
    assert_eq!(attempt(&sender).await, response(204, ""));
    let message = failed(attempt(&sender).await);
    assert!(message.contains("before the answer was complete"), "{message}");
    assert_eq!(receiver.connections(), [0, 0]);
}

#[actix_rt::test]
async fn of_a_huge_body_only_the_beginning_is_read() {
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n".to_vec();
    answer.resize(answer.len() + 10_000_000, b'x');
    let receiver = Receiver::answering(answer).await;
    let sender = sender(&destination(receiver.url()));
    for _ in 0..2 {
        assert_eq!(attempt(&sender).await, response(200, &"x".repeat(KEPT_BODY_BYTES)));
    }
    assert_eq!(receiver.connections(), [0, 1], "the rest was not read, so the connection was dropped");
}

#[actix_rt::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for status in [301, 302, 303, 307, 308] {
        let answer =
            format!("HTTP/1.1 {status} Go\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url());
        let receiver = Receiver::answering(answer).await;
        assert_eq!(attempt(&sender(&destination(receiver.url()))).await, response(status, ""));
    }
    assert_eq!(elsewhere.connections(), [0; 0]);
}

#[actix_rt::test]
async fn bodies_are_kept_as_text_that_can_be_stored() {
    let receiver = Receiver::answering(&b"HTTP/1.1 500 No\r\ncontent-length: 6\r\n\r\na\0b\xffc\0"[..]).await;
    assert_eq!(attempt(&sender(&destination(receiver.url()))).await, response(500, "ab\u{fffd}c"));
}

#[actix_rt::test]
async fn a_body_that_ends_too_early_is_broken_and_its_beginning_kept() {
    for (answer, kept) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"),
        ("HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half"),
    ] {
        let receiver = once(answer).await;
        let outcome = attempt(&sender(&destination(receiver.url()))).await;
        let Answer::Response { status: 200, body, broken: Some(broken), .. } = &outcome else {
            panic!("expected a broken response, got {outcome:?}");
        };
        assert_eq!(body, kept);
        assert!(broken.contains("before the answer was complete"), "{broken}");
    }
}

#[actix_rt::test]
async fn a_body_without_a_length_ends_with_the_connection() {
    for answer in ["HTTP/1.0 200 OK\r\n\r\nwhole", "HTTP/1.1 200 OK\r\nx: y\r\n\r\nwhole"] {
        let receiver = once(answer).await;
        let sender = sender(&destination(receiver.url()));
        for connection in 1..3 {
            assert_eq!(attempt(&sender).await, response(200, "whole"));
            assert_eq!(receiver.connections().len(), connection);
        }
    }
}

/// Answers the first request of each connection and closes it.
async fn once(answer: &'static str) -> Receiver {
    Receiver::start(move |mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        stream.write_all(answer.as_bytes()).await.expect("an open connection");
    })
    .await
}

#[actix_rt::test]
async fn what_is_not_http_fails_with_a_reason() {
    let receiver = once("220 mail.example.com ESMTP\r\n").await;
    let message = failed(attempt(&sender(&destination(receiver.url()))).await);
    assert!(message.starts_with("the answer is not HTTP"), "{message}");
}

#[actix_rt::test]
async fn a_head_without_end_is_given_up() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        let mut line = b"x-filler: ".to_vec();
        line.resize(1000, b'x');
        line.extend_from_slice(b"\r\n");
        if stream.write_all(b"HTTP/1.1 200 OK\r\n").await.is_ok() {
            while stream.write_all(&line).await.is_ok() {}
        }
    })
    .await;
    let message = failed(attempt(&sender(&destination(receiver.url()))).await);
    assert!(message.contains("head of the answer") || message.contains("not HTTP"), "{message}");
}

#[actix_rt::test]
async fn interim_answers_are_passed_over() {
    let last = "HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok";
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 P\r\n\r\n",
    ] {
        let receiver = Receiver::answering(format!("{interim}{last}")).await;
        let sender = sender(&destination(receiver.url()));
        for _ in 0..3 {
            assert_eq!(attempt(&sender).await, response(202, "ok"));
        }
        assert_eq!(receiver.connections(), [0; 3]);
    }
}

#[actix_rt::test]
async fn a_switch_of_protocols_or_interim_answers_without_end_are_failures_and_end_the_connection() {
    for (answer, status) in
        [("HTTP/1.1 101 Switching\r\n\r\n".into(), 101), ("HTTP/1.1 103 Early\r\n\r\n".repeat(65), 103)]
    {
        let receiver = Receiver::start(move |mut stream, number, receiver| {
            let answer = if number == 0 { answer.clone() } else { "HTTP/1.1 204 No\r\n\r\n".into() };
            async move {
                receiver.read(&mut stream, number).await;
                stream.write_all(answer.as_bytes()).await.expect("an open connection");
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.expect("the end of the connection");
                assert!(rest.is_empty(), "a second request came on connection {number}");
            }
        })
        .await;
        let sender = sender(&destination(receiver.url()));
        let expected = format!("the receiver answered with the interim status {status}");
        assert_eq!(failed(attempt(&sender).await), expected);
        assert_eq!(attempt(&sender).await, response(204, ""));
    }
}

#[actix_rt::test]
async fn an_answer_that_comes_before_the_whole_request_is_heard() {
    let receiver = Receiver::start(|mut stream, _, _| async move {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.expect("a byte"), 1);
        let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig";
        stream.write_all(answer).await.expect("an open connection");
    })
    .await;
    let mut delivery = delivery(1);
    Arc::get_mut(&mut delivery.event).unwrap().payload = format!("\"{}\"", "x".repeat(8 << 20));
    let request = Request { deliveries: &[delivery], batch: false, attempt_number: 1, started_at: now() };
    let answer = sender(&destination(receiver.url())).attempt(request).await.answer;
    assert_eq!(answer, response(413, "big"));
}

#[actix_rt::test]
async fn an_attempt_that_is_given_up_leaves_the_others_alone() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        while receiver.read(&mut stream, number).await {
            if number == 0 {
                std::future::pending::<()>().await;
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("an open connection");
        }
    })
    .await;
    let sender = sender(&destination(receiver.url()));
    assert!(tokio::time::timeout(HASTY, attempt(&sender)).await.is_err());
    assert_eq!(attempt(&sender).await, response(204, ""));
    assert_eq!(receiver.connections(), [0, 1]);
}
