//! What a log line looks like: text for people, JSON lines for machines.
//!
//! Lines about something begin with its ids, `destination=… delivery=…`; in JSON these are members of their
//! own.

use std::backtrace::Backtrace;
use std::io::Write;

use env_logger::{Builder, Env, Logger, Target, WriteStyle};
use log::{LevelFilter, Log, Metadata, Record};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{output, stderr};

/// These quote what they do not understand of the database URL, and of `~/.pgpass`: a password, should its
/// name be misspelt. They are never heard, whatever `RUST_LOG` says.
const SILENT: [&str; 2] = ["sqlx_postgres::options::parse", "sqlx_postgres::options::pgpass"];

/// Starts logging to standard error, in the given format; `RUST_LOG` says what is logged, by default `info`.
///
/// # Errors
/// When the format is neither `text` nor `json`.
pub fn start(format: &str) -> Result<(), String> {
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    let is_unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    if is_unset("RUST_LOG") {
        builder.filter_level(LevelFilter::Info);
    }
    if is_unset("RUST_LOG_STYLE") {
        let colours = console::colors_enabled_stderr();
        builder.write_style(if colours { WriteStyle::Always } else { WriteStyle::Never });
    }
    builder.target(Target::Pipe(Box::new(stderr::Writer)));
    for module in SILENT {
        builder.filter_module(module, LevelFilter::Off);
    }
    match format {
        "text" => std::panic::set_hook(Box::new(print_panic)),
        "json" => {
            builder.format(|line, record| {
                let timestamp = line.timestamp_micros().to_string();
                let mut object = members(&record.args().to_string());
                object.insert("timestamp".into(), timestamp.into());
                object.insert("level".into(), record.level().as_str().into());
                object.insert("target".into(), record.target().into());
                writeln!(line, "{}", Value::Object(object))
            });
            // A panic is a line like any other.
            std::panic::set_hook(Box::new(|panic| {
                log::error!("{panic}");
                stderr::print_panic("");
            }));
        }
        _ => return Err(format!("--log-format: {format:?} is neither text nor json")),
    }
    let logger = builder.build();
    log::set_max_level(logger.filter());
    let logger = Visible { logger, is_text: format == "text" };
    log::set_boxed_logger(Box::new(logger)).map_err(|error| error.to_string())
}

/// What Rust prints itself, by way of the queue: a thread that panics must not wait for whoever reads the
/// log.
fn print_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = match Backtrace::capture() {
        backtrace if backtrace.status() == std::backtrace::BacktraceStatus::Captured => backtrace.to_string(),
        _ => String::new(),
    };
    stderr::print_panic(&output::lines(&format!("\nthread '{name}' {panic}\n{backtrace}")));
}

/// A logger whose lines may be shown to a terminal: they quote receivers and tenants.
struct Visible {
    logger: Logger,
    is_text: bool,
}

impl Log for Visible {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.is_text || !self.logger.matches(record) {
            return self.logger.log(record);
        }
        let text = record.args().to_string();
        match output::lines(&text) {
            std::borrow::Cow::Borrowed(_) => self.logger.log(record),
            shown => self.logger.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path(record.module_path())
                    .file(record.file())
                    .line(record.line())
                    .args(format_args!("{shown}"))
                    .build(),
            ),
        }
    }

    fn flush(&self) {
        stderr::flush();
    }
}

/// A message with the ids that it begins with as members of their own.
fn members(message: &str) -> Map<String, Value> {
    let pairs = message.split(' ').map_while(|word| word.split_once('='));
    let mut members: Map<String, Value> = pairs
        .map_while(|(name, value)| {
            let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase());
            let value = match value.parse::<u32>() {
                Ok(number) => number.into(),
                Err(_) => value.parse::<Uuid>().ok()?.to_string().into(),
            };
            is_name.then(|| (name.to_owned(), value))
        })
        .collect();
    members.insert("message".into(), message.into());
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_that_a_line_begins_with_are_members_and_nothing_else_is() {
        const ID: &str = "6f2c1c1e-8a57-4f0e-9d0b-2f6f3a1f0c11";
        for (message, expected) in [
            (format!("destination={ID} attempt=3 Failed: delivery={ID}"), vec!["attempt", "destination"]),
            (format!("destination={ID}"), vec!["destination"]),
            (format!("destination={ID}: no id"), vec![]),
            (format!("about destination={ID}"), vec![]),
            ("url=http://x".into(), vec![]),
            (format!("Level={ID}"), vec![]),
            (String::new(), vec![]),
        ] {
            let mut members = members(&message);
            assert_eq!(members.remove("message"), Some(message.clone().into()));
            assert_eq!(members.keys().collect::<Vec<_>>(), expected, "{message}");
        }
    }
}
