//! A bad network between the dispatcher and PostgreSQL.

use std::future::{Future as _, poll_fn};
use std::task::Poll;
use std::time::Duration;

use posthaste::store::presence;

use crate::common::{Db, End, Fault, Proxy, eventually};
use crate::scene::Scene;

/// What the process says when nothing comes back.
const SILENT: &str = "did not answer within";

/// A stream of events that flows through a proxy.
async fn through_a_proxy() -> (Scene, Proxy) {
    let db = Db::new().await;
    let proxy = Proxy::before(&db.url);
    let scene = Scene::at(db, &proxy.url()).await;
    (scene, proxy)
}

#[tokio::test]
async fn database_connections_are_half_open() {
    let (mut scene, proxy) = through_a_proxy().await;
    let release = scene.hold(200).await;
    proxy.set(Fault::HalfOpen);
    release.send_replace(true);
    scene.suffers(&[SILENT]).await;
    // The connections of that time stay dead for ever, without a word.
    proxy.set(Fault::None);
    scene.recovers("half-open").await;
    scene.ends(1).await;
}

#[tokio::test]
async fn database_connections_are_half_open_while_nothing_is_to_be_done() {
    let (mut scene, proxy) = through_a_proxy().await;
    scene.db.settled().await;
    proxy.set(Fault::HalfOpen);
    scene.suffers(&[SILENT]).await;
    proxy.set(Fault::None);
    scene.recovers("half-open while idle").await;
    scene.ends(1).await;
}

#[tokio::test]
async fn who_dies_while_it_looks_for_others_is_in_nobody_s_way() {
    let db = Db::new().await;
    let proxy = Proxy::before(&db.url);
    let connect = async || {
        let options = posthaste::store::options(&proxy.url()).unwrap();
        posthaste::store::connect(&options).await.unwrap()
    };
    let (mut dies, mut lives) = (connect().await, connect().await);
    // The statement is known to the session then, and its next use is one message.
    assert!(presence::is_alone(&mut dies).await.unwrap());
    loop {
        sqlx::query("SELECT 'not that one'").execute(&mut dies).await.unwrap();
        let mut looks = Box::pin(presence::is_alone(&mut dies));
        let is_sent = poll_fn(|context| Poll::Ready(looks.as_mut().poll(context).is_pending())).await;
        // Nobody will read the answer, unless it was there before this thread went on.
        if is_sent {
            break;
        }
    }
    let done = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND state = 'idle' AND application_name = 'posthaste' AND query LIKE '%pg_try_advisory_lock%'";
    eventually("the server has done it", async || db.number(done).await == 1).await;
    assert!(presence::try_take_part(&mut lives).await.unwrap());
    drop(dies);
}

#[tokio::test]
async fn sessions_have_the_server_notice_when_their_client_has_gone() {
    let db = Db::new().await;
    let options = posthaste::store::options(&db.url).unwrap();
    let mut session = posthaste::store::connect(&options).await.unwrap();
    // What a session by a Unix socket shows of them is 0.
    let told = "SELECT string_agg(reset_val, ' ' ORDER BY name) FROM pg_settings
        WHERE name LIKE 'tcp\\_%' AND source = 'client'";
    let told: String = sqlx::query_scalar(told).fetch_one(&mut session).await.unwrap();
    // Count, seconds idle, seconds between, milliseconds until what was sent must have arrived.
    assert_eq!(told, "3 15 5 30000");
}

#[tokio::test]
async fn the_network_to_the_database_stalls() {
    let (mut scene, proxy) = through_a_proxy().await;
    let release = scene.hold(200).await;
    proxy.set(Fault::Stall);
    release.send_replace(true);
    scene.suffers(&[SILENT]).await;
    proxy.set(Fault::None);
    scene.recovers("stalled").await;
    scene.ends(1).await;
}

#[tokio::test]
async fn database_connections_are_cut_and_refused() {
    let (mut scene, proxy) = through_a_proxy().await;
    for (fault, end, causes) in [
        (Fault::Cut, End::Close, ["closed the connection", "expected to read", "end of file"]),
        (Fault::Reset, End::Reset, ["Connection reset", "Broken pipe", "closed the connection"]),
    ] {
        let release = scene.hold(200).await;
        proxy.set(fault);
        release.send_replace(true);
        scene.suffers(&causes).await;
        proxy.set(Fault::None);
        proxy.hang_up(end);
        scene.recovers(&format!("{fault:?}")).await;
    }
    scene.ends(1).await;
}

#[tokio::test]
async fn database_connections_end_in_the_middle_of_messages() {
    let (mut scene, proxy) = through_a_proxy().await;
    // Some end within the first message, some within the preparation, some within the results of claims.
    for bytes in [1, 300, 2_000, 7_000, 20_000, 90_000] {
        let release = scene.hold(200).await;
        scene.strikes();
        let before = scene.posthaste.log().matches(" ERROR ").count();
        proxy.set(Fault::CloseAfter(bytes));
        release.send_replace(true);
        eventually("it has met the end of a connection", async || {
            // Such as let something through may need more work to be met.
            scene.produce(20).await;
            scene.posthaste.log().matches(" ERROR ").count() > before
        })
        .await;
        proxy.set(Fault::None);
        scene.recovers(&format!("closed after {bytes} bytes")).await;
    }
    // A connection that ends before the answer to a claim leaves leases behind, and nobody knows of them.
    scene.ends(1).await;
}

#[tokio::test]
async fn a_slow_network_to_the_database_makes_it_slower_and_nothing_worse() {
    let (mut scene, proxy) = through_a_proxy().await;
    proxy.set(Fault::Slow(Duration::from_millis(100)));
    scene.produce(300).await;
    scene.db.settled().await;
    assert_eq!(scene.status("/readyz").await, Some(200));
    proxy.set(Fault::None);
    scene.recovers("slow").await;
    scene.ends(1).await;
}
