//! Receivers behind TLS, with the real program: what is written about those that cannot be trusted.

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::authority::{self, Authority, params};
use crate::common::{Db, Posthaste, check_invariants, read_request};

/// What a receiver is.
enum Kind {
    Tls(Box<ServerConfig>),
    /// Answers whatever comes with these bytes.
    Raw(Vec<u8>),
}

/// Serves on a port of its own for as long as the test lasts, answering every request with 200; the port.
fn start(kind: Kind) -> u16 {
    let (told, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        actix_rt::System::new().block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap().port()).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                match &kind {
                    Kind::Raw(bytes) => {
                        stream.read_u8().await.ok();
                        stream.write_all(bytes).await.ok();
                        // The rest of the greeting: unread, it would turn the end into a reset.
                        stream.shutdown().await.ok();
                        stream.read_to_end(&mut Vec::new()).await.ok();
                    }
                    Kind::Tls(config) => {
                        let Some(mut stream) = authority::accept(*config.clone(), stream).await else {
                            continue;
                        };
                        if let Ok(Some(_)) = read_request(&mut stream, &mut Vec::new(), 0).await {
                            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok();
                            stream.shutdown().await.ok();
                        }
                    }
                }
            }
        });
    });
    port.recv().unwrap()
}

fn tls(identity: authority::Identity, clients: Option<&Authority>) -> u16 {
    start(Kind::Tls(Box::new(authority::server(identity, clients))))
}

#[tokio::test]
async fn receivers_that_cannot_be_trusted_get_nothing_and_the_reason_is_written_for_people() {
    let (db, trusted, own) = (Db::new().await, Authority::new(), Authority::new());
    let org = db.org().await;
    let mut expected: Vec<(uuid::Uuid, &str)> = Vec::new();
    let url = |port: u16| format!("https://localhost:{port}/");
    for (identity, reason) in trusted.untrustworthy("localhost") {
        let destination = db.destination(org, url(tls(identity, None))).retry(0, 100);
        expected.push((destination.insert().await, reason));
    }
    for bytes in authority::tls_1_1() {
        let destination = db.destination(org, url(start(Kind::Raw(bytes)))).retry(0, 100);
        expected.push((destination.insert().await, "TLS: the receiver speaks no version of TLS from 1.2 on"));
    }
    let plain = start(Kind::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    let destination = db.destination(org, url(plain)).retry(0, 100).insert().await;
    expected.push((destination, "TLS: localhost:"));
    // Only for those with a certificate, which this destination has not.
    let closed = tls(trusted.issue(&params("localhost")), Some(&own));
    let destination = db.destination(org, url(closed)).retry(0, 100).insert().await;
    expected.push((destination, "connection to localhost:"));

    // And three that are trusted: by the file of roots, by a root of their own, with a client certificate.
    let (certificate, key) = own.client();
    db.destination(org, url(tls(trusted.issue(&params("localhost")), None))).insert().await;
    let with_root = db.destination(org, url(tls(own.issue(&params("localhost")), None)));
    with_root.setting("tls_ca", own.pem()).insert().await;
    let with_client = db.destination(org, url(tls(trusted.issue(&params("localhost")), Some(&own))));
    let with_client = with_client.setting("tls_client_cert", certificate.pem());
    with_client.setting("tls_client_key", key.serialize_pem()).insert().await;

    let roots = trusted.file();
    let environment = [("POSTHASTE_CA_FILE", roots.path().to_str().unwrap())];
    let program = Posthaste::serve_with(&db.url, &environment).await;
    db.events(org, 1).await;
    db.settled().await;
    for (destination, reason) in &expected {
        let sql = "SELECT error_message FROM webhook_deliveries WHERE status = 'dead' AND destination_id";
        let found = db.text(&format!("{sql} = '{destination}'")).await.unwrap();
        assert!(found.starts_with(reason), "expected {reason:?}, found {found:?}");
    }
    assert_eq!(db.deliveries("status = 'delivered'").await, 3);
    program.assert_silent_about(&[&key.serialize_pem(), "PRIVATE KEY"]);
    check_invariants(&db, &[]).await;
}
