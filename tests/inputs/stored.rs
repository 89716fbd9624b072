//! Results that a database does not take as they are: they are stored as it takes them.

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, migrate, run};

/// 4 KB in which nothing repeats itself, so that nothing is compressed.
fn noise() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(4_096).collect()
}

#[tokio::test]
async fn an_answer_that_the_database_does_not_take_is_stored_in_simpler_words() {
    let with = |change: &'static str, body: String, stored: &'static str| (change, body, stored);
    for (change, body, stored) in [
        with(
            "ALTER TABLE webhook_deliveries ADD CHECK (char_length(response_body) <= 100)",
            noise(),
            "char_length(response_body) = 100",
        ),
        with(
            "ALTER TABLE webhook_deliveries ADD CHECK (response_body !~ '[^ -~]')",
            "gr\u{fc}n \u{2713}".into(),
            "response_body = 'gr?n ?'",
        ),
        with(
            "CREATE INDEX ON webhook_deliveries (response_body)",
            noise(),
            "char_length(response_body) = 2000",
        ),
        with(
            "ALTER TABLE webhook_deliveries ADD CHECK (response_body IS NULL)",
            "ok".into(),
            "response_body IS NULL",
        ),
    ] {
        let db = Db::new().await;
        db.execute(change).await;
        delivers(&db, body, stored).await;
    }
}

/// One event for a receiver that answers so, and one for one that refuses with the same.
async fn delivers(db: &Db, body: String, stored: &str) {
    let (accepts, refuses) =
        (Receiver::with(Reply::body(200, body.clone())), Receiver::with(Reply::body(400, body)));
    let org = db.org().await;
    db.destination(org, accepts.url("/")).insert().await;
    db.destination(org, refuses.url("/")).retry(0, 100).insert().await;
    let program = Posthaste::serve(&db.url).await;
    db.events(org, 20).await;
    db.settled().await;
    for (status, code) in [("delivered", 200), ("dead", 400)] {
        let so = format!("status = '{status}' AND response_status = {code} AND {stored}");
        assert_eq!(db.deliveries(&so).await, 20, "{stored}");
    }
    assert_eq!(accepts.count(), 20, "nothing is sent again");
    assert_eq!(db.number("SELECT count(*) FROM posthaste_faults").await, 0);
    assert!(!program.log().contains("growing intervals"), "{}", program.log());
    check_invariants(db, &[&accepts]).await;
}

#[tokio::test]
async fn a_character_that_the_encoding_of_the_database_lacks_is_replaced() {
    let db = Db::encoded("LATIN1").await;
    for _ in 0..2 {
        migrate(&db.url).await;
    }
    delivers(&db, "fine \u{2713}".into(), "response_body = 'fine ?'").await;
    // Nor is it told that the tables refuse what is written.
    let out = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!said.contains("LATIN1"), "{said}");
}

#[tokio::test]
async fn a_database_whose_texts_are_no_texts_is_refused() {
    let db = Db::encoded("SQL_ASCII").await;
    let out = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("SQL_ASCII") && said.contains("UTF8"), "{said}");
    assert_eq!(db.number("SELECT count(*) FROM pg_class WHERE relname LIKE 'posthaste%'").await, 0);
    let out = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("SQL_ASCII"), "{said}");
}
