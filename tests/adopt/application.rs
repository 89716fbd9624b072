//! Adopting the tables of a richer application, with rows and forced row-level security: nothing is dropped,
//! rewritten or renamed.

use crate::common::{Db, run};
use posthaste::model::Secret;
use posthaste::store::migrate::{Options, migrate, pending};
use sqlx::{AssertSqlSafe, Row};

use crate::{role, url_of};

const APPLICATION: &str = include_str!("../fixtures/application.sql");
const ORG: &str = "00000000-0000-0000-0000-000000000001";

/// Everything of the application's that must survive, as lines: what a table, index, constraint or policy is
/// called, where its rows are and what it says. The CHECK on auth_type is the one exception.
const PROPERTY: &str = "
    SELECT format('relation %s %s %s', relname, relkind, relfilenode) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')
    UNION ALL
    SELECT format('column %s %s %s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod),
    attnotnull)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
    UNION ALL
    SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM
    pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conname <> 'webhook_destinations_auth_type_check'
    UNION ALL
    SELECT format('policy %s %s %s', polrelid::regclass, polname, pg_get_expr(polqual, polrelid)) FROM
    pg_policy
    UNION ALL SELECT format('row %s', t) FROM activity_logs t
    UNION ALL SELECT format('row %s', t) FROM webhook_deliveries t
    UNION ALL SELECT format('row %s', t) FROM comments t";

/// An application's database, and the owner's way into it. The owner's role goes with it.
struct Adopted {
    db: Db,
    owner: String,
    url: Secret,
}

async fn application() -> Adopted {
    let db = Db::empty().await;
    let owner = role(&db, "owner").await;
    db.execute(&format!("ALTER SCHEMA public OWNER TO {owner}")).await;
    let script = format!("SET ROLE {owner}; {APPLICATION}; RESET ROLE");
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&db.pool).await.unwrap();
    let url = url_of(&db, &owner);
    Adopted { db, owner, url }
}

