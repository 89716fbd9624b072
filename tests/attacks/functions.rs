//! A login that may do nothing but connect and make temporary tables tries to get at the rights of the
//! tables' owner through the functions that run with them; so does the application's own role.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row, raw_sql};

use crate::common::{Db, run};

const GRANTS_APPLICATION: &str = include_str!("../../examples/deploy/grants-application.sql");
const GRANTS: &str = include_str!("../../examples/deploy/grants.sql");

/// The trigger functions, with the name under which each sees the rows of its statement.
const TRIGGER_FUNCTIONS: [(&str, &str); 5] = [
    ("posthaste_fan_out", "posthaste_new"),
    ("posthaste_refuse_bad_filter", ""),
    ("posthaste_forget_state", ""),
    ("posthaste_destinations_changed", "posthaste_changed"),
    ("posthaste_settings_changed", "posthaste_changed"),
];

/// The functions that there are: names, and names with arguments.
async fn functions(db: &Db) -> Vec<(String, String)> {
    let sql = "SELECT proname::text, oid::regprocedure::text FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace ORDER BY 1";
    let rows = sqlx::query(sql).fetch_all(&db.pool).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn connect(url: &posthaste::model::Secret) -> PgConnection {
    PgConnection::connect(url.reveal()).await.unwrap()
}

async fn execute(session: &mut PgConnection, sql: &str) -> Result<(), String> {
    raw_sql(AssertSqlSafe(sql.to_owned())).execute(session).await.map(drop).map_err(|error| error.to_string())
}

/// A temporary table whose columns are of the attacker's own type, with casts that are the attacker's code.
const BAIT: &str = "
    CREATE TYPE pg_temp.lure AS (x text);
    CREATE FUNCTION pg_temp.sprung(pg_temp.lure) RETURNS uuid LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('attack.ran_as', current_user, false);
        RETURN gen_random_uuid();
    END $$;
    CREATE FUNCTION pg_temp.sprung_text(pg_temp.lure) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
        PERFORM set_config('attack.ran_as', current_user, false);
        RETURN 'x';
    END $$;
    CREATE CAST (pg_temp.lure AS uuid) WITH FUNCTION pg_temp.sprung(pg_temp.lure) AS IMPLICIT;
    CREATE CAST (pg_temp.lure AS text) WITH FUNCTION pg_temp.sprung_text(pg_temp.lure) AS IMPLICIT;
    CREATE TEMP TABLE bait (id pg_temp.lure, org_id pg_temp.lure, destination_id pg_temp.lure,
        name pg_temp.lure, enabled boolean, event_type pg_temp.lure, event_filter jsonb, event_types text[],
        payload jsonb)";

fn attach(function: &str, transition: &str) -> String {
    match transition {
        "" => format!(
            "CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON bait FOR EACH ROW EXECUTE FUNCTION
             public.{function}()"
        ),
        name => format!(
            "CREATE TRIGGER t AFTER INSERT ON bait REFERENCING NEW TABLE AS {name} FOR EACH STATEMENT
             EXECUTE FUNCTION public.{function}('notify')"
        ),
    }
}

const SPRING: [&str; 3] = [
    "INSERT INTO bait VALUES (ROW('x'), ROW('x'), ROW('x'), ROW('x'), true, ROW('x'), '{}', '{}', '{}')",
    "UPDATE bait SET enabled = false, event_filter = '{\"a\": 1}'",
    "DELETE FROM bait",
];

#[actix_rt::test]
async fn nobody_may_execute_a_function_but_those_who_are_told() {
    let db = Db::new().await;
    let functions = functions(&db).await;
    assert!(functions.len() >= 18, "{functions:?}");
    for grants in ["SELECT 1", GRANTS_APPLICATION] {
        let (role, _) = db.role(grants).await;
        for (name, signature) in &functions {
            let may = format!("SELECT has_function_privilege('{role}', '{signature}', 'EXECUTE')");
            assert_eq!(db.text(&may).await.unwrap(), "false", "{name}");
        }
        db.drop_role(&role).await;
    }
    // And who serves may not execute a trigger function: it could make a trigger of it.
    let (role, _) = db.role(GRANTS).await;
    let may = format!(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         AND prorettype = 'trigger'::regtype AND has_function_privilege('{role}', oid, 'EXECUTE')"
    );
    assert_eq!(db.number(&may).await, 0);
    db.drop_role(&role).await;
}

#[actix_rt::test]
async fn a_login_with_temporary_tables_only_cannot_attach_a_trigger_function() {
    let db = Db::new().await;
    for grants in ["SELECT 1", GRANTS_APPLICATION] {
        let (role, url) = db.role(grants).await;
        let mut attacker = connect(&url).await;
        execute(&mut attacker, BAIT).await.unwrap();
        for (function, transition) in TRIGGER_FUNCTIONS {
            let refused = execute(&mut attacker, &attach(function, transition)).await.unwrap_err();
            assert!(refused.contains("permission denied for function"), "{function}: {refused}");
        }
        attacker.close().await.unwrap();
        db.drop_role(&role).await;
    }
}

#[actix_rt::test]
async fn a_trigger_function_that_is_attached_elsewhere_refuses_before_it_looks_at_a_row() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x").insert().await;
    let state = format!("INSERT INTO posthaste_destination_state (destination_id) VALUES ('{destination}')");
    db.execute(&state).await;
    let (role, url) = db.role("SELECT 1").await;
    // Somebody was careless, or the function is older than the rule.
    let careless = format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role}");
    db.execute(&careless).await;
    for (function, transition) in TRIGGER_FUNCTIONS {
        let mut attacker = connect(&url).await;
        execute(&mut attacker, BAIT).await.unwrap();
        // Rows that are there before the trigger is.
        execute(&mut attacker, SPRING[0]).await.unwrap();
        execute(&mut attacker, "SELECT set_config('attack.ran_as', 'nobody', false)").await.unwrap();
        execute(&mut attacker, &attach(function, transition)).await.unwrap();
        let fires = if transition.is_empty() { &SPRING[..] } else { &SPRING[..1] };
        for spring in fires {
            let refused = execute(&mut attacker, spring).await.unwrap_err();
            assert!(refused.contains("is a trigger of") && refused.contains("only"), "{function}: {refused}");
        }
        let ran = raw_sql("SHOW attack.ran_as").fetch_one(&mut attacker).await.unwrap();
        assert_eq!(ran.get::<String, _>(0), "nobody", "{function}");
        attacker.close().await.unwrap();
    }
    assert_eq!(db.number("SELECT count(*) FROM posthaste_destination_state").await, 1);
    db.drop_role(&role).await;
}

