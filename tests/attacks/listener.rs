//! A server that everybody can connect to.

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::common::{Db, Posthaste, eventually, request};
use crate::{ADMIN, ask, key};

/// A connection from one of the addresses of loopback.
pub async fn from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::from(source), 0).into())?;
    socket.connect(to).await
}

/// The status of a GET on a connection, with a token.
pub async fn get(mut stream: TcpStream, path: &str, token: &str) -> u16 {
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).parse().unwrap()
}

/// Memory of the program at its peak, bytes.
fn peak(posthaste: &Posthaste) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", posthaste.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}

#[actix_rt::test]
async fn requests_that_follow_each_other_while_nothing_is_read_are_not_answered_into_memory() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let address = posthaste.address().unwrap();
    let small = "GET /healthz HTTP/1.1\r\nhost:x\r\n\r\n".repeat(10_000);
    let large = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000)).repeat(8);
    let mut held = Vec::new();
    for n in 0..200_u8 {
        let mut stream = from([127, 0, 0, 2 + n % 4], address).await.unwrap();
        let bytes = if n % 2 == 0 { &small } else { &large };
        // What is not taken from us is not taken from the socket either.
        let all = stream.write_all(bytes.as_bytes());
        tokio::time::timeout(std::time::Duration::from_millis(30), all).await.ok();
        held.push(stream);
    }
    let began = std::time::Instant::now();
    let stream = from([127, 0, 0, 77], address).await.unwrap();
    assert_eq!(get(stream, "/healthz", "").await, 200);
    println!("beside them: /healthz after {:?}, memory {} MiB", began.elapsed(), peak(&posthaste) >> 20);
    assert!(peak(&posthaste) < 250 << 20, "{} MiB", peak(&posthaste) >> 20);
}

#[actix_rt::test]
async fn answers_that_are_not_taken_leave_room_for_others() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let address = posthaste.address().unwrap();
    let many = "GET /metrics HTTP/1.1\r\nhost:a\r\n\r\n".repeat(200);
    let mut held = Vec::new();
    for n in 0..512_u16 {
        // As many from each address as may be busy: together all that there are.
        let mut stream = from([127, 0, 2, 1 + (n / 64) as u8], address).await.unwrap();
        stream.write_all(many.as_bytes()).await.ok();
        held.push(stream);
    }
    eventually("answers wait", async || {
        let mut piece = [0; 512];
        held.iter().filter(|stream| stream.try_read(&mut piece).is_ok_and(|read| read > 0)).count() > 400
    })
    .await;
    let place = "/api/v1/keys";
    for _ in 0..20 {
        let stream = from([127, 0, 0, 77], address).await.unwrap();
        assert_eq!(get(stream, "/healthz", "").await, 200);
        let stream = from([127, 0, 0, 77], address).await.unwrap();
        assert_eq!(get(stream, place, ADMIN).await, 200);
    }
    // Not even their own address is without it.
    let stream = from([127, 0, 2, 1], address).await.unwrap();
    assert_eq!(get(stream, "/healthz", "").await, 200);
    println!("memory {} MiB", peak(&posthaste) >> 20);
    assert!(peak(&posthaste) < 250 << 20, "{} MiB", peak(&posthaste) >> 20);
}

#[actix_rt::test]
async fn requests_are_taken_one_by_one_however_many_come_at_once() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let address = posthaste.address().unwrap();
    let before = peak(&posthaste);
    let many = "GET /n HTTP/1.1\r\nhost:\r\n\r\n".repeat(315);
    let mut held = Vec::new();
    for _ in 0..250 {
        let mut stream = from([127, 0, 0, 5], address).await.unwrap();
        stream.write_all(many.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let stream = from([127, 0, 0, 77], address).await.unwrap();
    assert_eq!(get(stream, "/healthz", "").await, 200);
    for stream in &mut held {
        let mut answers = 0;
        let mut all = Vec::new();
        while answers < 315 {
            assert!(stream.read_buf(&mut all).await.unwrap() > 0, "{answers} answers");
            answers = all.windows(12).filter(|piece| piece == b"HTTP/1.1 404").count();
        }
    }
    let grown = peak(&posthaste) - before;
    println!("memory for them: {} MiB", grown >> 20);
    assert!(grown < 60 << 20, "{} MiB", grown >> 20);
}

#[actix_rt::test]
async fn a_second_head_that_does_not_end_is_not_waited_for_either() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    stream.write_all(b"GET /hea").await.unwrap();
    let mut rest = Vec::new();
    let end = stream.read_to_end(&mut rest);
    tokio::time::timeout(crate::common::DEADLINE, end).await.expect("it is closed").ok();
}

#[actix_rt::test]
async fn a_connection_that_is_used_now_and_then_stays() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
    // For longer than a head may take, and never idle for longer than a connection may rest.
    for _ in 0..4 {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200") && answer[..read].ends_with(b"ok\n"));
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    }
}

#[actix_rt::test]
async fn requests_that_follow_each_other_are_all_answered() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let token = key(&posthaste, org, "write").await;
    let body = r#"{"event_type": "a", "content": "CONTENT"}"#.replace("CONTENT", &"x".repeat(50_000));
    let one = format!(
        "POST /api/v1/orgs/{org}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}\
         GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        body.len()
    );
    let last = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answers = String::new();
    let requests = one.repeat(20) + last;
    let (written, read) =
        tokio::join!(writer.write_all(requests.as_bytes()), reader.read_to_string(&mut answers));
    written.unwrap();
    read.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 201").count(), 20, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 21, "{answers}");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 20);
}

