//! The tables of an application, as DDL that a test may change before it is run.

use posthaste::model::Secret;
use sqlx::AssertSqlSafe;

use crate::common::{Db, run};
use crate::{role, url_of};

/// A column of a table, in the words of CREATE TABLE.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Its type, and what follows DEFAULT or GENERATED.
    pub type_name: String,
    pub default: Option<String>,
    pub not_null: bool,
}

/// A table. Its constraints are written out, each with its name.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: &'static str,
    pub columns: Vec<Column>,
    pub constraints: Vec<(String, String)>,
    pub with: String,
}

impl Table {
    /// `columns`: a line each, `name type [DEFAULT …] [NOT NULL]`.
    fn new(name: &'static str, columns: &str, constraints: &[(&str, &str)]) -> Table {
        let columns = columns.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
            let (line, not_null) = match line.strip_suffix(" NOT NULL") {
                Some(line) => (line, true),
                None => (line, false),
            };
            let (name, rest) = line.split_once(' ').unwrap();
            let (type_name, default) = match rest.split_once(" DEFAULT ") {
                Some((type_name, default)) => (type_name, Some(default.to_owned())),
                None => (rest, None),
            };
            Column { name: name.into(), type_name: type_name.into(), default, not_null }
        });
        let constraints = constraints.iter().map(|(name, text)| ((*name).into(), (*text).into()));
        Table { name, columns: columns.collect(), constraints: constraints.collect(), with: String::new() }
    }

    pub fn column(&mut self, name: &str) -> &mut Column {
        let found = self.columns.iter_mut().find(|column| column.name == name);
        found.unwrap_or_else(|| panic!("no column {name}"))
    }

    pub fn without(&mut self, column: &str) {
        self.columns.retain(|c| c.name != column);
        self.constraints.retain(|(_, text)| !text.contains(column));
    }

    /// Puts `text` in the place of the constraint of this name, or after the others.
    pub fn constraint(&mut self, name: &str, text: &str) {
        self.constraints.retain(|(n, _)| n != name);
        self.constraints.push((name.into(), text.into()));
    }

    fn ddl(&self) -> String {
        let column = |c: &Column| {
            let default =
                c.default.as_ref().map_or(String::new(), |text| match text.starts_with("GENERATED") {
                    true => format!(" {text}"),
                    false => format!(" DEFAULT {text}"),
                });
            let not_null = if c.not_null { " NOT NULL" } else { "" };
            format!("{} {}{default}{not_null}", c.name, c.type_name)
        };
        let columns = self.columns.iter().map(column);
        let constraints = self.constraints.iter().map(|(name, text)| format!("CONSTRAINT {name} {text}"));
        let lines: Vec<String> = columns.chain(constraints).collect();
        format!("CREATE TABLE {} ({}) {};", self.name, lines.join(", "), self.with)
    }
}

/// An application's database that is being described: the given tables, until something is changed.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Before the tables: domains, functions.
    pub before: Vec<String>,
    pub events: Table,
    pub destinations: Table,
    pub deliveries: Table,
    /// After them: indexes, rows.
    pub after: Vec<String>,
    /// Columns that may be NULL, and are in some rows.
    pub nulls: Vec<(&'static str, &'static str)>,
    /// What is set in the row of a destination.
    pub sets: Vec<String>,
    /// Columns of the application's own that a destination must have.
    pub needs: Vec<&'static str>,
}

