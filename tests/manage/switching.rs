//! Destinations switched off and on again, and how they do.

use std::time::Duration;

use posthaste::manage::Fault;
use posthaste::manage::destinations::{self, Disable, StatsView};
use posthaste::manage::jobs::{self, Backfill, Begun};
use posthaste::manage::patch::Patch;
use posthaste::model::{DestinationId, OrgId};
use serde_json::json;

use crate::common::{Db, check_invariants, eventually};
use crate::{Desk, OPERATOR, connection, good};

const URL: &str = "http://127.0.0.1:1/";
const COUNTING: Duration = Duration::from_secs(10);

#[tokio::test]
async fn enabling_counts_what_was_missed_and_a_backfill_from_there_queues_just_that() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    // From before the destination: not missed.
    db.execute(&format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, created_at)
         SELECT '{org}', 'test.event', 'test', timezone('UTC', now()) - interval '1 h'
         FROM generate_series(1, 7)"
    ))
    .await;
    let json = good(URL, json!({"event_types": ["test.*"]}));
    let id = desk.create(&mut conn, org.0, &json).await.unwrap().destination.id;
    let id = DestinationId(id);
    db.events(org.0, 3).await;
    let by_sql = format!("UPDATE webhook_destinations SET enabled = false WHERE id = '{id}'");
    for (turn, how) in ["by hand", "by an update", "by SQL"].into_iter().enumerate() {
        match turn {
            0 => {
                let reason = Patch::Value("moving".into());
                let disable = destinations::disable(&mut conn, org, OPERATOR, id, Disable { reason });
                let view = disable.await.unwrap();
                assert!(!view.enabled && view.disabled_at.is_some());
                assert_eq!(view.disabled_reason.as_deref(), Some("moving"));
            }
            1 => {
                desk.update(&mut conn, org, id, &json!({"enabled": false})).await.unwrap();
            }
            _ => assert_eq!(db.execute(&by_sql).await, 1),
        }
        db.events(org.0, 5).await;
        db.event(org.0, "other", "{}").await;
        let before = db.deliveries("true").await;
        let enabled = destinations::enable(&mut conn, org, OPERATOR, id, COUNTING).await.unwrap();
        assert!(enabled.destination.enabled && enabled.destination.disabled_reason.is_none());
        let missed = enabled.missed.unwrap();
        assert_eq!((missed.count, missed.complete), (5, true), "{how}");
        assert_eq!(db.deliveries("true").await, before, "it only offers");
        let again = destinations::enable(&mut conn, org, OPERATOR, id, COUNTING).await.unwrap();
        assert!(again.missed.is_none(), "it was enabled already");
        let asked = Backfill { from: Some(missed.from), ..Backfill::default() };
        let begun = jobs::backfill(&mut conn, org, id, &asked, COUNTING).await.unwrap();
        let Begun::Job(job) = begun else { panic!("{begun:?}") };
        crate::finish(&mut conn, job.id).await;
        assert_eq!(db.deliveries("true").await, before + 5, "{how}");
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn what_was_created_disabled_has_missed_everything_since_but_not_what_retention_has_deleted() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let created = desk.create(&mut conn, org.0, &good(URL, json!({"enabled": false}))).await.unwrap();
    let id = DestinationId(created.destination.id);
    db.events(org.0, 4).await;
    let enabled = destinations::enable(&mut conn, org, OPERATOR, id, COUNTING).await.unwrap();
    assert_eq!(enabled.missed.unwrap().count, 4);
    destinations::disable(&mut conn, org, OPERATOR, id, Disable::default()).await.unwrap();
    db.execute(&format!(
        "INSERT INTO posthaste_retention VALUES ('{id}', timezone('UTC', clock_timestamp()))"
    ))
    .await;
    db.events(org.0, 2).await;
    let missed = destinations::enable(&mut conn, org, OPERATOR, id, COUNTING).await.unwrap().missed.unwrap();
    assert_eq!(missed.count, 2);
    let asked = Backfill { from: Some(missed.from), ..Backfill::default() };
    let begun = jobs::backfill(&mut conn, org, id, &asked, COUNTING).await.unwrap();
    let Begun::Job(job) = begun else { panic!("{begun:?}") };
    crate::finish(&mut conn, job.id).await;
    assert_eq!(db.deliveries("true").await, 2);
    // What it got before it was disabled the second time was never backfilled.
    db.execute(&format!("UPDATE webhook_destinations SET enabled = false WHERE id = '{id}'")).await;
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn stats_tell_what_is_there_and_where_they_stopped_counting() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let id = DestinationId(db.destination(org.0, URL).insert().await);
    let mut conn = connection(&db).await;
    let stats = destinations::stats(&mut conn, org, OPERATOR, id, None).await.unwrap();
    let rates = |stats: &StatsView| [stats.last_15_minutes.success_rate, stats.last_24_hours.success_rate];
    assert_eq!((rates(&stats), stats.oldest_pending_age_seconds), ([None; 2], None));
    assert_eq!((stats.health.state, stats.health.text.as_str()), ("ok", "ok"));
    assert_eq!((stats.breaker, stats.enabled, stats.latency.is_none()), ("closed", true, true));
    db.events(org.0, 100).await;
    db.execute(
        "UPDATE webhook_deliveries w SET
            status = CASE WHEN n <= 60 THEN 'delivered' WHEN n <= 80 THEN 'dead' WHEN n <= 85 THEN 'failed'
                ELSE 'pending' END,
            -- a third of them longer ago
            delivered_at = CASE WHEN n <= 60 THEN timezone('UTC', now()) - n % 3 / 2 * interval '1 h' END,
            error_message = CASE WHEN n > 60 THEN 'x' END,
            created_at = created_at - interval '10 s'
         FROM (SELECT id, row_number() OVER (ORDER BY created_at) AS n FROM webhook_deliveries) o
         WHERE o.id = w.id",
    )
    .await;
    db.execute(&format!(
        "INSERT INTO posthaste_destination_state (destination_id, tripped_at, paused_until)
         VALUES ('{id}', timezone('UTC', now()), timezone('UTC', now()) + interval '1 h')"
    ))
    .await;
    let stats = destinations::stats(&mut conn, org, OPERATOR, id, None).await.unwrap();
    let counts = stats.deliveries;
    let all = [counts.pending, counts.failed, counts.delivered, counts.dead];
    assert_eq!(all.map(|count| count.count), [15, 5, 60, 20]);
    assert!(all.iter().all(|count| count.complete));
    assert_eq!(rates(&stats), [Some(1.0), Some(1.0)]);
    assert_eq!((stats.last_15_minutes.succeeded, stats.last_24_hours.succeeded), (40, 60));
    // Failed attempts of what is dead, failed, and pending.
    db.execute(
        "INSERT INTO posthaste_attempts (delivery_id, attempt, started_at, duration_ms, charged)
         SELECT id, 1, timezone('UTC', now()), 1, true FROM webhook_deliveries WHERE status <> 'delivered'",
    )
    .await;
    let stats = destinations::stats(&mut conn, org, OPERATOR, id, None).await.unwrap();
    assert_eq!((stats.last_15_minutes.failed, stats.last_24_hours.failed), (40, 40));
    assert_eq!(rates(&stats), [Some(0.5), Some(0.6)]);
    assert!(stats.health.text.starts_with("tripped since"), "{}", stats.health.text);
    assert!((10.0..600.0).contains(&stats.oldest_pending_age_seconds.unwrap()));
    assert!(stats.breaker == "tripped" && stats.tripped_at.is_some() && stats.paused_until.is_some());
    db.events(org.0, 10_050).await;
    let stats = destinations::stats(&mut conn, org, OPERATOR, id, None).await.unwrap();
    assert_eq!((stats.deliveries.pending.count, stats.deliveries.pending.complete), (10_000, false));
    check_invariants(&db, &[]).await;
}

/// Each claim of an ordered destination locks its row for a moment.
#[tokio::test]
async fn a_lock_of_a_moment_is_waited_for_and_a_longer_one_is_told() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let id = desk.create(&mut conn, org.0, &good(URL, json!({}))).await.unwrap().destination.id;
    let id = DestinationId(id);
    let lock = format!("SELECT FROM webhook_destinations WHERE id = '{id}' FOR NO KEY UPDATE");
    let mut transaction = db.pool.begin().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut *transaction).await.unwrap();
    let refused = destinations::disable(&mut conn, org, OPERATOR, id, Disable::default()).await.unwrap_err();
    assert!(matches!(&refused, Fault::Conflict(why) if why.contains("locked")), "{refused:?}");
    let disabling = destinations::disable(&mut conn, org, OPERATOR, id, Disable::default());
    let releasing = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("it waits", async || db.number(waiting).await > 0).await;
        transaction.rollback().await.unwrap();
    };
    let (disabled, ()) = tokio::join!(disabling, releasing);
    assert!(!disabled.unwrap().enabled);
}
