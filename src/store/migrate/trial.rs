//! Whether a table takes the rows that our statements leave behind: its CHECKs, and those of its types, are
//! evaluated on such rows, whatever they are called. Nothing is written for that.

use serde_json::{Map, Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::catalog::Constraint;
use crate::store::schema::{self, quoted};

/// A row as one of our statements leaves it.
pub struct Sample {
    /// What has happened then, to be put after "refuses".
    pub what: &'static str,
    /// The columns that we write.
    pub row: Map<String, Value>,
}

/// Why rows are refused, and which.
#[derive(Debug)]
pub struct Refusal {
    /// The columns that it is about, as far as that is known.
    pub columns: Vec<String>,
    /// What refuses them.
    pub by: By,
    /// Which rows.
    pub what: Vec<&'static str>,
}

/// What refuses a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A CHECK of the table, with its expression, and with PostgreSQL's message where it fails altogether.
    Check { name: String, expression: String, failure: Option<String> },
    /// The default of a column that we do not write: PostgreSQL's message.
    Default(String),
    /// A CHECK or the NOT NULL of a domain: its name, if it has one, and the domain's, in quotes and with its
    /// schema.
    Domain { constraint: Option<String>, domain: String },
    /// The type of the column, or an expression: PostgreSQL's message.
    Value(String),
}

const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
        a.attgenerated <> '', a.attidentity <> '',
        coalesce(pg_get_expr(d.adbin, d.adrelid), pg_get_expr(t.typdefaultbin, 0))
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = to_regclass('public.' || $1) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum";

const CHECKS: &str = "SELECT k.conname::text, pg_get_constraintdef(k.oid),
        ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS key (num, n)
              JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = key.num ORDER BY n)
    FROM pg_constraint k WHERE k.conrelid = to_regclass('public.' || $1) AND k.contype = 'c'
    ORDER BY k.conname";

struct Check {
    name: String,
    expression: String,
    columns: Vec<String>,
}

struct Column {
    name: String,
    type_name: String,
    generated: bool,
    identity: bool,
    /// What it is where nobody says, or always.
    expression: Option<String>,
}

/// A table on which rows are tried.
pub struct Trial<'a> {
    table: &'a str,
    columns: Vec<Column>,
    checks: Vec<Check>,
}

/// What PostgreSQL made of a question.
enum Answer {
    Is(Value),
    Refused(By),
    /// This role may not ask it, or only by changing something.
    Unknown,
}

