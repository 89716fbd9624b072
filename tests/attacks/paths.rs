//! A tenant's filter must not make others wait, whatever it says: the form that is allowed bounds what it
//! costs.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::common::{Db, check_invariants, run};

/// What a path must not be, with a word of the reason.
const REFUSED: [(&str, &str); 62] = [
    ("exists($.** ? (exists($.** ? (exists($.** ? (@ == 1))))))", ".**"),
    ("$.**.a == 1", ".**"),
    ("$.**{2 to 5} == 1", ".**"),
    ("$.payload.a > $.payload.b", "with a literal"),
    ("$.payload.b < $.payload.a.size()", "with a literal"),
    ("(1 + $.a) > (1 + $.b)", "with a literal"),
    ("$.a < 1 && ($.b + 1 > $.c)", "with a literal"),
    ("!($.a[*] == $.a[*])", "with a literal"),
    ("($.a == $.b) is unknown", "with a literal"),
    ("exists($.a ? (@.x == @.y))", "with a literal"),
    ("$.x[0,0][0,0][0,0] == 1", "must not be a list"),
    ("$.x[0,1] == 1", "must not be a list"),
    ("$.x[$.i] == 1", "subscript"),
    ("exists($.x[*] ? (@[@.i] == 1))", "subscript"),
    ("$.x[0 to $.n] == 1", "subscript"),
    ("exists($.a ? (exists(@.b ? (@.c == 1))))", "must not contain exists"),
    ("exists($.a ? (exists(@.b)))", "must not contain exists"),
    ("exists($.a ? (@.b ? (@ == 1) == 1))", "another one"),
    ("exists($.a ? (@.x == 1) ? (@.y == 2))", "more than one filter"),
    ("$.a ? (@.x == 1).z == 3", "inside of exists only"),
    ("!($.a ? (@.x == 1) == 3)", "inside of exists only"),
    ("exists($.a ? ($.y == 1))", "not at $"),
    ("exists($.a[*] ? (@.x == 1 || $.y == 1))", "not at $"),
    ("$.a + $.b > 1", "two paths"),
    ("exists($.a + $.b)", "two paths"),
    ("exists($.a ? (@.x / 3 > 1))", "calculate in a filter"),
    ("exists($.a ? (1 - @ > 1))", "calculate in a filter"),
    ("$.payload.s like_regex \"(a+)\\\\1\"", "back-references"),
    ("$.payload.s like_regex \"a(?=.*b)\"", "look around"),
    ("$.payload.s like_regex \"a(?!b)\"", "look around"),
    ("$.payload.s like_regex \"(?<=a)b\"", "look around"),
    ("$.payload.s like_regex \"(a{20}){20}\"", "256"),
    ("$.payload.s like_regex \"(((a{0,7}){0,7}){0,7}){0,7}\"", "256"),
    ("$.payload.s like_regex \"a{200}[ab]{200}\"", "256"),
    // What is quoted must not hide what is not.
    ("$.payload.\" like_regex \"[*] like_regex \"^(.*)\\\\1x$\"", "back-references"),
    ("$.\"x like_regex \\\"a\\\" flag \\\"q\" like_regex \"(a)\\\\1\"", "back-references"),
    ("$.a == \"x like_regex \\\"\" && $.b like_regex \"(a)\\\\1\" flag \"i\"", "back-references"),
    ("$.a == \"\\\" && $.b == $.c && \\\"\" && $.d == $.e", "with a literal"),
    // What is about no path costs all the same.
    ("\"\" like_regex \"a?\"", "not one literal"),
    ("1 == 1", "not one literal"),
    ("\"a\" starts with \"a\"", "not one literal"),
    ("$.a == 1 && 2 > 1", "not one literal"),
    ("exists($.a[*] ? (\"\" like_regex \"a\"))", "not one literal"),
    // Making an automaton takes the fourth power of its optional parts.
    ("$.a like_regex \"(a?a?a?a?a?a?){99}\"", "too large"),
    ("$.a like_regex \"(\\\\w?\\\\w?){99}\"", "too large"),
    ("$.a like_regex \"(a?a?a?a?a?a?){\\u0039\\u0039}\"", "too large"),
    ("$.a /* \" */ like_regex \"(a?a?a?a?a?a?){99}\"", "comment"),
    // Each of them costs memory for each element.
    ("--$.payload.a[*] > 10", "a sign"),
    ("-$.payload.a > 1", "a sign"),
    ("+($.payload.a) > 1", "a sign"),
    ("exists($.a ? (-@ > 1))", "a sign"),
    // Nor must another syntax.
    ("$.a like_regex \"(?b)\\\\(a\\\\|b\\\\)*a.\\\\{255\\\\}\"", "begin with options"),
    ("$.a like_regex \"(?x)(a|b){ 200 }\"", "begin with options"),
    ("$.a like_regex \"***:(?x)a\"", "begin with options"),
    ("$.a like_regex \"(?i)a\"", "begin with options"),
    ("$.a.keyvalue().keyvalue().key == \"x\"", "more than once"),
    ("$.a == $x", "variables"),
    ("$.a starts with $x", "variables"),
    ("$.a == 1e99999", "written out"),
    ("$.a.b", "must be a predicate"),
    ("true", "must be a predicate"),
    ("$.a = 1", "cannot be used"),
];