#[actix_rt::test]
async fn answers_to_what_is_wrong_do_not_grow_with_it() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let token = key(&posthaste, org, "write").await;
    let root = format!("/api/v1/orgs/{org}");
    let members: String = (0..9_000).map(|n| format!(r#""m{n}": "x","#)).collect();
    let auth =
        format!(r#"{{"name": "a", "url": "http://127.0.0.1:1/", "auth_config": {{{members} "z": "x"}}}}"#);
    let long = format!(r#"{{"name": "{}", "url": "{}"}}"#, "x".repeat(100_000), "y".repeat(100_000));
    for (method, path, body) in [
        ("GET", format!("{root}/deliveries?status={}", "x,".repeat(20_000)), String::new()),
        ("GET", format!("{root}/deliveries?{}", "a&".repeat(20_000)), String::new()),
        ("POST", format!("{root}/destinations"), auth),
        ("POST", format!("{root}/destinations"), long),
    ] {
        let (status, answer) = ask(&posthaste, &token, method, &path, &body).await;
        assert!(status == 400 && answer.to_string().len() < 100_000, "{method} {path:.60}: {status}");
    }
}

#[actix_rt::test]
async fn idle_connections_make_room_for_others() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let address = posthaste.address().unwrap();
    let mut idle = Vec::new();
    for n in 0..900_u16 {
        // From five addresses: none of them has all places.
        let mut stream = from([127, 0, 0, 2 + (n % 5) as u8], address).await.unwrap();
        // Half of them begin a request that they never end.
        if n % 2 == 0 {
            stream.write_all(b"GET /api/v1/keys HTTP/1.1\r\nx: y").await.ok();
        }
        idle.push(stream);
        if n % 50 == 0 {
            let began = std::time::Instant::now();
            assert_eq!(posthaste.get("/healthz").await.unwrap().0, 200);
            println!("{n} idle connections: /healthz after {:?}", began.elapsed());
        }
    }
    assert_eq!(posthaste.get("/readyz").await.unwrap().0, 200);
    assert_eq!(ask(&posthaste, ADMIN, "GET", "/api/v1/keys", "").await.0, 200);
}

#[actix_rt::test]
async fn a_key_is_good_for_so_many_connections_and_no_more() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let (greedy, other) = (key(&posthaste, org, "read").await, key(&posthaste, org, "read").await);
    let head = format!(
        "GET /api/v1/orgs/{org}/destinations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {greedy}\r\n\r\n"
    );
    let (mut held, mut statuses) = (Vec::new(), Vec::new());
    for _ in 0..70 {
        let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        statuses.push(String::from_utf8_lossy(&answer[9..]).into_owned());
        held.push(stream);
    }
    assert_eq!(statuses.iter().filter(|status| *status == "200").count(), 64, "{statuses:?}");
    assert!(statuses[64..].iter().all(|status| status == "429"), "{statuses:?}");
    let place = format!("/api/v1/orgs/{org}/destinations");
    assert_eq!(ask(&posthaste, &other, "GET", &place, "").await.0, 200);
    drop(held);
    eventually("the places of closed connections are free", async || {
        ask(&posthaste, &greedy, "GET", &place, "").await.0 == 200
    })
    .await;
}

#[actix_rt::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let mut stream = TcpStream::connect(posthaste.address().unwrap()).await.unwrap();
    let trickle = async {
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let mut answer = Vec::new();
        tokio::select! {
            _ = reader.read_to_end(&mut answer) => answer,
            () = async {
                loop {
                    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                    if writer.write_all(b"x: y\r\n").await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            } => unreachable!(),
        }
    };
    let answer = tokio::time::timeout(crate::common::DEADLINE, trickle).await.expect("it is closed");
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
}

#[actix_rt::test]
async fn on_an_address_that_is_not_loopback_metrics_and_details_are_the_operators() {
    let db = Db::new().await;
    let environment = [("POSTHASTE_ADMIN_TOKEN", ADMIN), ("POSTHASTE_LISTEN", "0.0.0.0:0")];
    let posthaste =
        Posthaste::spawn(&["serve"], &[("DATABASE_URL", db.url.reveal()), environment[0], environment[1]]);
    let port = async || loop {
        match posthaste.address() {
            Some(address) => return address.port(),
            None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port().await));
    let get = async |path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        request(address, "GET", path, &[("authorization", &bearer)], b"").await.unwrap()
    };
    eventually("it is ready", async || get("/readyz", "").await.0 == 200).await;
    assert_eq!(get("/readyz", "").await.2, r#"{"ready":true}"#);
    assert!(get("/readyz", ADMIN).await.2.len() > 20);
    let (status, head, body) = get("/metrics", "x").await;
    assert!(
        status == 401 && head.contains("www-authenticate: bearer") && body.contains("METRICS_LISTEN"),
        "{body}"
    );
    assert!(get("/metrics", ADMIN).await.2.contains("posthaste_"));
    assert_eq!(get("/healthz", "").await.0, 200);
}

#[actix_rt::test]
async fn answers_are_no_part_of_anybodys_page() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    for (path, policy) in [
        ("/healthz", "default-src 'none'; frame-ancestors 'none'"),
        ("/api/v1/keys", "default-src 'none'; frame-ancestors 'none'"),
        ("/nowhere", "default-src 'none'; frame-ancestors 'none'"),
        ("/api/docs/", "script-src 'self';"),
        ("/api/docs/swagger-ui.css", "frame-ancestors 'none'"),
    ] {
        let (_, head, _) = request(posthaste.address().unwrap(), "GET", path, &[], b"").await.unwrap();
        for header in [policy, "x-content-type-options: nosniff", "x-frame-options: deny"] {
            assert!(head.contains(header), "{path}: {head}");
        }
    }
    let (_, page) = posthaste.get("/api/docs/").await.unwrap();
    assert!(
        !page.contains("<script>") && !page.contains(" onload="),
        "the policy would stop its script: {page}"
    );
}
