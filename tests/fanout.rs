//! From event to delivery: the trigger, under everything that producers do.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Db, check_invariants};
use posthaste::policy::filter::{payload_wanted, type_wanted};
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

const EVENT: &str = "INSERT INTO activity_logs (org_id, event_type, event_category, payload)";

#[actix_rt::test]
async fn commit_queues_and_rollback_does_not() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x").insert().await;
    let mut transaction = db.pool.begin().await.unwrap();
    let insert = format!("{EVENT} VALUES ('{org}', 'a', 'c', '{{}}')");
    sqlx::query(AssertSqlSafe(insert.clone())).execute(&mut *transaction).await.unwrap();
    assert_eq!(db.deliveries("true").await, 0);
    transaction.rollback().await.unwrap();
    assert_eq!(db.deliveries("true").await, 0);
    db.execute(&insert).await;
    assert_eq!(db.deliveries("status = 'pending' AND attempts = 0").await, 1);
    check_invariants(&db, &[]).await;
}

#[actix_rt::test]
async fn only_enabled_destinations_of_the_same_organization_get_a_delivery() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let wanted = db.destination(org, "http://x").insert().await;
    db.destination(org, "http://x").with("enabled", false).insert().await;
    db.destination(other, "http://x").insert().await;
    db.event(org, "a", "{}").await;
    assert_eq!(db.deliveries(&format!("destination_id = '{wanted}'")).await, 1);
    assert_eq!(db.deliveries("true").await, 1);
}

#[actix_rt::test]
async fn the_order_of_a_statement_is_kept_and_statements_follow_each_other() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x").insert().await;
    let mut transaction = db.pool.begin().await.unwrap();
    for statement in 0..5 {
        let rows = if statement % 2 == 0 { 500 } else { 1 };
        let insert = format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category, content)
             SELECT '{org}', 'a', 'c', {statement} * 1000 + n FROM generate_series(1, {rows}) n"
        );
        sqlx::query(AssertSqlSafe(insert)).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let wrong = "SELECT count(*) FROM (
        SELECT e.content::int AS n, lag(e.content::int) OVER (ORDER BY w.created_at, w.id) AS previous
        FROM webhook_deliveries w JOIN activity_logs e ON e.id = w.log_id) o WHERE n < previous";
    assert_eq!(db.number(wrong).await, 0);
    assert_eq!(db.number("SELECT count(DISTINCT created_at) FROM webhook_deliveries").await, 1502);
    let now = "timezone('UTC', clock_timestamp())";
    assert_eq!(db.deliveries(&format!("created_at > {now} OR next_retry_at > {now}")).await, 0);
}

#[actix_rt::test]
async fn a_producer_needs_no_rights_and_its_settings_do_not_matter() {
    let db = Db::new().await;
    let org = db.org().await;
    let filter = r#"{"$jsonpath": "$.created_at starts with \"2025-12-23T16:02:19.890000Z\""}"#;
    db.destination(org, "http://x").event_types("{a_b*}").event_filter(filter).insert().await;
    let role = format!("producer_{}", Uuid::new_v4().simple());
    db.execute(&format!("CREATE ROLE {role}")).await;
    db.execute(&format!("GRANT INSERT ON activity_logs TO {role}")).await;
    let mut session = db.pool.acquire().await.unwrap();
    let hostile = format!(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT
        NULL::timestamptz';
         CREATE TABLE evil.webhook_destinations (); GRANT USAGE ON SCHEMA evil TO {role};
         SET ROLE {role}; SET search_path = evil, public, pg_catalog; SET TimeZone = 'Asia/Kolkata';
         SET standard_conforming_strings = off; SET DateStyle = 'SQL, DMY'; SET row_security = off;
         INSERT INTO public.activity_logs (org_id, event_type, event_category, created_at)
         VALUES ('{org}', 'a_bc', 'c', '2025-12-23 16:02:19.89'), ('{org}', 'axbc', 'c', '2025-12-23
         16:02:19.89');
         RESET ROLE"
    );
    sqlx::raw_sql(AssertSqlSafe(hostile)).execute(&mut *session).await.unwrap();
    drop(session.detach());
    let near = "next_retry_at BETWEEN timezone('UTC', now()) - interval '1 min' AND timezone('UTC', now())";
    assert_eq!(db.deliveries(near).await, 1);
    assert_eq!(db.deliveries("true").await, 1);
    db.execute(&format!("DROP OWNED BY {role}")).await;
    db.execute(&format!("DROP ROLE {role}")).await;
}

#[actix_rt::test]
async fn copy_and_many_rows_are_one_statement() {
    let db = Db::new().await;
    let org = db.org().await;
    for _ in 0..3 {
        db.destination(org, "http://x").insert().await;
    }
    let mut session = db.pool.acquire().await.unwrap();
    let copy = "COPY activity_logs (org_id, event_type, event_category) FROM STDIN";
    let mut sink = session.copy_in_raw(copy).await.unwrap();
    let rows = format!("{org}\ta\tc\n").repeat(10_000);
    sink.send(rows.as_bytes()).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 10_000);
    assert_eq!(db.deliveries("true").await, 30_000);
    // The clock was read once, and each event has its own microsecond.
    let length = "SELECT extract(microsecond FROM max(next_retry_at) - min(next_retry_at))::int
                  FROM webhook_deliveries";
    assert_eq!(db.number(length).await, 9_999);
}

