//! What a log line looks like: text for people, JSON lines for machines.

use std::io::Write;

use env_logger::{Builder, Env};
use log::LevelFilter;

/// These quote what they do not understand of the database URL, and of `~/.pgpass`: a password, should its
/// name be misspelt. They are never heard, whatever `RUST_LOG` says.
const SILENT: [&str; 2] = ["sqlx_postgres::options::parse", "sqlx_postgres::options::pgpass"];

/// Starts logging to standard error, in the given format; `RUST_LOG` says what is logged, by default `info`.
///
/// # Errors
/// When the format is neither `text` nor `json`.
pub fn start(format: &str) -> Result<(), String> {
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    for module in SILENT {
        builder.filter_module(module, LevelFilter::Off);
    }
    match format {
        "text" => {}
        "json" => {
            builder.format(|line, record| {
                let object = serde_json::json!({
                    "timestamp": line.timestamp_micros().to_string(),
                    "level": record.level().as_str(),
                    "target": record.target(),
                    "message": record.args().to_string(),
                });
                writeln!(line, "{object}")
            });
        }
        _ => return Err(format!("--log-format: {format:?} is neither text nor json")),
    }
    builder.init();
    Ok(())
}