/// What people need.
const ALLOWED: [&str; 22] = [
    "$.orders[*].items[*].price > 9",
    "exists($.list[*] ? (@.x > 1))",
    "$.s like_regex \"err.*timeout\"",
    "$.payload.\"a[*]\" == \"x\"",
    "$.\"a ? (exists ($.b == @[0,1].**\" == \"$.x == $.y && @[1,2] exists (\"",
    "$.event_category == \"security\" && $.payload.amount > 100 || !($.payload.test == true)",
    "$.payload.list[last - 1] == 1 && $.payload.list[0 to 5].x == null",
    "($.payload.a + 1) * 2 > -3.5",
    "$.payload.a like_regex \"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$\"",
    "($.payload.a == 1) is unknown",
    "$.event_type starts with \"invoice.\"",
    "strict $.payload.*.type() == \"number\"",
    "\"a\" == $.event_type",
    "exists($.payload.a.b)",
    "exists($.payload.a[*] ? (@.x == 1 && (@.y > 2 || !(@.z starts with \"q\"))).c[*])",
    "exists($.a[*] ? (@.tags[*] == \"vip\")) && exists($.b.* ? (@.k like_regex \"^[0-9]{1,3}$\" flag \"i\"))",
    "$.payload.keyvalue().key == \"x\"",
    "$.payload.ip like_regex \"^([0-9]{1,3}[.]){3}[0-9]{1,3}$\"",
    "$.payload.path like_regex \"^C:\\\\\\\\1\"",
    "$.payload.path like_regex \"\\\\1(?=\" flag \"q\"",
    "$.created_at.datetime() > \"2020-01-01\".datetime()",
    "$.a == 1 && $.b == 1 && $.c == 1 && $.d == 1 && $.e == 1 && $.f == 1 && $.g == 1 && $.h == 1",
];

async fn write(db: &Db, org: Uuid, name: &str, filter: &str) -> Result<(), String> {
    let sql = "INSERT INTO webhook_destinations (org_id, name, url, event_filter)
        VALUES ($1, $2, 'http://x', $3::jsonb)";
    let insert = sqlx::query(sql).bind(org).bind(name).bind(filter);
    insert.execute(&db.pool).await.map(drop).map_err(|error| error.to_string())
}

fn path(path: &str) -> String {
    json!({"$jsonpath": path}).to_string()
}

