//! An application's own columns are harmless, whatever they are called and whatever is in them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::Api;
use crate::common::{Db, Receiver, check_invariants, eventually, run};

/// Types that nothing of ours has, so that whatever is taken for one of our columns is found out.
const TYPES: [&str; 5] = ["integer", "json", "point", "bytea", "text[]"];

/// Every word of our own SQL that could be the name of a column: aliases, columns, variables, and more.
fn words() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for path in files("migrations") {
        words.extend(words_of(&fs::read_to_string(path).unwrap()));
    }
    for path in files("src/store") {
        let text = fs::read_to_string(path).unwrap();
        // What stands between quotes, and beside a word of SQL.
        for part in text.split('"') {
            if ["SELECT", "FROM", "UPDATE", "INSERT", "WHERE", " AS ", "AND "]
                .iter()
                .any(|w| part.contains(w))
            {
                words.extend(words_of(part));
            }
        }
    }
    words
}

fn words_of(sql: &str) -> impl Iterator<Item = String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = sql.split(move |c: char| !is_part(c)).map(str::to_owned).collect::<BTreeSet<_>>();
    words.into_iter().filter(|word| word.starts_with(|c: char| !c.is_ascii_digit()) && word.len() < 60)
}

fn files(dir: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => {
                found.extend(files(path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap()))
            }
            false => found.push(path),
        }
    }
    found
}

/// Adds a column of each of these names to a table, unless it has one.
async fn widen(db: &Db, table: &str, words: &BTreeSet<String>) {
    let there =
        format!("SELECT string_agg(attname, ',') FROM pg_attribute WHERE attrelid = '{table}'::regclass");
    let there = db.text(&there).await.unwrap();
    let new = words.iter().filter(|word| !there.split(',').any(|name| name == *word));
    let added: Vec<String> = new
        .enumerate()
        .map(|(n, word)| format!("ADD COLUMN \"{word}\" {}", TYPES[n % TYPES.len()]))
        .collect();
    assert!(added.len() > 300, "there are more words than that: {}", added.len());
    db.execute(&format!("ALTER TABLE {table} {}", added.join(", "))).await;
}

/// A value without what differs from run to run.
fn timeless(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() == 27 && text.ends_with('Z') => json!("a time"),
        Value::String(text) if text.starts_with("delivered at ") => json!("delivered"),
        Value::String(text) if text.parse::<Uuid>().is_ok() => json!("an id"),
        Value::String(text) if text.starts_with("http://127.0.0.1:") => json!(text.rsplit('/').next()),
        Value::Array(items) => items.iter().map(timeless).collect(),
        Value::Object(members) => {
            let members =
                members.iter().filter(|(name, _)| !["version", "next_cursor"].contains(&name.as_str()));
            members.map(|(name, value)| (name.clone(), timeless(value))).collect()
        }
        value => value.clone(),
    }
}

