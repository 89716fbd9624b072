//! The words of the domain as types: ids, [`Destination`], [`Event`], [`Delivery`], [`Answer`], [`Outcome`].
//!
//! A delivery's `status` moves like this; nothing else ever happens to it:
//!
//! ```text
//!              2xx                                   retries used up, 410, expired, too large
//!   pending ─────────▶ delivered         pending ───────────────────────────────┐
//!      │                   ▲             failed  ───────────────────────────────┤
//!      │ charged failure   │ 2xx                                                ▼
//!      └────────────────▶ failed ─┐                                            dead
//!                          ▲      │ charged failure                             │
//!                          └──────┘                                             │
//!   pending ◀───────────────────── replay, retry by hand ───────────────────────┘
//! ```
//!
//! A lease (see [`crate::store::deliveries`]) is no status: a claimed delivery stays `pending` or `failed`.

mod db_time;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::db_time::DbTime;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// The tenant: a row of `organizations`.
    OrgId
);
id!(
    /// A row of `webhook_destinations`.
    DestinationId
);
id!(
    /// A row of `activity_logs`.
    EventId
);
id!(
    /// A row of `webhook_deliveries`: (destination, event).
    DeliveryId
);
id!(
    /// A row of `posthaste_jobs`: a replay or a backfill.
    JobId
);

id!(
    /// A row of `posthaste_api_keys`.
    KeyId
);

/// The `status` of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Queued and not charged with an attempt yet.
    Pending,
    /// At least one attempt failed; the next one comes.
    Failed,
    /// The receiver has it.
    Delivered,
    /// Given up.
    Dead,
}

impl Status {
    /// All of them, in the order of a life.
    pub const ALL: [Status; 4] = [Status::Pending, Status::Failed, Status::Delivered, Status::Dead];

    /// As the column has it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Failed => "failed",
            Status::Delivered => "delivered",
            Status::Dead => "dead",
        }
    }

    /// The status of this name.
    pub fn named(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Text that must never be shown: `Debug` prints `***`, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the one place that signs or sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A row of `webhook_destinations` with its row of `posthaste_destination_settings`, as written.
///
/// Texts are not yet checked: `outbound::Target` is what they compile to, or the fault that is in them.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// Primary key.
    pub id: DestinationId,
    /// The tenant it belongs to.
    pub org: OrgId,
    /// Where to send.
    pub url: String,
    /// `none`, `bearer`, `header`, `basic` or `oauth2`.
    pub auth_type: String,
    /// The members that `auth_type` asks for, as JSON text.
    pub auth_config: Secret,
    /// Events per request, 1 to 100.
    pub batch_size: u32,
    /// Limit on everything from the name lookup to the last byte of the answer.
    pub timeout: Duration,
    /// When to try again, and how often.
    pub retry: RetryPolicy,
    /// Signs requests.
    pub signing_secret: Option<Secret>,
    /// What `posthaste_destination_settings` says.
    pub settings: Settings,
}

