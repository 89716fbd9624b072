//! The test kit itself: a receiver that does not misbehave as told would make other tests pass for nothing.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Db, Receiver, Reply, eventually};
use posthaste::model::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

async fn post(receiver: &Receiver, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(receiver.address()).await?;
    let head = format!("POST /hook HTTP/1.1\r\nContent-Length: {}\r\nX-One: 1\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).await?;
    let mut bytes = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut bytes)).await;
    let length = read.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[tokio::test]
async fn a_receiver_remembers_requests_and_answers_as_told() {
    let receiver = Receiver::scripted(|request| match request.json()["data"]["id"].as_str() {
        Some(_) => Reply::Status(204),
        None => Reply::header(429, "retry-after", "3"),
    });
    let id = Uuid::new_v4();
    assert!(post(&receiver, &format!(r#"{{"data":{{"id":"{id}"}}}}"#)).await.unwrap().contains(" 204 "));
    assert!(post(&receiver, "{}").await.unwrap().contains("retry-after: 3\r\n"));
    let received = receiver.received();
    assert_eq!(received.iter().map(|r| r.status).collect::<Vec<_>>(), [Some(204), Some(429)]);
    assert_eq!((received[0].path.as_str(), received[0].header("x-one")), ("/hook", Some("1")));
    assert_eq!(receiver.accepted().into_iter().collect::<Vec<_>>(), [(id, 1)]);
}

#[tokio::test]
async fn a_receiver_hangs_resets_and_drips() {
    let receiver = Receiver::with(Reply::Hang);
    assert_eq!(post(&receiver, "{}").await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    eventually("the given up request is no longer counted", async || receiver.in_flight() == 0).await;
    receiver.reply(Reply::Reset);
    assert_eq!(post(&receiver, "{}").await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    receiver.reply(Reply::Drip(200, Duration::from_millis(1)));
    assert!(post(&receiver, "{}").await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!((receiver.count(), receiver.most_in_flight()), (3, 1));
    assert!(receiver.accepted().is_empty());
}

#[tokio::test]
async fn an_outage_refuses_connections_until_the_same_port_opens_again() {
    let receiver = Receiver::start();
    let address = receiver.address();
    receiver.outage().await;
    assert_eq!(post(&receiver, "{}").await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    receiver.restore().await;
    assert_eq!(receiver.address(), address);
    assert!(post(&receiver, "{}").await.unwrap().contains(" 200 "));
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let (one, other) = (Db::new().await, Db::new().await);
    one.execute("CREATE TABLE mine ()").await;
    assert!(other.refused("SELECT FROM mine").await.contains("does not exist"));
    let url = Secret::new(one.url.reveal());
    drop(one);
    let error = Db::at(url).pool.acquire().await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}