#[actix_rt::test]
async fn an_overload_of_somebody_else_is_not_called() {
    let db = Db::new().await;
    let org = db.org().await;
    let filter = r#"{"$jsonpath": "$.event_type == \"a\""}"#;
    db.destination(org, "http://x").event_filter(filter).event_types("{a*}").insert().await;
    // Whoever may create in the schema makes functions that fit as well, for every type that is near.
    db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    let (role, url) = db.role("GRANT USAGE ON SCHEMA public TO :\"role\"").await;
    let mut attacker = connect(&url).await;
    for function in [
        "posthaste_holds(path varchar, data json)",
        "posthaste_holds(path text, data anyelement)",
        "posthaste_usable(orgs anyarray)",
        "posthaste_subscriptions(orgs anyarray, usable anyarray)",
        "posthaste_filter_cost(filter json)",
        "posthaste_path_fault(path varchar)",
        "posthaste_is_predicate(path text)",
        "posthaste_regex_fault(pattern varchar)",
        "posthaste_types_fault(types varchar[])",
        "posthaste_printed(payload json, most bigint)",
        "posthaste_data(id uuid, org_id uuid, employee_id uuid, session_id uuid, client_name varchar,
            client_version varchar, event_type varchar, event_category varchar, content text, payload jsonb,
            created_at timestamp)",
    ] {
        let sql = format!(
            "CREATE FUNCTION public.{function} RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'the attack ran as %', current_user; END $$"
        );
        execute(&mut attacker, &sql).await.unwrap_or_else(|error| panic!("{function}: {error}"));
    }
    db.event(org, "a", "{}").await;
    assert_eq!(db.deliveries("true").await, 1);
    db.destination(org, "http://y").event_filter(filter).event_types("{a*}").insert().await;
    let (code, said) = check(&db);
    assert_eq!(code, 1);
    for finding in ["everybody may create things in schema public", "is none of ours"] {
        assert!(said.contains(finding), "{finding}: {said}");
    }
    attacker.close().await.unwrap();
    db.drop_role(&role).await;
}

