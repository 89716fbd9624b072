//! In what an application's tables may differ from the given ones, one thing at a time.

use crate::schema::{Column, Schema, Table};

/// What must come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It works, and nobody needs to know.
    Works,
    /// It works, and `check` says this.
    Told(String),
    /// `migrate` refuses, and says this.
    Refused(String),
}

/// One difference.
pub struct Twist {
    /// Table and column: only one twist of a case touches it.
    pub place: String,
    pub expected: Expected,
    change: Box<dyn Fn(&mut Schema)>,
}

impl Twist {
    pub fn apply(&self, schema: &mut Schema) {
        (self.change)(schema);
    }
}

const EVENTS: &str = "activity_logs";
const DESTINATIONS: &str = "webhook_destinations";
const DELIVERIES: &str = "webhook_deliveries";

fn table<'a>(schema: &'a mut Schema, name: &str) -> &'a mut Table {
    match name {
        EVENTS => &mut schema.events,
        DESTINATIONS => &mut schema.destinations,
        _ => &mut schema.deliveries,
    }
}

#[derive(Default)]
struct Twists(Vec<Twist>);

impl Twists {
    fn add(&mut self, table: &str, column: &str, expected: Expected, change: impl Fn(&mut Schema) + 'static) {
        self.0.push(Twist { place: format!("{table}.{column}"), expected, change: Box::new(change) });
    }

    /// A change of one column.
    fn column(
        &mut self,
        of: &'static str,
        name: &'static str,
        expected: Expected,
        change: impl Fn(&mut Column) + 'static,
    ) {
        self.add(of, name, expected, move |schema| change(table(schema, of).column(name)));
    }

    /// A CHECK, under a name of the application's own or the expected one.
    fn check(&mut self, of: &'static str, name: &'static str, expected: Expected, text: &'static str) {
        for own in [false, true] {
            self.add(of, name, expected.clone(), move |schema| {
                let expected_name = format!("{of}_{name}_check");
                let table = table(schema, of);
                table.constraints.retain(|(name, _)| *name != expected_name);
                let name = if own { format!("my_{name}_check") } else { expected_name };
                table.constraint(&name, &format!("CHECK ({text})"));
            });
        }
    }
}

fn refused(place: &str) -> Expected {
    Expected::Refused(place.to_owned())
}

fn told(text: impl Into<String>) -> Expected {
    Expected::Told(text.into())
}

/// All of them.
pub fn twists() -> Vec<Twist> {
    let mut all = Twists::default();
    missing(&mut all);
    nullable(&mut all);
    checks(&mut all);
    types(&mut all);
    domains(&mut all);
    computed(&mut all);
    extra(&mut all);
    uniqueness(&mut all);
    all.0
}

fn missing(all: &mut Twists) {
    for name in [
        "employee_id",
        "session_id",
        "client_name",
        "client_version",
        "event_category",
        "content",
        "payload",
        "created_at",
    ] {
        let expected = told(format!("activity_logs has no column {name}"));
        all.add(EVENTS, name, expected, move |schema| schema.events.without(name));
    }
    for name in [
        "status",
        "attempts",
        "last_attempt_at",
        "next_retry_at",
        "response_status",
        "response_body",
        "error_message",
        "created_at",
        "delivered_at",
    ] {
        all.add(DELIVERIES, name, Expected::Works, move |schema| schema.deliveries.without(name));
    }
    for name in [
        "auth_type",
        "auth_config",
        "event_types",
        "event_filter",
        "enabled",
        "batch_size",
        "timeout_ms",
        "retry_max",
        "retry_backoff_ms",
        "signing_secret",
        "created_by",
        "created_at",
        "updated_at",
    ] {
        all.add(DESTINATIONS, name, Expected::Works, move |schema| schema.destinations.without(name));
    }
    for (of, name) in [
        (EVENTS, "org_id"),
        (EVENTS, "event_type"),
        (DESTINATIONS, "url"),
        (DESTINATIONS, "name"),
        (DELIVERIES, "destination_id"),
        (DELIVERIES, "log_id"),
    ] {
        all.add(of, name, refused(&format!("{of}.{name}")), move |schema| table(schema, of).without(name));
    }
}

