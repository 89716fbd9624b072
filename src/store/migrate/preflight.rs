//! What adoption relies on beyond names and types, looked at before any change: what CHECKs say, what may be
//! NULL, what PostgreSQL works out itself, what must be unique. What cannot work comes with the statement
//! that mends it; the rest is lived with, and told.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::catalog::{Catalog, Column, Constraint};
use super::faults::has_unique;
use super::samples::{deliveries, destinations};
use super::script::columns_of;
use super::trial::{By, Refusal, Trial};
use crate::store::schema;

/// One thing that differs from the given tables and matters.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whether deliveries would be lost or never sent; otherwise it is lived with.
    pub stops: bool,
    /// What it is, and what it means.
    pub what: String,
    /// What mends it.
    pub remedy: String,
}

const DELIVERIES: &str = "webhook_deliveries";
const DESTINATIONS: &str = "webhook_destinations";
const EVENTS: &str = "activity_logs";

/// What the dispatcher writes; that of destinations by itself, the rest of them by the API only.
const WRITTEN_TO_DELIVERIES: [&str; 12] = [
    "id",
    "destination_id",
    "log_id",
    "status",
    "attempts",
    "last_attempt_at",
    "next_retry_at",
    "response_status",
    "response_body",
    "error_message",
    "created_at",
    "delivered_at",
];
const WRITTEN_TO_DESTINATIONS: [&str; 2] = ["enabled", "updated_at"];
const WRITTEN_BY_THE_API: [&str; 14] = [
    "id",
    "org_id",
    "name",
    "url",
    "auth_type",
    "auth_config",
    "event_types",
    "event_filter",
    "batch_size",
    "timeout_ms",
    "retry_max",
    "retry_backoff_ms",
    "signing_secret",
    "created_at",
];

/// What a NULL means where the given column has none. Without a word for it, it cannot be lived with.
const MEANINGS: [(&str, &str, &str); 19] = [
    (DESTINATIONS, "org_id", "is a destination of nobody, which gets nothing"),
    (DESTINATIONS, "name", "counts as an empty name"),
    (DESTINATIONS, "url", "counts as no URL: its deliveries fail"),
    (DESTINATIONS, "auth_type", "counts as 'none'"),
    (DESTINATIONS, "enabled", "counts as true: the destination gets events"),
    (DESTINATIONS, "batch_size", "counts as 1"),
    (DESTINATIONS, "timeout_ms", "counts as 5000"),
    (DESTINATIONS, "retry_max", "counts as 3"),
    (DESTINATIONS, "retry_backoff_ms", "counts as 1000"),
    (DESTINATIONS, "created_at", "counts as 1970"),
    (DESTINATIONS, "updated_at", "counts as 1970"),
    (DELIVERIES, "destination_id", "is a delivery to nobody, which is never sent"),
    (DELIVERIES, "attempts", "counts as 0"),
    (DELIVERIES, "created_at", "counts as the time of the claim; lists do not show such a delivery"),
    (EVENTS, "org_id", "is an event of nobody, which nobody gets"),
    (EVENTS, "event_type", "is sent as an empty text"),
    (EVENTS, "event_category", "is sent as null"),
    (EVENTS, "payload", "is sent as null"),
    (EVENTS, "created_at", "is sent as the delivery's; lists and backfills do not find such an event"),
];

/// Columns of timestamps on which leases and the order depend, to the microsecond.
const EXACT: [&str; 3] = ["last_attempt_at", "next_retry_at", "created_at"];

/// Defaults and CHECKs may call what an application has written: it must neither change anything nor go on
/// for ever, and it finds what it finds when the trigger and the dispatcher call it.
const CAREFULLY: &str = "SELECT current_setting('default_transaction_read_only'),
        current_setting('statement_timeout'), current_setting('search_path'),
        set_config('default_transaction_read_only', 'on', false),
        set_config('statement_timeout', '5s', false), set_config('search_path', 'pg_catalog', false)";

const AS_BEFORE: &str = "SELECT set_config('default_transaction_read_only', $1, false),
        set_config('statement_timeout', $2, false), set_config('search_path', $3, false)";

/// Looks at the tables that are there.
///
/// # Errors
/// Whatever the database says; the session's settings are others then.
pub async fn look(
    conn: &mut PgConnection,
    catalog: &Catalog,
    fan_out: bool,
) -> Result<Vec<Finding>, sqlx::Error> {
    let before = schema::query(CAREFULLY).fetch_one(&mut *conn).await?;
    let findings = find(conn, catalog, fan_out).await?;
    let [read_only, timeout, path]: [String; 3] = [before.get(0), before.get(1), before.get(2)];
    schema::query(AS_BEFORE).bind(read_only).bind(timeout).bind(path).execute(&mut *conn).await?;
    Ok(findings)
}

