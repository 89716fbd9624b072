//! Both sides beside each other: every row, and what a poll sees.

use std::collections::BTreeMap;

use posthaste::policy::keyring::KeyRing;
use posthaste::store::destinations;
use sqlx::Row as _;
use uuid::Uuid;

use crate::model::{Moment, Row, Status, Verdict};
use crate::ops::DESTINATIONS;
use crate::world::World;

/// How far the two clocks may be apart, in seconds: less than the model's moments are.
const TOLERANCE: f64 = 5.0;

const ROWS: &str = "
    WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now)
    SELECT id, status::text, attempts, delivered_at IS NOT NULL,
        extract(epoch FROM now - last_attempt_at)::float8, extract(epoch FROM now - next_retry_at)::float8,
        extract(epoch FROM now - created_at)::float8,
        coalesce(last_attempt_at > now - interval '45 s'
            AND (next_retry_at IS NULL OR last_attempt_at >= next_retry_at), false),
        (SELECT count(*) FROM posthaste_attempts h WHERE h.delivery_id = w.id)
    FROM webhook_deliveries w CROSS JOIN clock";

/// What a row looks like on one side.
#[derive(PartialEq, Debug)]
struct Look {
    status: &'static str,
    attempts: i32,
    delivered: bool,
    leased: bool,
    history: i64,
}

/// Compares everything that there is.
pub async fn compare(world: &mut World<'_>) -> Verdict {
    let now = world.model.now();
    let rows = sqlx::query(ROWS).fetch_all(&world.db.pool).await.unwrap();
    let count = world.model.rows.len();
    if rows.len() != count {
        return Err(format!("{} rows, {count} in the model", rows.len()));
    }
    for real in rows {
        let id: Uuid = real.get(0);
        let row = world.model.rows.iter().find(|row| row.id == id);
        compare_row(&real, row.ok_or(format!("{id} is not in the model"))?, now)?;
    }
    let kept = world.db.number("SELECT count(disabled_reason) FROM posthaste_destination_state").await;
    let expected = world.model.destinations.iter().filter(|destination| destination.reason).count();
    if kept != expected as i64 {
        return Err(format!("{kept} reasons are kept, {expected} in the model"));
    }
    compare_poll(world, now).await
}

fn compare_row(real: &sqlx::postgres::PgRow, row: &Row, now: Moment) -> Verdict {
    let status: String = real.get(1);
    let look = Look {
        status: match row.status {
            Status::Pending => "pending",
            Status::Failed => "failed",
            Status::Delivered => "delivered",
            Status::Dead => "dead",
        },
        attempts: row.attempts,
        delivered: row.status == Status::Delivered,
        leased: row.is_leased(now, None),
        history: row.history.len() as i64,
    };
    let is = Look {
        status: if status == look.status { look.status } else { "another one" },
        attempts: real.get(2),
        delivered: real.get(3),
        leased: real.get(7),
        history: real.get(8),
    };
    if is != look {
        return Err(format!("{is:?} (status {status}), in the model {row:?}: {look:?}"));
    }
    let times =
        [("last_attempt_at", row.last), ("next_retry_at", row.next), ("created_at", Some(row.created))];
    for (column, (name, moment)) in times.into_iter().enumerate() {
        let age: Option<f64> = real.get(4 + column);
        let expected = moment.map(|moment| (now.seconds - moment.seconds) as f64);
        let same = match (age, expected) {
            (Some(age), Some(expected)) => (age - expected).abs() < TOLERANCE,
            (age, expected) => age.is_none() && expected.is_none(),
        };
        if !same {
            return Err(format!("{name} was {age:?} s ago, in the model {expected:?}: {row:?}"));
        }
    }
    Ok(())
}

/// A poll sees the enabled destinations, and where something may be due; leases are not its concern.
async fn compare_poll(world: &World<'_>, now: Moment) -> Verdict {
    let seen = destinations::poll(&world.db.pool, &[]).await.unwrap();
    let seen: BTreeMap<Uuid, bool> = seen.iter().map(|seen| (seen.destination.0, seen.due)).collect();
    let expected: BTreeMap<Uuid, bool> = (0..DESTINATIONS)
        .filter(|of| !world.model.destinations[*of].disabled)
        .map(|of| (world.destinations[of], world.model.may_be_due(of, now)))
        .collect();
    let loaded = destinations::load_all(&world.db.pool, &KeyRing::default()).await.unwrap();
    let same = loaded.len() == expected.len()
        && loaded
            .iter()
            .all(|loaded| loaded.destination.as_ref().is_ok_and(|d| expected.contains_key(&d.id.0)));
    match same && seen == expected {
        true => Ok(()),
        false => Err(format!("a poll sees {seen:?}, {expected:?} is there")),
    }
}
