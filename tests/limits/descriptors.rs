//! Out of file descriptors.

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

/// What a person is told.
const REMEDY: &str =
    "raise its limit of open files (LimitNOFILE=, ulimit -n) or lower POSTHASTE_MAX_IN_FLIGHT";

fn open_files(program: &Posthaste) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().count() as u64
}

/// From now on `program` may have so many files open; those that are open stay so.
fn allow(program: &Posthaste, files: u64) {
    let pid = Pid::from_raw(program.pid());
    // The hard limit stays far above, as only root may raise it again.
    let limit = Rlimit { current: Some(files), maximum: Some(files.max(1024)) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

#[tokio::test]
async fn without_descriptors_requests_wait_uncharged_and_go_on_when_there_are_some() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let org = db.org().await;
    for number in 0..5 {
        db.destination(org, receiver.url(&format!("/{number}"))).timeout_ms(30_000).insert().await;
    }
    let mut program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    eventually("it has all its connections to the database", async || receiver.in_flight() == 5).await;
    release.send(true).unwrap();
    db.settled().await;

    release.send(false).unwrap();
    allow(&program, open_files(&program) + 3);
    db.events(org, 40).await;
    let waiting = "status = 'pending' AND attempts = 0 AND error_message LIKE '%no file descriptor left%'";
    eventually("requests find no descriptor", async || db.deliveries(waiting).await > 20).await;
    // Its connections to the database are lost as well, while everybody wants their descriptors.
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'posthaste'";
    assert!(db.number(ended).await > 0);

    allow(&program, 1024);
    release.send(true).unwrap();
    db.settled().await;
    program.ready().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 5 * 41, "nothing is charged");
    assert!(program.terminate().await.success());
    let told = program.log().lines().filter(|line| line.contains("ERROR") && line.contains(REMEDY)).count();
    assert_eq!(told, 1, "it is told once and not for each request");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_limit_that_is_too_low_is_told_at_the_start_and_the_work_is_done_nevertheless() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    crate::destinations(&db, org, &receiver, 10, 5_000).await;
    let mut program = Posthaste::serve_within(64, &db.url).await;
    let events = db.events(org, 100).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 10 * events.len() as i64);
    assert!(program.terminate().await.success());
    let log = program.log();
    assert!(log.contains("requests will be in flight at once and not 1024, as no more than 64 files may be"));
    assert!(log.contains(REMEDY.trim_start_matches("raise its limit of open files")), "{log}");
    check_invariants(&db, &[&receiver]).await;
}
