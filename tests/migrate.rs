//! `posthaste migrate` on an empty database, twice, at once, against locks, and where it must stop.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Db, check_invariants, eventually, run};
use posthaste::store::migrate::{MigrateError, Options, Report, migrate};
use sqlx::{AssertSqlSafe, Row};

const GIVEN: &str = include_str!("fixtures/given.txt");

/// Columns, constraints and indexes of the given tables, spelled as in the fixture.
const CATALOG: &str = "
    WITH given AS (SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relname IN ('webhook_deliveries', 'webhook_destinations', 'activity_logs'))
    SELECT format('column %s %s|%s|%s|%s', g.relname, a.attname, format_type(a.atttypid, a.atttypmod),
        pg_get_expr(d.adbin, d.adrelid), CASE WHEN a.attnotnull THEN 'not null' ELSE 'null' END)
    FROM given g JOIN pg_attribute a ON a.attrelid = g.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = g.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT format('constraint %s %s', k.conname, pg_get_constraintdef(k.oid))
    FROM given g JOIN pg_constraint k ON k.conrelid = g.oid
    UNION ALL
    SELECT format('index %s', pg_get_indexdef(x.indexrelid)) FROM given g JOIN pg_index x ON x.indrelid =
    g.oid
    WHERE x.indexrelid::regclass::text NOT LIKE 'posthaste%'";

async fn migrate_with(db: &Db, told: Options) -> Result<Report, MigrateError> {
    migrate(&posthaste::store::options(&db.url).unwrap(), told).await
}