impl<'a> Trial<'a> {
    /// Reads what is needed of `table`. The session's search_path must stay what it is: by it PostgreSQL
    /// prints what it is to read again.
    pub async fn prepare(conn: &mut PgConnection, table: &'a str) -> Result<Trial<'a>, sqlx::Error> {
        let rows = schema::query(COLUMNS).bind(table).fetch_all(&mut *conn).await?;
        let columns = rows.iter().map(|row| Column {
            name: row.get(0),
            type_name: row.get(1),
            generated: row.get(2),
            identity: row.get(3),
            expression: row.get(4),
        });
        let columns = columns.collect();
        let rows = schema::query(CHECKS).bind(table).fetch_all(&mut *conn).await?;
        let checks = rows.iter().map(|row| Check {
            name: row.get(0),
            expression: stripped(row.get(1)).to_owned(),
            columns: row.get(2),
        });
        Ok(Trial { table, columns, checks: checks.collect() })
    }

    /// What the columns are where nobody says; and those of which that cannot be worked out.
    async fn defaults(
        &self,
        conn: &mut PgConnection,
    ) -> Result<(Map<String, Value>, Vec<(String, String)>), sqlx::Error> {
        let (mut defaults, mut failing) = (Map::new(), Vec::new());
        for column in self.columns.iter().filter(|column| !column.generated) {
            let value = match &column.expression {
                // A sequence does not tell what is next.
                Some(text) if text.contains("nextval(") => json!(1),
                _ if column.identity => json!(1),
                Some(text) => match asked(conn, format!("SELECT to_jsonb({text})"), &Map::new()).await? {
                    Answer::Is(value) => value,
                    Answer::Refused(by) => {
                        failing.push((column.name.clone(), message(&by)));
                        continue;
                    }
                    Answer::Unknown => continue,
                },
                None => continue,
            };
            defaults.insert(column.name.clone(), value);
        }
        Ok((defaults, failing))
    }

    /// Tries all of them: who refuses what.
    pub async fn refusals(
        &self,
        conn: &mut PgConnection,
        samples: &[Sample],
    ) -> Result<Vec<Refusal>, sqlx::Error> {
        let (defaults, failing) = self.defaults(conn).await?;
        let is_written = |name: &str| samples.iter().all(|sample| sample.row.contains_key(name));
        let failing = failing.into_iter().filter(|(name, _)| !is_written(name));
        let mut all: Vec<Refusal> = failing
            .map(|(name, message)| Refusal {
                columns: vec![name],
                by: By::Default(message),
                what: vec!["a row that does not name it"],
            })
            .collect();
        for sample in samples {
            let mut row = defaults.clone();
            row.extend(sample.row.clone());
            for (by, columns) in self.refused(conn, row).await? {
                match all.iter_mut().find(|refusal| refusal.by == by && refusal.columns == columns) {
                    Some(refusal) if refusal.what.contains(&sample.what) => {}
                    Some(refusal) => refusal.what.push(sample.what),
                    None => all.push(Refusal { columns, by, what: vec![sample.what] }),
                }
            }
        }
        Ok(all)
    }

    /// Whether a CHECK refuses NULL in this column, which is as good as NOT NULL.
    pub async fn refuses_null(&self, conn: &mut PgConnection, column: &str) -> Result<bool, sqlx::Error> {
        for check in self.checks.iter().filter(|check| check.columns == [column]) {
            if !self.lets(conn, &check.expression, column, &Value::Null).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a CHECK on one column lets a value through.
    pub async fn lets(
        &self,
        conn: &mut PgConnection,
        expression: &str,
        column: &str,
        value: &Value,
    ) -> Result<bool, sqlx::Error> {
        let Some(column) = self.columns.iter().find(|found| found.name == column) else {
            return Ok(true);
        };
        let row = Map::from_iter([(column.name.clone(), value.clone())]);
        let (of, name, type_name) = (self.table, quoted(&column.name), &column.type_name);
        let from = format!("jsonb_to_record($1::jsonb) AS {of} ({name} {type_name})");
        let sql = format!("SELECT to_jsonb({expression} IS NOT FALSE) FROM {from}");
        Ok(!matches!(asked(conn, sql, &row).await?, Answer::Is(Value::Bool(false)) | Answer::Refused(_)))
    }

    /// Who refuses one row, and for which columns.
    async fn refused(
        &self,
        conn: &mut PgConnection,
        mut row: Map<String, Value>,
    ) -> Result<Vec<(By, Vec<String>)>, sqlx::Error> {
        row.retain(|name, _| self.columns.iter().any(|column| column.name == *name && !column.generated));
        if !self.columns.iter().any(|column| column.generated) {
            let all: String =
                self.checks.iter().map(|c| format!(" AND {} IS NOT FALSE", c.expression)).collect();
            let sql = format!("SELECT to_jsonb(true{all}) FROM {}", self.from());
            if let Answer::Is(Value::Bool(true)) = asked(conn, sql, &row).await? {
                return Ok(Vec::new());
            }
        }
        if let Answer::Refused(by) = asked(conn, format!("SELECT true FROM {}", self.from()), &row).await? {
            let column = self.misfit(conn, &row).await?;
            return Ok(vec![(by, column.into_iter().collect())]);
        }
        let mut refused = Vec::new();
        for column in self.columns.iter().filter(|column| column.generated) {
            let Some(text) = &column.expression else { continue };
            match asked(conn, format!("SELECT to_jsonb({text}) FROM {}", self.from()), &row).await? {
                Answer::Is(value) => drop(row.insert(column.name.clone(), value)),
                Answer::Refused(by) => refused.push((by, vec![column.name.clone()])),
                Answer::Unknown => {}
            }
        }
        for check in &self.checks {
            let failure = match asked(conn, self.check(check), &row).await? {
                Answer::Is(Value::Bool(false)) => None,
                Answer::Refused(by) => Some(message(&by)),
                Answer::Is(_) | Answer::Unknown => continue,
            };
            let (name, expression) = (check.name.clone(), check.expression.clone());
            refused.push((By::Check { name, expression, failure }, check.columns.clone()));
        }
        Ok(refused)
    }

    /// The column whose value its type refuses.
    async fn misfit(
        &self,
        conn: &mut PgConnection,
        row: &Map<String, Value>,
    ) -> Result<Option<String>, sqlx::Error> {
        for column in &self.columns {
            let name = quoted(&column.name);
            let sql =
                format!("SELECT true FROM jsonb_to_record($1::jsonb) AS one ({name} {})", column.type_name);
            if let Answer::Refused(_) = asked(conn, sql, row).await? {
                return Ok(Some(column.name.clone()));
            }
        }
        Ok(None)
    }

    /// The row `$1` as one of the table's.
    fn from(&self) -> String {
        format!("jsonb_populate_record(NULL::{1}.{0}, $1::jsonb) AS {0}", self.table, schema::name())
    }

    fn check(&self, check: &Check) -> String {
        format!("SELECT to_jsonb({} IS NOT FALSE) FROM {}", check.expression, self.from())
    }
}

/// What a CHECK says, in parentheses.
pub fn expression(check: &Constraint) -> &str {
    stripped(&check.definition)
}

/// The expression of a CHECK, in parentheses.
pub fn stripped(definition: &str) -> &str {
    let text = definition.trim_end_matches(" NOT VALID").trim_end_matches(" NO INHERIT");
    text.strip_prefix("CHECK ").unwrap_or(text)
}

fn message(by: &By) -> String {
    match by {
        By::Value(message) | By::Default(message) => message.clone(),
        By::Check { name, .. } => format!("CHECK {name}"),
        By::Domain { domain, .. } => format!("a CHECK of the type {domain}"),
    }
}

/// Asks with the row as `$1`. An answer of the type `boolean` need not be JSON.
async fn asked(
    conn: &mut PgConnection,
    sql: String,
    row: &Map<String, Value>,
) -> Result<Answer, sqlx::Error> {
    // The parameter is there in any case.
    let sql = format!("SELECT (a.value)::text FROM ({sql}) AS a (value) WHERE $1::jsonb IS NOT NULL");
    let row = Value::Object(row.clone()).to_string();
    let asked = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql)).bind(row).persistent(false);
    let refused = match asked.fetch_optional(conn).await {
        Ok(text) => {
            let value = text.flatten().and_then(|text| serde_json::from_str(&text).ok());
            return Ok(Answer::Is(value.unwrap_or_default()));
        }
        Err(sqlx::Error::Database(error)) => error,
        Err(error) => return Err(error),
    };
    let of_postgresql = refused.try_downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let domain = of_postgresql.and_then(|error| {
        let [schema, name] = [error.schema()?, error.data_type()?].map(quoted);
        Some(format!("{schema}.{name}"))
    });
    Ok(match (refused.code().as_deref(), domain) {
        // Rights, and what belongs to the moment.
        (None, _) => Answer::Unknown,
        (Some(code), _) if code == "42501" || ["08", "25", "40", "53", "57"].contains(&&code[..2]) => {
            Answer::Unknown
        }
        // A CHECK that looks at a system column cannot be asked about a row that is not there.
        (Some("42703"), _) => Answer::Unknown,
        (Some("23514" | "23502"), Some(domain)) => {
            Answer::Refused(By::Domain { constraint: refused.constraint().map(str::to_owned), domain })
        }
        _ => Answer::Refused(By::Value(refused.message().to_owned())),
    })
}