#[actix_rt::test]
async fn a_path_that_could_cost_more_than_the_event_is_long_is_refused_by_sql_and_by_the_api() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let key = crate::key(&posthaste, org, "write").await;
    for (n, (bad, reason)) in REFUSED.iter().enumerate() {
        let error = write(&db, org, &n.to_string(), &path(bad)).await.unwrap_err();
        assert!(error.contains(reason) && error.contains("event_filter"), "{bad}: {error}");
        let body =
            json!({"name": n.to_string(), "url": "http://127.0.0.1:1/", "event_filter": {"$jsonpath": bad}});
        let place = format!("/api/v1/orgs/{org}/destinations");
        let (status, answer) = crate::ask(&posthaste, &key, "POST", &place, &body.to_string()).await;
        assert!(status == 400 && answer.to_string().contains(reason), "{bad}: {status} {answer}");
    }
    // Four organizations: the paths of one are limited as well.
    for (n, good) in ALLOWED.iter().enumerate() {
        let org = if n % 6 == 0 { db.org().await } else { org };
        write(&db, org, &format!("good {n}"), &path(good))
            .await
            .unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    db.event(org, "a", "{}").await;
}

#[actix_rt::test]
async fn filters_and_lists_have_a_size() {
    let db = Db::new().await;
    let org = db.org().await;
    let long_path = format!("$.payload.a == \"{}\"", "x".repeat(1_020));
    let many_parts = format!("$.a{} == 1", "[*]".repeat(70));
    let nine = (0..9).map(|n| format!("$.a{n} == 1")).collect::<Vec<_>>().join(" && ");
    let deep = format!("{}{}{}", r#"{"a":"#.repeat(3_000), "1", "}".repeat(3_000));
    for (filter, reason) in [
        (path(&long_path), "1,024 characters"),
        (path(&many_parts), "too many parts"),
        (path(&nine), "9 paths"),
        (json!({"a": "x".repeat(8_192)}).to_string(), "8 KiB"),
        (deep, "8 KiB"),
        (r#"{"a": 1e131071}"#.to_string(), "8 KiB"),
        (json!({"a": vec![1; 17]}).to_string(), "17 elements"),
        (json!({"a": [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]}).to_string(), "18 elements"),
    ] {
        let error = write(&db, org, "bad", &filter).await.unwrap_err();
        assert!(error.contains(reason), "{filter}: {error}");
    }
    for (types, reason) in
        [(vec!["x".to_string(); 101], "101 entries"), (vec!["x".repeat(256)], "255 characters")]
    {
        let sql = "INSERT INTO webhook_destinations (org_id, name, url, event_types)
            VALUES ($1, 'x', 'http://x', $2)";
        let error = sqlx::query(sql).bind(org).bind(types).execute(&db.pool).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("event_types"), "{error}");
    }
    write(&db, org, "all", &json!({"a": vec![1; 16]}).to_string()).await.unwrap();
}

#[actix_rt::test]
async fn all_destinations_of_an_organization_share_what_filters_may_cost() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let eight = (0..8).map(|n| format!("$.payload.a{n} == 1")).collect::<Vec<_>>().join(" || ");
    for n in 0..8 {
        write(&db, org, &n.to_string(), &path(&eight)).await.unwrap();
    }
    let refused = write(&db, org, "9", &path("$.payload.a == 1")).await.unwrap_err();
    assert!(refused.contains("65 paths"), "{refused}");
    // Others, those without paths, and disabled ones are not concerned; until they are enabled.
    write(&db, other, "0", &path(&eight)).await.unwrap();
    write(&db, org, "plain", r#"{"a": 1}"#).await.unwrap();
    db.destination(org, "http://x")
        .name("off")
        .event_filter(&path(&eight))
        .with("enabled", false)
        .insert()
        .await;
    let refused = db.refused("UPDATE webhook_destinations SET enabled = true WHERE name = 'off'").await;
    assert!(refused.contains("72 paths"), "{refused}");
    // An array costs as well.
    for n in 0..16 {
        write(&db, other, &format!("array {n}"), &json!({"a": vec![1; 16]}).to_string()).await.unwrap();
    }
    let refused = write(&db, other, "one more", r#"{"a": [1]}"#).await.unwrap_err();
    assert!(refused.contains("257 elements"), "{refused}");

    // What is there all the same wants nothing, whoever came last, and is told.
    db.execute("ALTER TABLE webhook_destinations DISABLE TRIGGER posthaste_refuse_bad_filter").await;
    db.execute("UPDATE webhook_destinations SET enabled = true").await;
    db.execute("ALTER TABLE webhook_destinations ENABLE TRIGGER posthaste_refuse_bad_filter").await;
    // Those that cost nothing want what they wanted, wherever they stand.
    for id in [uuid::Uuid::nil(), uuid::Uuid::max()] {
        db.execute(&format!("UPDATE webhook_destinations SET id = '{id}' WHERE name = 'plain'")).await;
        let event = db.event(org, "a", r#"{"a0": 1, "a": 1}"#).await;
        let made = db.deliveries(&format!("log_id = '{event}'")).await;
        assert_eq!(made, 9, "eight with paths, and the plain one");
        db.execute("TRUNCATE webhook_deliveries CASCADE").await;
    }
    let said = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.code() == Some(1) && text.contains("more than 64 paths"), "{text}");
}

#[actix_rt::test]
async fn a_filter_that_was_written_past_the_trigger_matches_nothing_and_costs_nothing() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    db.destination(other, "http://x").insert().await;
    db.execute("ALTER TABLE webhook_destinations DISABLE TRIGGER posthaste_refuse_bad_filter").await;
    let mut nested = "@ == 1".to_string();
    for _ in 0..9 {
        nested = format!("exists($.** ? ({nested}))");
    }
    for (n, bad) in [nested.as_str(), REFUSED[3].0, REFUSED[10].0, REFUSED[34].0].iter().enumerate() {
        write(&db, org, &n.to_string(), &path(bad)).await.unwrap();
    }
    // One statement for both tenants: hours, if one of them were evaluated.
    let both = format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
         SELECT o, 'a', 'c', (SELECT jsonb_object_agg('k' || n, ARRAY[n, n]) FROM generate_series(1, 1000) n)
         FROM unnest('{{{org},{other}}}'::uuid[]) o"
    );
    db.execute(&both).await;
    assert_eq!(db.deliveries("true").await, 1);
}