async fn lines(db: &Db, sql: &'static str) -> Vec<String> {
    sqlx::query(sql).fetch_all(&db.pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Everything in the catalog that a migration could change.
async fn fingerprint(db: &Db) -> String {
    let sql = "SELECT concat_ws(E'\\n',
        (SELECT string_agg(c.relname || c.relkind::text || c.relfilenode, ',' ORDER BY c.relname) FROM
        pg_class c
            WHERE c.relnamespace = 'public'::regnamespace),
        (SELECT string_agg(f.oid || f.xmin::text || f.prosrc, ',' ORDER BY f.oid) FROM pg_proc f
            WHERE f.pronamespace = 'public'::regnamespace),
        (SELECT string_agg(t.oid || t.xmin::text || t.tgenabled::text, ',' ORDER BY t.oid) FROM pg_trigger t),
        (SELECT string_agg(k.oid || k.xmin::text || k.convalidated, ',' ORDER BY k.oid) FROM
        pg_constraint k))";
    db.text(sql).await.unwrap()
}

#[actix_rt::test]
async fn an_empty_database_gets_exactly_the_given_tables() {
    let db = Db::empty().await;
    migrate_with(&db, Options::default()).await.unwrap();
    let mut found = lines(&db, CATALOG).await;
    let mut given: Vec<&str> = GIVEN.lines().collect();
    found.sort();
    given.sort();
    for line in &given {
        assert!(found.iter().any(|f| f == line), "missing: {line}");
    }
    for line in &found {
        assert!(given.contains(&line.as_str()), "too much: {line}");
    }
    assert_eq!(found.len(), given.len());
    let stand_ins =
        "SELECT count(*) FROM information_schema.columns WHERE table_name IN ('organizations', 'employees')";
    assert_eq!(db.number(stand_ins).await, 11);
}

#[actix_rt::test]
async fn a_second_run_changes_nothing_and_a_dry_run_never_does() {
    let db = Db::empty().await;
    let told = Options { dry_run: true, ..Options::default() };
    let would = migrate_with(&db, told).await.unwrap();
    assert_eq!(
        db.number("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").await,
        0
    );
    let did = migrate_with(&db, Options::default()).await.unwrap();
    assert_eq!(would.statements, did.statements);
    assert!(did.statements.len() > 90);
    let before = fingerprint(&db).await;
    let again = migrate_with(&db, Options::default()).await.unwrap();
    assert_eq!(again.statements, [""; 0]);
    assert_eq!(fingerprint(&db).await, before);
}

#[actix_rt::test]
async fn what_a_dry_run_prints_is_sql_that_does_the_same() {
    let db = Db::empty().await;
    let url = db.url.reveal().to_owned();
    let output = run(&["migrate", "--dry-run"], &[("DATABASE_URL", &url)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    sqlx::raw_sql(AssertSqlSafe(printed)).execute(&db.pool).await.unwrap();
    assert_eq!(migrate_with(&db, Options::default()).await.unwrap().statements, [""; 0]);
}

#[actix_rt::test]
async fn many_migrators_at_once_do_it_once() {
    let db = Db::empty().await;
    let runs = (0..4).map(|_| migrate_with(&db, Options::default()));
    let mut counts: Vec<usize> = futures_util::future::join_all(runs)
        .await
        .into_iter()
        .map(|run| run.unwrap().statements.len())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts[..3], [0, 0, 0]);
    assert!(counts[3] > 90);
}

#[actix_rt::test]
async fn migrators_at_once_do_not_wait_for_each_other_inside_of_concurrent_index_builds() {
    let db = Db::new().await;
    for index in ["posthaste_deliveries_due", "posthaste_deliveries_order", "idx_activity_logs_client"] {
        db.execute(&format!("DROP INDEX {index}")).await;
    }
    let runs = (0..4).map(|_| migrate_with(&db, Options::default()));
    let all = tokio::time::timeout(Duration::from_secs(30), futures_util::future::join_all(runs));
    let counts: Vec<usize> =
        all.await.unwrap().into_iter().map(|run| run.unwrap().statements.len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 3, "{counts:?}");
}

#[actix_rt::test]
async fn a_lock_that_cannot_be_had_is_asked_for_again() {
    let db = Db::new().await;
    db.execute("DROP TRIGGER posthaste_fan_out ON activity_logs").await;
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE activity_logs IN ROW EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    let release = async {
        let waiting = "SELECT count(*) FROM pg_locks
            WHERE NOT granted AND relation = 'activity_logs'::regclass AND database =
                (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually("a try waits for the lock", async || db.number(waiting).await == 1).await;
        // A producer must get in between that and the next one.
        eventually("it has given up", async || db.number(waiting).await == 0).await;
        holder.rollback().await.unwrap();
    };
    let (report, ()) = tokio::join!(migrate_with(&db, Options::default()), release);
    assert_eq!(report.unwrap().statements.len(), 1);
    assert_eq!(db.number("SELECT count(*) FROM pg_trigger WHERE tgname = 'posthaste_fan_out'").await, 1);
}

#[actix_rt::test]
async fn an_index_whose_building_was_interrupted_is_built_anew() {
    let db = Db::new().await;
    let index = "'posthaste_deliveries_due'::regclass";
    db.execute(&format!("UPDATE pg_index SET indisvalid = false WHERE indexrelid = {index}")).await;
    let report = migrate_with(&db, Options::default()).await.unwrap();
    assert_eq!(report.statements.len(), 2, "{:?}", report.statements);
    assert_eq!(
        db.text(&format!("SELECT indisvalid FROM pg_index WHERE indexrelid = {index}")).await.unwrap(),
        "true"
    );
}

#[actix_rt::test]
async fn deliveries_that_exist_need_a_decision_which_is_remembered() {
    let db = Db::empty().await;
    db.execute(
        "CREATE TABLE webhook_deliveries (id uuid DEFAULT gen_random_uuid() NOT NULL PRIMARY KEY,
            destination_id uuid NOT NULL, log_id uuid NOT NULL)",
    )
    .await;
    db.execute(
        "CREATE TABLE webhook_destinations AS SELECT gen_random_uuid() AS id, 'n'::varchar(100) AS name,
        gen_random_uuid() AS org_id, 'http://x'::text AS url",
    )
    .await;
    db.execute(
        "CREATE TABLE activity_logs AS SELECT gen_random_uuid() AS id, org_id, 'e'::varchar(100)
    AS event_type
        FROM webhook_destinations",
    )
    .await;
    db.execute(
        "INSERT INTO webhook_deliveries SELECT gen_random_uuid(), d.id, e.id
        FROM webhook_destinations d, activity_logs e",
    )
    .await;
    let before = fingerprint(&db).await;
    let refused = migrate_with(&db, Options::default()).await.unwrap_err();
    assert!(matches!(refused, MigrateError::FanOutUndecided), "{refused}");
    assert_eq!(fingerprint(&db).await, before);

    let trigger = "SELECT count(*) FROM pg_trigger WHERE tgname = 'posthaste_fan_out'";
    let without = Options { fan_out: Some(false), ..Options::default() };
    migrate_with(&db, without).await.unwrap();
    assert_eq!(migrate_with(&db, Options::default()).await.unwrap().statements, [""; 0]);
    assert_eq!(db.number(trigger).await, 0);
    migrate_with(&db, Options { fan_out: Some(true), ..Options::default() }).await.unwrap();
    assert_eq!(db.number(trigger).await, 1);
    // Such an event table lacks nearly everything, and still its events become deliveries.
    db.execute(
        "INSERT INTO activity_logs SELECT gen_random_uuid(), org_id, 'later' FROM webhook_destinations",
    )
    .await;
    assert_eq!(db.deliveries("status = 'pending' AND next_retry_at IS NOT NULL").await, 1);
}

#[actix_rt::test]
async fn columns_of_another_type_stop_everything_and_are_listed_at_once() {
    let db = Db::empty().await;
    db.execute(
        "CREATE TABLE activity_logs (id bigint PRIMARY KEY, org_id uuid NOT NULL,
        event_type text, created_at timestamptz)",
    )
    .await;
    db.execute(
        "CREATE TABLE webhook_deliveries (id uuid PRIMARY KEY, destination_id uuid NOT NULL,
        log_id uuid NOT NULL, attempts bigint, tenant text NOT NULL)",
    )
    .await;
    db.execute("CREATE VIEW employees AS SELECT 1 AS id").await;
    let before = fingerprint(&db).await;
    let told = Options { fan_out: Some(true), ..Options::default() };
    let MigrateError::Faults(faults) = migrate_with(&db, told).await.unwrap_err() else {
        panic!("no faults")
    };
    for part in [
        "activity_logs.id is bigint",
        "activity_logs.created_at is timestamp with time zone",
        "webhook_deliveries.attempts is bigint",
        "webhook_deliveries.tenant must have a value",
        "employees has no id of type uuid",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(part)), "{part} is not in {faults:#?}");
    }
    assert_eq!(faults.len(), 5, "{faults:#?}");
    assert_eq!(fingerprint(&db).await, before);
}