/// Everything that touches an application's tables, and what came of it.
async fn day(db: &Db) -> Vec<Value> {
    let (org, receiver) = (db.org().await, Receiver::start());
    db.destination(org, receiver.url("/all")).name("all").insert().await;
    let filter = r#"{"kind": "x"}"#;
    db.destination(org, receiver.url("/contains")).name("contains").event_filter(filter).insert().await;
    let path = r#"{"$jsonpath": "$.payload.amount > 100 && $.content == \"c2\" && $.employee_id == null"}"#;
    db.destination(org, receiver.url("/path")).name("path").event_filter(path).insert().await;
    let ordered = db.destination(org, receiver.url("/ordered")).name("ordered").batch_size(5);
    ordered.setting("ordered", true).insert().await;
    let api = Api::on(db).await;
    db.execute(&format!(
        "INSERT INTO activity_logs
            (org_id, event_type, event_category, content, payload, client_name, created_at)
         SELECT '{org}', 't.' || n, 'c', 'c' || n, jsonb_build_object('kind', 'x', 'amount', n * 100), 'me',
            timezone('UTC', now()) + n * interval '1 microsecond'
         FROM generate_series(1, 3) n ORDER BY n"
    ))
    .await;
    db.settled().await;
    let event = json!({"id": Uuid::new_v4(), "event_type": "posted", "payload": {"kind": "y"}});
    let mut seen = vec![json!(api.ask("POST", org, "/events", event.clone()).await)];
    seen.push(json!(api.ask("POST", org, "/events", event).await));
    db.settled().await;
    for path in ["/events", "/events?event_type=t.2", "/deliveries?event_type=t.2", "/destinations"] {
        seen.push(json!(api.get(org, path).await));
    }
    let text = |sql: String| async move { db.text(&sql).await.unwrap() };
    let event = text(format!("SELECT id FROM activity_logs WHERE org_id = '{org}' AND content = 'c2'")).await;
    seen.push(json!(api.get(org, &format!("/events/{event}")).await));
    let delivery = format!(
        "SELECT w.id FROM webhook_deliveries w JOIN webhook_destinations d ON d.id = w.destination_id
         WHERE w.log_id = '{event}' AND d.name = 'path'"
    );
    let delivery = text(delivery).await;
    seen.push(json!(api.get(org, &format!("/deliveries/{delivery}")).await));
    // Its answer shows the delivery at some moment of what follows.
    let retry = format!("/deliveries/{delivery}/retry");
    seen.push(json!(api.ask("POST", org, &retry, Value::Null).await.0));
    db.settled().await;
    let late = json!({"name": "late", "url": receiver.url("/late"), "event_filter": {"kind": "x",
        "$jsonpath": "$.payload.amount > 100"}});
    let (status, created) = api.ask("POST", org, "/destinations", late).await;
    assert_eq!(status, 201, "{created}");
    let late = format!("/destinations/{}", created["id"].as_str().unwrap());
    let from = json!({"from": "2020-01-01"});
    seen.push(api.job(org, &format!("{late}/backfill"), from).await["queued"].clone());
    db.settled().await;
    let again = json!({"status": ["delivered"]});
    seen.push(api.job(org, &format!("{late}/replay"), again).await["queued"].clone());
    db.settled().await;
    seen.push(json!(api.ask("PATCH", org, &late, json!({"name": "later", "timeout_ms": 2_000})).await));
    seen.push(json!(api.get(org, &format!("{late}/stats")).await.0));
    seen.push(json!(api.ask("DELETE", org, &late, Value::Null).await));
    let mut received: Vec<(String, Value)> = receiver
        .received()
        .iter()
        .flat_map(|request| {
            let path = request.path.clone();
            let body = request.json();
            let events = body.as_array().cloned().unwrap_or_else(|| vec![body]);
            events.into_iter().map(move |event| (path.clone(), timeless(&event)))
        })
        .collect();
    received.sort_by_key(|(path, event)| (path.clone(), event.to_string()));
    seen.extend(received.into_iter().map(|(path, event)| json!([path, event])));
    check_invariants(db, &[&receiver]).await;
    seen.iter().map(timeless).collect()
}

#[tokio::test]
async fn a_column_may_have_any_name_that_our_own_sql_uses() {
    let expected = day(&Db::new().await).await;
    assert!(expected.len() > 20, "{expected:#?}");
    let (db, words) = (Db::new().await, words());
    for table in ["activity_logs", "webhook_destinations", "webhook_deliveries"] {
        widen(&db, table, &words).await;
    }
    let found = day(&db).await;
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    let out = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

/// Values that cannot become `jsonb`.
#[tokio::test]
async fn columns_that_are_none_of_the_events_are_not_read() {
    for (value, kind) in [
        (r#"{"a":"\u0000"}"#, "json"),
        (r#"{"a":"\ud800"}"#, "json"),
        (r#"{"a":1e999999}"#, "json"),
        ("NaN", "double precision"),
        ("infinity", "timestamptz"),
    ] {
        let (db, receiver) = (Db::new().await, Receiver::start());
        let org = db.org().await;
        db.execute(&format!("ALTER TABLE activity_logs ADD raw_body {kind} DEFAULT '{value}'")).await;
        let path = r#"{"$jsonpath": "$.payload.n == 2"}"#;
        db.destination(org, receiver.url("/")).event_filter(path).insert().await;
        let api = Api::on(&db).await;
        let events = db.events(org, 3).await;
        eventually("it arrives", async || receiver.count() == 1).await;
        assert_eq!(receiver.received()[0].event_ids(), [events[1]], "{value}");
        let (status, event) = api.get(org, &format!("/events/{}", events[0])).await;
        assert_eq!((status, &event["content"]), (200, &json!("event 1")), "{value}");
        check_invariants(&db, &[&receiver]).await;
    }
}
