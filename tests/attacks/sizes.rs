//! What is stored says little about what is printed: a number of 12 bytes may have 131,072 digits.

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually};

/// A payload of so many numbers that print as 128 KiB each.
fn monster(numbers: usize) -> String {
    format!("[{}]", vec!["1e131071"; numbers].join(","))
}

#[actix_rt::test]
async fn events_that_print_as_hundreds_of_megabytes_are_dead_at_once_and_nobody_waits() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    for _ in 0..3 {
        db.destination(org, receiver.url("/hook")).insert().await;
    }
    db.destination(other, receiver.url("/other")).insert().await;
    // 445 MB each; more than PostgreSQL can print; small numbers that print long; zeros that do.
    for payload in [
        monster(3_400),
        monster(60_000),
        format!("[{}]", vec!["1e-16383"; 3_400].join(",")),
        format!("[{}]", vec!["0e-16383"; 3_400].join(",")),
        format!(r#"{{"a": {{"b": {{"c": {}}}}}}}"#, monster(50)),
    ] {
        for _ in 0..5 {
            db.event(org, "a", &payload).await;
        }
        db.events(other, 20).await;
    }
    let mut posthaste = Posthaste::serve(&db.url).await;
    eventually("everything is delivered or dead", async || {
        db.deliveries("status IN ('pending', 'failed')").await == 0
    })
    .await;
    let dead = "status = 'dead' AND attempts = 0 AND error_message LIKE '%POSTHASTE_MAX_EVENT_BYTES%'";
    assert_eq!(db.deliveries(dead).await, 3 * 25);
    assert_eq!(db.deliveries("status = 'delivered'").await, 100);
    let peak = peak_memory(&posthaste);
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak < 200 << 20, "{peak}");
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[actix_rt::test]
async fn a_backlog_of_small_events_that_print_large_is_sent_within_the_memory_bound() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    db.destination(org, receiver.url("/large")).insert().await;
    db.destination(other, receiver.url("/small")).insert().await;
    // 300 bytes that print as 2.5 MB: below the limit, so each is to be sent.
    let sql = format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
         SELECT '{org}', 'a', 'c', '{}'::jsonb FROM generate_series(1, 100)",
        monster(20)
    );
    db.execute(&sql).await;
    db.events(other, 100).await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_MAX_BYTES_IN_FLIGHT", "32MiB")]).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 200);
    let peak = peak_memory(&posthaste);
    println!("peak memory: {} MiB", peak >> 20);
    assert!(peak < 250 << 20, "{peak}");
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[actix_rt::test]
async fn events_that_are_nested_too_deeply_are_dead_and_nobody_waits() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    let filter = r#"{"$jsonpath": "$.event_type == \"a\""}"#;
    db.destination(org, receiver.url("/hook")).insert().await;
    db.destination(org, receiver.url("/filtered")).event_filter(filter).insert().await;
    db.destination(other, receiver.url("/other")).insert().await;
    // As deep as PostgreSQL reads; a path cannot follow there.
    let sql = format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
         VALUES ('{org}', 'a', 'c', (repeat('[', 13000) || '1' || repeat(']', 13000))::jsonb)"
    );
    for _ in 0..3 {
        db.execute(&sql).await;
    }
    db.event(org, "a", "{}").await;
    db.events(other, 20).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(
        db.deliveries("status = 'dead' AND attempts = 0 AND error_message LIKE '%nested too deeply%'").await,
        6
    );
    assert_eq!(db.deliveries("status = 'delivered'").await, 22);
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[actix_rt::test]
async fn a_destination_that_prints_as_gigabytes_keeps_no_other_from_being_loaded() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    for column in ["auth_config", "format_options"] {
        let huge =
            "jsonb_build_object('z', (SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 9000)))";
        let id = db.destination(org, receiver.url("/never")).setting("ordered", false).insert().await;
        let table =
            if column == "auth_config" { "webhook_destinations" } else { "posthaste_destination_settings" };
        let key = if column == "auth_config" { "id" } else { "destination_id" };
        db.execute(&format!("UPDATE {table} SET {column} = {huge} WHERE {key} = '{id}'")).await;
    }
    db.destination(other, receiver.url("/other")).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.events(other, 5).await;
    let here = "status = 'delivered' AND destination_id IN (
        SELECT id FROM webhook_destinations WHERE url LIKE '%/other')";
    eventually("the other is delivered", async || db.deliveries(here).await == 5).await;
    assert!(peak_memory(&posthaste) < 200 << 20);
    assert!(posthaste.terminate().await.success());
}

#[actix_rt::test]
async fn what_is_printed_is_measured_exactly() {
    let db = Db::new().await;
    for payload in [
        "{}".to_string(),
        "null".into(),
        r#""x""#.into(),
        "1e131071".into(),
        monster(20),
        monster(31),
        monster(32),
        monster(40),
        "[-1e131071]".into(),
        format!("[{}]", vec!["0e-16383"; 330].join(",")),
        format!("[{}]", vec!["1e999"; 200].join(",")),
        format!(r#"{{"s": "{}"}}"#, "a".repeat(4_000)),
        format!(r#"{{"s": "{}"}}"#, "ä".repeat(100_000)),
        format!("[{}]", (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",")),
        format!("{}1{}", "[".repeat(2_000), "]".repeat(2_000)),
        format!(r#"{{"k": [{}]}}"#, vec![r#"{"a": true, "b": null, "c": []}"#; 5_000].join(",")),
    ] {
        let sql = "INSERT INTO webhook_bodies SELECT $1::jsonb";
        db.execute("CREATE TABLE IF NOT EXISTS webhook_bodies (payload jsonb)").await;
        db.execute("TRUNCATE webhook_bodies").await;
        sqlx::query(sql).bind(&payload).execute(&db.pool).await.unwrap();
        let length = db.number("SELECT octet_length(payload::text) FROM webhook_bodies").await;
        for (most, fits) in [(length, true), (length - 1, false), (length + 10_000, true), (16, length <= 16)]
        {
            let printed = format!(
                "SELECT count(*) FROM webhook_bodies
                 WHERE public.posthaste_printed(payload, {most}) = payload::text"
            );
            assert_eq!(db.number(&printed).await == 1, fits, "{length} of {most}: {payload:.40}");
        }
    }
}

fn peak_memory(posthaste: &Posthaste) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", posthaste.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