async fn find(
    conn: &mut PgConnection,
    catalog: &Catalog,
    fan_out: bool,
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    for table in [DELIVERIES, DESTINATIONS, EVENTS].into_iter().filter(|table| catalog.has_table(table)) {
        let trial = Trial::prepare(conn, table).await?;
        nulls(conn, catalog, &trial, table, &mut findings).await?;
        computed(catalog, table, &mut findings);
        required(catalog, table, &mut findings);
    }
    coarse(catalog, &mut findings);
    collisions(catalog, fan_out, &mut findings);
    strange_keys(catalog, &mut findings);
    organizations_elsewhere(catalog, &mut findings);
    if findings.iter().all(|finding| !finding.stops) {
        findings.extend(refusals(conn, catalog).await?);
    }
    Ok(findings)
}

fn stop(what: String, statement: String) -> Finding {
    Finding { stops: true, what, remedy: format!("`{statement}`") }
}

fn told(what: String, remedy: impl Into<String>) -> Finding {
    Finding { stops: false, what, remedy: remedy.into() }
}

fn column<'a>(catalog: &'a Catalog, table: &str, name: &str) -> Option<&'a Column> {
    catalog.tables.get(table)?.columns.get(name)
}

/// What may be NULL and is not so in the given tables.
async fn nulls(
    conn: &mut PgConnection,
    catalog: &Catalog,
    trial: &Trial<'_>,
    table: &str,
    findings: &mut Vec<Finding>,
) -> Result<(), sqlx::Error> {
    let schema = schema::name();
    let needed: &[&str] = if table == DELIVERIES { &["id", "log_id", "status"] } else { &["id"] };
    let lived_with = MEANINGS.iter().filter(|(of, ..)| *of == table);
    let lived_with = lived_with.map(|(_, name, meaning)| (*name, Some(*meaning)));
    for (name, meaning) in needed.iter().map(|name| (*name, None)).chain(lived_with) {
        let may_be_null = column(catalog, table, name).is_some_and(|column| column.nullable);
        if !may_be_null || trial.refuses_null(conn, name).await? {
            continue;
        }
        let set = format!("ALTER TABLE {schema}.{table} ALTER COLUMN {name} SET NOT NULL");
        let Some(meaning) = meaning else {
            // A primary key that is yet to be added makes it NOT NULL.
            let has_primary = catalog.constraints.iter().any(|c| c.table == table && c.kind == "p");
            let will_be = name == "id" && !has_primary && !has_unique(catalog, table, &["id"]);
            if !will_be || holds_null(conn, catalog, table, name).await? {
                let first = match name {
                    "status" => {
                        format!("UPDATE {schema}.{table} SET status = 'pending' WHERE status IS NULL")
                    }
                    _ => format!("DELETE FROM {schema}.{table} WHERE {name} IS NULL"),
                };
                findings.push(stop(
                    format!("{table}.{name} may be NULL, and what has none could never be sent"),
                    format!("{first}; {set}"),
                ));
            }
            continue;
        };
        findings.push(told(
            format!("{table}.{name} may be NULL: a NULL {meaning}"),
            format!("{set}, or leave it"),
        ));
    }
    Ok(())
}

/// Whether some row has a NULL there; where its policies hide rows, it may.
async fn holds_null(
    conn: &mut PgConnection,
    catalog: &Catalog,
    table: &str,
    name: &str,
) -> Result<bool, sqlx::Error> {
    let schema = schema::name();
    if catalog.tables.get(table).is_some_and(|table| table.secured) {
        return Ok(false);
    }
    let sql = format!("SELECT EXISTS (SELECT FROM {schema}.{table} WHERE {name} IS NULL)");
    Ok(schema::query(AssertSqlSafe(sql)).fetch_one(conn).await?.get(0))
}

/// Columns that we write and PostgreSQL works out itself.
fn computed(catalog: &Catalog, table: &str, findings: &mut Vec<Finding>) {
    let schema = schema::name();
    let (written, by_the_api): (&[&str], &[&str]) = match table {
        DELIVERIES => (&WRITTEN_TO_DELIVERIES, &[]),
        DESTINATIONS => (&WRITTEN_TO_DESTINATIONS, &WRITTEN_BY_THE_API),
        // What of the event is worked out is read, and not written.
        _ => (&[], &["id", "org_id", "event_type"]),
    };
    let found = |name: &&str| column(catalog, table, name).and_then(|column| column.computed);
    for name in written {
        let Some(end) = found(name) else { continue };
        findings.push(stop(
            format!("{table}.{name} is written by PostgreSQL itself, so that posthaste cannot write it"),
            format!("ALTER TABLE {schema}.{table} ALTER COLUMN {name} {end}"),
        ));
    }
    for name in by_the_api {
        let Some(end) = found(name) else { continue };
        findings.push(told(
            format!(
                "{table}.{name} is written by PostgreSQL itself, so that the API can write no {}",
                rows(table)
            ),
            format!("ALTER TABLE {schema}.{table} ALTER COLUMN {name} {end}, if the API is to write them"),
        ));
    }
}

