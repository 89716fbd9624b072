//! The names of all metrics, with what they mean: docs/metrics.md has the same table.

/// Series of one name.
#[derive(Debug)]
pub struct Family {
    /// Its name, with its unit at the end.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels, comma-separated.
    pub labels: &'static str,
    /// What it counts.
    pub help: &'static str,
}

macro_rules! families {
    ($($id:ident: $kind:ident $name:ident [$($label:ident),*] $help:literal;)*) => {
        $(pub(super) const $id: Family = Family {
            name: stringify!($name),
            kind: stringify!($kind),
            labels: stringify!($($label),*),
            help: $help,
        };)*
        /// All of them, in the order of the page.
        pub const FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BUILD_INFO: gauge posthaste_build_info [version] "Always 1; the version is a label.";
    LOG_LINES_DROPPED: counter posthaste_log_lines_dropped_total []
        "Log lines dropped, as nobody read them in time.";
    READY: gauge posthaste_ready [] "1 if /readyz says yes.";
    PROBLEMS: gauge posthaste_problems [] "Problems that /readyz names.";
    WARNINGS: gauge posthaste_warnings [] "Warnings that /readyz names.";
    DATABASE_UP: gauge posthaste_database_up [] "1 if the database answers.";
    LISTENER_UP: gauge posthaste_listener_up [] "1 if notifications arrive; without, polling finds the work.";
    DESTINATIONS: gauge posthaste_destinations [] "Destinations running.";
    DESTINATIONS_LOCKED: gauge posthaste_destinations_locked []
        "Destinations not contacted, as their secrets cannot be decrypted.";
    DESTINATION_PANICS: counter posthaste_destination_panics_total [] "Panics in the code of a destination.";
    PANICS: counter posthaste_panics_total [part] "Panics in the code of what runs beside destinations.";
    BREAKERS: gauge posthaste_breakers [state] "Destinations by how their breaker stands.";
    IN_FLIGHT: gauge posthaste_requests_in_flight [] "Requests in flight.";
    IN_FLIGHT_LIMIT: gauge posthaste_requests_in_flight_limit [] "Requests that may be in flight.";
    CONNECTIONS: gauge posthaste_connections_open [] "Open connections to receivers.";
    ATTEMPTS: counter posthaste_attempts_total [outcome] "Requests made, by how they ended.";
    ATTEMPT_DURATION: histogram posthaste_attempt_duration_seconds [] "How long requests took.";
    RETRIES: counter posthaste_retries_total []
        "Requests whose first delivery had been charged with one before.";
    DELIVERIES: counter posthaste_deliveries_total [result]
        "Results of deliveries, by what became of the row.";
    EVENT_BYTES: gauge posthaste_events_held_bytes [] "Events held in memory.";
    EVENT_BYTES_LIMIT: gauge posthaste_events_held_limit_bytes [] "Events that may be held in memory.";
    CLAIMS_WAITING: gauge posthaste_claims_waiting [] "Destinations that wait for a claim.";
    RESULTS_WAITING: gauge posthaste_results_waiting [] "Results that are not written yet.";
    FAULTS: gauge posthaste_faults [kind]
        "Rows and destinations that wait as something about them fails for a lasting reason.";
    CLAIMED: counter posthaste_claimed_deliveries_total [] "Deliveries claimed.";
    CLAIM_DURATION: histogram posthaste_claim_duration_seconds [] "How long statements took that claim.";
    RECORDED: counter posthaste_recorded_results_total [] "Results written.";
    RECORD_DURATION: histogram posthaste_record_duration_seconds [] "How long statements took that record.";
    RETENTION_DELETED: counter posthaste_retention_deleted_rows_total [kind]
        "Rows deleted because of their age.";
    RETENTION_BATCH: histogram posthaste_retention_batch_duration_seconds []
        "How long statements took that delete old rows.";
    RETENTION_FAILURES: counter posthaste_retention_failures_total [] "Passes of retention that failed.";
    RETENTION_LAST_PASS: gauge posthaste_retention_last_pass_timestamp_seconds []
        "When this process last finished a pass of retention.";
    LEFT_OUT: gauge posthaste_destinations_left_out []
        "Destinations without series of their own: they are added up as destination other.";
    QUEUES_MEASURED: gauge posthaste_queues_measured_timestamp_seconds []
        "When queue depths and ages were last read from the database.";
    DESTINATION_ATTEMPTS: counter posthaste_destination_attempts_total [destination, organization, outcome]
        "Requests made to a destination, by how they ended.";
    DESTINATION_ATTEMPT_DURATION: histogram posthaste_destination_attempt_duration_seconds
        [destination, organization] "How long requests to a destination took.";
    DESTINATION_IN_FLIGHT: gauge posthaste_destination_requests_in_flight [destination, organization]
        "Requests in flight to a destination.";
    DESTINATION_BREAKER: gauge posthaste_destination_breaker_state [destination, organization]
        "How the breaker of a destination stands: 0 closed, 1 recovering, 2 tripped.";
    QUEUE_DEPTH: gauge posthaste_destination_queue_depth [destination, organization]
        "Deliveries that are pending or failed, counted up to 10,000.";
    OLDEST_PENDING: gauge posthaste_destination_oldest_pending_age_seconds [destination, organization]
        "Age of the oldest delivery that is pending or failed; 0 without any.";
    CPU: counter process_cpu_seconds_total [] "CPU time used, user and system.";
    RESIDENT: gauge process_resident_memory_bytes [] "Memory in use.";
    VIRTUAL: gauge process_virtual_memory_bytes [] "Address space in use.";
    OPEN_FDS: gauge process_open_fds [] "Open files.";
    MAX_FDS: gauge process_max_fds [] "Files that may be open.";
    START_TIME: gauge process_start_time_seconds [] "When the process started.";
}