/// A row of `posthaste_destination_settings`; [`Settings::default`] stands for a missing row.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of the body's format.
    pub payload_format: String,
    /// Options of the format, as JSON text.
    pub format_options: String,
    /// Requests per second; `None` is unlimited.
    pub rate_limit_per_second: Option<f64>,
    /// Requests that may follow each other at once under the rate limit.
    pub rate_limit_burst: Option<u32>,
    /// Requests in flight; `None` is the default of the configuration.
    pub max_in_flight: Option<u32>,
    /// One attempt at a time, in insertion order.
    pub ordered: bool,
    /// How long a batch may wait to fill.
    pub batch_wait: Duration,
    /// Events per request, 1 to 10,000, instead of [`Destination::batch_size`].
    pub batch_max_events: Option<u32>,
    /// Bytes of JSON per request, unless a single event has more.
    pub batch_max_bytes: Option<usize>,
    /// Deliveries older than this are `dead`.
    pub max_age: Option<Duration>,
    /// Further headers, as JSON text: an object of strings.
    pub extra_headers: Secret,
    /// `standard` or `hex`.
    pub signature_scheme: String,
    /// Header of the `hex` scheme.
    pub signature_header: Option<String>,
    /// The secret before the last rotation.
    pub previous_signing_secret: Option<Secret>,
    /// Until when the previous secret signs, too.
    pub previous_secret_expires_at: Option<DbTime>,
    /// Compress request bodies.
    pub gzip: bool,
    /// Client certificate chain, PEM.
    pub tls_client_cert: Option<String>,
    /// Key of the client certificate, PEM.
    pub tls_client_key: Option<Secret>,
    /// Roots to trust instead of the system's, PEM.
    pub tls_ca: Option<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            payload_format: "standard".into(),
            format_options: "{}".into(),
            rate_limit_per_second: None,
            rate_limit_burst: None,
            max_in_flight: None,
            ordered: false,
            batch_wait: Duration::ZERO,
            batch_max_events: None,
            batch_max_bytes: None,
            max_age: None,
            extra_headers: Secret::new("{}"),
            signature_scheme: "standard".into(),
            signature_header: None,
            previous_signing_secret: None,
            previous_secret_expires_at: None,
            gzip: false,
            tls_client_cert: None,
            tls_client_key: None,
            tls_ca: None,
        }
    }
}

/// `retry_max` and `retry_backoff_ms` of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Retries after the first attempt, 0 to 10: at most `max + 1` attempts are charged.
    pub max: u32,
    /// Delay before the first retry; doubles with each further one.
    pub backoff: Duration,
}

/// How thoroughly an ordered claim looks for live leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// Among the next rows, where an ordered claim would have put them.
    Near,
    /// Much further: the destination may have been unordered a moment ago.
    Everywhere,
}

/// What a claim for a batch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// So many deliveries that are due, of which it takes as many as make whole batches ...
    pub events: u32,
    /// ... or one that has been due for so long.
    pub wait: Duration,
}

/// The category of operational events. Nothing that happens to their deliveries makes further ones.
pub const OPERATIONAL_CATEGORY: &str = "webhook";

/// Bytes that an event takes in memory besides its payload and content.
pub const EVENT_OVERHEAD_BYTES: u64 = 512;

/// A row of `activity_logs`, ready to be written into bodies. Immutable, shared, never copied.
#[derive(Debug)]
pub struct Event {
    /// Primary key, `webhook-id` of single events.
    pub id: EventId,
    /// The tenant it belongs to.
    pub org: OrgId,
    /// Who did it.
    pub employee_id: Option<Uuid>,
    /// In which session.
    pub session_id: Option<Uuid>,
    /// With which client.
    pub client_name: Option<String>,
    /// And which version of it.
    pub client_version: Option<String>,
    /// What happened, e.g. `tool_call`.
    pub event_type: String,
    /// The kind of thing that happened, e.g. `agent_activity`.
    pub event_category: Category,
    /// A sentence for people.
    pub content: Option<String>,
    /// The JSON text of the `payload` column, exactly as PostgreSQL prints it. Never parsed.
    pub payload: String,
    /// `2025-12-23T16:02:19.890000Z`
    pub created_at: String,
}

/// The category of an event; none, which is null on the wire, where the application's table has no such
/// column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Category(pub Option<String>);

impl From<&str> for Category {
    fn from(name: &str) -> Category {
        Category(Some(name.to_owned()))
    }
}

impl From<String> for Category {
    fn from(name: String) -> Category {
        Category(Some(name))
    }
}

impl PartialEq<&str> for Category {
    fn eq(&self, name: &&str) -> bool {
        self.0.as_deref() == Some(*name)
    }
}

