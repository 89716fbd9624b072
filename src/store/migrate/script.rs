//! The migrations as statements: the files under `migrations/`, taken apart.
//!
//! The files are plain SQL in a narrow form (their first comment says which), so that this stays short: a
//! statement ends with a line that ends in `;`, unless it is inside a function's `$$`; its first words say
//! what it makes.

/// One file under `migrations/`.
pub struct Migration {
    /// Its number, which never changes.
    pub version: i32,
    /// What it is about.
    pub name: &'static str,
    sql: &'static str,
}

/// The migration from which on the form of a filter bounds what it costs.
pub const LEAST_RIGHTS: i32 = 8;

/// All of them, in order. A later file may define a function or a constraint of an earlier one anew: the last
/// definition counts. Numbers rise and need not be dense: no number is used for two things, and not every one
/// that somebody has begun with is finished. What is applied is compared number by number, so that a gap
/// hides nothing.
pub const MIGRATIONS: [Migration; 10] = [
    Migration {
        version: 1,
        name: "given_tables",
        sql: include_str!("../../../migrations/0001_given_tables.sql"),
    },
    Migration {
        version: 2,
        name: "own_tables",
        sql: include_str!("../../../migrations/0002_own_tables.sql"),
    },
    Migration { version: 3, name: "fan_out", sql: include_str!("../../../migrations/0003_fan_out.sql") },
    Migration { version: 5, name: "jobs", sql: include_str!("../../../migrations/0005_jobs.sql") },
    Migration { version: 6, name: "retention", sql: include_str!("../../../migrations/0006_retention.sql") },
    Migration { version: 7, name: "api_keys", sql: include_str!("../../../migrations/0007_api_keys.sql") },
    Migration {
        version: LEAST_RIGHTS,
        name: "least_rights",
        sql: include_str!("../../../migrations/0008_least_rights.sql"),
    },
    Migration { version: 9, name: "faults", sql: include_str!("../../../migrations/0009_faults.sql") },
    Migration {
        version: 10,
        name: "adopted_tables",
        sql: include_str!("../../../migrations/0010_adopted_tables.sql"),
    },
    Migration {
        version: 12,
        name: "disabled_periods",
        sql: include_str!("../../../migrations/0012_disabled_periods.sql"),
    },
];

/// What a statement makes. Names are without their schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes {
    /// A table with these columns, and these storage parameters: `name = value`.
    Table { name: &'static str, columns: Vec<Column>, storage: Vec<&'static str> },
    /// A constraint of a table; `definition` as `pg_get_constraintdef` prints it where the schema is in the
    /// search_path.
    Constraint { table: &'static str, name: &'static str, definition: String },
    /// An index of a table; `definition` is what follows `ON`, as `pg_get_indexdef` prints it.
    Index { table: &'static str, name: &'static str, definition: &'static str },
    /// A function.
    Function(Function),
    /// The end of one: its name and the types of its arguments, as PostgreSQL prints them.
    NoFunction { name: &'static str, arguments: &'static str },
    /// A trigger of a table.
    Trigger { table: &'static str, name: &'static str },
}

/// A function as its statement says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// The types of its arguments, as PostgreSQL prints them: `text, jsonb`.
    pub arguments: String,
    /// Whether it runs with the rights of its owner.
    pub is_definer: bool,
    /// Its settings, as the catalog has them: `search_path=pg_catalog, pg_temp`.
    pub settings: Vec<String>,
    /// What stands between its `$$`.
    pub body: &'static str,
}

/// A definition of a constraint as it is to be written: what it refers to is named in full.
pub fn written(definition: &str) -> String {
    definition.replace(" REFERENCES ", " REFERENCES public.")
}

/// A statement and what it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it makes.
    pub makes: Makes,
    /// The statement, without its semicolon.
    pub sql: &'static str,
}

/// A column as its line in `CREATE TABLE` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type without a modifier: `character varying`.
    pub base_type: &'static str,
    /// Whether adding it to a table with rows is impossible: it must have a value and has no default, or the
    /// default differs from row to row and would rewrite the table.
    pub cannot_be_added: bool,
    /// The line, without its comma.
    pub line: &'static str,
}

