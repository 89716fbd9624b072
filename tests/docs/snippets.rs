//! SQL on the pages, run on a real database.

use sqlx::AssertSqlSafe;

use crate::common::{Db, check_invariants};
use crate::page;

/// The SQL snippets of a page, in order.
fn sql(path: &str) -> Vec<String> {
    let blocks = page(path).blocks().into_iter().filter(|block| block.info == "sql");
    blocks.map(|block| block.text).collect()
}

async fn run(db: &Db, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn the_filter_that_is_shown_chooses_what_it_says() {
    let db = Db::new().await;
    let [filter] = sql("docs/schema.md").try_into().unwrap();
    let org = db.org().await;
    db.destination(org, "https://example.com/").name("billing").insert().await;
    run(&db, &filter).await;
    let event = |kind: &str, category: &str, payload: &str| {
        format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
             VALUES ('{org}', '{kind}', '{category}', '{payload}')"
        )
    };
    let wanted = r#"{"currency": "EUR", "amount": 101}"#;
    for (kind, category, payload) in [
        ("invoice.paid", "billing", wanted),
        ("payment.failed", "billing", wanted),
        ("payment.done", "billing", wanted),
        ("invoice.paid", "other", wanted),
        ("invoice.paid", "billing", r#"{"currency": "USD", "amount": 101}"#),
        ("invoice.paid", "billing", r#"{"currency": "EUR", "amount": 100}"#),
    ] {
        run(&db, &event(kind, category, payload)).await;
    }
    assert_eq!(db.deliveries("true").await, 2);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn uninstalling_leaves_the_application_s_tables_and_rows() {
    let db = Db::new().await;
    let [role, uninstall] = sql("docs/operations.md").try_into().unwrap();
    // Roles belong to the server: this one is not kept, and this server has one of that name.
    run(&db, &format!("BEGIN; {} ROLLBACK", role.replace("ROLE posthaste", "ROLE posthaste_too"))).await;
    let org = db.org().await;
    db.destination(org, "https://example.com/").insert().await;
    db.events(org, 3).await;
    assert_eq!(db.deliveries("true").await, 3);
    run(&db, &uninstall).await;
    db.events(org, 2).await;
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 5);
    assert_eq!(db.deliveries("true").await, 3);
    for (what, sql) in [
        ("tables", r"SELECT count(*) FROM pg_class WHERE relname LIKE 'posthaste\_%' AND relkind = 'r'"),
        ("functions", r"SELECT count(*) FROM pg_proc WHERE proname LIKE 'posthaste\_%'"),
        ("triggers", r"SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'posthaste\_%'"),
    ] {
        assert_eq!(db.number(sql).await, 0, "{what}");
    }
}