impl Event {
    /// Bytes that it takes in memory, as they count against `POSTHASTE_MAX_BYTES_IN_FLIGHT`.
    pub fn bytes_held(&self) -> u64 {
        let content = self.content.as_ref().map_or(0, String::len);
        (self.payload.len() + content) as u64 + EVENT_OVERHEAD_BYTES
    }
}

/// A claimed row of `webhook_deliveries` together with its event: ours until the lease ends.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Primary key.
    pub id: DeliveryId,
    /// Where it goes.
    pub destination: DestinationId,
    /// Charged attempts so far.
    pub attempts: u32,
    /// What the claim wrote into `last_attempt_at`: the start of the lease, and its proof.
    pub claimed_at: DbTime,
    /// What stood in `last_attempt_at` before; giving back writes it again.
    pub previous_attempt_at: Option<DbTime>,
    /// When it was queued.
    pub created_at: DbTime,
    /// When it was first attempted, if it ever was.
    pub first_attempt_at: Option<DbTime>,
    /// What to send.
    pub event: Arc<Event>,
}

/// What one HTTP request came to, before any policy looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it started, by the database's clock.
    pub started_at: DbTime,
    /// How long it took.
    pub duration: Duration,
    /// What came back.
    pub answer: Answer,
}

/// What came back from one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A response, its head at least.
    Response {
        /// HTTP status.
        status: u16,
        /// The first [`crate::outbound::KEPT_BODY_BYTES`] of the body as text, without NUL.
        body: String,
        /// `Retry-After`, as it came.
        retry_after: Option<String>,
        /// Why reading the body failed, if it did. The status means what it means all the same.
        broken: Option<String>,
    },
    /// Theirs, or the rules': network, TLS, timeout, refused address, a destination that is written wrong.
    Failed(String),
    /// Ours: nobody is charged.
    OurFault(String),
}

/// What is to be written about one delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Which delivery.
    pub delivery: DeliveryId,
    /// To which destination.
    pub destination: DestinationId,
    /// The lease under which it happened: [`Delivery::claimed_at`].
    pub claimed_at: DbTime,
    /// What happens to the row.
    pub change: Change,
    /// What `last_attempt_at` says from now on: the start of the attempt, or, without one,
    /// [`Delivery::previous_attempt_at`].
    pub last_attempt_at: Option<DbTime>,
    /// HTTP status of the attempt, if one came.
    pub response_status: Option<u16>,
    /// The kept part of the response body: one copy for all deliveries of a request.
    pub response_body: Option<Arc<str>>,
    /// What went wrong, for people.
    pub error_message: Option<Arc<str>>,
    /// The failed attempt to be kept in `posthaste_attempts`.
    pub failed: Option<FailedAttempt>,
}

impl Outcome {
    /// The outcome that undoes the claim of `delivery`.
    pub fn given_back(delivery: &Delivery) -> Outcome {
        Outcome {
            delivery: delivery.id,
            destination: delivery.destination,
            claimed_at: delivery.claimed_at,
            change: Change::GivenBack,
            last_attempt_at: delivery.previous_attempt_at,
            response_status: None,
            response_body: None,
            error_message: None,
            failed: None,
        }
    }
}

/// A failed attempt, for `posthaste_attempts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// 1-based: charged attempts before it, plus one.
    pub number: u32,
    /// How long it took.
    pub duration: Duration,
    /// Whether it counted against the retries.
    pub charged: bool,
}

/// What happens to a row of `webhook_deliveries`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `delivered`. Recorded even when the lease was lost: it is a fact.
    Delivered,
    /// Charged: `failed`, one attempt more, due again after `delay`.
    Failed {
        /// Until the next attempt.
        delay: Duration,
    },
    /// Not charged: status and attempts stay, due again after `delay`.
    Postponed {
        /// Until the next attempt.
        delay: Duration,
    },
    /// `dead`. `charged` tells whether an attempt was used.
    Dead {
        /// Whether `attempts` grows by one.
        charged: bool,
    },
    /// Nothing happened: the row is as it was before the claim.
    GivenBack,
}
