//! A database that answers, and refuses.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Db, Server, eventually, fresh_dir, skip};
use crate::scene::Scene;

#[tokio::test]
async fn transactions_are_read_only_for_a_while() {
    let mut scene = Scene::start().await;
    let name = scene.db.text("SELECT current_database()").await.unwrap();
    let release = scene.hold(200).await;
    // New sessions only: the test's own can still write.
    scene.db.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    scene.end_sessions().await;
    release.send_replace(true);
    scene.suffers(&["read-only transaction"]).await;
    scene.db.execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
    scene.recovers("read-only").await;
    scene.ends(1).await;
}

#[tokio::test]
async fn the_server_s_own_limits_do_not_reach_the_dispatcher() {
    let db = Db::new().await;
    let (role, url) = db.role(include_str!("../../examples/deploy/grants.sql")).await;
    for limit in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        db.execute(&format!("ALTER ROLE {role} SET {limit} = '1ms'")).await;
    }
    let mut scene = Scene::at(db, &url).await;
    scene.produce(500).await;
    let db = scene.ends(1).await;
    db.drop_role(&role).await;
}

#[tokio::test]
async fn statements_are_cancelled_by_somebody() {
    let mut scene = Scene::start().await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'posthaste' AND state = 'active'";
    scene.strikes();
    let (mut cancelled, mut noticed) = (0, 0);
    eventually("statements have been cancelled", async || {
        scene.produce(100).await;
        cancelled += scene.db.number(cancel).await;
        noticed = scene.posthaste.log().matches("canceling statement due to user request").count();
        noticed > 0
    })
    .await;
    eprintln!("{cancelled} cancelled, {noticed} noticed");
    scene.recovers("cancelled").await;
    scene.ends(1).await;
}

/// A file system of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// For the owner of `data`; none where nothing may be mounted.
    fn mount(data: &Path) -> Option<SmallDisk> {
        let dir = fresh_dir();
        fs::create_dir(&dir).unwrap();
        let owner = fs::metadata(data).unwrap();
        let options = format!("size=8m,mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "posthaste-test"]).arg(&dir).output();
        let said = match mount {
            Ok(done) if done.status.success() => return Some(SmallDisk(dir)),
            Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        skip(&format!("nothing may be mounted here: {said}"));
        fs::remove_dir(&dir).unwrap();
        None
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).unwrap();
        // A page of the file system after the other, until there is none.
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    fn clear(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have files open there.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
        fs::remove_dir(&self.0).ok();
    }
}

#[tokio::test]
async fn the_disk_is_full() {
    let server = Server::start();
    let Some(disk) = SmallDisk::mount(&server.data_dir()) else { return };
    let db = server.db().await;
    let place = disk.0.display();
    db.execute(&format!("CREATE TABLESPACE small LOCATION '{place}'")).await;
    db.execute("ALTER TABLE webhook_deliveries SET TABLESPACE small").await;
    // Rows of which four fill a page, and of which none moves into the room that another left.
    db.execute("ALTER TABLE webhook_deliveries SET (fillfactor = 100, autovacuum_enabled = false)").await;
    db.execute("ALTER TABLE webhook_deliveries ALTER response_body SET DEFAULT repeat('x', 1500)").await;
    let url = db.url.clone();
    let mut scene = Scene::at(db, &url).await;
    let release = scene.hold(500).await;
    disk.fill();
    // More than the disk holds, so that this takes what room there may be within the table, too.
    let refused = scene.db.refused(
        "INSERT INTO activity_logs (org_id, event_type, event_category)
        SELECT org_id, 'x', 'x' FROM webhook_destinations, generate_series(1, 5000)",
    );
    assert!(refused.await.contains("No space left on device"), "the producer is told");
    release.send_replace(true);
    scene.suffers(&["No space left on device"]).await;
    disk.clear();
    scene.recovers("disk full").await;
    scene.ends(1).await;
}
