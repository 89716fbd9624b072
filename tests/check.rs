//! `posthaste check`, and the least rights that `posthaste serve` needs.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Db, run};
use posthaste::store::doctor::{RowSecurity, row_security};
use sqlx::{AssertSqlSafe, Connection};

const GRANTS: &str = include_str!("../examples/deploy/grants.sql");

/// Exit code and output.
fn check(url: &str) -> (i32, String) {
    let output = run(&["check"], &[("DATABASE_URL", url)]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

/// A role with what grants.sql grants, and its URL.
async fn server_role(db: &Db) -> (String, String) {
    let (role, url) = db.role(GRANTS).await;
    (role, url.reveal().to_owned())
}

#[actix_rt::test]
async fn a_migrated_database_is_well_for_the_least_rights() {
    let db = Db::new().await;
    let (role, url) = server_role(&db).await;
    let (code, said) = check(&url);
    assert_eq!((code, said.contains("fault")), (0, false), "{said}");
    db.drop_role(&role).await;
}

#[actix_rt::test]
async fn the_least_rights_are_enough_for_what_serve_does_and_no_more() {
    let db = Db::new().await;
    let org = db.org().await;
    let id = db.destination(org, "http://x").insert().await;
    db.event(org, "a", "{}").await;
    let (role, url) = server_role(&db).await;
    let options = posthaste::store::options(&posthaste::model::Secret::new(url)).unwrap();
    let mut serve = posthaste::store::connect(&options).await.unwrap();
    assert_eq!(row_security(&mut serve).await.unwrap(), RowSecurity::Inactive);
    assert!(posthaste::store::migrate::pending(&mut serve).await.unwrap().is_empty());
    // What follows names no schema.
    sqlx::query("SET search_path = public").execute(&mut serve).await.unwrap();
    for allowed in [
        "UPDATE webhook_deliveries w SET last_attempt_at = now() FROM (SELECT d.id FROM webhook_deliveries d
            JOIN activity_logs e ON e.id = d.log_id WHERE d.status IN ('pending', 'failed') LIMIT 1
            FOR NO KEY UPDATE OF d SKIP LOCKED) c WHERE w.id = c.id"
            .to_string(),
        "SELECT FROM webhook_destinations d LEFT JOIN posthaste_destination_settings s ON
        s.destination_id = d.id
            FOR NO KEY UPDATE OF d"
            .into(),
        "UPDATE webhook_deliveries SET status = 'failed', attempts = attempts + 1, next_retry_at = now(),
            response_status = 500, response_body = 'x', error_message = 'y', delivered_at = NULL"
            .into(),
        "INSERT INTO posthaste_attempts SELECT id, 1, now(), 1, 500, NULL, 'x', true FROM
        webhook_deliveries"
            .into(),
        "DELETE FROM posthaste_attempts".into(),
        format!(
            "INSERT INTO posthaste_destination_state (destination_id, tripped_at) VALUES ('{id}', now())
            ON CONFLICT (destination_id) DO UPDATE SET tripped_at = excluded.tripped_at"
        ),
        "DELETE FROM posthaste_destination_state".into(),
        "UPDATE webhook_destinations SET enabled = false, updated_at = now()".into(),
        format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category) VALUES ('{org}',
        'webhook.x', 'webhook')"
        ),
        "LISTEN posthaste_wake".into(),
    ] {
        let done = sqlx::query(AssertSqlSafe(allowed.clone())).execute(&mut serve).await;
        done.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    for forbidden in [
        "UPDATE webhook_destinations SET url = 'http://y'",
        "DELETE FROM activity_logs",
        "UPDATE activity_logs SET content = 'x'",
        "INSERT INTO posthaste_migrations VALUES (9, 'x')",
        "UPDATE webhook_deliveries SET log_id = id",
        "CREATE TABLE mine ()",
    ] {
        let error = sqlx::query(forbidden).execute(&mut serve).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{forbidden}: {error}");
    }
    serve.close().await.unwrap();
    db.drop_role(&role).await;
}

