//! Lists: what they show, in which order, and that they read little of large tables.

use std::collections::HashSet;

use posthaste::model::{DestinationId, OrgId, Status};
use posthaste::store::deliveries::list::{self, Filter, Listed};
use posthaste::store::destinations::stats;
use posthaste::store::page::{Page, Position};
use posthaste::store::{Connection, events};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use uuid::Uuid;

use crate::common::{Db, check_invariants, eventually};
use crate::{connection, time};

/// Rows of the table on which the plans are looked at: enough for a planner to have a choice.
const ROWS: i64 = 120_000;
/// Rows that a page may read, of any table: a thousandth of a large one, whatever its size.
const FEW: i64 = 20_000;

/// History: two destinations of one organization and one of another. Every 16th delivery is dead, every 32nd
/// failed, every 64th pending, the rest is delivered; the oldest tenth is of one status only, whichever it is
/// that the newest are not. One delivery a second from the beginning of 2026 on. Types: `common`, `seldom`
/// (every 100th), `rare` (the 3 oldest of each destination).
async fn history(db: &Db, rows: i64) -> (Uuid, [Uuid; 2]) {
    let (org, other) = (db.org().await, db.org().await);
    let mut destinations = Vec::new();
    for of in [org, org, other] {
        destinations.push(db.destination(of, "http://127.0.0.1/").insert().await);
    }
    let fill = format!(
        "INSERT INTO activity_logs (id, org_id, event_type, event_category, created_at)
         SELECT md5('event' || n)::uuid, CASE n % 3 WHEN 2 THEN '{other}' ELSE '{org}' END::uuid,
            CASE WHEN n < 9 THEN 'rare' WHEN n % 100 < 3 THEN 'seldom' ELSE 'common' END, 'test',
            '2026-01-01'::timestamp + n * interval '1 s'
         FROM generate_series(0, {rows} - 1) n;
         INSERT INTO webhook_deliveries (id, destination_id, log_id, status, attempts, created_at,
            next_retry_at, delivered_at, error_message)
         SELECT md5('delivery' || n)::uuid, ('{{{},{},{}}}'::uuid[])[n % 3 + 1], md5('event' || n)::uuid,
            status, 1, '2026-01-01'::timestamp + n * interval '1 s',
            CASE WHEN status IN ('pending', 'failed') THEN timestamp '2100-01-01' END,
            CASE WHEN status = 'delivered' THEN timestamp '2026-01-01' END,
            CASE WHEN status = 'dead' THEN 'it failed' END
         FROM generate_series(0, {rows} - 1) n, LATERAL (SELECT CASE WHEN n < {rows} / 10 THEN 'dead'
            WHEN n % 64 = 0 THEN 'pending' WHEN n % 32 = 0 THEN 'failed' WHEN n % 16 = 0 THEN 'dead'
            ELSE 'delivered' END AS status) s;",
        destinations[0], destinations[1], destinations[2]
    );
    let mut transaction = db.pool.begin().await.unwrap();
    // The rows are as the trigger and the foreign keys would have it.
    for sql in ["SET LOCAL session_replication_role = replica", &fill] {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    db.execute("ANALYZE").await;
    (org, [destinations[0], destinations[1]])
}

fn all(org: Uuid) -> Filter {
    let (destination, statuses, event_type) = (None, Vec::new(), None);
    Filter { org: OrgId(org), destination, statuses, event_type, from: None, to: None }
}

/// The filters that there are, alone and together.
fn filters(org: Uuid, destination: Uuid) -> Vec<(&'static str, Filter)> {
    let of = Some(DestinationId(destination));
    let typed = |event_type: &str| Some(event_type.to_owned());
    let (from, to) = (Some(time(3_000)), Some(time(3_500)));
    let mut filters = vec![
        ("all", all(org)),
        ("destination", Filter { destination: of, ..all(org) }),
        ("range", Filter { from, to, ..all(org) }),
        ("range of a destination", Filter { destination: of, from, to, ..all(org) }),
        ("common", Filter { event_type: typed("common"), ..all(org) }),
        ("seldom", Filter { event_type: typed("seldom"), ..all(org) }),
        ("rare", Filter { event_type: typed("rare"), ..all(org) }),
        ("none", Filter { event_type: typed("none"), ..all(org) }),
        ("seldom and dead", Filter { event_type: typed("seldom"), statuses: vec![Status::Dead], ..all(org) }),
        ("open", Filter { statuses: vec![Status::Pending, Status::Failed], ..all(org) }),
        ("settled", Filter { statuses: vec![Status::Delivered, Status::Dead], destination: of, ..all(org) }),
    ];
    for status in Status::ALL {
        filters.push((status.name(), Filter { statuses: vec![status], ..all(org) }));
        let statuses = vec![status];
        filters.push(("status of a destination", Filter { statuses, destination: of, ..all(org) }));
    }
    filters
}

/// The same by a query that reads everything.
async fn by_hand(db: &Db, filter: &Filter) -> Vec<Uuid> {
    let statuses: Vec<&str> = filter.statuses.iter().map(|status| status.name()).collect();
    let sql = "SELECT w.id FROM webhook_deliveries w JOIN webhook_destinations d ON d.id = w.destination_id
            JOIN activity_logs l ON l.id = w.log_id
        WHERE d.org_id = $1 AND ($2::uuid IS NULL OR d.id = $2) AND (cardinality($3) = 0 OR status = ANY ($3))
            AND ($4::text IS NULL OR event_type = $4) AND ($5::timestamp IS NULL OR w.created_at >= $5)
            AND ($6::timestamp IS NULL OR w.created_at < $6) ORDER BY w.created_at DESC, w.id DESC";
    let query = sqlx::query(sql)
        .bind(filter.org.0)
        .bind(filter.destination.map(|id| id.0))
        .bind(statuses)
        .bind(&filter.event_type)
        .bind(filter.from)
        .bind(filter.to);
    query.fetch_all(&db.pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn every_filter_shows_what_it_says_page_by_page_the_newest_first() {
    let db = Db::new().await;
    let (org, [destination, _]) = history(&db, 6_000).await;
    // Rows of one moment, as a statement of many events makes them, must neither repeat nor get lost.
    db.execute("UPDATE webhook_deliveries SET created_at = '2026-01-01 00:55' WHERE status = 'failed'").await;
    let mut conn = connection(&db).await;
    for (name, filter) in filters(org, destination) {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = list::list(&mut conn, &filter, before, 70).await.unwrap();
            assert!(page.items.len() <= 70, "{name}");
            found.extend(page.items.iter().map(|listed| listed.id.0));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        let expected = by_hand(&db, &filter).await;
        assert!(name == "none" || !expected.is_empty(), "{name}: the test shows nothing");
        assert_eq!(found, expected, "{name}");
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_list_does_not_shift_while_rows_arrive() {
    let db = Db::new().await;
    let (org, [destination, _]) = history(&db, 600).await;
    let mut conn = connection(&db).await;
    let expected = by_hand(&db, &all(org)).await;
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = list::list(&mut conn, &all(org), before, 50).await.unwrap();
        found.extend(page.items.iter().map(|listed| listed.id.0));
        db.events(org, 3).await;
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
    assert_eq!(db.deliveries(&format!("destination_id = '{destination}'")).await, 200 + 3 * 8);
}

/// Rows and scans so far, as PostgreSQL counts them: by sequential scans, and all that were read. The counts
/// of a session are complete when it has ended, so all but the one that asks end first.
async fn reads(db: &Db, observer: &mut Connection) -> [i64; 3] {
    eventually("the other sessions have ended", async || {
        while let Some(idle) = db.pool.try_acquire() {
            idle.close().await.unwrap();
        }
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        let others: i64 = sqlx::query_scalar(others).fetch_one(&mut *observer).await.unwrap();
        others == 0
    })
    .await;
    let sql = "SELECT coalesce(sum(seq_scan), 0)::int8,
            coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int8,
            (SELECT sum(idx_tup_read)::int8 FROM pg_stat_user_indexes)
        FROM pg_stat_user_tables WHERE relname IN ('webhook_deliveries', 'activity_logs')";
    let row = sqlx::query(sql).fetch_one(&mut *observer).await.unwrap();
    [row.get(0), row.get(1), row.get(2)]
}

/// What `read` reads on a connection of its own.
async fn cost<T>(db: &Db, read: impl AsyncFnOnce(&mut Connection) -> T) -> (T, [i64; 3]) {
    let mut observer = connection(db).await;
    let before = reads(db, &mut observer).await;
    let mut conn = connection(db).await;
    let found = read(&mut conn).await;
    conn.close().await.unwrap();
    let after = reads(db, &mut observer).await;
    (found, [0, 1, 2].map(|i| after[i] - before[i]))
}

#[tokio::test]
async fn no_list_scans_a_large_table() {
    let db = Db::new().await;
    let (org, [destination, _]) = history(&db, ROWS).await;
    let mut pages = Vec::new();
    for (name, filter) in filters(org, destination) {
        let first = async |conn: &mut Connection| list::list(conn, &filter, None, 50).await.unwrap();
        let (page, [scans, rows, entries]): (Page<Listed>, _) = cost(&db, first).await;
        assert_eq!(scans, 0, "{name}: sequential scans");
        assert!(rows.max(entries) < FEW, "{name}: {rows} rows, {entries} index entries were read");
        pages.push((name, filter.clone(), page));
        // And from the middle on.
        let middle = Position { at: time(ROWS / 2), id: Uuid::nil() };
        let later = async |conn: &mut Connection| list::list(conn, &filter, Some(middle), 50).await.unwrap();
        let (_, [scans, rows, entries]): (Page<Listed>, _) = cost(&db, later).await;
        assert_eq!(scans, 0, "{name}: sequential scans from the middle on");
        assert!(rows.max(entries) < FEW, "{name}: {rows} rows, {entries} index entries were read");
    }
    let event_types = [None, Some("common"), Some("seldom"), Some("rare"), Some("none")];
    for event_type in event_types.map(|name| name.map(str::to_owned)) {
        let filter = events::Filter { org: OrgId(org), event_type, from: None, to: None };
        let first = async |conn: &mut Connection| events::list(conn, &filter, None, 50).await.unwrap();
        let (page, [scans, rows, entries]) = cost(&db, first).await;
        assert_eq!(scans, 0, "{filter:?}: sequential scans");
        assert!(rows.max(entries) < FEW, "{filter:?}: {rows} rows, {entries} index entries were read");
        let ids: HashSet<_> = page.items.iter().map(|listed| listed.id).collect();
        let expected = match filter.event_type.as_deref() {
            Some("rare") => 6,
            Some("none") => 0,
            _ => 50,
        };
        assert_eq!(ids.len(), expected, "{filter:?}");
    }
    let stats = async |conn: &mut Connection| stats::read(conn, DestinationId(destination)).await.unwrap();
    let (found, [scans, rows, entries]) = cost(&db, stats).await;
    assert!(found.unwrap().counts[2].count == 10_000, "as far as it is counted");
    assert!(
        scans == 0 && rows.max(entries) < 3 * FEW,
        "stats: {scans} scans, {rows} rows, {entries} entries"
    );
    let mut conn = connection(&db).await;
    for (name, filter, page) in pages {
        let expected = by_hand(&db, &filter).await;
        let ids = |page: &Page<Listed>| page.items.iter().map(|listed| listed.id.0).collect::<Vec<Uuid>>();
        let (mut found, mut next, mut pages) = (ids(&page), page.next, 1);
        while found.len() < 50 && next.is_some() {
            let page = list::list(&mut conn, &filter, next, 50).await.unwrap();
            found.extend(ids(&page));
            (next, pages) = (page.next, pages + 1);
        }
        assert_eq!(found, expected[..found.len()], "{name}");
        assert!(found.len() >= expected.len().min(50), "{name}: {} of {}", found.len(), expected.len());
        // Only what has no index takes more than one page: of what is looked at, a part is of use.
        let looked_through = filter.event_type.is_some() || filter.statuses == [Status::Pending];
        assert!(pages <= if looked_through { 10 } else { 1 }, "{name}: {pages} pages");
    }
}

#[tokio::test]
async fn an_organization_with_many_destinations_is_listed_from_its_newest_streams() {
    let db = Db::new().await;
    let org = db.org().await;
    for _ in 0..300 {
        db.destination(org, "http://127.0.0.1/").insert().await;
    }
    db.events(org, 40).await;
    db.execute(
        "UPDATE webhook_deliveries SET status = 'dead', error_message = 'it failed'
        WHERE get_byte(uuid_send(id), 0) % 3 = 0",
    )
    .await;
    db.execute("ANALYZE").await;
    let dead = Filter { statuses: vec![Status::Dead], ..all(org) };
    let typed = Filter { event_type: Some("test.event".into()), ..all(org) };
    let mut pages = Vec::new();
    for (name, filter) in [("all", all(org)), ("dead", dead), ("a type", typed)] {
        let first = async |conn: &mut Connection| list::list(conn, &filter, None, 50).await.unwrap();
        let (page, [_, rows, entries]) = cost(&db, first).await;
        assert!(rows.max(entries) < FEW, "{name}: {rows} rows, {entries} index entries were read");
        pages.push((name, filter, page));
    }
    for (name, filter, page) in pages {
        let found: Vec<Uuid> = page.items.iter().map(|listed| listed.id.0).collect();
        assert_eq!(found, by_hand(&db, &filter).await[..50], "{name}");
    }
}
