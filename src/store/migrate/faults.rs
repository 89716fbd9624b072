//! What makes adopting a database impossible. All of it is found before anything is changed.

use super::catalog::{Catalog, Table};
use super::script::{Column, Makes, Statement, columns_of};
use crate::store::schema;

/// The oldest PostgreSQL that has what the migrations use.
const OLDEST_SERVER: i32 = 140_000;

/// Why a database in `SQL_ASCII` cannot be used.
pub const ENCODING: &str = "the encoding of the database is SQL_ASCII: it holds any bytes, and what is no \
                            text can be sent to nobody; dump the database, and restore it into one in \
                            UTF8";

/// Columns of `activity_logs` without which there is no event; every other one is null on the wire where it
/// lacks.
const EVENT_NEEDS: [&str; 3] = ["id", "org_id", "event_type"];

/// What the fan-out writes into `webhook_deliveries`.
const WRITTEN: [&str; 7] =
    ["id", "destination_id", "log_id", "status", "attempts", "next_retry_at", "created_at"];

/// Everything that stands in the way, each with its remedy.
pub fn find(catalog: &Catalog, statements: &[Statement], known: i32, fan_out: bool) -> Vec<String> {
    let schema = schema::name();
    let mut faults = Vec::new();
    if catalog.server_version < OLDEST_SERVER {
        let version = catalog.server_version / 10_000;
        faults.push(format!("PostgreSQL {version} is too old: 14 is the oldest that has what is needed"));
    }
    if catalog.encoding == "SQL_ASCII" {
        faults.push(ENCODING.to_owned());
    }
    if let Some(newest) = catalog.versions.last().filter(|newest| **newest > known) {
        faults.push(format!(
            "migration {newest} was applied by a newer posthaste: use that one or a newer one"
        ));
    }
    if !catalog.may_create && catalog.has_schema {
        let grant = format!("GRANT CREATE ON SCHEMA {schema}");
        faults.push(format!("this role may not create anything in schema {schema}: {grant}"));
    } else if !catalog.may_create {
        let create = format!("CREATE SCHEMA {schema} AUTHORIZATION …");
        faults.push(format!("there is no schema {schema}, and this role may not create it: {create}"));
    }
    for function in &catalog.functions {
        if let Some(stranger) = &function.stranger {
            let (name, arguments) = (&function.name, &function.arguments);
            faults.push(format!(
                "function {schema}.{name}({arguments}) belongs to {stranger}, who could change it at any \
                 time: drop it"
            ));
        }
    }
    for statement in statements {
        match &statement.makes {
            Makes::Table { name, columns, .. } => {
                if let Some(table) = catalog.tables.get(*name) {
                    if !table.ours_to_alter && !super::STAND_INS.contains(name) {
                        faults.push(format!("{name} belongs to another role: run migrate as its owner"));
                    }
                    in_table(name, table, columns, &mut faults);
                }
            }
            Makes::Constraint { table, name, definition }
                if definition.starts_with("PRIMARY KEY")
                    && catalog.tables.get(*table).is_some_and(|t| t.kind == "p")
                    && !has_unique(catalog, table, &columns_of(definition)) =>
            {
                faults.push(format!("{table} is partitioned without a unique id ({name}): not supported"));
            }
            _ => {}
        }
    }
    if let Some(deliveries) = catalog.tables.get("webhook_deliveries").filter(|_| fan_out) {
        for (column, _) in deliveries.columns.iter().filter(|(_, c)| c.must_be_named) {
            if !WRITTEN.contains(&column.as_str()) {
                faults.push(format!(
                    "webhook_deliveries.{column} must have a value and has no default, so that the trigger \
                     could create no delivery: give it a default, or \
                     `ALTER TABLE {schema}.webhook_deliveries ALTER COLUMN {column} DROP NOT NULL`, or use \
                     --without-fan-out"
                ));
            }
        }
    }
    faults
}

/// What is wrong with tables that were right when they were adopted: somebody has changed or dropped a
/// column.
pub fn of_tables(catalog: &Catalog, statements: &[Statement]) -> Vec<String> {
    let mut faults = Vec::new();
    for statement in statements {
        if let Makes::Table { name, columns, .. } = &statement.makes
            && let Some(table) = catalog.tables.get(*name)
        {
            in_table(name, table, columns, &mut faults);
        }
    }
    faults
}

/// Whether something guarantees that these columns are unique, in a form that ON CONFLICT and foreign keys
/// accept.
pub fn has_unique(catalog: &Catalog, table: &str, columns: &[&str]) -> bool {
    let mut wanted = columns.to_vec();
    wanted.sort_unstable();
    catalog.indexes.iter().any(|index| {
        let mut found = columns_of(&index.definition);
        found.sort_unstable();
        index.table == table && index.arbiter && found == wanted
    })
}

/// Whether a column of one type does where the other one is given.
fn suits(found: &str, given: &str) -> bool {
    const TEXTS: [&str; 2] = ["character varying", "text"];
    const LISTS: [&str; 2] = ["character varying[]", "text[]"];
    found == given || [TEXTS, LISTS].iter().any(|alike| alike.contains(&found) && alike.contains(&given))
}

fn in_table(name: &str, table: &Table, columns: &[Column], faults: &mut Vec<String>) {
    let schema = schema::name();
    if super::STAND_INS.contains(&name) {
        // The application's own, whatever it looks like: keys refer to its id and nothing else is used.
        if table.columns.get("id").is_none_or(|id| id.base_type != "uuid") {
            faults.push(format!("{name} has no id of type uuid, which the given tables refer to"));
        }
        return;
    }
    let partitioned_events = table.kind == "p" && name == "activity_logs";
    if table.kind != "r" && !partitioned_events {
        faults.push(format!("{name} is not an ordinary table"));
        return;
    }
    for column in columns {
        match table.columns.get(column.name) {
            Some(found) if !suits(&found.base_type, column.base_type) => faults.push(format!(
                "{name}.{0} is {1} and should be {2}: change its type (`ALTER TABLE {schema}.{name} ALTER \
                 COLUMN {0} TYPE {2}`), or let posthaste have tables of its own",
                column.name, found.base_type, column.base_type
            )),
            None if name == "activity_logs" && !EVENT_NEEDS.contains(&column.name) => {}
            None if column.cannot_be_added || name == "activity_logs" => faults.push(format!(
                "{name}.{} is missing and cannot be added to a table that is in use: \
                 `ALTER TABLE {schema}.{name} ADD COLUMN {}`",
                column.name, column.line
            )),
            _ => {}
        }
    }
}