/// All statements of all migrations, in order.
pub fn statements() -> Vec<Statement> {
    MIGRATIONS.iter().flat_map(|migration| split(migration.sql)).map(understand).collect()
}

/// The statements of one file, without comments between them.
fn split(file: &'static str) -> Vec<&'static str> {
    let mut statements = Vec::new();
    let (mut start, mut at, mut in_body) = (0, 0, false);
    for line in file.split_inclusive('\n') {
        let text = line.trim_end();
        if start == at && (text.is_empty() || text.starts_with("--")) {
            start += line.len();
        }
        at += line.len();
        in_body ^= text.matches("$$").count() % 2 == 1;
        if !in_body && start < at && text.ends_with(';') {
            statements.push(file[start..at].trim_end().trim_end_matches(';'));
            start = at;
        }
    }
    statements
}

fn understand(sql: &'static str) -> Statement {
    let makes = table(sql).or_else(|| constraint(sql)).or_else(|| index(sql));
    let makes = makes.or_else(|| function(sql)).or_else(|| no_function(sql)).or_else(|| trigger(sql));
    Statement { makes: makes.expect("the migrations keep to their form, and a test reads all of them"), sql }
}

fn table(sql: &'static str) -> Option<Makes> {
    let (name, rest) = sql.strip_prefix("CREATE TABLE public.")?.split_once(" (\n")?;
    let (columns, end) = rest.split_once("\n)")?;
    let columns = columns.lines().map(|line| column(line.trim().trim_end_matches(','))).collect();
    let storage = end.strip_prefix(" WITH (").and_then(|end| end.strip_suffix(')'));
    let storage = storage.map(|list| list.split(", ").collect()).unwrap_or_default();
    Some(Makes::Table { name, columns, storage })
}

fn column(line: &'static str) -> Column {
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let end = [" DEFAULT ", " NOT NULL", "("].iter().filter_map(|word| rest.find(word)).min();
    let random = line.contains("gen_random_uuid()");
    let required = line.ends_with("NOT NULL") && !line.contains(" DEFAULT ");
    Column { name, base_type: &rest[..end.unwrap_or(rest.len())], cannot_be_added: random || required, line }
}

fn constraint(sql: &'static str) -> Option<Makes> {
    let (table, rest) = sql.strip_prefix("ALTER TABLE public.")?.split_once(" ADD CONSTRAINT ")?;
    let (name, definition) = rest.split_once(' ')?;
    Some(Makes::Constraint {
        table,
        name,
        definition: definition.replace(" REFERENCES public.", " REFERENCES "),
    })
}

fn index(sql: &'static str) -> Option<Makes> {
    let (name, definition) = sql.strip_prefix("CREATE INDEX ")?.split_once(" ON public.")?;
    let (table, _) = definition.split_once(' ')?;
    Some(Makes::Index { table, name, definition })
}

fn function(sql: &'static str) -> Option<Makes> {
    let (name, rest) = sql.strip_prefix("CREATE OR REPLACE FUNCTION public.")?.split_once('(')?;
    let mut parts = rest.split("$$");
    let (head, body) = (parts.next()?, parts.next()?);
    let (arguments, attributes) = head.split_once(')')?;
    let settings = attributes.lines().filter_map(|line| line.strip_prefix("SET "));
    Some(Makes::Function(Function {
        name,
        arguments: arguments.split(", ").filter_map(argument_type).collect::<Vec<_>>().join(", "),
        is_definer: attributes.contains("SECURITY DEFINER"),
        settings: settings.map(|line| line.replace(" = ", "=").replace(['"', '\''], "")).collect(),
        body,
    }))
}

/// The type of an argument, `path text`, as PostgreSQL prints it; `None`: what comes out is none.
fn argument_type(argument: &'static str) -> Option<&'static str> {
    match argument.split_once(' ')? {
        ("OUT", _) => None,
        (_, "timestamp") => Some("timestamp without time zone"),
        (_, type_name) => Some(type_name),
    }
}

fn no_function(sql: &'static str) -> Option<Makes> {
    let (name, rest) = sql.strip_prefix("DROP FUNCTION public.")?.split_once('(')?;
    Some(Makes::NoFunction { name, arguments: rest.strip_suffix(')')? })
}

fn trigger(sql: &'static str) -> Option<Makes> {
    let (name, rest) = sql.strip_prefix("CREATE TRIGGER ")?.split_once(' ')?;
    let (table, _) = rest.split_once(" ON public.")?.1.split_once(' ')?;
    Some(Makes::Trigger { table, name })
}

/// The plain columns of an index, a primary key or a unique constraint: what stands in its first parentheses,
/// each without what follows its name.
pub fn columns_of(definition: &str) -> Vec<&str> {
    let inside =
        definition.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(list, _)| list);
    inside.split(',').filter_map(|item| item.split_whitespace().next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_of_every_migration_is_understood() {
        let all = statements();
        let count = |wanted: fn(&Makes) -> bool| all.iter().filter(|s| wanted(&s.makes)).count();
        assert_eq!(count(|m| matches!(m, Makes::Table { .. })), 15);
        assert_eq!(count(|m| matches!(m, Makes::Trigger { .. })), 10);
        let sources = MIGRATIONS.map(|m| m.sql).concat();
        let written = |words: &str| sources.lines().filter(|line| line.starts_with(words)).count();
        assert_eq!(count(|m| matches!(m, Makes::Constraint { .. })), written("ALTER TABLE"));
        assert_eq!(count(|m| matches!(m, Makes::Index { .. })), written("CREATE INDEX"));
        assert_eq!(count(|m| matches!(m, Makes::Function(_))), written("CREATE OR REPLACE FUNCTION"));
    }

    /// A session may set standard_conforming_strings, by which all others are read.
    #[test]
    fn text_with_a_backslash_is_written_as_an_escape_string() {
        for migration in &MIGRATIONS {
            let code = migration.sql.lines().filter(|line| !line.trim_start().starts_with("--"));
            for line in code.filter(|line| line.contains('\\') && !line.starts_with("ALTER TABLE")) {
                for (n, text) in line.split('\'').enumerate().filter(|(n, _)| n % 2 == 1) {
                    let before = line.split('\'').nth(n - 1).unwrap_or_default();
                    assert!(before.ends_with('E') || !text.contains('\\'), "{}: {line}", migration.name);
                }
            }
        }
    }

    #[test]
    fn a_function_is_its_name_its_arguments_its_settings_and_its_body() {
        let sql = "CREATE OR REPLACE FUNCTION public.f(a timestamp, b uuid[], OUT c text)\nLANGUAGE sql \
            STABLE SECURITY DEFINER\nSET search_path = pg_catalog, pg_temp\nSET \"TimeZone\" = 'UTC'\nAS \
            $$ SELECT 1 $$";
        let Some(Makes::Function(function)) = function(sql) else { panic!("no function") };
        assert_eq!(function.arguments, "timestamp without time zone, uuid[]");
        assert_eq!(function.settings, ["search_path=pg_catalog, pg_temp", "TimeZone=UTC"]);
        assert_eq!((function.name, function.is_definer, function.body), ("f", true, " SELECT 1 "));
    }

    #[test]
    fn a_column_line_gives_name_type_and_whether_it_can_be_added() {
        let name = column("name character varying(255) NOT NULL");
        assert_eq!((name.name, name.base_type, name.cannot_be_added), ("name", "character varying", true));
        let created = column("created_at timestamp without time zone DEFAULT now() NOT NULL");
        assert_eq!((created.base_type, created.cannot_be_added), ("timestamp without time zone", false));
        assert!(column("id uuid DEFAULT gen_random_uuid() NOT NULL").cannot_be_added);
        assert_eq!(column("event_types text[] DEFAULT '{}'::text[]").base_type, "text[]");
    }

    #[test]
    fn the_columns_of_an_index_are_found_whatever_follows_them() {
        assert_eq!(columns_of("t USING btree (a, b DESC) WHERE (c IS NOT NULL)"), ["a", "b"]);
        assert_eq!(columns_of("UNIQUE (destination_id, log_id)"), ["destination_id", "log_id"]);
    }
}
