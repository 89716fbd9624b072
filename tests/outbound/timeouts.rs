//! What takes too long is named: receivers that hang in each phase of an attempt. Those that hang after the
//! request are in `trouble.rs`; a resolver that hangs cannot be had from outside.

use std::sync::Arc;

use posthaste::outbound::Request;
use tokio::net::{TcpSocket, TcpStream};

use crate::receiver::Receiver;
use crate::{HASTY, attempt, delivery, destination, failed, now, sender};

/// Accepts connections and does nothing with them.
async fn silent() -> Receiver {
    Receiver::start(|stream, _, _| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await
}

#[actix_rt::test]
async fn a_receiver_that_accepts_no_connection_is_timed_out_while_connecting() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // Nobody accepts: the one connection that there is room for fills the queue, and others get no answer.
    let listener = socket.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let _first = TcpStream::connect(addr).await.unwrap();
    let mut destination = destination(format!("http://{addr}/"));
    destination.timeout = HASTY;
    assert_eq!(failed(attempt(&sender(&destination)).await), "timed out after 300 ms while connecting");
}

#[actix_rt::test]
async fn a_receiver_that_says_nothing_is_timed_out_in_the_handshake() {
    let mut destination = destination(format!("https://{}/", silent().await.addr));
    destination.timeout = HASTY;
    let message = failed(attempt(&sender(&destination)).await);
    assert_eq!(message, "timed out after 300 ms while waiting for the TLS handshake");
}

#[actix_rt::test]
async fn a_receiver_that_does_not_read_is_timed_out_while_sending() {
    let mut destination = destination(silent().await.url());
    destination.timeout = HASTY;
    let mut delivery = delivery(1);
    // More than the system's buffers hold.
    Arc::get_mut(&mut delivery.event).unwrap().payload = format!("\"{}\"", "x".repeat(32 << 20));
    let request = Request { deliveries: &[delivery], batch: false, attempt_number: 1, started_at: now() };
    let message = failed(sender(&destination).attempt(request).await.answer);
    assert_eq!(message, "timed out after 300 ms while sending the request");
}

#[actix_rt::test]
async fn a_kept_alive_connection_that_falls_silent_is_timed_out_while_waiting() {
    let receiver = Receiver::start(|mut stream, number, receiver| async move {
        receiver.read(&mut stream, number).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.expect("an open connection");
        receiver.read(&mut stream, number).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut destination = destination(receiver.url());
    destination.timeout = HASTY;
    let sender = sender(&destination);
    assert_eq!(attempt(&sender).await, crate::response(200, "ok"));
    let message = failed(attempt(&sender).await);
    assert_eq!(message, "timed out after 300 ms while waiting for the answer");
    assert_eq!(receiver.connections(), [0, 0]);
}
