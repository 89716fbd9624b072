//! `examples/bridge.sql`: an application with tables of its own, and ids that are numbers.

use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::common::{Db, Posthaste, Receiver, check_invariants};

const BRIDGE: &str = include_str!("../../examples/bridge.sql");

const APPLICATION: &str = "
    CREATE TABLE tenants (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE audit_events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant_id bigint NOT NULL REFERENCES tenants, kind text NOT NULL, details jsonb,
        happened_at timestamptz DEFAULT now() NOT NULL);
    INSERT INTO tenants VALUES (9007199254740993, 'one')";

#[tokio::test]
async fn a_bridge_hands_over_what_an_application_writes_to_a_table_of_its_own() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    for script in [APPLICATION.to_owned(), BRIDGE.replace("\\set ON_ERROR_STOP on", "")] {
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&db.pool).await.unwrap();
    }
    let org = "SELECT bridge_uuid('tenant', 9007199254740993)";
    let org = db.text(org).await.unwrap().parse().unwrap();
    db.destination(org, receiver.url("/")).event_types("{invoice.*}").insert().await;
    // Whoever writes the application's events has no right on our tables.
    let grants = "GRANT INSERT, SELECT ON audit_events TO :\"role\"";
    let (role, url) = db.role(grants).await;
    let application = sqlx::PgPool::connect(url.reveal()).await.unwrap();
    let insert = "INSERT INTO public.audit_events (tenant_id, kind, details, happened_at) VALUES
        (9007199254740993, 'invoice.paid', '{\"amount\": 12}', '2026-01-31 13:00:00+01'),
        (9007199254740993, 'login', NULL, now()), (9007199254740993, 'invoice.sent', NULL, now())";
    sqlx::query(insert).execute(&application).await.unwrap();
    let mut rolled_back = application.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *rolled_back).await.unwrap();
    rolled_back.rollback().await.unwrap();
    application.close().await;
    // A tenant that is newer than the bridge.
    db.execute("INSERT INTO tenants VALUES (2, 'two')").await;
    db.execute("INSERT INTO audit_events (tenant_id, kind) VALUES (2, 'login')").await;
    let program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let mut received: Vec<_> = receiver.received().iter().map(|request| request.json()).collect();
    received.sort_by_key(|body| body["type"].to_string());
    assert_eq!(received.len(), 2, "{received:?}");
    let paid = &received[0];
    assert_eq!(paid["timestamp"], "2026-01-31T12:00:00.000000Z");
    let payload = json!({"amount": 12, "id": "1", "tenant_id": "9007199254740993"});
    assert_eq!((&paid["type"], &paid["data"]["payload"]), (&json!("invoice.paid"), &payload));
    assert_eq!(paid["data"]["org_id"], json!(org));
    assert_eq!(db.number("SELECT count(*) FROM organizations").await, 2);
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 4);
    check_invariants(&db, &[&receiver]).await;
    drop(program);
    db.drop_role(&role).await;
}

/// The function runs with its owner's rights.
#[tokio::test]
async fn the_function_of_a_bridge_serves_no_other_table() {
    let db = Db::new().await;
    for script in [APPLICATION.to_owned(), BRIDGE.replace("\\set ON_ERROR_STOP on", "")] {
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&db.pool).await.unwrap();
    }
    db.execute("CREATE TABLE mine (LIKE audit_events)").await;
    db.execute(
        "CREATE TRIGGER t AFTER INSERT ON mine REFERENCING NEW TABLE AS bridge_new
            FOR EACH STATEMENT EXECUTE FUNCTION bridge_events()",
    )
    .await;
    let insert = "INSERT INTO mine VALUES (1, 1, 'forged', '{}', now())";
    assert!(db.refused(insert).await.contains("audit_events only"));
    let executed = "SELECT count(*) FROM pg_proc p, aclexplode(p.proacl) a
        WHERE p.proname LIKE 'bridge%' AND a.grantee = 0";
    assert_eq!(db.number(executed).await, 0, "PUBLIC may execute nothing");
}
