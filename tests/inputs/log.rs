//! A log that nobody reads.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Db, Receiver, Reply, check_invariants, eventually, free_port, request};

/// The program, whose standard error is a pipe that is read only when the test wants it.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_no_delivery_and_what_is_lost_of_it_is_counted_and_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let failing = Receiver::with(Reply::Status(500));
    db.destination(org, receiver.url("/")).insert().await;
    db.destination(org, failing.url("/")).retry(10, 100).insert().await;
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command.env_clear().current_dir("/").arg("serve");
    command.envs([
        ("DATABASE_URL", db.url.reveal()),
        ("POSTHASTE_LISTEN", &address),
        ("POSTHASTE_ALLOW_NETWORKS", "127.0.0.0/8"),
        // Each statement, each state of the runtime: far more than a pipe and the queue before it hold.
        ("RUST_LOG", "trace"),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut posthaste = Unread(command.spawn().unwrap());
    let address = address.parse().unwrap();
    let get =
        async |path| request(address, "GET", path, &[], b"").await.map(|(status, _, body)| (status, body));
    eventually("it is ready", async || get("/readyz").await.is_some_and(|(status, _)| status == 200)).await;

    let mut arrived = 0;
    let dropped = "posthaste_log_lines_dropped_total ";
    eventually("lines are lost", async || {
        db.events(org, 50).await;
        arrived += 50;
        eventually("all arrives", async || receiver.count() >= arrived).await;
        let (_, page) = get("/metrics").await.unwrap();
        let line = page.lines().find(|line| line.starts_with(dropped)).unwrap();
        line != format!("{dropped}0")
    })
    .await;

    // From now on somebody reads.
    let log = Arc::new(Mutex::new(Vec::new()));
    let stderr = posthaste.0.stderr.take().unwrap();
    let reader = std::thread::spawn({
        let log = log.clone();
        move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                log.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        }
    });
    eventually("it is told", async || {
        log.lock().unwrap().iter().any(|line| line.contains("log lines were dropped"))
    })
    .await;
    kill_process(Pid::from_child(&posthaste.0), Signal::TERM).unwrap();
    let mut status = None;
    eventually("it ends", async || {
        status = posthaste.0.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
    reader.join().unwrap();
    // The last lines before the end are not lost.
    let log = std::mem::take(&mut *log.lock().unwrap());
    let end = &log[log.len().saturating_sub(200)..];
    assert!(end.iter().any(|line| line.contains("everything is recorded")), "{end:?}");
    check_invariants(&db, &[&receiver, &failing]).await;
}

#[tokio::test]
async fn a_program_whose_log_nobody_reads_ends_all_the_same() {
    let db = Db::new().await;
    let address = format!("127.0.0.1:{}", free_port());
    let (reader, writer) = std::io::pipe().unwrap();
    // The pipe is full from the beginning.
    let mut full = Command::new("sh");
    full.args(["-c", "timeout 1 dd if=/dev/zero bs=4096 count=1024 status=none; exec \"$0\" serve"]);
    full.arg(env!("CARGO_BIN_EXE_posthaste")).stdin(Stdio::null());
    full.stdout(writer.try_clone().unwrap()).stderr(writer);
    full.env("DATABASE_URL", db.url.reveal()).env("POSTHASTE_LISTEN", &address).current_dir("/");
    let mut posthaste = Unread(full.spawn().unwrap());
    drop(full);
    let address = address.parse().unwrap();
    eventually("it is ready", async || {
        request(address, "GET", "/readyz", &[], b"").await.is_some_and(|(status, ..)| status == 200)
    })
    .await;
    kill_process(Pid::from_child(&posthaste.0), Signal::TERM).unwrap();
    eventually("it ends", async || posthaste.0.try_wait().unwrap().is_some()).await;
    drop(reader);
}