fn nullable(all: &mut Twists) {
    for (of, names) in [
        (EVENTS, &["event_type", "event_category", "payload", "created_at"][..]),
        (
            DESTINATIONS,
            &[
                "auth_type",
                "enabled",
                "batch_size",
                "timeout_ms",
                "retry_max",
                "retry_backoff_ms",
                "created_at",
                "updated_at",
            ],
        ),
        (DELIVERIES, &["attempts", "created_at"]),
    ] {
        for name in names {
            let expected = told(format!("{of}.{name} may be NULL"));
            all.add(of, name, expected, move |schema| {
                table(schema, of).column(name).not_null = false;
                schema.nulls.push((of, name));
            });
        }
    }
    for name in ["status", "log_id"] {
        all.column(DELIVERIES, name, refused(&format!("webhook_deliveries.{name}")), |c| c.not_null = false);
    }
    all.add(EVENTS, "id", refused("activity_logs.id"), |schema| {
        schema.events.column("id").not_null = false;
        schema.events.constraint("activity_logs_pkey", "UNIQUE (id)");
    });
    for of in [DESTINATIONS, DELIVERIES] {
        all.add(of, "id", refused(&format!("{of}.id")), move |schema| {
            table(schema, of).column("id").not_null = false;
            table(schema, of).constraint(&format!("{of}_pkey"), "UNIQUE (id)");
        });
    }
    // As good as NOT NULL.
    all.add(DELIVERIES, "status", Expected::Works, |schema| {
        schema.deliveries.column("status").not_null = false;
        schema.deliveries.constraint("there", "CHECK (status IS NOT NULL)");
    });
}

fn checks(all: &mut Twists) {
    let status = || refused("webhook_deliveries.status");
    all.check(DELIVERIES, "status", status(), "status IN ('pending', 'failed', 'dead')");
    all.check(DELIVERIES, "status", status(), "status IN ('pending', 'failed', 'delivered')");
    all.check(DELIVERIES, "status", status(), "status IN ('pending', 'dead', 'delivered')");
    all.check(DELIVERIES, "status", status(), "status ~ '^(queued|failed|dead|delivered)$'");
    all.check(DELIVERIES, "status", Expected::Works, "status ~ '^(pending|failed|dead|delivered)$'");
    all.check(DELIVERIES, "status", Expected::Works, "status NOT IN ('sent', 'lost') AND status <> ''");
    let both = "status <> 'dead' OR next_retry_at IS NULL";
    all.check(DELIVERIES, "status", status(), both);
    let both = "(status = 'delivered') = (delivered_at IS NOT NULL)";
    all.check(DELIVERIES, "status", Expected::Works, both);
    all.check(DELIVERIES, "attempts", refused("webhook_deliveries.attempts"), "attempts <= 3");
    all.check(DELIVERIES, "attempts", Expected::Works, "attempts BETWEEN 0 AND 100");
    all.check(DELIVERIES, "response_status", Expected::Works, "response_status BETWEEN 100 AND 599");
    let message = refused("webhook_deliveries.error_message");
    all.check(DELIVERIES, "error_message", message, "char_length(error_message) < 10");
    all.check(DELIVERIES, "last_attempt_at", Expected::Works, "last_attempt_at > '2000-01-01'");
    let recent = "created_at > now() - interval '1 day'";
    all.check(DELIVERIES, "created_at", Expected::Works, recent);
    all.check(DESTINATIONS, "enabled", refused("webhook_destinations.enabled"), "enabled");
    all.check(DESTINATIONS, "auth_type", Expected::Works, "auth_type IN ('none', 'bearer')");
    all.check(DESTINATIONS, "url", Expected::Works, "url LIKE 'http%'");
    all.check(DESTINATIONS, "url", told("webhook_destinations.url: the CHECK"), "url LIKE 'http://127%'");
    for (schema_name, expected) in [("public.", Expected::Works), ("", status())] {
        all.add(DELIVERIES, "status", expected, move |schema| {
            let known = format!(
                "CREATE FUNCTION known(text) RETURNS boolean LANGUAGE sql AS
                'SELECT $1 IN (SELECT name FROM {schema_name}statuses)'"
            );
            let names = "CREATE TABLE statuses AS SELECT name FROM
                unnest(ARRAY['pending', 'failed', 'delivered', 'dead']) AS names (name)";
            schema.before.extend([names.into(), known]);
            schema.deliveries.constraint("webhook_deliveries_status_check", "CHECK (known(status))");
        });
    }
    for (name, most, value) in [("timeout_ms", "60000", "45000"), ("batch_size", "1000", "500")] {
        let expected = told(format!("webhook_destinations.{name} of 1 destinations"));
        all.add(DESTINATIONS, name, expected, move |schema| {
            let text = format!("CHECK ({name} BETWEEN 1 AND {most})");
            schema.destinations.constraint(&format!("webhook_destinations_{name}_check"), &text);
            schema.sets.push(format!("{name} = {value}"));
        });
    }
}