#[actix_rt::test]
async fn a_destination_deleted_at_the_same_moment_does_not_hurt_the_producer() {
    let db = Db::new().await;
    let org = db.org().await;
    let stays = db.destination(org, "http://x").insert().await;
    let goes = db.destination(org, "http://x").insert().await;
    let mut deleter = db.pool.begin().await.unwrap();
    let delete = "DELETE FROM webhook_destinations WHERE id = $1";
    sqlx::query(delete).bind(goes).execute(&mut *deleter).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
        AND datname = current_database()";
    let commit = async {
        common::eventually("the producer waits", async || db.number(waits).await == 1).await;
        deleter.commit().await.unwrap();
    };
    tokio::join!(db.event(org, "a", "{}"), commit);
    assert_eq!(db.deliveries(&format!("destination_id = '{stays}'")).await, 1);
    assert_eq!(db.deliveries("true").await, 1);
}

#[actix_rt::test]
async fn an_application_that_inserts_its_own_deliveries_first_is_not_disturbed() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x").insert().await;
    db.execute(
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO webhook_deliveries (destination_id, log_id) SELECT d.id, NEW.id FROM
            webhook_destinations d;
            RETURN NULL; END $$",
    )
    .await;
    db.execute("CREATE TRIGGER a AFTER INSERT ON activity_logs FOR EACH ROW EXECUTE FUNCTION own()").await;
    db.event(org, "a", "{}").await;
    assert_eq!(
        db.deliveries(&format!("destination_id = '{destination}' AND next_retry_at IS NULL")).await,
        1
    );
    assert_eq!(db.deliveries("true").await, 1);
}