#[actix_rt::test]
async fn adoption_stops_at_filters_that_would_match_nothing_until_it_is_told_to_go_on() {
    let db = Db::empty().await;
    posthaste_given_tables(&db).await;
    let org = db.org().await;
    for (name, filter) in [
        ("never good", r#"{"$or": []}"#.to_string()),
        ("fine", path("$.payload.a == 1")),
        ("beyond", path("$.payload.a == $.payload.b")),
    ] {
        write(&db, org, name, &filter).await.unwrap();
    }
    let long = format!("{{{}}}", (0..101).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
    db.destination(org, "http://x").name("many types").event_types(&long).insert().await;
    for arguments in [&["migrate"][..], &["migrate", "--dry-run"]] {
        let stopped = run(arguments, &[("DATABASE_URL", db.url.reveal())]);
        let text = String::from_utf8_lossy(&stopped.stderr);
        assert!(!stopped.status.success(), "{text}");
        for named in ["beyond", "with a literal", "many types", "101 entries", "--accept-unusable-filters"] {
            assert!(text.contains(named), "{named}: {text}");
        }
        assert!(!text.contains("never good") && !text.contains("fine"), "{text}");
        let ours = "SELECT count(*) FROM pg_class WHERE relname LIKE 'posthaste%'";
        assert_eq!(db.number(ours).await, 0, "nothing was changed");
        let ours = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'posthaste%'";
        assert_eq!(db.number(ours).await, 0, "nothing was changed");
    }
    let told = run(&["migrate", "--accept-unusable-filters"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(told.status.success(), "{told:?}");
    let again = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(again.status.success(), "{again:?}");
    db.event(org, "a", r#"{"a": 1, "b": 1}"#).await;
    assert_eq!(db.deliveries("true").await, 1);
}

/// The given tables as an application has them, without anything of ours.
async fn posthaste_given_tables(db: &Db) {
    sqlx::raw_sql(include_str!("../../migrations/0001_given_tables.sql")).execute(&db.pool).await.unwrap();
}

#[actix_rt::test]
async fn a_backfill_with_a_bad_filter_ends_and_others_go_on() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    db.execute("ALTER TABLE webhook_destinations DISABLE TRIGGER posthaste_refuse_bad_filter").await;
    write(&db, org, "bad", &path(REFUSED[0].0)).await.unwrap();
    write(&db, other, "good", "{}").await.unwrap();
    db.events(org, 50).await;
    db.events(other, 50).await;
    db.execute("DELETE FROM webhook_deliveries").await;
    let mut posthaste = crate::serve(&db).await;
    for org in [org, other] {
        let id =
            db.text(&format!("SELECT id FROM webhook_destinations WHERE org_id = '{org}'")).await.unwrap();
        let place = format!("/api/v1/orgs/{org}/destinations/{id}/backfill");
        let (status, answer) =
            crate::ask(&posthaste, crate::ADMIN, "POST", &place, r#"{"from": "2020-01-01T00:00:00Z"}"#).await;
        assert!(status < 300, "{status} {answer}");
    }
    crate::common::eventually("both jobs have ended", async || {
        db.number("SELECT count(*) FROM posthaste_jobs WHERE state = 'running'").await == 0
    })
    .await;
    assert_eq!(db.number("SELECT sum(queued)::int8 FROM posthaste_jobs").await, 50);
    assert_eq!(
        db.number(
            "SELECT count(*) FROM posthaste_jobs WHERE state = 'failed' AND error LIKE '%event_filter%'"
        )
        .await,
        1
    );
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

/// Payloads that are dear to look through, about so many bytes of JSON.
fn payloads(bytes: usize) -> Vec<(&'static str, String)> {
    let repeat = |item: &str| vec![item; bytes / (item.len() + 1)].join(",");
    // Without a pattern, by a linear congruential generator (Knuth's MMIX).
    let mut seed = 1_u64;
    let mut letter = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed >> 63 == 0 { 'a' } else { 'b' }
    };
    let letters: String = (0..bytes).map(|_| letter()).collect();
    vec![
        ("numbers", format!(r#"{{"a": [{}]}}"#, repeat("1"))),
        ("huge numbers", format!(r#"{{"a": [{}]}}"#, repeat("1e131071"))),
        ("dates", format!(r#"{{"a": [{}]}}"#, repeat(r#""2020-01-01T00:00:00""#))),
        ("objects", format!(r#"{{"a": [{}]}}"#, repeat(r#"{"x": 1, "y": "aaaaaaaab"}"#))),
        ("arrays", format!(r#"{{"a": [{}]}}"#, repeat("[[1],[2]]"))),
        ("letters", format!(r#"{{"a": "{letters}"}}"#)),
        ("words", format!(r#"{{"a": [{}]}}"#, repeat(r#""aabab""#))),
    ]
}

/// The dearest thing that one path can be made to do, of each kind; eight paths each where that is allowed.
fn dearest() -> Vec<String> {
    let some = |paths: usize, one: &str| vec![one; paths].join(" || ");
    let eight = |one: &str| some(8, one);
    vec![
        path(&eight("$.payload.a[*] == 2")),
        path(&eight("$.payload.*[*].* == 2")),
        path(&some(5, "$.payload.a[*][*][*][*][*] == 2")),
        path(&eight("$.payload.a[*].size() == 7")),
        path(&eight("$.payload.a[*].ceiling() == 2")),
        path(&eight("$.payload.a[*].double() == 2")),
        path(&some(6, "$.payload.a[*].datetime() == \"1999-01-01\".datetime()")),
        path(&eight("$.payload.a[*].type() == \"x\"")),
        path("exists($.payload.a.keyvalue() ? (@.value == \"x\"))"),
        path("exists($.payload.a[*].keyvalue() ? (@.value == \"x\"))"),
        path(
            "exists($.payload.a[*] ? (@.x == 2 || @.x == 3 || @.x == 4 || @.x == 5 || @.x == 6 || @.x == 7))",
        ),
        path("exists($.payload.a[*] ? (@[*] == 2 || @.* == 3 || @[*].* == 4 || @.y starts with \"b\"))"),
        path(&eight("$.payload.a[*] like_regex \"aaaaa[ab]{200}c\"")),
        path(&eight("$.payload.a like_regex \"(a|b)*a[ab]{100}c|b[ab]{100}a\"")),
        path(&eight("$.payload.a like_regex \"a(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)c\"")),
        json!({"a": (2..18).collect::<Vec<_>>()}).to_string(),
        json!({"a": [[[7]], [[8]], [[9]], [[6]]]}).to_string(),
        json!({"a": [{"x": 2}, {"x": 3}, {"x": 4}, {"x": 5}, {"x": 6}, {"y": 1}]}).to_string(),
    ]
}

/// Of the large events, only the pairs that were the dearest over small ones are tried, unless this is set.
const FULL: &str = "POSTHASTE_DEAREST_FULL";

/// No time is asserted: what is exponential does not end, and so fails the test.
#[actix_rt::test]
async fn the_dearest_filter_that_is_allowed_is_searched_for_and_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let is_full = std::env::var_os(FULL).is_some();
    let mut pairs: Vec<(usize, usize)> = (0..payloads(0).len())
        .flat_map(|kind| (0..dearest().len()).map(move |filter| (kind, filter)))
        .collect();
    for (size, bytes) in [("10 KB", 10_000), ("5 MiB", 5 << 20)] {
        let (events, filters) = (payloads(bytes), dearest());
        let mut found = Vec::new();
        for &(kind, filter) in &pairs {
            db.execute("DELETE FROM webhook_destinations").await;
            let base = time_of_insert(&db, org, &events[kind].1).await;
            write(&db, org, "one", &filters[filter])
                .await
                .unwrap_or_else(|error| panic!("{filter}: {error}"));
            let time = time_of_insert(&db, org, &events[kind].1).await.saturating_sub(base);
            found.push((time, kind, filter));
        }
        found.sort_by_key(|(time, ..)| std::cmp::Reverse(*time));
        for (time, kind, filter) in found.iter().take(6) {
            println!("{size} of {}: {time:?} by {:.100}", events[*kind].0, filters[*filter]);
        }
        if !is_full {
            pairs = found.iter().take(6).map(|(_, kind, filter)| (*kind, *filter)).collect();
        }
        // The dearest set of one organization: eight of the dearest, and the arrays beside them.
        if is_full || bytes < 1 << 20 {
            let (_, kind, filter) = found[0];
            db.execute("DELETE FROM webhook_destinations").await;
            for n in 0..24 {
                let arrays = json!({"a": (2..18).collect::<Vec<_>>()}).to_string();
                let filter = if n < 8 { &filters[filter] } else { &arrays };
                write(&db, org, &n.to_string(), filter).await.unwrap();
            }
            let time = time_of_insert(&db, org, &events[kind].1).await;
            println!("{size} of {}: {time:?} by the dearest set of one organization", events[kind].0);
        }
    }
}

async fn time_of_insert(db: &Db, org: Uuid, payload: &str) -> Duration {
    let began = Instant::now();
    let sql = "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
        VALUES ($1, 'a', 'c', $2::jsonb)";
    let insert = sqlx::query(AssertSqlSafe(sql)).bind(org).bind(payload);
    tokio::time::timeout(Duration::from_secs(120), insert.execute(&db.pool)).await.expect("it ends").unwrap();
    began.elapsed()
}
