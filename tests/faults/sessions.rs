//! Sessions that end, and sessions that are not given.

use std::fs::File;

use crate::common::{Db, Server, eventually};
use crate::scene::Scene;

/// What PostgreSQL, or the system in its place, says to whoever is connected, or wants to be, when it goes.
const GONE: [&str; 4] = ["terminating connection", "shutting down", "No such file", "Connection refused"];

#[tokio::test]
async fn postgresql_is_restarted_in_order_and_at_once() {
    let mut server = Server::start();
    let db = server.db().await;
    let url = db.url.clone();
    let mut scene = Scene::at(db, &url).await;
    for (how, stop) in [("fast", Server::stop as fn(&mut Server)), ("immediate", Server::crash)] {
        let release = scene.hold(200).await;
        stop(&mut server);
        release.send_replace(true);
        scene.suffers(&GONE).await;
        server.restart();
        scene.recovers(&format!("restart, {how}")).await;
    }
    // What was in flight when results could not be written is not sent again: they are kept.
    scene.ends(1).await;
}

#[tokio::test]
async fn a_standstill_is_explained_although_nothing_is_to_be_done() {
    let mut server = Server::start();
    let db = server.db().await;
    let url = db.url.clone();
    let mut scene = Scene::at(db, &url).await;
    scene.db.settled().await;
    server.stop();
    scene.suffers(&GONE).await;
    server.restart();
    scene.recovers("restart while idle").await;
    scene.ends(1).await;
}

#[tokio::test]
async fn connections_are_terminated_again_and_again() {
    let mut scene = Scene::start().await;
    for round in 1..=5 {
        scene.produce(200).await;
        scene.flows().await;
        scene.strikes();
        scene.end_sessions().await;
        scene.recovers(&format!("terminated, round {round}")).await;
    }
    scene.ends(1).await;
}

#[tokio::test]
async fn the_database_has_too_many_connections() {
    let db = Db::new().await;
    let (role, url) = db.role(include_str!("../../examples/deploy/grants.sql")).await;
    let mut scene = Scene::at(db, &url).await;
    let release = scene.hold(200).await;
    scene.db.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 0")).await;
    scene.end_sessions().await;
    release.send_replace(true);
    scene.suffers(&["too many connections"]).await;
    scene.db.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await;
    scene.recovers("too many connections").await;
    let db = scene.ends(1).await;
    db.drop_role(&role).await;
}

#[tokio::test]
async fn a_failover_to_a_standby_that_is_promoted_later() {
    let mut server = Server::start();
    let db = server.db().await;
    let url = db.url.clone();
    let mut scene = Scene::at(db, &url).await;
    let release = scene.hold(200).await;
    server.stop();
    File::create(server.data_dir().join("standby.signal")).unwrap();
    server.restart();
    release.send_replace(true);
    scene.suffers(&["read-only transaction"]).await;
    eventually("the standby is promoted", async || {
        scene.db.text("SELECT pg_promote(true, 1)").await.as_deref() == Some("true")
    })
    .await;
    scene.recovers("promoted").await;
    scene.ends(1).await;
}
