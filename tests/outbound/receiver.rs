//! A receiver that does exactly what a test tells it, byte by byte.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// `POST /path HTTP/1.1`
    pub line: String,
    /// By name in lower case; sending one twice is a fault.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Where it listens, and what it got on which connection (counted from 0).
#[derive(Clone)]
pub struct Receiver {
    pub addr: SocketAddr,
    pub received: Rc<RefCell<Vec<(usize, Received)>>>,
}

impl Receiver {
    /// Hands every connection, with its number, to `serve`.
    pub async fn start<F>(serve: impl Fn(TcpStream, usize, Receiver) -> F + 'static) -> Receiver
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let receiver = Receiver { addr, received: Rc::default() };
        let shared = receiver.clone();
        actix_rt::spawn(async move {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                actix_rt::spawn(serve(stream, number, shared.clone()));
            }
        });
        receiver
    }

    /// Answers every request with `answer` and keeps the connection.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Receiver {
        let answer: Rc<[u8]> = answer.into().into();
        Receiver::start(move |mut stream, number, receiver| {
            let answer = answer.clone();
            async move {
                while receiver.read(&mut stream, number).await {
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await
    }

    /// An address where nobody listens any more.
    pub async fn closed() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("an address")
    }

    /// Reads one request and notes it; false when the connection ended instead.
    pub async fn read(&self, stream: &mut (impl AsyncRead + Unpin), number: usize) -> bool {
        let Some(request) = read_request(stream).await else { return false };
        self.received.borrow_mut().push((number, request));
        true
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    /// The numbers of the connections on which requests came, in their order.
    pub fn connections(&self) -> Vec<usize> {
        self.received.borrow().iter().map(|(number, _)| *number).collect()
    }

    /// The only request that came.
    pub fn only(&self) -> Received {
        let received = self.received.borrow();
        assert_eq!(received.len(), 1, "{received:?}");
        received[0].1.clone()
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head in UTF-8");
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next()?.to_owned();
    let mut headers = BTreeMap::new();
    for (name, value) in lines.map(|line| line.split_once(": ").expect("a header")) {
        let twice = headers.insert(name.to_ascii_lowercase(), value.to_owned());
        assert_eq!(twice, None, "header {name} came twice");
    }
    let length = headers.get("content-length")?.parse().expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Received { line, headers, body })
}
