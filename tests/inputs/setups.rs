//! Databases and roles that are set up in their own way.

use posthaste::model::Secret;
use serde_json::{Value, json};

use crate::common::{Db, Posthaste, Receiver, check_invariants, migrate, request, run};
use crate::{ADMIN, Api};

/// Settings of a role that change what PostgreSQL prints, or what statements mean.
const SETTINGS: [&str; 10] = [
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "DateStyle = 'German, DMY'",
    "IntervalStyle = sql_standard",
    "bytea_output = escape",
    "extra_float_digits = -15",
    "search_path = nowhere",
    "default_transaction_isolation = serializable",
    "transform_null_equals = on",
    "array_nulls = off",
];

/// A role that is no superuser, to own the tables, and the URL for it.
async fn owner(db: &Db) -> (String, Secret) {
    let (role, url) = db.role("").await;
    db.execute(&format!("ALTER SCHEMA public OWNER TO {role}")).await;
    (role, url)
}

/// Removes it again; what it owned goes with the database.
async fn drop_owner(db: &Db, role: &str) {
    db.execute(&format!("REASSIGN OWNED BY {role} TO CURRENT_USER")).await;
    db.drop_role(role).await;
}

#[tokio::test]
async fn settings_of_a_role_change_nothing() {
    for settings in SETTINGS.iter().map(std::slice::from_ref).chain([&SETTINGS[..]]) {
        let (db, receiver) = (Db::empty().await, Receiver::start());
        let (role, url) = owner(&db).await;
        for setting in settings {
            db.execute(&format!("ALTER ROLE {role} SET {setting}")).await;
        }
        let environment = [("DATABASE_URL", url.reveal())];
        for _ in 0..2 {
            let out = run(&["migrate"], &environment);
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{settings:?}: {said}");
        }
        let out = run(&["migrate", "--dry-run"], &environment);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(!said.contains("CREATE") && !said.contains("ALTER"), "{settings:?}: {said}");
        let out = run(&["check"], &environment);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && !said.contains("missing"), "{settings:?}: {said}");
        let org = db.org().await;
        let path = r#"{"$jsonpath": "$.payload.n > 1 && $.created_at starts with \"20\""}"#;
        db.destination(org, receiver.url("/")).event_filter(path).insert().await;
        let program = Posthaste::serve(&url).await;
        // An application has the same settings.
        let insert = format!(
            "SET ROLE {role}; {}
             INSERT INTO public.activity_logs (org_id, event_type, event_category, payload)
             SELECT '{org}', 't', 'c', jsonb_build_object('n', n) FROM generate_series(1, 3) n; RESET ROLE",
            settings.iter().map(|setting| format!("SET LOCAL {setting};")).collect::<String>()
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(insert)).execute(&db.pool).await.unwrap();
        db.settled().await;
        assert_eq!(receiver.accepted().len(), 2, "{settings:?}");
        check_invariants(&db, &[&receiver]).await;
        drop(program);
        drop_owner(&db, &role).await;
    }
}

/// Nobody may execute what a role makes, unless it is granted.
#[tokio::test]
async fn grants_sql_is_enough_where_functions_belong_to_nobody() {
    let (db, receiver) = (Db::empty().await, Receiver::start());
    let (owner, as_owner) = owner(&db).await;
    let revoke = "ALTER DEFAULT PRIVILEGES FOR ROLE";
    db.execute(&format!("{revoke} {owner} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")).await;
    migrate(&as_owner).await;
    let grants = concat!(
        include_str!("../../examples/deploy/grants.sql"),
        include_str!("../../examples/deploy/grants-management.sql")
    );
    let (role, url) = db.role(grants).await;
    let (application, as_application) =
        db.role(include_str!("../../examples/deploy/grants-application.sql")).await;
    let org = db.org().await;
    db.events(org, 3).await;
    let out = run(&["check"], &[("DATABASE_URL", url.reveal())]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let program = Posthaste::serve_with(&url, &[("POSTHASTE_ADMIN_TOKEN", ADMIN)]).await;
    let api = Api(program);
    let filter = json!({"kind": "x", "$jsonpath": "$.payload.n > 1"});
    let new = json!({"name": "a", "url": receiver.url("/"), "event_filter": filter});
    let (status, created) = api.ask("POST", org, "/destinations", new).await;
    assert_eq!(status, 201, "{created}");
    let path = format!("/destinations/{}", created["id"].as_str().unwrap());
    let (status, body) = api.ask("PATCH", org, &path, json!({"event_filter": {"n": 2}})).await;
    assert_eq!(status, 200, "{body}");
    let job = api.job(org, &format!("{path}/backfill"), json!({"from": "2020-01-01"})).await;
    assert_eq!(job["queued"], 1);
    // The application writes a filter of its own, and an event.
    let pool = sqlx::PgPool::connect(as_application.reveal()).await.unwrap();
    for sql in [
        "UPDATE public.webhook_destinations SET event_filter = '{\"$jsonpath\": \"$.payload.n == 9\"}'",
        "INSERT INTO public.activity_logs (org_id, event_type, event_category, payload)
            SELECT org_id, 't', 'c', '{\"n\": 9}' FROM public.webhook_destinations",
    ] {
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    pool.close().await;
    db.settled().await;
    assert_eq!(receiver.accepted().len(), 2);
    drop(api);
    for role in [role, application] {
        db.drop_role(&role).await;
    }
    drop_owner(&db, &owner).await;
}

/// A right that is missing is blamed on the file that grants it; the lines of PostgreSQL's own source are
/// nobody's business.
#[tokio::test]
async fn what_the_database_says_is_told_without_the_lines_of_its_source() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (role, url) = db.role(include_str!("../../examples/deploy/grants.sql")).await;
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    db.execute(&format!("REVOKE SELECT ON posthaste_jobs FROM {role}")).await;
    let program = Posthaste::serve_with(&url, &[("POSTHASTE_ADMIN_TOKEN", ADMIN)]).await;
    let address = program.address().unwrap();
    let bearer = format!("Bearer {ADMIN}");
    let headers = [("authorization", bearer.as_str())];
    let path = format!("/api/v1/orgs/{org}/jobs");
    let (status, _, body) = request(address, "GET", &path, &headers, b"").await.unwrap();
    assert_eq!(status, 403, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(body["detail"].as_str().unwrap().contains("grants.sql"), "{body}");
    let org_text = org.to_string();
    let out = run(&["jobs", "list", "--org", &org_text], &[("DATABASE_URL", url.reveal())]);
    let said = [program.log(), String::from_utf8_lossy(&out.stderr).into_owned()];
    for said in said {
        assert!(said.contains("permission denied for table posthaste_jobs"), "{said}");
        assert!(!said.contains(" at line ") && !said.contains("returned from database"), "{said}");
    }
    drop(program);
    db.drop_role(&role).await;
}
