//! The clock of the dispatcher's machine is wrong, that of the database is right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use posthaste::model::Secret;
use standardwebhooks::Webhook;
use tokio::sync::watch;

use crate::common::{
    Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually, leased, library, run, skip,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Clocks of one machine that differ by less than this are the same, however busy it is.
const SAME: u64 = 60;

/// What makes a process take the time for another one: `+10m`.
fn shifted(by: &'static str) -> Option<Vec<(&'static str, String)>> {
    let Some(library) = library("faketime/libfaketime.so.1") else {
        skip("there is no libfaketime (Debian: package libfaketime)");
        return None;
    };
    let library = library.to_str().unwrap().to_owned();
    Some(vec![
        ("LD_PRELOAD", library),
        ("FAKETIME", by.to_owned()),
        // What waits for a moment must not wait for another one.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// How far, in seconds, the clock of a process is from ours, by the first line of its log.
fn distance(posthaste: &Posthaste) -> u64 {
    let log = posthaste.log();
    let at = log.trim_start_matches('[').split([' ', ']']).next().unwrap();
    let shown = posthaste::model::DbTime::from_iso(at).unwrap_or_else(|| panic!("no time: {at}"));
    shown.unix_seconds().abs_diff(seconds(SystemTime::now()))
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// As a receiver does it that has the right time.
fn accepts(request: &Received) -> bool {
    let headers =
        request.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Webhook::new(SECRET).unwrap().verify(&request.body, &headers).is_ok()
}

async fn serve(url: &Secret, environment: &[(&'static str, String)]) -> Posthaste {
    let posthaste = Posthaste::serve_with(url, &borrowed(environment)).await;
    let distance = distance(&posthaste);
    assert!(distance.abs_diff(600) < SAME, "its clock is {distance} s off: the test shows nothing");
    posthaste
}

#[tokio::test]
async fn a_dispatcher_whose_clock_is_ten_minutes_off_signs_retries_and_leases_by_that_of_the_database() {
    for by in ["+10m", "-10m"] {
        let Some(environment) = shifted(by) else { return };
        let db = Db::new().await;
        // The first attempt fails, the second is asked for a pause until a moment of the true time.
        let receiver = Receiver::scripted(|request| {
            let pause = request.wall + Duration::from_secs(3);
            match request.header("posthaste-attempt").unwrap() {
                "1" => Reply::Status(409),
                _ => Reply::header(429, "retry-after", httpdate::fmt_http_date(pause)),
            }
        });
        let org = db.org().await;
        db.destination(org, receiver.url("/")).retry(3, 1_000).secret(SECRET).insert().await;
        let mut posthaste = serve(&db.url, &environment).await;
        db.events(org, 1).await;
        eventually("it is asked for a pause", async || receiver.count() == 2).await;
        receiver.reply(Reply::Status(200));
        db.settled().await;

        let requests = receiver.received();
        assert_eq!(requests.len(), 3);
        for request in &requests {
            assert!(accepts(request), "{by}: {request:?}");
            let stamp: i64 = request.header("webhook-timestamp").unwrap().parse().unwrap();
            assert!(stamp.abs_diff(seconds(request.wall)) < SAME, "{by}: {stamp}");
        }
        let waits = [1, 2].map(|n| requests[n].at - requests[n - 1].at);
        let limits = [(700, 30_000), (1_900, 30_000)]
            .map(|(least, most)| (Duration::from_millis(least), Duration::from_millis(most)));
        for (wait, (least, most)) in waits.into_iter().zip(limits) {
            assert!(least <= wait && wait <= most, "{by}: it waited {wait:?}");
        }
        let off = "extract(epoch FROM delivered_at - timezone('UTC', clock_timestamp()))::int";
        let off = db.number(&format!("SELECT {off} FROM webhook_deliveries")).await;
        assert!(off.unsigned_abs() < SAME, "{by}: recorded {off} s from now");
        assert!(posthaste.terminate().await.success());
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn dispatchers_whose_clocks_are_twenty_minutes_apart_respect_each_other_s_leases() {
    const HELD: usize = 20;
    let (Some(ahead), Some(behind)) = (shifted("+10m"), shifted("-10m")) else { return };
    let db = Db::new().await;
    let (release, released) = watch::channel(false);
    let receiver = Receiver::with(Reply::Held(200, released));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    for (first, second) in [(&ahead, &behind), (&behind, &ahead)] {
        release.send_replace(false);
        receiver.forget();
        let mut first = serve(&db.url, first).await;
        db.events(org, HELD).await;
        eventually("the first one holds them", async || receiver.in_flight() == HELD).await;
        let mut second = serve(&db.url, second).await;
        assert_eq!(leased(&db).await, HELD as i64);
        // What comes now is for either of them.
        db.events(org, HELD).await;
        eventually("more is in flight", async || receiver.count() > HELD).await;
        release.send_replace(true);
        db.settled().await;
        assert_eq!(receiver.count(), 2 * HELD, "each once");
        assert!(first.terminate().await.success());
        assert!(second.terminate().await.success());
        check_invariants(&db, &[]).await;
    }
    assert_eq!(db.deliveries("attempts <> 1").await, 0);
}

#[tokio::test]
async fn check_tells_that_the_clocks_differ() {
    let Some(mut environment) = shifted("+10m") else { return };
    let db = Db::new().await;
    environment.push(("DATABASE_URL", db.url.reveal().to_owned()));
    let output = run(&["check"], &borrowed(&environment));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("fault: the clocks of this machine and of the database differ by"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
}
