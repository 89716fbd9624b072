//! Tokens: how they are asked for, kept, replaced, and what becomes of an attempt without one.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use posthaste::model::{Answer, Destination, Secret};
use posthaste::outbound::{Network, Sender, Target};
use posthaste::policy::egress::Rules;
use tokio::io::AsyncWriteExt as _;

use crate::receiver::{Received, Receiver};
use crate::{HASTY, attempt, destination, failed, open_network, response, sender};

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const REFUSED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A receiver that answers each request with what `answer` makes of it and of its number, from 1.
async fn scripted(answer: impl Fn(usize, &Received) -> String + Clone + 'static) -> Receiver {
    Receiver::start(move |mut stream, number, receiver| {
        let answer = answer.clone();
        async move {
            while receiver.read(&mut stream, number).await {
                let answer = {
                    let received = receiver.received.borrow();
                    answer(received.len(), &received[received.len() - 1].1)
                };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

/// Grants the tokens `t-1`, `t-2`, and so on, each for `seconds`.
async fn token_server(seconds: u32) -> Receiver {
    scripted(move |number, _| {
        let expires = format!(r#""token_type": "Bearer", "expires_in": {seconds}"#);
        http("200 OK", &format!(r#"{{"access_token": "t-{number}", {expires}}}"#))
    })
    .await
}

/// A destination at `receiver` with tokens from `tokens`; `more` are further members of its `auth_config`.
fn with_tokens(receiver: &Receiver, tokens: &Receiver, more: &str) -> Destination {
    let mut destination = destination(receiver.url());
    let url = tokens.url();
    destination.auth_type = "oauth2".into();
    destination.auth_config = Secret::new(format!(
        r#"{{"token_url": "{url}", "client_id": "me:1", "client_secret": "hunter2 %:+ü"{more}}}"#
    ));
    destination
}

fn tokens_seen(receiver: &Receiver) -> Vec<String> {
    receiver.received.borrow().iter().map(|(_, request)| request.headers["authorization"].clone()).collect()
}

#[actix_rt::test]
async fn a_token_is_asked_for_as_the_standard_says_and_kept() {
    let more = r#", "scope": "a b", "audience": "https://example.com/?x&y""#;
    let form = "grant_type=client_credentials&scope=a+b&audience=https%3A%2F%2Fexample.com%2F%3Fx%26y";
    let credentials = "me%3A1:hunter2+%25%3A%2B%C3%BC";
    for (client_auth, header, form) in [
        ("", Some(format!("Basic {}", STANDARD.encode(credentials))), form.to_owned()),
        (
            r#", "client_auth": "post""#,
            None,
            format!("{form}&client_id=me%3A1&client_secret=hunter2+%25%3A%2B%C3%BC"),
        ),
    ] {
        let (receiver, tokens) = (Receiver::answering(OK).await, token_server(3600).await);
        let sender = sender(&with_tokens(&receiver, &tokens, &format!("{more}{client_auth}")));
        for _ in 0..3 {
            assert_eq!(attempt(&sender).await, response(204, ""));
        }
        assert_eq!(tokens_seen(&receiver), ["Bearer t-1"; 3]);
        let asked = tokens.only();
        assert_eq!(asked.line, "POST /hook HTTP/1.1");
        assert_eq!(asked.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(asked.headers["accept"], "application/json");
        assert_eq!(asked.headers["host"], tokens.addr.to_string());
        assert_eq!(asked.headers.get("authorization"), header.as_ref());
        assert_eq!(String::from_utf8(asked.body).unwrap(), form);
    }
}

#[actix_rt::test]
async fn a_hundred_attempts_at_once_share_one_token_request() {
    let (receiver, tokens) = (Receiver::answering(OK).await, token_server(3600).await);
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    let answers = join_all((0..100).map(|_| attempt(&sender))).await;
    assert!(answers.iter().all(|answer| *answer == response(204, "")), "{answers:?}");
    assert_eq!((tokens.connections(), tokens_seen(&receiver)), (vec![0], vec!["Bearer t-1".to_owned(); 100]));
}

#[actix_rt::test]
async fn a_token_that_is_about_to_expire_is_replaced() {
    let (receiver, tokens) = (Receiver::answering(OK).await, token_server(1).await);
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    while tokens.connections().len() < 2 {
        assert_eq!(attempt(&sender).await, response(204, ""));
    }
    assert_eq!(tokens_seen(&receiver).last().unwrap(), "Bearer t-2");
}

#[actix_rt::test]
async fn a_token_that_is_over_when_it_comes_is_not_used_by_those_who_came_after_its_request() {
    let asked = Rc::new(tokio::sync::Notify::new());
    let first = asked.clone();
    // Slow, so that its first token, good for a second, has expired when it comes.
    let tokens = Receiver::start(move |mut stream, number, receiver| {
        let first = first.clone();
        async move {
            receiver.read(&mut stream, number).await;
            if number == 0 {
                first.notify_one();
                actix_rt::time::sleep(Duration::from_secs(1)).await;
            }
            let granted = format!(r#"{{"access_token": "t-{number}", "expires_in": 1}}"#);
            stream.write_all(http("200 OK", &granted).as_bytes()).await.expect("an open connection");
        }
    })
    .await;
    let receiver = Receiver::answering(OK).await;
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    // The one for whom it was asked leaves before it comes.
    tokio::select! {
        answer = attempt(&sender) => panic!("{answer:?}"),
        () = asked.notified() => {}
    }
    assert_eq!(attempt(&sender).await, response(204, ""));
    assert_eq!((tokens.connections(), tokens_seen(&receiver)), (vec![0, 1], vec!["Bearer t-1".to_owned()]));
}

#[actix_rt::test]
async fn a_token_that_is_refused_is_replaced_once_for_all_and_the_requests_repeated() {
    let tokens = token_server(3600).await;
    // The first request is let through with t-1, none after it.
    let receiver = scripted(|number, request| {
        let revoked = number > 1 && request.headers["authorization"] == "Bearer t-1";
        if revoked { REFUSED.into() } else { OK.into() }
    })
    .await;
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    assert_eq!(attempt(&sender).await, response(204, ""));
    let answers = join_all((0..20).map(|_| attempt(&sender))).await;
    assert!(answers.iter().all(|answer| *answer == response(204, "")), "{answers:?}");
    assert_eq!(tokens.connections().len(), 2);
    let seen = tokens_seen(&receiver);
    let count = |token| seen.iter().filter(|seen| *seen == token).count();
    assert_eq!((count("Bearer t-1"), count("Bearer t-2")), (21, 20));
}

#[actix_rt::test]
async fn whoever_hears_late_that_a_token_is_refused_takes_the_one_that_has_come_meanwhile() {
    let tokens = token_server(3600).await;
    let replaced = Rc::new(tokio::sync::Notify::new());
    let receiver = Receiver::start(move |mut stream, number, receiver| {
        let replaced = replaced.clone();
        async move {
            while receiver.read(&mut stream, number).await {
                let seen = tokens_seen(&receiver);
                let answer = match (seen.len(), seen.last().map(String::as_str)) {
                    (1, _) => OK,
                    (2, _) => {
                        replaced.notified().await;
                        REFUSED
                    }
                    (_, Some("Bearer t-1")) => REFUSED,
                    _ => {
                        replaced.notify_one();
                        OK
                    }
                };
                stream.write_all(answer.as_bytes()).await.expect("an open connection");
            }
        }
    })
    .await;
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    assert_eq!(attempt(&sender).await, response(204, ""));
    let answers = join_all((0..2).map(|_| attempt(&sender))).await;
    assert_eq!(answers, [response(204, ""), response(204, "")]);
    assert_eq!((tokens.connections().len(), tokens_seen(&receiver).len()), (2, 5));
}

#[actix_rt::test]
async fn a_receiver_that_refuses_every_token_is_asked_twice_at_most() {
    let (receiver, tokens) = (Receiver::answering(REFUSED).await, token_server(3600).await);
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    assert_eq!(attempt(&sender).await, response(401, ""));
    assert_eq!(tokens_seen(&receiver), ["Bearer t-1"], "a fresh token is not what is wrong");
    assert_eq!(attempt(&sender).await, response(401, ""));
    assert_eq!(tokens_seen(&receiver), ["Bearer t-1", "Bearer t-1", "Bearer t-2"]);
    assert_eq!(tokens.connections().len(), 2);
}

#[actix_rt::test]
async fn without_a_token_nothing_is_sent_and_the_message_says_why() {
    let elsewhere = token_server(3600).await;
    let huge = format!(r#"{{"access_token": "hunter2", "x": "{}"}}"#, "x".repeat(70_000));
    for (answer, reason) in [
        (http("500 No", "hunter2"), "the token server answered 500"),
        (http("401 No", r#"{"error": "invalid_client"}"#), "the token server answered 401 (invalid_client)"),
        (http("200 OK", "<html>hunter2</html>"), "not a JSON object with an access_token"),
        (http("200 OK", r#"{"access_token": "hunter2", "token_type": "mac"}"#), "token_type is not bearer"),
        (http("200 OK", &huge), "the token server's answer is larger than 64 KiB"),
        (
            format!("HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", elsewhere.url()),
            "the token server answered 302",
        ),
        ("220 hunter2 ESMTP\r\n".into(), "the answer is not HTTP"),
    ] {
        let (receiver, tokens) = (Receiver::answering(OK).await, Receiver::answering(answer).await);
        let sender = sender(&with_tokens(&receiver, &tokens, ""));
        for asked in 1..3 {
            let message = failed(attempt(&sender).await);
            assert!(message.starts_with("the token request failed: "), "{message}");
            assert!(message.contains(reason) && !message.contains("hunter2"), "{reason}: {message}");
            assert_eq!(tokens.connections().len(), asked, "a failure is not kept");
        }
        assert_eq!(receiver.connections(), [0; 0]);
    }
    assert_eq!(elsewhere.connections(), [0; 0], "redirects are not followed");
}

#[actix_rt::test]
async fn a_token_server_that_hangs_or_breaks_off_ends_with_the_attempt() {
    let (whole, part) = ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "HTTP/1.1 200 OK\r\n");
    for (answer, closes, reason) in [
        ("", false, "timed out after 300 ms while waiting for the answer"),
        (part, false, "timed out after 300 ms while reading the answer"),
        (whole, false, "timed out after 300 ms while reading the answer"),
        ("", true, "before the answer was complete"),
        (part, true, "before the answer was complete"),
        (whole, true, "before the answer was complete"),
    ] {
        let tokens = Receiver::start(move |mut stream, number, receiver| async move {
            receiver.read(&mut stream, number).await;
            stream.write_all(answer.as_bytes()).await.expect("an open connection");
            if !closes {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let receiver = Receiver::answering(OK).await;
        let mut destination = with_tokens(&receiver, &tokens, "");
        if !closes {
            destination.timeout = HASTY;
        }
        let message = failed(attempt(&sender(&destination)).await);
        assert!(message.starts_with("the token request failed: ") && message.contains(reason), "{message}");
        assert_eq!(receiver.connections(), [0; 0]);
    }
}

#[actix_rt::test]
async fn a_token_that_cannot_be_replaced_is_the_failure_that_is_told() {
    let tokens = scripted(|number, _| match number {
        1 => http("200 OK", r#"{"access_token": "t-1"}"#),
        _ => http("503 No", ""),
    })
    .await;
    let receiver = scripted(|number, _| if number == 1 { OK.into() } else { REFUSED.into() }).await;
    let sender = sender(&with_tokens(&receiver, &tokens, ""));
    assert_eq!(attempt(&sender).await, response(204, ""));
    let message = failed(attempt(&sender).await);
    assert_eq!(message, "the token request failed: the token server answered 503");
}

#[actix_rt::test]
async fn a_token_server_is_where_the_egress_rules_allow_it_or_is_not_reached() {
    let (receiver, tokens) = (Receiver::answering(OK).await, token_server(3600).await);
    let strict = Arc::new(Network::new(Rules::default(), None).unwrap());
    for host in ["127.0.0.1", "localhost", "[::1]"] {
        let mut destination = destination("http://example.com/".into());
        let url = format!("http://{host}:{}/", tokens.addr.port());
        destination.auth_type = "oauth2".into();
        let config = format!(r#"{{"token_url": "{url}", "client_id": "a", "client_secret": "b"}}"#);
        destination.auth_config = Secret::new(config);
        let fault = Target::compile(&destination, &strict).unwrap_err().to_string();
        assert!(fault.starts_with("auth_config.token_url: ") && fault.contains("loopback"), "{fault}");
        // Read under rules that allow it, asked under rules that don't: as if the name led elsewhere now.
        let target = Target::compile(&destination, &open_network()).unwrap();
        let message = failed(attempt(&Sender::new(target, &strict)).await);
        let refused = match host {
            "localhost" => "host localhost is refused: it leads to a loopback address".to_owned(),
            literal => format!("address {} is refused: loopback", literal.trim_matches(['[', ']'])),
        };
        let expected = format!("the token request failed: {refused} (POSTHASTE_ALLOW_NETWORKS");
        assert!(message.starts_with(&expected), "{message}");
    }
    let https_only = Network::new(Rules { https_only: true, ..Rules::default() }, None).unwrap();
    let mut destination = with_tokens(&receiver, &tokens, "");
    destination.url = "https://example.com/".into();
    let fault = Target::compile(&destination, &https_only).unwrap_err().to_string();
    assert!(fault.starts_with("auth_config.token_url: http is refused"), "{fault}");
    assert_eq!((tokens.connections().len(), receiver.connections().len()), (0, 0));
}

#[actix_rt::test]
async fn only_401_has_a_token_replaced() {
    for status in [400, 403, 404, 500] {
        let tokens = token_server(3600).await;
        let receiver = Receiver::answering(http(&format!("{status} No"), "")).await;
        let sender = sender(&with_tokens(&receiver, &tokens, ""));
        for _ in 0..2 {
            let answer = attempt(&sender).await;
            assert!(matches!(answer, Answer::Response { status: found, .. } if found == status));
        }
        assert_eq!((tokens.connections().len(), receiver.connections().len()), (1, 2));
    }
}
