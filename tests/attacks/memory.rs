//! One tenant tries to use up the process's memory through the API, in three ways at once.

use std::time::Instant;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::common::{DEADLINE, Db, Posthaste, eventually};
use crate::{ask, key};

/// Resident memory, bytes: now, and the most there has been.
fn memory(posthaste: &Posthaste) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", posthaste.pid())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Sends a request and reads nothing of its answer.
async fn hold(posthaste: &Posthaste, token: &str, method: &str, path: &str, rest: &str) -> TcpStream {
    let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{rest}");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[actix_rt::test]
async fn neither_huge_answers_nor_answers_that_are_not_read_nor_bodies_that_do_not_end_use_up_memory() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    db.destination(other, "http://127.0.0.1:1/").insert().await;
    let posthaste = crate::serve(&db).await;
    let (tenant, neighbour) = (key(&posthaste, org, "write").await, key(&posthaste, other, "write").await);
    let events = format!("/api/v1/orgs/{org}/events");

    // An event of 9 KB that prints as 131 MB: it is refused, and shown without its payload.
    let monster = format!("[{}]", vec!["1e131071"; 1_000].join(","));
    let body = format!(r#"{{"event_type": "a", "payload": {monster}}}"#);
    let (status, answer) = ask(&posthaste, &tenant, "POST", &events, &body).await;
    assert!(status == 400 && answer.to_string().contains("payload"), "{status} {answer}");
    let hidden = db.event(org, "a", &monster).await;
    let (status, shown) = ask(&posthaste, &tenant, "GET", &format!("{events}/{hidden}"), "").await;
    assert_eq!((status, &shown["payload"], &shown["payload_too_large"]), (200, &json!(null), &json!(true)));

    // Many answers of 4 MB that nobody reads; the dispatcher's own page as well, by nobody.
    let large = db.event(org, "a", &json!({"text": "x".repeat(4_000_000)}).to_string()).await;
    let mut held = Vec::new();
    for _ in 0..48 {
        held.push(hold(&posthaste, &tenant, "GET", &format!("{events}/{large}"), "\r\n").await);
        held.push(hold(&posthaste, "", "GET", "/api/docs/swagger-ui-bundle.js", "\r\n").await);
    }
    // And bodies that do not end.
    for _ in 0..60 {
        let rest = "content-type: application/json\r\ncontent-length: 6000000\r\n\r\n";
        let mut stream = hold(&posthaste, &tenant, "POST", &events, rest).await;
        let (_, mut writer) = stream.split();
        // What is refused in the middle is closed.
        let some = vec![b' '; 5_900_000];
        tokio::time::timeout(std::time::Duration::from_millis(500), writer.write_all(&some)).await.ok();
        held.push(stream);
    }

    let others = format!("/api/v1/orgs/{other}/destinations");
    let (mut slowest, mut health) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(ask(&posthaste, &neighbour, "GET", &others, "").await.0, 200);
        slowest = slowest.max(began.elapsed());
        let began = Instant::now();
        assert_eq!(posthaste.get("/healthz").await.unwrap().0, 200);
        health = health.max(began.elapsed());
    }
    send_an_event(&posthaste, &neighbour, other).await;
    let (now, peak) = memory(&posthaste);
    println!(
        "beside all three: memory {} MiB (at most {}), a neighbour's call {slowest:?}, /healthz {health:?}",
        now >> 20,
        peak >> 20
    );
    assert!(peak < 300 << 20, "{} MiB", peak >> 20);

    // Who takes nothing is left, although the client has not closed.
    let unread = held.remove(0);
    eventually("an answer that nobody takes is given up", async || is_closed(&unread).await).await;
}

async fn send_an_event(posthaste: &Posthaste, token: &str, org: Uuid) {
    let body = json!({"event_type": "a", "content": "x".repeat(1_000_000)}).to_string();
    let (status, answer) = ask(posthaste, token, "POST", &format!("/api/v1/orgs/{org}/events"), &body).await;
    assert_eq!(status, 201, "{answer}");
}

/// Whether the server has closed a connection from which nothing was read: seen without reading.
async fn is_closed(stream: &TcpStream) -> bool {
    let local = stream.local_addr().unwrap();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // The server's side of it: its remote port is ours, and its state established (01).
    let remote = format!(":{:04X} 01 ", local.port());
    !table.lines().any(|line| line.contains(&remote))
}

#[actix_rt::test]
async fn an_upload_that_makes_no_progress_ends_and_a_slow_one_arrives() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let tenant = key(&posthaste, org, "write").await;
    let events = format!("/api/v1/orgs/{org}/events");
    let rest = "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let mut stalled = hold(&posthaste, &tenant, "POST", &events, rest).await;
    let slow = json!({"event_type": "a", "content": "x".repeat(90_000)}).to_string();
    let rest = format!(
        "content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        slow.len()
    );
    let mut stream = hold(&posthaste, &tenant, "POST", &events, &rest).await;
    for piece in slow.as_bytes().chunks(10_000) {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        stream.write_all(piece).await.unwrap();
    }
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let mut answer = [0; 12];
    tokio::time::timeout(DEADLINE, stalled.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}