#[actix_rt::test]
async fn predicates_see_the_event_as_it_is_on_the_wire() {
    let db = Db::new().await;
    let org = db.org().await;
    let cases = [
        (r#"$.event_category == "test" && $.payload.amount > 100"#, true),
        (r#"$.payload.amount > 500"#, false),
        (r#"$.type == "a""#, false),
        (r#"$.event_type == "a" && $.employee_id == null && $.content == null"#, true),
        (r#"$.created_at like_regex "^2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9:]{8}[.][0-9]{6}Z$""#, true),
        (r#"$.created_at.datetime() > "2020-01-01T00:00:00Z".datetime()"#, false),
        (r#"exists($.payload.list[*] ? (@ == 2))"#, true),
        (r#"$.payload.nothing.double() > 1"#, false),
        (r#"strict $.payload.nothing == 1"#, false),
        (r#"$.payload.word.double() / 0 > 1"#, false),
    ];
    for (n, (path, _)) in cases.iter().enumerate() {
        let filter = json!({"$jsonpath": path}).to_string();
        db.destination(org, "http://x").name(&n.to_string()).event_filter(&filter).insert().await;
    }
    let both = json!({"amount": 101, "$jsonpath": "$.payload.amount > 100"}).to_string();
    db.destination(org, "http://x").name("both").event_filter(&both).insert().await;
    let neither = json!({"amount": 7, "$jsonpath": "$.payload.amount > 100"}).to_string();
    db.destination(org, "http://x").name("neither").event_filter(&neither).insert().await;
    db.event(org, "a", r#"{"amount": 101, "list": [1, 2], "word": "x"}"#).await;
    let rows = sqlx::query(
        "SELECT d.name FROM webhook_deliveries w JOIN webhook_destinations d ON d.id = destination_id",
    );
    let mut found: Vec<String> =
        rows.fetch_all(&db.pool).await.unwrap().iter().map(|row| row.get(0)).collect();
    let mut wanted: Vec<String> =
        cases.iter().enumerate().filter(|(_, case)| case.1).map(|(n, _)| n.to_string()).collect();
    wanted.push("both".into());
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[actix_rt::test]
async fn bad_filters_are_refused_when_they_are_written_and_harmless_when_they_are_older() {
    let db = Db::new().await;
    let org = db.org().await;
    let good = db.destination(org, "http://x").insert().await;
    let bad = [
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        (r#"{"$or": []}"#, "$or is unknown"),
        (r#"{"$jsonpath": 1}"#, "must be a string"),
        (r#"{"$jsonpath": "$.a ="}"#, "cannot be used"),
        (r#"{"$jsonpath": "$.payload.flag"}"#, "must be a predicate"),
        (r#"{"$jsonpath": "true"}"#, "must be a predicate"),
        (r#"{"$jsonpath": "$.a == $x"}"#, "cannot be used"),
    ];
    for (filter, reason) in bad {
        let message = db.refused(&format!("UPDATE webhook_destinations SET event_filter = '{filter}'")).await;
        assert!(message.contains(reason) && message.contains("event_filter"), "{filter}: {message}");
    }
    db.execute("ALTER TABLE webhook_destinations DISABLE TRIGGER posthaste_refuse_bad_filter").await;
    for (filter, _) in bad {
        db.destination(org, "http://x").event_filter(filter).insert().await;
    }
    db.execute("ALTER TABLE webhook_destinations ENABLE TRIGGER posthaste_refuse_bad_filter").await;
    db.event(org, "a", r#"{"flag": true, "$or": []}"#).await;
    assert_eq!(db.deliveries(&format!("destination_id = '{good}'")).await, 1);
    assert_eq!(db.deliveries("true").await, 1);
    // Everything but the filter can still be changed.
    db.execute("UPDATE webhook_destinations SET name = name || '!', event_filter = event_filter").await;
}

#[actix_rt::test]
async fn an_application_may_change_its_event_table_between_two_inserts_of_a_session() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x").event_filter(r#"{"$jsonpath": "$.session_id == null"}"#).insert().await;
    let mut session = db.pool.acquire().await.unwrap();
    let insert = format!("{EVENT} VALUES ('{org}', 'a', 'c', '{{}}')");
    for change in [
        "SELECT 1",
        "ALTER TABLE activity_logs ADD COLUMN region text DEFAULT 'eu'",
        "ALTER TABLE activity_logs DROP COLUMN session_id",
        "ALTER TABLE activity_logs DROP COLUMN region",
    ] {
        db.execute(change).await;
        sqlx::query(AssertSqlSafe(insert.clone())).persistent(false).execute(&mut *session).await.unwrap();
    }
    assert_eq!(db.deliveries("true").await, 4);
}

#[actix_rt::test]
async fn notifications_name_destinations_and_follow_changes() {
    let db = Db::new().await;
    let mut listener = sqlx::postgres::PgListener::connect(db.url.reveal()).await.unwrap();
    listener.listen_all(["posthaste_wake", "posthaste_config"]).await.unwrap();
    let org = db.org().await;
    let id = db.destination(org, "http://x").event_types("{a}").insert().await;
    let mut next = async || {
        let note = tokio::time::timeout(common::DEADLINE, listener.recv()).await.unwrap().unwrap();
        (note.channel().to_owned(), note.payload().to_owned())
    };
    assert_eq!(next().await, ("posthaste_config".into(), id.to_string()));
    db.event(org, "unwanted", "{}").await;
    db.event(org, "a", "{}").await;
    assert_eq!(next().await, ("posthaste_wake".into(), id.to_string()));
    db.execute(&format!("INSERT INTO posthaste_destination_settings (destination_id) VALUES ('{id}')")).await;
    assert_eq!(next().await, ("posthaste_config".into(), id.to_string()));
    let many = "INSERT INTO webhook_destinations (org_id, name, url)
        SELECT org_id, n::text, url FROM webhook_destinations, generate_series(1, 101) n";
    db.execute(many).await;
    assert_eq!(next().await, ("posthaste_config".into(), "*".into()));
    db.event(org, "a", "{}").await;
    assert_eq!(next().await, ("posthaste_wake".into(), "*".into()));
    db.execute(&format!("DELETE FROM webhook_destinations WHERE id = '{id}'")).await;
    assert_eq!(next().await, ("posthaste_config".into(), id.to_string()));
}

#[actix_rt::test]
async fn enabling_a_destination_clears_its_state_and_so_does_deleting_it() {
    let db = Db::new().await;
    let org = db.org().await;
    let id = db.destination(org, "http://x").with("enabled", false).insert().await;
    let state = "SELECT count(*) FROM posthaste_destination_state";
    let note = format!(
        "INSERT INTO posthaste_destination_state (destination_id, disabled_reason) VALUES ('{id}', 'x')"
    );
    db.execute(&note).await;
    db.execute("UPDATE webhook_destinations SET name = 'other'").await;
    assert_eq!(db.number(state).await, 1);
    db.execute("UPDATE webhook_destinations SET enabled = true").await;
    assert_eq!(db.number(state).await, 0);
    db.execute(&note).await;
    db.execute("UPDATE webhook_destinations SET enabled = true").await;
    assert_eq!(db.number(state).await, 1);
    db.execute("DELETE FROM webhook_destinations").await;
    assert_eq!(db.number(state).await, 0);
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "ab", "a_b", "a%b", "a\\b", "axb", "b", "é", "A"]).prop_map(String::from)
}

fn entry() -> impl Strategy<Value = String> {
    (word(), any::<bool>()).prop_map(|(word, star)| if star { format!("{word}*") } else { word })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (0..3i64).prop_map(Value::from),
        Just(json!(1.0)),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from), object(inner),]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    prop::collection::btree_map(prop::sample::select(vec!["k", "l", "m"]), inner, 0..3)
        .prop_map(|map| json!(map))
}

type Wants = (Option<Vec<String>>, Option<Value>);

fn wants() -> impl Strategy<Value = Vec<Wants>> {
    let types =
        prop::option::of(prop::collection::vec(prop_oneof![4 => entry(), 1 => Just("*".to_string())], 0..3));
    prop::collection::vec((types, prop::option::of(object(value()))), 1..12)
}

fn events() -> impl Strategy<Value = Vec<(String, Value)>> {
    prop::collection::vec((word(), prop_oneof![4 => object(value()), 1 => value()]), 1..12)
}

/// Puts the destinations and events into an organization of their own; the pairs that became deliveries.
async fn delivered(db: &Db, wants: &[Wants], events: &[(String, Value)]) -> Vec<(i32, i32)> {
    let org = db.org().await;
    for (n, (types, filter)) in wants.iter().enumerate() {
        let sql = "INSERT INTO webhook_destinations (org_id, name, url, event_types, event_filter)
            VALUES ($1, $2, 'http://x', $3, $4::jsonb)";
        let filter = filter.as_ref().map(Value::to_string);
        let insert = sqlx::query(sql).bind(org).bind(n.to_string()).bind(types).bind(filter);
        insert.execute(&db.pool).await.unwrap();
    }
    let (types, payloads): (Vec<&str>, Vec<String>) =
        events.iter().map(|(event_type, payload)| (event_type.as_str(), payload.to_string())).unzip();
    let sql = "INSERT INTO activity_logs (org_id, event_type, event_category, payload, content)
        SELECT $1, e.event_type, 'c', e.payload::jsonb, e.n - 1
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS e (event_type, payload, n)";
    sqlx::query(sql).bind(org).bind(types).bind(payloads).execute(&db.pool).await.unwrap();
    let sql = "SELECT d.name::int4, e.content::int4 FROM webhook_deliveries w
        JOIN webhook_destinations d ON d.id = w.destination_id JOIN activity_logs e ON e.id = w.log_id
        WHERE d.org_id = $1 ORDER BY 1, 2";
    let rows = sqlx::query(sql).bind(org).fetch_all(&db.pool).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn the_database_and_the_pure_matcher_agree() {
    let system = actix_rt::System::new();
    let db = system.block_on(Db::new());
    let config = ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(wants in wants(), events in events())| {
        let found = system.block_on(delivered(&db, &wants, &events));
        let mut expected = Vec::new();
        for (d, (types, filter)) in (0..).zip(&wants) {
            for (e, (event_type, payload)) in (0..).zip(&events) {
                if type_wanted(types.as_deref(), event_type) && payload_wanted(filter.as_ref(), payload) {
                    expected.push((d, e));
                }
            }
        }
        prop_assert_eq!(found, expected);
    });
    system.block_on(async { db.pool.acquire().await.unwrap().ping().await.unwrap() });
}