#[actix_rt::test]
async fn every_fault_is_found_with_its_remedy() {
    let faults = [
        ("DELETE FROM posthaste_migrations", "run posthaste migrate"),
        ("DROP INDEX posthaste_deliveries_due", "posthaste_deliveries_due"),
        (
            "UPDATE pg_index SET indisvalid = false
             WHERE indexrelid = 'posthaste_deliveries_order'::regclass",
            "posthaste_deliveries_order",
        ),
        ("DROP TRIGGER posthaste_fan_out ON activity_logs", "CREATE TRIGGER posthaste_fan_out"),
        ("ALTER TABLE activity_logs DISABLE TRIGGER posthaste_fan_out", "posthaste_fan_out is switched off"),
        ("UPDATE webhook_destinations SET url = 'ftp://x'", "only http and https"),
        ("UPDATE webhook_destinations SET auth_type = 'bearer'", "needs the member \"token\""),
        (
            "ALTER TABLE webhook_destinations DISABLE TRIGGER USER; UPDATE webhook_destinations SET
        event_filter = '[]';
          ALTER TABLE webhook_destinations ENABLE TRIGGER USER",
            "must be a JSON object",
        ),
        ("ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY", "CREATE POLICY posthaste_serve"),
        ("REVOKE UPDATE (attempts) ON webhook_deliveries FROM ROLE", "GRANT UPDATE (attempts)"),
        (
            "ALTER TABLE webhook_deliveries ALTER next_retry_at TYPE timestamptz",
            "webhook_deliveries.next_retry_at is timestamp with time zone and should be",
        ),
        (
            "ALTER TABLE activity_logs ALTER payload DROP DEFAULT, ALTER payload TYPE json",
            "activity_logs.payload is json and should be jsonb",
        ),
        (
            "ALTER TABLE webhook_destinations ALTER batch_size TYPE bigint",
            "webhook_destinations.batch_size is bigint and should be integer",
        ),
        ("ALTER TABLE webhook_deliveries DROP COLUMN response_body", "ADD COLUMN response_body"),
        ("REVOKE SELECT ON posthaste_migrations FROM ROLE", "GRANT SELECT ON public.posthaste_migrations"),
    ];
    for (harm, remedy) in faults {
        let db = Db::new().await;
        let org = db.org().await;
        db.destination(org, "http://x").insert().await;
        let (role, url) = server_role(&db).await;
        sqlx::raw_sql(AssertSqlSafe(harm.replace("ROLE", &role))).execute(&db.pool).await.ok();
        let (code, said) = check(&url);
        assert!(code == 1 && said.contains(remedy), "{harm}: exit {code}\n{said}");
        db.drop_role(&role).await;
    }
}

#[actix_rt::test]
async fn what_is_merely_odd_is_a_warning() {
    let oddities = [
        ("ALTER TABLE activity_logs DROP COLUMN session_id CASCADE", "no column session_id"),
        (
            "INSERT INTO activity_logs (org_id, event_type, event_category, created_at)
          SELECT id, 'a', 'c', timezone('UTC', now()) + interval '3 h' FROM organizations",
            "is in the future",
        ),
        (
            "INSERT INTO posthaste_destination_settings (destination_id, batch_wait_ms)
          SELECT id, 100 FROM webhook_destinations",
            "batch_wait_ms has no effect",
        ),
        (
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Europe/Berlin''',
            current_database()); END $$",
            "is Europe/Berlin",
        ),
        (
            "INSERT INTO posthaste_destination_state
                (destination_id, tripped_at, failing_since, next_probe_at)
             SELECT id, now() - interval '1 h', now() - interval '2 h', now() + interval '1 d'
             FROM webhook_destinations",
            "is tripped since",
        ),
        (
            "INSERT INTO posthaste_destination_state (destination_id, disabled_at, disabled_reason)
             SELECT id, now(), 'the receiver answered 410' FROM webhook_destinations;
             UPDATE webhook_destinations SET enabled = false",
            "the receiver answered 410",
        ),
        (
            "INSERT INTO activity_logs (org_id, event_type, event_category) SELECT id, 'a', 'c'
             FROM organizations;
             UPDATE webhook_deliveries SET created_at = timezone('UTC', now()) - interval '2 h'",
            "has deliveries that wait since",
        ),
        (
            "INSERT INTO activity_logs (org_id, event_type, event_category) SELECT id, 'a', 'c'
             FROM organizations, generate_series(1, 3);
             UPDATE webhook_deliveries SET status = 'dead', last_attempt_at = timezone('UTC', now())",
            "has 3 deliveries that died in the last day",
        ),
    ];
    for (oddity, finding) in oddities {
        let db = Db::new().await;
        let org = db.org().await;
        db.destination(org, "http://x").insert().await;
        sqlx::raw_sql(oddity).execute(&db.pool).await.unwrap();
        let (code, said) = check(db.url.reveal());
        assert!(
            code == 0 && said.contains(finding) && said.contains("remedy"),
            "{oddity}: exit {code}\n{said}"
        );
    }
}

#[actix_rt::test]
async fn a_database_that_is_not_there_is_a_finding() {
    let (code, said) = check("postgres://nobody@127.0.0.1:1/nothing");
    assert!(code == 1 && said.contains("remedy"), "exit {code}\n{said}");
}

#[actix_rt::test]
async fn a_policy_that_lets_everything_through_is_recognised() {
    let db = Db::new().await;
    let (role, url) = server_role(&db).await;
    db.execute("ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY").await;
    let options = posthaste::store::options(&posthaste::model::Secret::new(url)).unwrap();
    let mut serve = posthaste::store::connect(&options.options([("row_security", "on")])).await.unwrap();
    let RowSecurity::Hiding(statements) = row_security(&mut serve).await.unwrap() else {
        panic!("not hiding")
    };
    db.execute(&statements[0]).await;
    assert_eq!(row_security(&mut serve).await.unwrap(), RowSecurity::Open);
    db.execute("CREATE POLICY less ON webhook_deliveries AS RESTRICTIVE USING (attempts = 0)").await;
    assert!(matches!(row_security(&mut serve).await.unwrap(), RowSecurity::Hiding(_)));
    serve.close().await.unwrap();
    db.drop_role(&role).await;
}
