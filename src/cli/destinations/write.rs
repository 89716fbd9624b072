//! What `create` and `update` take: the common members as flags, all of them as JSON.

use std::path::PathBuf;

use serde_json::value::RawValue;

use crate::cli::common::{self, Failure};
use crate::manage::destinations::Changes;
use crate::manage::input;
use crate::manage::patch::Patch;

/// Bytes of a document: certificates are the largest part.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// What to write. Flags go before what the document says.
#[derive(clap::Args, Debug)]
pub struct WriteArgs {
    /// File with the destination as the API takes it, JSON, - for standard input: for secrets, which other
    /// users of the machine could see as flags, and for what has no flag
    #[arg(long, value_name = "FILE")]
    pub from_json: Option<PathBuf>,
    /// Its name, of which its organization has one
    #[arg(long)]
    pub name: Option<String>,
    /// Where to send
    #[arg(long)]
    pub url: Option<String>,
    /// Types of events that it wants, separated by commas; an entry may end in *; an empty text wants all
    #[arg(long, value_name = "TYPES")]
    pub event_types: Option<String>,
    /// What it wants of them: JSON that the payload must contain, and a predicate $jsonpath
    #[arg(long, value_name = "JSON")]
    pub event_filter: Option<String>,
    /// Events of one request, 1 to 100
    #[arg(long, value_name = "EVENTS")]
    pub batch_size: Option<i64>,
    /// Limit of a request in milliseconds, 1000 to 30000
    #[arg(long, value_name = "MS")]
    pub timeout_ms: Option<i64>,
    /// Retries after the first attempt, 0 to 10
    #[arg(long, value_name = "RETRIES")]
    pub retry_max: Option<i64>,
    /// Delay before the first retry in milliseconds, 100 or more; it doubles with each
    #[arg(long, value_name = "MS")]
    pub retry_backoff_ms: Option<i64>,
    /// Format of the body: standard or flat
    #[arg(long, value_name = "FORMAT")]
    pub payload_format: Option<String>,
    /// Requests per second
    #[arg(long, value_name = "REQUESTS")]
    pub rate_limit_per_second: Option<f64>,
    /// Requests in flight, 1 to 10000
    #[arg(long, value_name = "REQUESTS")]
    pub max_in_flight: Option<i64>,
    /// Whether deliveries keep their order, one attempt at a time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub ordered: Option<bool>,
    /// Whether it is enabled
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub enabled: Option<bool>,
}

impl WriteArgs {
    /// What they say.
    ///
    /// # Errors
    /// What is wrong with the document, or cannot be read of it.
    pub fn changes(&self) -> Result<Changes, Failure> {
        let mut changes = match &self.from_json {
            Some(file) => input::read_object(&common::input(Some(file), MAX_DOCUMENT_BYTES)?)?,
            None => Changes::default(),
        };
        over(&mut changes.name, self.name.clone());
        over(&mut changes.url, self.url.clone());
        let types =
            |text: &String| text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
        over(&mut changes.event_types, self.event_types.as_ref().map(types));
        if let Some(filter) = &self.event_filter {
            let filter = RawValue::from_string(filter.clone());
            changes.event_filter = filter.map_or(Patch::Wrong, Patch::Value);
        }
        over(&mut changes.batch_size, self.batch_size);
        over(&mut changes.timeout_ms, self.timeout_ms);
        over(&mut changes.retry_max, self.retry_max);
        over(&mut changes.retry_backoff_ms, self.retry_backoff_ms);
        over(&mut changes.enabled, self.enabled);
        if self.has_settings() {
            let settings = changes.settings.get_or_insert_default().get_or_insert_default();
            over(&mut settings.payload_format, self.payload_format.clone());
            over(&mut settings.rate_limit_per_second, self.rate_limit_per_second);
            over(&mut settings.max_in_flight, self.max_in_flight);
            over(&mut settings.ordered, self.ordered);
        }
        Ok(changes)
    }

    fn has_settings(&self) -> bool {
        let WriteArgs { payload_format, rate_limit_per_second, max_in_flight, ordered, .. } = self;
        payload_format.is_some()
            || rate_limit_per_second.is_some()
            || max_in_flight.is_some()
            || ordered.is_some()
    }
}

fn over<T>(given: &mut Patch<T>, flag: Option<T>) {
    if let Some(value) = flag {
        *given = Patch::Value(value);
    }
}
