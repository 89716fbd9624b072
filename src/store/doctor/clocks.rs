//! Times that would be wrong: time zones of sessions, events of the future, clocks that differ.

use std::time::{Duration, UNIX_EPOCH};

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::{Finding, Weight, warning};
use crate::store::events::timed_events;
use crate::store::schema;

/// Clocks that differ by less than this are good enough.
const SKEW_WARNING: Duration = Duration::from_secs(5);
/// Receivers refuse signatures that are 5 minutes off; this leaves some for their own clocks.
const SKEW_FAULT: Duration = Duration::from_secs(240);

// Whose sessions would write local time with now(): a setting of the server, of this database, of a role.
const ZONES: &str = "WITH zone (what, name) AS (
        SELECT 'the server', reset_val FROM pg_settings WHERE name = 'TimeZone' AND source <> 'client'
        UNION ALL
        SELECT concat_ws(', ', 'database ' || d.datname, 'role ' || r.rolname), split_part(c, '=', 2)
        FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase
            LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
        WHERE lower(c) LIKE 'timezone=%' AND s.setdatabase IN (0, (SELECT oid FROM pg_database
            WHERE datname = current_database())))
    SELECT what, name FROM zone
    WHERE lower(name) NOT IN ('utc', 'etc/utc', 'gmt', 'etc/gmt', 'uct', 'etc/uct', 'zulu', 'etc/zulu',
        'universal',
        'etc/universal', 'greenwich', 'etc/greenwich', '0')";

const FUTURE: &str = concat!(
    "SELECT count(*) FROM (SELECT FROM ",
    timed_events!(),
    " WHERE o.created_at > timezone('UTC', clock_timestamp()) + interval '1 minute' LIMIT 1000) future"
);

const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8";

/// Looks at them.
pub(super) async fn examine(conn: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for row in schema::query(ZONES).fetch_all(&mut *conn).await? {
        let (what, zone): (&str, &str) = (row.get(0), row.get(1));
        findings.push(warning(
            format!("TimeZone of {what} is {zone}: now() writes local time where UTC is meant"),
            "set TimeZone to UTC there, or have the application write timezone('UTC', now())",
        ));
    }
    let future: i64 = schema::query(FUTURE).fetch_one(&mut *conn).await?.get(0);
    if future > 0 {
        let some = if future == 1000 { "at least 1000".into() } else { future.to_string() };
        findings.push(warning(
            format!("created_at of {some} events is in the future: somebody writes local time"),
            "set that role's TimeZone to UTC",
        ));
    }
    let shown: i64 = schema::query(CLOCK).fetch_one(&mut *conn).await?.get(0);
    let here = crate::clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let skew = here.abs_diff(Duration::from_millis(u64::try_from(shown).unwrap_or(0)));
    if skew >= SKEW_WARNING {
        let weight = if skew >= SKEW_FAULT { Weight::Fault } else { Weight::Warning };
        let what = format!("the clocks of this machine and of the database differ by {} s", skew.as_secs());
        let remedy = "synchronise both (NTP): receivers refuse signatures that are 5 minutes off".into();
        findings.push(Finding { weight, what, remedy });
    }
    Ok(findings)
}