async fn lines(db: &Db, sql: &'static str) -> Vec<String> {
    sqlx::query(sql).fetch_all(&db.pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn adopt(app: &Adopted) {
    let told = Options { fan_out: Some(true), ..Options::default() };
    migrate(&posthaste::store::options(&app.url).unwrap(), told).await.unwrap();
}

#[actix_rt::test]
async fn nothing_of_the_application_is_dropped_rewritten_or_renamed() {
    let app = application().await;
    let before = lines(&app.db, PROPERTY).await;
    adopt(&app).await;
    let after = lines(&app.db, PROPERTY).await;
    for line in &before {
        assert!(after.contains(line), "gone or changed: {line}");
    }
    let again = migrate(&posthaste::store::options(&app.url).unwrap(), Options::default()).await.unwrap();
    assert_eq!(again.statements, [""; 0]);
}

#[actix_rt::test]
async fn what_is_missing_is_added_and_what_is_there_under_another_name_is_not() {
    let app = application().await;
    adopt(&app).await;
    let exists = async |sql: &str| app.db.number(&format!("SELECT count(*) FROM {sql}")).await;
    let column =
        "pg_attribute WHERE attrelid = 'webhook_destinations'::regclass AND attname = 'retry_backoff_ms'";
    assert_eq!(exists(column).await, 1);
    assert_eq!(
        exists("pg_constraint WHERE conname = 'webhook_deliveries_destination_id_log_id_key'").await,
        1
    );
    assert_eq!(
        exists("pg_constraint WHERE conname = 'webhook_deliveries_status_check' AND convalidated").await,
        1
    );
    assert_eq!(
        exists("pg_index WHERE indexrelid = 'posthaste_deliveries_due'::regclass AND indisvalid").await,
        1
    );
    // The same index, key and uniqueness under the application's names.
    assert_eq!(exists("pg_class WHERE relname = 'idx_activity_logs_event_type'").await, 0);
    assert_eq!(exists("pg_constraint WHERE conname LIKE 'webhook_destinations_org_id_name_key'").await, 0);
    assert_eq!(exists("pg_constraint WHERE conname = 'webhook_deliveries_destination_id_fkey'").await, 0);
    // The application's event table gets no column, its timeouts stay as wide as they were, and a key that
    // could fail its INSERTs is not added.
    assert_eq!(
        exists("pg_attribute WHERE attrelid = 'activity_logs'::regclass AND attname = 'session_id'").await,
        0
    );
    assert_eq!(exists("pg_constraint WHERE conname = 'activity_logs_employee_id_fkey'").await, 0);
    let timeouts = "pg_constraint WHERE conname = 'webhook_destinations_timeout_ms_check'
        AND pg_get_constraintdef(oid) LIKE '%60000%'";
    assert_eq!(exists(timeouts).await, 1);
}

#[actix_rt::test]
async fn the_check_on_auth_type_lets_oauth2_and_what_it_let_through_before() {
    let app = application().await;
    adopt(&app).await;
    for allowed in ["oauth2", "kerberos", "bearer"] {
        app.db.execute(&format!("UPDATE webhook_destinations SET auth_type = '{allowed}'")).await;
    }
    let message = app.db.refused("UPDATE webhook_destinations SET auth_type = 'basic'").await;
    assert!(message.contains("webhook_destinations_auth_type_check"), "{message}");
    let validated =
        "SELECT convalidated FROM pg_constraint WHERE conname = 'webhook_destinations_auth_type_check'";
    assert_eq!(app.db.text(validated).await.unwrap(), "true");
}

#[actix_rt::test]
async fn forced_row_level_security_neither_hides_destinations_nor_opens_them() {
    let app = application().await;
    adopt(&app).await;
    let producer = role(&app.db, "producer").await;
    app.db.execute(&format!("GRANT INSERT ON activity_logs TO {producer}")).await;
    app.db
        .execute(&format!(
            "CREATE POLICY all_tenants ON activity_logs FOR INSERT TO {producer} WITH CHECK (true)"
        ))
        .await;
    // It names no tenant, so that the tenant's policy would hide every destination from the trigger.
    let insert = format!(
        "SET ROLE {producer};
         INSERT INTO activity_logs (org_id, event_type, event_category) VALUES ('{ORG}', 'new', 'c');
         RESET ROLE"
    );
    sqlx::raw_sql(AssertSqlSafe(insert)).execute(&app.db.pool).await.unwrap();
    assert_eq!(app.db.deliveries("status = 'pending'").await, 1);
    // The owner, outside of the trigger, sees no more than the tenant's policy lets it see.
    let options = posthaste::store::options(&app.url).unwrap().options([("row_security", "on")]);
    let mut owner = posthaste::store::connect(&options).await.unwrap();
    sqlx::raw_sql("SET posthaste.fan_out = 'on'").execute(&mut owner).await.unwrap();
    let seen =
        sqlx::query("SELECT count(*) FROM public.webhook_destinations").fetch_one(&mut owner).await.unwrap();
    assert_eq!(seen.get::<i64, _>(0), 0);
    assert!(pending(&mut owner).await.unwrap().is_empty());
    drop(owner);
    assert!(!app.owner.is_empty());
    app.db.execute(&format!("DROP OWNED BY {producer}")).await;
    app.db.execute(&format!("DROP ROLE {producer}")).await;
}

#[actix_rt::test]
async fn rows_that_break_what_must_hold_stop_everything() {
    let app = application().await;
    app.db
        .execute(
            "INSERT INTO webhook_deliveries (destination_id, log_id) SELECT destination_id, log_id FROM
            webhook_deliveries",
        )
        .await;
    app.db.execute("ALTER TABLE webhook_deliveries NO FORCE ROW LEVEL SECURITY").await;
    let before = lines(&app.db, PROPERTY).await;
    let output = run(&["migrate", "--with-fan-out"], &[("DATABASE_URL", app.url.reveal())]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("same (destination_id, log_id)"), "{said}");
    assert_eq!(lines(&app.db, PROPERTY).await, before);
}
