//! Where it does not go.

use std::sync::Arc;

use posthaste::model::{Destination, Secret};
use posthaste::outbound::{Fault, Network, Sender, Target};
use posthaste::policy::egress::{Refusal, Rules};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::receiver::Receiver;
use crate::{attempt, destination, failed, open_network, response, sender};

fn strict() -> Arc<Network> {
    Arc::new(Network::new(Rules::default(), None).expect("a network without a file of roots"))
}

/// Of loopback, 127.0.0.1 alone is open.
fn only_here() -> Arc<Network> {
    let rules = Rules { allow: vec!["127.0.0.1/32".parse().expect("a network")], ..Rules::default() };
    Arc::new(Network::new(rules, None).expect("a network without a file of roots"))
}

fn sender_to(destination: &Destination, network: &Arc<Network>) -> Sender {
    Sender::new(Target::compile(destination, network).expect("a destination without fault"), network)
}

#[actix_rt::test]
async fn a_literal_address_is_refused_when_the_destination_is_read() {
    let fault = Target::compile(&destination("http://127.0.0.1:8080/".into()), &strict()).unwrap_err();
    assert!(matches!(fault, Fault::Url(Refusal::Address { .. })), "{fault}");
    assert!(fault.to_string().contains("address 127.0.0.1 is refused: loopback"), "{fault}");
}

#[actix_rt::test]
async fn every_address_is_judged_again_when_it_is_connected_to() {
    // The destination is read under rules that allow it, and sent under rules that don't: as if the name had
    // begun to lead elsewhere in between.
    let receiver = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let port = receiver.addr.port();
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let target =
            Target::compile(&destination(format!("http://{host}:{port}/")), &open_network()).unwrap();
        let message = failed(attempt(&Sender::new(target, &strict())).await);
        // An address that the tenant wrote is named, one that a name led to is not.
        let refused = match host {
            "localhost" => "host localhost is refused: it leads to a loopback address".to_owned(),
            literal => format!("address {} is refused: loopback", literal.trim_matches(['[', ']'])),
        };
        let opens = "(POSTHASTE_ALLOW_NETWORKS opens networks on purpose)";
        assert_eq!(message, format!("{refused} {opens}"));
    }
    assert_eq!(receiver.connections(), [0; 0]);
}

#[actix_rt::test]
async fn ports_of_other_services_are_refused_when_the_destination_is_read_and_when_it_is_connected_to() {
    let opened = Rules { allow_ports: vec![25], ..open_network().rules().clone() };
    let opened = Arc::new(Network::new(opened, None).expect("a network without a file of roots"));
    for url in ["http://localhost:25/", "http://127.0.0.1:25/"] {
        let destination = destination(url.into());
        let fault = Target::compile(&destination, &open_network()).unwrap_err().to_string();
        assert!(fault.starts_with("port 25 is refused: mail (POSTHASTE_ALLOW_PORTS opens ports"), "{fault}");
        let target = Target::compile(&destination, &opened).unwrap();
        assert_eq!(failed(attempt(&Sender::new(target, &open_network())).await), fault);
    }
    let mut destination = destination("https://example.com/".into());
    destination.auth_type = "oauth2".into();
    let config = r#"{"token_url": "https://example.com:6379/", "client_id": "a", "client_secret": "b"}"#;
    destination.auth_config = Secret::new(config);
    let fault = Target::compile(&destination, &open_network()).unwrap_err().to_string();
    assert!(fault.starts_with("auth_config.token_url: port 6379 is refused: a cache ("), "{fault}");
}

#[actix_rt::test]
async fn what_a_receiver_does_is_told_without_the_address_that_its_name_led_to() {
    let closing = Receiver::start(|mut stream, _, _| async move {
        stream.read_u8().await.ok();
        stream.shutdown().await.ok();
        // What is left unread would turn the end into a reset.
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    let gone = Receiver::closed().await;
    for (scheme, addr, expected) in [
        ("http", gone, "connection refused by HERE"),
        ("https", gone, "connection refused by HERE"),
        ("http", closing.addr, "connection closed by HERE before the answer was complete"),
        ("https", closing.addr, "TLS: connection closed by HERE during the handshake"),
    ] {
        let here = format!("localhost:{}", addr.port());
        let network = only_here();
        let message =
            failed(attempt(&sender_to(&destination(format!("{scheme}://{here}/")), &network)).await);
        assert_eq!(message, expected.replace("HERE", &here));
        let mut destination = destination("http://127.0.0.1/".into());
        destination.auth_type = "oauth2".into();
        let client = r#""client_id": "a", "client_secret": "b""#;
        destination.auth_config = Secret::new(format!(r#"{{"token_url": "{scheme}://{here}/", {client}}}"#));
        let message = failed(attempt(&sender_to(&destination, &network)).await);
        assert_eq!(message, format!("the token request failed: {}", expected.replace("HERE", &here)));
    }
}

#[actix_rt::test]
async fn a_name_whose_address_is_allowed_is_reached() {
    let receiver = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let url = format!("http://localhost:{}/", receiver.addr.port());
    assert_eq!(attempt(&sender(&destination(url))).await, response(204, ""));
}

#[actix_rt::test]
async fn of_several_addresses_only_the_allowed_ones_are_used() {
    // localhost is ::1 and 127.0.0.1 on most machines, 127.0.0.1 alone on the others.
    let receiver = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let url = format!("http://localhost:{}/", receiver.addr.port());
    assert_eq!(attempt(&sender_to(&destination(url), &only_here())).await, response(204, ""));
}

#[actix_rt::test]
async fn a_name_that_does_not_exist_is_told() {
    let message = failed(attempt(&sender(&destination("http://nobody.invalid/".into()))).await);
    assert!(message.starts_with("host nobody.invalid cannot be looked up: "), "{message}");
}