fn rows(table: &str) -> &'static str {
    if table == EVENTS { "events" } else { "destinations" }
}

/// Columns of the application's own that must have a value. Those of deliveries are among the faults.
fn required(catalog: &Catalog, table: &str, findings: &mut Vec<Finding>) {
    let given: &[&str] = match table {
        DESTINATIONS => &WRITTEN_BY_THE_API,
        EVENTS => &["id", "org_id", "event_type", "event_category", "payload", "created_at"],
        _ => return,
    };
    let Some(found) = catalog.tables.get(table) else { return };
    for (name, _) in found.columns.iter().filter(|(_, column)| column.must_be_named) {
        if given.contains(&name.as_str()) || WRITTEN_TO_DESTINATIONS.contains(&name.as_str()) {
            continue;
        }
        findings.push(told(
            format!(
                "{table}.{name} must have a value and has no default, so that the API can write no {}",
                rows(table)
            ),
            format!("give {table}.{name} a default, if the API is to write them"),
        ));
    }
}

/// Timestamps that are cut short.
fn coarse(catalog: &Catalog, findings: &mut Vec<Finding>) {
    let schema = schema::name();
    for name in EXACT {
        let Some(digits) = column(catalog, DELIVERIES, name).map(|column| column.modifier) else { continue };
        if (0..6).contains(&digits) {
            findings.push(stop(
                format!(
                    "{DELIVERIES}.{name} has {digits} digits behind the second, and leases and the order \
                     need all six"
                ),
                format!("ALTER TABLE {schema}.{DELIVERIES} ALTER COLUMN {name} TYPE timestamp"),
            ));
        }
    }
}

/// Uniqueness that two deliveries of ours would break: the trigger would fail the producer's INSERT. An
/// application that inserts its own deliveries knows what is unique.
fn collisions(catalog: &Catalog, fan_out: bool, findings: &mut Vec<Finding>) {
    let schema = schema::name();
    let finding = |what: String, statement: String| match fan_out {
        true => stop(what, statement),
        false => told(format!("{what}: backfills may fail"), format!("`{statement}`, or leave it")),
    };
    for index in catalog.indexes.iter().filter(|index| index.table == DELIVERIES && index.unique) {
        let columns = columns_of(&index.definition);
        let has = |name: &str| columns.contains(&name);
        let ours = columns.iter().all(|column| WRITTEN_TO_DELIVERIES.contains(column));
        let is_the_key = columns.len() == 2 && has("destination_id") && has("log_id");
        let is_harmless = has("id") || has("destination_id") && has("log_id");
        if !ours || is_harmless && !(is_the_key && index.deferrable) {
            continue;
        }
        let name = &index.name;
        if is_the_key {
            findings.push(finding(
                format!(
                    "{DELIVERIES} (destination_id, log_id) is unique by {name}, which is deferrable, so that \
                     the trigger's INSERT could not leave out what is there already"
                ),
                format!(
                    "ALTER TABLE {schema}.{DELIVERIES} DROP CONSTRAINT \"{name}\", ADD CONSTRAINT \"{name}\" \
                     UNIQUE (destination_id, log_id)"
                ),
            ));
            continue;
        }
        let is_constraint = catalog.constraints.iter().any(|c| c.table == DELIVERIES && c.name == *name);
        let list = columns.join(", ");
        findings.push(finding(
            format!(
                "{DELIVERIES} ({list}) must be unique by {name}, so that an event could not have two \
                 deliveries, or a destination"
            ),
            match is_constraint {
                true => format!("ALTER TABLE {schema}.{DELIVERIES} DROP CONSTRAINT \"{name}\""),
                false => format!("DROP INDEX {schema}.\"{name}\""),
            },
        ));
    }
}

/// Foreign keys that lead elsewhere.
fn strange_keys(catalog: &Catalog, findings: &mut Vec<Finding>) {
    let schema = schema::name();
    for (name, target) in [("destination_id", DESTINATIONS), ("log_id", EVENTS)] {
        let keys = catalog.constraints.iter().filter(|c| c.table == DELIVERIES && c.kind == "f");
        for key in keys.filter(|key| key.columns == [name] && key.refers_to.as_deref() != Some(target)) {
            findings.push(stop(
                format!("{DELIVERIES}.{name} refers to another table than {target}, by {}", key.name),
                format!("ALTER TABLE {schema}.{DELIVERIES} DROP CONSTRAINT \"{}\"", key.name),
            ));
        }
    }
}

