//! Where it does not go.

use std::sync::Arc;

use posthaste::outbound::{Fault, Network, Sender, Target};
use posthaste::policy::egress::{Refusal, Rules};

use crate::receiver::Receiver;
use crate::{attempt, destination, failed, open_network, response, sender};

fn strict() -> Arc<Network> {
    Arc::new(Network::new(Rules::default(), None).expect("a network without a file of roots"))
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
        assert!(message.contains("is refused: loopback (POSTHASTE_ALLOW_NETWORKS"), "{message}");
    }
    assert_eq!(receiver.connections(), [0; 0]);
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
    let rules = Rules { allow: vec!["127.0.0.1/32".parse().unwrap()], https_only: false };
    let network = Arc::new(Network::new(rules, None).unwrap());
    let target = Target::compile(&destination(url), &network).unwrap();
    assert_eq!(attempt(&Sender::new(target, &network)).await, response(204, ""));
}

#[actix_rt::test]
async fn a_name_that_does_not_exist_is_told() {
    let message = failed(attempt(&sender(&destination("http://nobody.invalid/".into()))).await);
    assert!(message.starts_with("host nobody.invalid cannot be looked up: "), "{message}");
}