#[actix_rt::test]
async fn events_partitioned_without_a_unique_id_are_refused() {
    let db = Db::empty().await;
    db.execute(
        "CREATE TABLE activity_logs (id uuid NOT NULL, org_id uuid NOT NULL, event_type
    varchar(100) NOT NULL,
        created_at timestamp NOT NULL, PRIMARY KEY (id, created_at)) PARTITION BY RANGE (created_at)",
    )
    .await;
    let refused = migrate_with(&db, Options::default()).await.unwrap_err().to_string();
    assert!(refused.contains("partitioned without a unique id"), "{refused}");
}

#[actix_rt::test]
async fn events_partitioned_by_id_are_adopted() {
    let db = Db::empty().await;
    db.execute(
        "CREATE TABLE activity_logs (id uuid PRIMARY KEY, org_id uuid NOT NULL,
        event_type varchar(100) NOT NULL, payload jsonb) PARTITION BY HASH (id)",
    )
    .await;
    for n in 0..2 {
        let part = format!("FOR VALUES WITH (MODULUS 2, REMAINDER {n})");
        db.execute(&format!("CREATE TABLE part{n} PARTITION OF activity_logs {part}")).await;
    }
    migrate_with(&db, Options::default()).await.unwrap();
    let org = db.org().await;
    db.destination(org, "http://x").insert().await;
    db.execute(&format!(
        "INSERT INTO activity_logs SELECT gen_random_uuid(), '{org}', 'e' FROM generate_series(1, 20)"
    ))
    .await;
    assert_eq!(db.deliveries("true").await, 20);
}

