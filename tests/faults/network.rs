//! A bad network between the dispatcher and PostgreSQL.

use std::time::Duration;

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