impl Schema {
    pub fn given() -> Schema {
        Schema {
            before: vec!["CREATE TABLE organizations (id uuid PRIMARY KEY, name text NOT NULL)".into()],
            events: Table::new(
                "activity_logs",
                "id uuid DEFAULT gen_random_uuid() NOT NULL
                org_id uuid NOT NULL
                employee_id uuid
                session_id uuid
                client_name varchar(100)
                client_version varchar(50)
                event_type varchar(100) NOT NULL
                event_category varchar(50) DEFAULT 'c' NOT NULL
                content text
                payload jsonb DEFAULT '{}' NOT NULL
                created_at timestamp DEFAULT now() NOT NULL",
                &[("activity_logs_pkey", "PRIMARY KEY (id)")],
            ),
            destinations: Table::new(
                "webhook_destinations",
                "id uuid DEFAULT gen_random_uuid() NOT NULL
                org_id uuid NOT NULL
                name varchar(100) NOT NULL
                url text NOT NULL
                auth_type varchar(50) DEFAULT 'none' NOT NULL
                auth_config jsonb DEFAULT '{}'
                event_types text[] DEFAULT '{}'
                event_filter jsonb DEFAULT '{}'
                enabled boolean DEFAULT true NOT NULL
                batch_size integer DEFAULT 1 NOT NULL
                timeout_ms integer DEFAULT 5000 NOT NULL
                retry_max integer DEFAULT 3 NOT NULL
                retry_backoff_ms integer DEFAULT 1000 NOT NULL
                signing_secret varchar(255)
                created_by uuid
                created_at timestamp DEFAULT now() NOT NULL
                updated_at timestamp DEFAULT now() NOT NULL",
                &[
                    ("webhook_destinations_pkey", "PRIMARY KEY (id)"),
                    ("webhook_destinations_org_id_name_key", "UNIQUE (org_id, name)"),
                    ("auth", "CHECK (auth_type IN ('none', 'bearer', 'header', 'basic'))"),
                ],
            ),
            deliveries: Table::new(
                "webhook_deliveries",
                "id uuid DEFAULT gen_random_uuid() NOT NULL
                destination_id uuid NOT NULL
                log_id uuid NOT NULL
                status varchar(50) DEFAULT 'pending' NOT NULL
                attempts integer DEFAULT 0 NOT NULL
                last_attempt_at timestamp
                next_retry_at timestamp
                response_status integer
                response_body text
                error_message text
                created_at timestamp DEFAULT now() NOT NULL
                delivered_at timestamp",
                &[
                    ("webhook_deliveries_pkey", "PRIMARY KEY (id)"),
                    ("webhook_deliveries_destination_id_log_id_key", "UNIQUE (destination_id, log_id)"),
                    (
                        "webhook_deliveries_status_check",
                        "CHECK (status IN ('pending', 'delivered', 'failed', 'dead'))",
                    ),
                ],
            ),
            after: Vec::new(),
            nulls: Vec::new(),
            sets: Vec::new(),
            needs: Vec::new(),
        }
    }

    /// Makes the database, which belongs to a role of its own.
    pub async fn make(&self) -> App {
        let db = Db::empty().await;
        let owner = role(&db, "owner").await;
        let tables = [&self.events, &self.destinations, &self.deliveries].map(Table::ddl);
        let before = self.before.iter().map(|sql| format!("{sql};"));
        let after = self.after.iter().map(|sql| format!("{sql};"));
        let ddl: String = before.chain(tables).chain(after).collect();
        let script = format!("ALTER SCHEMA public OWNER TO {owner}; SET ROLE {owner}; {ddl}; RESET ROLE");
        let made = sqlx::raw_sql(AssertSqlSafe(script)).execute(&db.pool).await;
        made.unwrap_or_else(|error| panic!("{error}: {ddl}"));
        let url = url_of(&db, &owner);
        App { db, url, ddl }
    }
}

/// An application's database.
pub struct App {
    pub db: Db,
    /// The owner's way into it.
    pub url: Secret,
    pub ddl: String,
}

impl App {
    /// Exit code and output of a command.
    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let environment = [("DATABASE_URL", self.url.reveal()), ("POSTHASTE_ALLOW_NETWORKS", "127.0.0.0/8")];
        let output = run(arguments, &environment);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code().unwrap(), said.concat())
    }

    /// Adopts it, which must work; what `migrate` said.
    pub fn adopt(&self) -> String {
        let (code, said) = self.run(&["migrate", "--with-fan-out"]);
        assert_eq!(code, 0, "{said}\n{}", self.ddl);
        said
    }

    /// What the catalog says of everything in the schema, as text.
    pub async fn catalog(&self) -> String {
        let sql = "SELECT concat_ws(E'\\n',
            (SELECT string_agg(format('%s %s %s %s', c.oid, c.relname, c.xmin, c.reloptions), ','
                ORDER BY oid) FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace),
            (SELECT string_agg(format('%s %s %s', a.attrelid, a.attname, a.xmin), ','
                ORDER BY attrelid, attnum) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
                WHERE c.relnamespace = 'public'::regnamespace),
            (SELECT string_agg(format('%s %s', p.oid, p.xmin), ',' ORDER BY p.oid) FROM pg_proc p
                WHERE p.pronamespace = 'public'::regnamespace),
            (SELECT string_agg(format('%s %s', t.oid, t.xmin), ',' ORDER BY t.oid) FROM pg_trigger t),
            (SELECT string_agg(format('%s %s %s', k.oid, k.xmin, k.convalidated), ',' ORDER BY k.oid)
                FROM pg_constraint k))";
        self.db.text(sql).await.unwrap()
    }
}
