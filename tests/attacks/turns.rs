//! What organizations share at the API, they use in turn.

use crate::common::{Db, Receiver, Reply, eventually};
use crate::{ask, key};

#[actix_rt::test]
async fn tests_of_one_tenants_hanging_receivers_leave_room_for_another() {
    let (db, hanging, well) = (Db::new().await, Receiver::with(Reply::Hang), Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    let hangs = db.destination(org, hanging.url("/")).timeout_ms(30_000).insert().await;
    let works = db.destination(other, well.url("/")).insert().await;
    let posthaste = crate::serve(&db).await;
    let (greedy, neighbour) = (key(&posthaste, org, "write").await, key(&posthaste, other, "write").await);
    let place = format!("/api/v1/orgs/{org}/destinations/{hangs}/test");
    let tests = (0..40).map(|_| ask(&posthaste, &greedy, "POST", &place, ""));
    let tests = futures_util::future::join_all(tests);
    let beside = async {
        // Four of them are under way, and no more; the others wait for them.
        eventually("tests hang", async || hanging.in_flight() == 4).await;
        let place = format!("/api/v1/orgs/{other}/destinations/{works}/test");
        let (status, answer) = ask(&posthaste, &neighbour, "POST", &place, "").await;
        assert!(status == 200 && answer["delivered"] == true, "{status} {answer}");
        assert_eq!(hanging.in_flight(), 4);
    };
    // The answers of the others come when theirs is there, or when they have waited for too long.
    tokio::select! {
        _ = tests => panic!("they do not hang"),
        () = beside => {}
    }
}