fn types(all: &mut Twists) {
    for (of, name, type_name) in [
        (EVENTS, "event_type", "text"),
        (EVENTS, "event_category", "text"),
        (EVENTS, "content", "varchar(500)"),
        (EVENTS, "created_at", "timestamp(3)"),
        (DESTINATIONS, "name", "text"),
        (DESTINATIONS, "url", "varchar(2000)"),
        (DESTINATIONS, "event_types", "varchar(50)[]"),
        (DESTINATIONS, "auth_type", "text"),
        (DESTINATIONS, "signing_secret", "text"),
        (DELIVERIES, "status", "text"),
        (DELIVERIES, "status", "varchar(9)"),
        (DELIVERIES, "response_body", "varchar(4096)"),
        (DELIVERIES, "error_message", "varchar(2000)"),
    ] {
        all.column(of, name, Expected::Works, |c| c.type_name = type_name.into());
    }
    for (of, name, type_name) in [
        (EVENTS, "id", "bigint"),
        (EVENTS, "payload", "json"),
        (EVENTS, "event_type", "char(20)"),
        (DESTINATIONS, "batch_size", "bigint"),
        (DELIVERIES, "status", "varchar(8)"),
        (DELIVERIES, "response_body", "varchar(200)"),
        (DELIVERIES, "last_attempt_at", "timestamp(3)"),
        (DELIVERIES, "next_retry_at", "timestamptz"),
    ] {
        all.column(of, name, refused(&format!("{of}.{name}")), |c| {
            c.type_name = type_name.into();
            c.default = c.default.take().filter(|_| type_name.starts_with("varchar"));
        });
    }
}

fn domains(all: &mut Twists) {
    let add = |all: &mut Twists, of: &'static str, name: &'static str, expected, check: &'static str| {
        all.add(of, name, expected, move |schema| {
            let domain = format!("{of}_{name}_type");
            let column = table(schema, of).column(name);
            let create = format!("CREATE DOMAIN {domain} AS {} {check}", column.type_name);
            column.type_name = domain;
            schema.before.push(create);
        });
    };
    for (of, name) in [
        (EVENTS, "id"),
        (EVENTS, "org_id"),
        (EVENTS, "employee_id"),
        (EVENTS, "event_type"),
        (EVENTS, "event_category"),
        (EVENTS, "payload"),
        (EVENTS, "created_at"),
        (DESTINATIONS, "id"),
        (DESTINATIONS, "org_id"),
        (DESTINATIONS, "name"),
        (DESTINATIONS, "url"),
        (DESTINATIONS, "enabled"),
        (DESTINATIONS, "event_types"),
        (DESTINATIONS, "event_filter"),
        (DESTINATIONS, "auth_config"),
        (DESTINATIONS, "auth_type"),
        (DESTINATIONS, "batch_size"),
        (DESTINATIONS, "timeout_ms"),
        (DESTINATIONS, "updated_at"),
        (DELIVERIES, "id"),
        (DELIVERIES, "destination_id"),
        (DELIVERIES, "log_id"),
        (DELIVERIES, "status"),
        (DELIVERIES, "attempts"),
        (DELIVERIES, "last_attempt_at"),
        (DELIVERIES, "next_retry_at"),
        (DELIVERIES, "created_at"),
        (DELIVERIES, "response_body"),
    ] {
        add(all, of, name, Expected::Works, "");
    }
    let status = refused("webhook_deliveries.status");
    add(all, DELIVERIES, "status", status, "CHECK (VALUE IN ('pending', 'failed', 'delivered'))");
    add(
        all,
        DELIVERIES,
        "response_status",
        refused("webhook_deliveries.response_status"),
        "NOT NULL DEFAULT 0",
    );
    add(all, DELIVERIES, "attempts", Expected::Works, "CHECK (VALUE >= 0)");
}

fn computed(all: &mut Twists) {
    let generated = |text: &str| Some(format!("GENERATED ALWAYS AS ({text}) STORED"));
    all.column(EVENTS, "event_category", Expected::Works, move |c| {
        c.default = generated("event_type::text || '!'");
    });
    all.column(EVENTS, "content", Expected::Works, move |c| c.default = generated("'It happened'::text"));
    for (of, name, text) in [
        (DELIVERIES, "response_status", "200"),
        (DELIVERIES, "delivered_at", "next_retry_at"),
        (DESTINATIONS, "updated_at", "'2026-01-31'::timestamp"),
    ] {
        all.column(of, name, refused(&format!("{of}.{name}")), move |c| c.default = generated(text));
    }
    all.column(DELIVERIES, "attempts", refused("webhook_deliveries.attempts"), |c| {
        c.default = Some("GENERATED ALWAYS AS IDENTITY".into());
    });
}