/// Exit code and output of `posthaste check`.
fn check(db: &Db) -> (i32, String) {
    let output = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[actix_rt::test]
async fn check_finds_every_way_into_the_owners_rights() {
    for (harm, finding) in [
        ("SELECT 1", ""),
        ("GRANT EXECUTE ON FUNCTION posthaste_fan_out() TO PUBLIC", "everybody may execute function"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", "everybody may create things in schema public"),
        ("GRANT EXECUTE ON FUNCTION posthaste_fan_out() TO pg_monitor", "pg_monitor may make a trigger of"),
        ("ALTER FUNCTION posthaste_forget_state() OWNER TO CURRENT_USER", "a superuser"),
        (
            "ALTER FUNCTION posthaste_fan_out() RESET search_path",
            "CREATE OR REPLACE FUNCTION public.posthaste_fan_out",
        ),
        (
            "ALTER FUNCTION posthaste_forget_state() SECURITY INVOKER",
            "FUNCTION public.posthaste_forget_state",
        ),
        (
            "CREATE TABLE other (id uuid, event_filter jsonb); CREATE TRIGGER other AFTER DELETE ON other
             FOR EACH ROW EXECUTE FUNCTION posthaste_forget_state()",
            "trigger other of public.other calls posthaste_forget_state",
        ),
    ] {
        let db = Db::new().await;
        raw_sql(harm).execute(&db.pool).await.unwrap();
        let (code, said) = check(&db);
        assert_eq!(code, i32::from(!finding.is_empty()), "{harm}: {said}");
        assert!(said.contains(finding), "{harm}: {said}");
    }
}

#[actix_rt::test]
async fn an_installation_of_before_loses_what_everybody_could_execute() {
    let db = Db::new().await;
    // As 0.1 left it: executable by everybody, and with a function that reads rows of any type.
    db.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC").await;
    raw_sql(
        "CREATE FUNCTION posthaste_holds(path text, event record) RETURNS boolean LANGUAGE plpgsql
         AS 'BEGIN RETURN false; END';
         DELETE FROM posthaste_migrations WHERE version = 8",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let said = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(said.status.success(), "{said:?}");
    for (name, signature) in functions(&db).await {
        let open = format!(
            "SELECT count(*) FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
             WHERE p.oid = '{signature}'::regprocedure AND a.grantee = 0"
        );
        assert_eq!(db.number(&open).await, 0, "{name}");
        assert_ne!(signature, "posthaste_holds(text,record)");
    }
    let again = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is up to date"), "{again:?}");
}

#[actix_rt::test]
async fn what_is_named_like_postgresql_s_own_is_not_called_by_migrate_check_or_serve() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://127.0.0.1:1/").insert().await;
    db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    db.execute("CREATE TABLE loot (who text)").await;
    db.execute("GRANT ALL ON loot TO PUBLIC").await;
    let (role, url) = db.role("SELECT 1").await;
    let mut attacker = connect(&url).await;
    for (name, arguments, call) in [
        (
            "has_schema_privilege",
            "a text, b oid, c text",
            "pg_catalog.has_schema_privilege($1::name, $2, $3)",
        ),
        ("unnest", "a uuid[]", "true"),
        ("format_type", "a oid, b int", "true"),
        ("to_regclass", "a varchar", "true"),
    ] {
        let sql = format!(
            "CREATE FUNCTION public.{name}({arguments}) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.loot VALUES (current_user); RETURN {call}; END $$"
        );
        execute(&mut attacker, &sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for arguments in [&["migrate", "--dry-run"][..], &["migrate"], &["check"]] {
        let output = run(arguments, &[("DATABASE_URL", db.url.reveal())]);
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("has_schema_privilege"), "{arguments:?}: {said}");
    }
    let mut posthaste = crate::common::Posthaste::serve(&db.url).await;
    db.event(org, "a", "{}").await;
    crate::common::eventually("it was tried", async || db.deliveries("attempts > 0").await > 0).await;
    assert!(posthaste.terminate().await.success());
    assert_eq!(db.number("SELECT count(*) FROM loot").await, 0);
    attacker.close().await.unwrap();
    db.drop_role(&role).await;
}

#[actix_rt::test]
async fn a_function_that_somebody_else_has_made_beforehand_is_not_adopted() {
    let db = Db::empty().await;
    db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await;
    let (role, url) = db.role("SELECT 1").await;
    let mut attacker = connect(&url).await;
    let sql = "CREATE FUNCTION public.posthaste_types_fault(types text[]) RETURNS text LANGUAGE sql AS
        'SELECT NULL::text'";
    execute(&mut attacker, sql).await.unwrap();
    let owner = db.role("GRANT CREATE, USAGE ON SCHEMA public TO :\"role\"").await;
    let output = run(&["migrate"], &[("DATABASE_URL", owner.1.reveal())]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("posthaste_types_fault") && said.contains(&role),
        "{said}"
    );
    attacker.close().await.unwrap();
    for role in [role, owner.0] {
        db.drop_role(&role).await;
    }
}

#[actix_rt::test]
async fn a_full_queue_of_notifications_fails_nobodys_insert() {
    let server = crate::common::Server::start();
    let db = server.db().await;
    let org = db.org().await;
    db.destination(org, "http://127.0.0.1:1/").insert().await;
    let mut listener = connect(&db.url).await;
    execute(&mut listener, "LISTEN c1").await.unwrap();
    execute(&mut listener, "BEGIN; SELECT 1").await.unwrap();
    let mut flood = connect(&db.url).await;
    // As far as half of it, from where on nothing of ours is told; filling the rest would take as long again.
    let some = "SELECT count(pg_notify('c' || i, repeat('x', 7990))) FROM generate_series(1, 8000) i";
    while db.number("SELECT (pg_notification_queue_usage() * 1000)::int").await < 500 {
        execute(&mut flood, some).await.unwrap();
    }
    let before = db.text("SELECT pg_notification_queue_usage()").await;
    db.event(org, "a", "{}").await;
    db.execute("UPDATE webhook_destinations SET name = 'other'").await;
    assert_eq!(db.text("SELECT pg_notification_queue_usage()").await, before, "nothing was told");
    assert_eq!(db.deliveries("true").await, 1);
    let (_, said) = check(&db);
    assert!(said.contains("queue of notifications"), "{said}");
}

#[actix_rt::test]
async fn migrate_as_a_superuser_warns() {
    let db = Db::empty().await;
    let said = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.contains("a superuser"), "{text}");
}