#[actix_rt::test]
async fn notifications_can_be_switched_off_and_on() {
    let db = Db::new().await;
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'posthaste%notify'";
    let quiet =
        "SELECT count(*) FROM pg_trigger WHERE pg_get_triggerdef(oid) LIKE '%posthaste_fan_out(''quiet'')%'";
    assert_eq!((db.number(triggers).await, db.number(quiet).await), (6, 0));
    migrate_with(&db, Options { notify: Some(false), ..Options::default() }).await.unwrap();
    assert_eq!((db.number(triggers).await, db.number(quiet).await), (0, 1));
    assert_eq!(migrate_with(&db, Options::default()).await.unwrap().statements, [""; 0]);
    migrate_with(&db, Options { notify: Some(true), ..Options::default() }).await.unwrap();
    assert_eq!((db.number(triggers).await, db.number(quiet).await), (6, 0));
}

#[actix_rt::test]
async fn a_newer_database_is_left_alone() {
    let db = Db::new().await;
    db.execute("INSERT INTO posthaste_migrations (version, name) VALUES (999, 'future')").await;
    let refused = migrate_with(&db, Options::default()).await.unwrap_err().to_string();
    assert!(refused.contains("newer posthaste"), "{refused}");
}

#[actix_rt::test]
async fn settings_that_make_no_sense_are_refused() {
    let db = Db::new().await;
    let org = db.org().await;
    let id = db.destination(org, "http://x").setting("ordered", "false").insert().await;
    for (column, bad) in [
        ("payload_format", "'xml'"),
        ("format_options", "'[]'"),
        ("rate_limit_per_second", "0"),
        ("rate_limit_per_second", "'NaN'"),
        ("rate_limit_per_second", "'Infinity'"),
        ("rate_limit_burst", "0"),
        ("max_in_flight", "0"),
        ("max_in_flight", "10001"),
        ("batch_wait_ms", "300001"),
        ("batch_max_events", "0"),
        ("batch_max_events", "10001"),
        ("batch_max_bytes", "1023"),
        ("batch_max_bytes", "67108865"),
        ("max_age_seconds", "0"),
        ("extra_headers", "'{\"a\": 1}'"),
        ("extra_headers", "'[]'"),
        ("signature_scheme", "'md5'"),
        ("signature_header", "E'x\\r\\ny'"),
        ("previous_signing_secret", "''"),
        ("tls_ca", "'x'"),
        ("previous_secret_expires_at", "'infinity'"),
        ("tls_client_key", "'x'"),
    ] {
        let set = format!(
            "UPDATE posthaste_destination_settings SET {column} = {bad} WHERE destination_id = '{id}'"
        );
        let message = db.refused(&set).await;
        assert!(message.contains("check constraint"), "{column} = {bad}: {message}");
    }
}

#[actix_rt::test]
async fn a_storage_parameter_that_differs_reaches_an_existing_installation() {
    let db = Db::new().await;
    db.execute("ALTER TABLE webhook_deliveries SET (fillfactor = 90, autovacuum_enabled = true)").await;
    let report = migrate_with(&db, Options::default()).await.unwrap();
    assert_eq!(report.statements, ["ALTER TABLE public.webhook_deliveries SET (fillfactor = 38)"]);
    let storage = "SELECT reloptions FROM pg_class WHERE oid = 'webhook_deliveries'::regclass";
    assert_eq!(db.text(storage).await.unwrap(), "{autovacuum_enabled=true,fillfactor=38}");
}

