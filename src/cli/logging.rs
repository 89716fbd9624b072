//! What a log line looks like: text for people, JSON lines for machines.

use std::io::Write;

use env_logger::{Builder, Env};

/// Starts logging to standard error, in the given format; `RUST_LOG` says what is logged, by default `info`.
///
/// # Errors
/// When the format is neither `text` nor `json`.
pub fn start(format: &str) -> Result<(), String> {
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
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