fn extra(all: &mut Twists) {
    for of in [EVENTS, DESTINATIONS, DELIVERIES] {
        for (n, (type_name, default)) in [
            ("text", "'eu'"),
            ("bigserial", ""),
            ("timestamptz", "clock_timestamp()"),
            ("integer", "7 CHECK (x2 > 0)"),
            ("integer", "GENERATED ALWAYS AS (3 * 4) STORED"),
        ]
        .into_iter()
        .enumerate()
        {
            all.add(of, &format!("x{n}"), Expected::Works, move |schema| {
                let default = Some(default.replace("x2", &format!("x{n}"))).filter(|text| !text.is_empty());
                let type_name = type_name.into();
                let column = Column { name: format!("x{n}"), type_name, default, not_null: true };
                table(schema, of).columns.push(column);
            });
        }
    }
    all.add(DELIVERIES, "tenant", refused("webhook_deliveries.tenant: its default"), |schema| {
        let default = Some("current_setting('app.tenant')".into());
        let column = Column { name: "tenant".into(), type_name: "text".into(), default, not_null: true };
        schema.deliveries.columns.push(column);
    });
    let column = || Column { name: "tenant".into(), type_name: "text".into(), default: None, not_null: true };
    all.add(DELIVERIES, "tenant", refused("webhook_deliveries.tenant"), move |schema| {
        schema.deliveries.columns.push(column());
    });
    all.add(DESTINATIONS, "tenant", told("webhook_destinations.tenant must have a value"), move |schema| {
        schema.destinations.columns.push(column());
        schema.needs.push("tenant");
    });
    for storage in ["WITH (fillfactor = 70)", "WITH (autovacuum_enabled = true)"] {
        all.add(DELIVERIES, "storage", Expected::Works, move |schema| {
            schema.deliveries.with = storage.into()
        });
    }
}

fn uniqueness(all: &mut Twists) {
    const KEY: &str = "webhook_deliveries_destination_id_log_id_key";
    let drop = |schema: &mut Schema| schema.deliveries.constraints.retain(|(name, _)| name != KEY);
    let mut index = |expected, statement: &'static str| {
        all.add(DELIVERIES, "unique", expected, move |schema| {
            drop(schema);
            schema.after.push(statement.into());
        });
    };
    index(Expected::Works, "CREATE UNIQUE INDEX mine ON webhook_deliveries (log_id, destination_id)");
    index(Expected::Works, "CREATE INDEX mine ON webhook_deliveries (destination_id, log_id)");
    let same_name =
        "CREATE INDEX webhook_deliveries_destination_id_log_id_key ON webhook_deliveries (log_id)";
    index(Expected::Works, same_name);
    index(refused("webhook_deliveries (log_id)"), "CREATE UNIQUE INDEX mine ON webhook_deliveries (log_id)");
    let deferred =
        "ALTER TABLE webhook_deliveries ADD CONSTRAINT webhook_deliveries_destination_id_log_id_key
        UNIQUE (destination_id, log_id) DEFERRABLE";
    index(refused("webhook_deliveries (destination_id, log_id)"), deferred);
    all.add(DELIVERIES, "pkey", Expected::Works, |schema| {
        schema.deliveries.constraints.retain(|(name, _)| name != "webhook_deliveries_pkey");
    });
    all.add(EVENTS, "pkey", Expected::Works, |schema| {
        schema.events.constraints.retain(|(name, _)| name != "activity_logs_pkey");
        schema.after.push("CREATE UNIQUE INDEX mine_too ON activity_logs (id)".into());
    });
    for of in [EVENTS, DESTINATIONS, DELIVERIES] {
        all.add(of, "names", Expected::Works, move |schema| {
            for (n, (name, _)) in table(schema, of).constraints.iter_mut().enumerate() {
                *name = format!("app_{of}_{n}");
            }
        });
    }
    all.add(DELIVERIES, "key", refused("webhook_deliveries.log_id"), |schema| {
        schema.before.push("CREATE TABLE other (id uuid PRIMARY KEY)".into());
        schema.deliveries.constraint("elsewhere", "FOREIGN KEY (log_id) REFERENCES other");
    });
}