#[actix_rt::test]
async fn a_check_of_our_own_that_says_something_else_is_replaced_where_the_rows_obey() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x").setting("max_in_flight", 5).insert().await;
    let narrower = "ALTER TABLE posthaste_destination_settings
        DROP CONSTRAINT posthaste_destination_settings_max_in_flight_check,
        ADD CONSTRAINT posthaste_destination_settings_max_in_flight_check
        CHECK (max_in_flight BETWEEN 1 AND 9)";
    db.execute(narrower).await;
    let check = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("posthaste_destination_settings_max_in_flight_check"), "{said}");
    assert_eq!(migrate_with(&db, Options::default()).await.unwrap().statements.len(), 2);
    db.execute("UPDATE posthaste_destination_settings SET max_in_flight = 10").await;
    assert_eq!(migrate_with(&db, Options::default()).await.unwrap().statements, [""; 0]);

    let wider = narrower.replace("BETWEEN 1 AND 9", "< 20000");
    db.execute(&wider).await;
    db.execute("UPDATE posthaste_destination_settings SET max_in_flight = 15000").await;
    let report = migrate_with(&db, Options::default()).await.unwrap();
    assert_eq!(report.statements, [""; 0]);
    assert!(report.notices[0].contains("was left as it is"), "{:?}", report.notices);
}

#[actix_rt::test]
async fn a_missing_url_is_a_fault_of_the_configuration() {
    for command in ["migrate", "check"] {
        assert_eq!(run(&[command], &[]).status.code(), Some(2));
        assert_eq!(run(&[command], &[("DATABASE_URL", "mysql://x")]).status.code(), Some(2));
    }
}

/// The functions and triggers of 0.1 instead of the present ones.
async fn go_back_to_0_1(db: &Db) {
    let drop_all = "DO $$ DECLARE f regprocedure; BEGIN
        FOR f IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            AND proname LIKE 'posthaste\\_%'
        LOOP EXECUTE format('DROP FUNCTION IF EXISTS %s CASCADE', f); END LOOP; END $$;
        DELETE FROM posthaste_migrations WHERE version > 7;
        ALTER TABLE posthaste_jobs DROP COLUMN failures;
        SET check_function_bodies = off";
    sqlx::raw_sql(drop_all).execute(&db.pool).await.unwrap();
    let of_0_1 = format!("SET check_function_bodies = off; {}", include_str!("fixtures/functions_0_1.sql"));
    sqlx::raw_sql(sqlx::AssertSqlSafe(of_0_1)).execute(&db.pool).await.unwrap();
}

#[actix_rt::test]
async fn events_are_written_all_through_an_upgrade_from_0_1() {
    let db = Db::new().await;
    go_back_to_0_1(&db).await;
    let org = db.org().await;
    db.destination(org, "http://x").event_filter(r#"{"$jsonpath": "$.payload.n > 0"}"#).insert().await;
    // Somebody writes destinations, so that triggers cannot be replaced for a while.
    let mut writer = db.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE webhook_destinations IN ROW EXCLUSIVE MODE")
        .execute(&mut *writer)
        .await
        .unwrap();
    let url = db.url.clone();
    let upgrade = actix_rt::spawn(async move { common::migrate(&url).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
        AND datname = current_database() AND query LIKE '%TRIGGER%'";
    eventually("the upgrade waits", async || db.number(waits).await > 0).await;
    for _ in 0..50 {
        db.event(org, "a", r#"{"n": 1}"#).await;
    }
    assert!(!upgrade.is_finished());
    writer.commit().await.unwrap();
    upgrade.await.unwrap();
    for _ in 0..50 {
        db.event(org, "a", r#"{"n": 1}"#).await;
    }
    assert_eq!(db.deliveries("true").await, 100);
    let run = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(String::from_utf8_lossy(&run.stderr).contains("is up to date"), "{run:?}");
    check_invariants(&db, &[]).await;
}
