//! What cannot be brought about from outside: panics of the HTTP server.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::actors::supervision::Part;
use crate::config::DispatchArgs;

/// A handler that panics.
#[get("/panic")]
pub(super) async fn panicking() -> HttpResponse {
    panic!("a test asked for this")
}

/// The status of what `GET path` is answered with on `connection`, which stays open.
async fn get(connection: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: posthaste\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("the connection lives");
    let mut answer = [0; 4096];
    let read = connection.read(&mut answer).await.expect("the connection lives");
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[actix_rt::test]
async fn a_panic_of_a_handler_costs_its_request_and_one_of_the_accept_loop_no_connection() {
    let args = DispatchArgs::from_flags(&[]).expect("all options have defaults");
    let config = args.validate(Secret::new("postgres://nobody@127.0.0.1:1/nothing")).expect("valid");
    let supervision = Supervision::default();
    let state = State::starting("there is no dispatcher", &config, supervision.clone());
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let (address, server) = start(anywhere, Pages::All, state).expect("a free port");
    let mut open = TcpStream::connect(address).await.expect("a connection");
    for panics in 1..=3 {
        assert_eq!(get(&mut open, "/panic").await, "500");
        assert_eq!(get(&mut open, "/healthz").await, "200", "on the same connection");
        assert_eq!(supervision.panics(Part::HttpRequest), panics);
    }
    for panics in 1..=3 {
        supervision.ask_to_panic(Part::HttpServer);
        let panicked = async {
            while supervision.panics(Part::HttpServer) < panics {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), panicked).await.expect("it runs, and panics");
        assert_eq!(get(&mut open, "/healthz").await, "200", "what is open goes on");
        let mut fresh = TcpStream::connect(address).await.expect("a connection");
        assert_eq!(get(&mut fresh, "/healthz").await, "200", "accepted after the panic");
    }
    tokio::time::timeout(Duration::from_secs(10), server.stop()).await.expect("it stops");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    let ended = tokio::time::timeout(Duration::from_millis(100), supervision.ended()).await;
    assert!(ended.is_err(), "it ended as it should: {ended:?}");
}