/// Organizations that are somebody else's: ours would be an empty table that knows none of them.
fn organizations_elsewhere(catalog: &Catalog, findings: &mut Vec<Finding>) {
    let of_events = |c: &&Constraint| [EVENTS, DESTINATIONS].contains(&c.table.as_str()) && c.kind == "f";
    for key in catalog.constraints.iter().filter(of_events).filter(|key| key.columns == ["org_id"]) {
        if let Some(other) = key.refers_to.as_ref().filter(|name| name.contains('.')) {
            findings.push(told(
                format!(
                    "{}.org_id refers to {other}, by {}, in another schema: the API knows none of its \
                     organizations, and can make no keys for them",
                    key.table, key.name
                ),
                format!("ALTER TABLE {other} SET SCHEMA {}, if the API is to be used", schema::name()),
            ));
        }
    }
}

/// What CHECKs and types refuse of what we write.
async fn refusals(conn: &mut PgConnection, catalog: &Catalog) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    if catalog.has_table(DELIVERIES) {
        let trial = Trial::prepare(conn, DELIVERIES).await?;
        for refusal in trial.refusals(conn, &deliveries(&catalog.encoding)).await? {
            let remedy = mend(catalog, DELIVERIES, &refusal);
            findings.push(stop(sentence(DELIVERIES, &refusal), remedy));
        }
    }
    if catalog.has_table(DESTINATIONS) {
        let trial = Trial::prepare(conn, DESTINATIONS).await?;
        for refusal in trial.refusals(conn, &destinations()).await? {
            let remedy = mend(catalog, DESTINATIONS, &refusal);
            let by_us = refusal.columns.iter().any(|name| WRITTEN_TO_DESTINATIONS.contains(&name.as_str()));
            findings.push(match by_us {
                true => stop(sentence(DESTINATIONS, &refusal), remedy),
                false => told(
                    format!("{}: so the API cannot write such a one", sentence(DESTINATIONS, &refusal)),
                    format!("`{remedy}`, if it is to"),
                ),
            });
        }
    }
    Ok(findings)
}

fn sentence(table: &str, refusal: &Refusal) -> String {
    let columns: Vec<String> = refusal.columns.iter().map(|name| format!("{table}.{name}")).collect();
    let place = if columns.is_empty() { table.to_owned() } else { columns.join(" and ") };
    let by = match &refusal.by {
        By::Check { name, failure: Some(message), .. } => {
            format!("the CHECK {name} (which fails where search_path is pg_catalog: {message})")
        }
        By::Check { name, .. } => format!("the CHECK {name}"),
        By::Default(message) => format!("its default ({message})"),
        By::Domain { constraint: Some(name), domain } => format!("the CHECK {name} of the type {domain}"),
        By::Domain { constraint: None, domain } => format!("the type {domain}, which cannot be NULL,"),
        By::Value(message) => format!("its type or expression ({message})"),
    };
    format!("{place}: {by} refuses {}", refusal.what.join(", "))
}

/// The statement after which it is refused no more.
fn mend(catalog: &Catalog, table: &str, refusal: &Refusal) -> String {
    let schema = schema::name();
    let alter = format!("ALTER TABLE {schema}.{table}");
    match &refusal.by {
        By::Check { name, expression, failure: None } if refusal.columns == ["status"] => format!(
            "{alter} DROP CONSTRAINT \"{name}\", ADD CONSTRAINT \"{name}\" CHECK ({expression} OR status IN \
             ('pending', 'delivered', 'failed', 'dead'))"
        ),
        By::Check { name, .. } => format!("{alter} DROP CONSTRAINT \"{name}\""),
        By::Domain { constraint: Some(name), domain } => {
            format!("ALTER DOMAIN {domain} DROP CONSTRAINT \"{name}\"")
        }
        By::Domain { constraint: None, domain } => {
            format!("ALTER DOMAIN {domain} DROP NOT NULL")
        }
        By::Default(_) => {
            let column = format!("ALTER COLUMN \"{}\"", refusal.columns.join("\", \""));
            format!("{alter} {column} DROP DEFAULT, {column} DROP NOT NULL")
        }
        By::Value(_) => {
            let name = refusal.columns.first().map_or("", String::as_str);
            let computed = column(catalog, table, name).and_then(|column| column.computed);
            let type_name = column(catalog, table, name).map_or("text", |column| &column.base_type);
            match computed {
                Some(end) => format!("{alter} ALTER COLUMN \"{name}\" {end}"),
                None => format!("{alter} ALTER COLUMN \"{name}\" TYPE {type_name}"),
            }
        }
    }
}
