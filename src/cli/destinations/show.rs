//! What people see of destinations.

use crate::cli::common;
use crate::manage::List;
use crate::manage::destinations::{
    AttemptsView, CountView, CreatedView, DeletedView, EnabledView, RotatedView, StatsView, TestView, View,
};

/// What is said of a filter that is larger than one can be.
const TOO_LARGE: &str = "too large, so it wants nothing";

pub(super) fn list(page: &List<View>) {
    let row = |one: &View| {
        [
            one.id.to_string(),
            one.name.clone(),
            common::state(one.health.state),
            one.url.clone(),
            one.event_types.join(","),
            one.health.text.clone(),
        ]
    };
    let headings = ["ID", "NAME", "STATE", "URL", "EVENT TYPES", "HEALTH"];
    common::table(headings, page.items.iter().map(row));
    common::next(page.next_cursor.as_ref());
}

fn switched(enabled: bool) -> String {
    common::state(if enabled { "enabled" } else { "disabled" })
}

pub(super) fn show(view: &View) {
    let yes = |is: bool, word: &str| is.then(|| word.to_owned());
    let settings = &view.settings;
    let members = view.auth_config.iter().map(|(name, text)| format!("{name} {text}"));
    let members: String = members.map(|member| format!(", {member}")).collect();
    let empty = |json: &str| Some(json.to_owned()).filter(|json| json != "{}");
    let names = |names: &[String]| Some(names.join(", ")).filter(|names| !names.is_empty());
    common::fields([
        ("destination", Some(view.id.to_string())),
        ("name", Some(view.name.clone())),
        ("state", Some(switched(view.enabled))),
        ("disabled", view.disabled_at.clone()),
        ("why", view.disabled_reason.clone()),
        ("url", Some(view.url.clone())),
        ("auth", Some(format!("{}{members}", view.auth_type))),
        ("event types", Some(names(&view.event_types).unwrap_or_else(|| "all".into()))),
        ("event filter", view.event_filter.as_ref().map_or(Some(TOO_LARGE.to_owned()), |f| empty(f.get()))),
        ("batch size", Some(view.batch_size.to_string())),
        ("timeout", Some(format!("{} ms", view.timeout_ms))),
        ("retries", Some(format!("{}, the first after {} ms", view.retry_max, view.retry_backoff_ms))),
        ("signed", Some(if view.has_signing_secret { "yes" } else { "no" }.to_owned())),
        ("old secret until", settings.previous_secret_expires_at.clone()),
        ("format", Some(settings.payload_format.clone())),
        ("format options", empty(settings.format_options.get())),
        ("rate limit", settings.rate_limit_per_second.map(|rate| format!("{rate} requests per second"))),
        ("burst", settings.rate_limit_burst.map(|burst| burst.to_string())),
        ("in flight", settings.max_in_flight.map(|most| most.to_string())),
        ("ordered", yes(settings.ordered, "yes")),
        ("events per batch", settings.batch_max_events.map(|events| events.to_string())),
        ("bytes per batch", settings.batch_max_bytes.map(|bytes| bytes.to_string())),
        ("batches wait", (settings.batch_wait_ms > 0).then(|| format!("{} ms", settings.batch_wait_ms))),
        ("maximum age", settings.max_age_seconds.map(|age| format!("{age} s"))),
        ("extra headers", names(&settings.extra_header_names)),
        ("signatures", yes(settings.signature_scheme != "standard", &settings.signature_scheme)),
        ("signature header", settings.signature_header.clone()),
        ("compressed", yes(settings.gzip, "yes")),
        ("certificate", yes(settings.tls_client_cert.is_some(), "of its own, for the client")),
        ("roots", yes(settings.tls_ca.is_some(), "of its own")),
        ("created", Some(view.created_at.clone())),
        ("updated", Some(view.updated_at.clone())),
        ("version", Some(view.version.clone())),
    ]);
}

pub(super) fn created(created: &CreatedView) {
    show(&created.destination);
    if let Some(secret) = &created.signing_secret {
        once("The signing secret", secret.0.reveal());
    }
}

pub(super) fn rotated(rotated: &RotatedView) {
    show(&rotated.destination);
    once("The new signing secret", rotated.signing_secret.0.reveal());
}

/// Shows what is never shown again.
pub(in crate::cli) fn once(what: &str, secret: &str) {
    println!("\n{what}, which is shown only now:\n\n  {secret}\n");
}

pub(super) fn deleted(deleted: &DeletedView) {
    println!("The destination is deleted, and {} of its deliveries with it.", deleted.deliveries);
}

pub(super) fn enabled(enabled: &EnabledView) {
    show(&enabled.destination);
    let Some(missed) = enabled.missed.as_ref().filter(|missed| missed.count > 0 || !missed.complete) else {
        return;
    };
    let at_least = if missed.complete { "" } else { "at least " };
    println!(
        "\nWhile it was disabled it missed {at_least}{} event(s). To queue them:\n\n  posthaste events \
         backfill --org {} --destination {} --from {}\n",
        missed.count, enabled.destination.org_id, enabled.destination.id, missed.from
    );
}

pub(super) fn tested(test: &TestView) {
    common::fields([
        ("result", Some(common::state(if test.delivered { "delivered" } else { "failed" }))),
        ("event", Some(test.event_id.to_string())),
        ("took", Some(format!("{} ms", test.latency_ms))),
        ("response", test.response_status.map(|status| status.to_string())),
        ("response body", test.response_body.clone().filter(|body| !body.is_empty())),
        ("error", test.error_message.clone()),
    ]);
}

pub(super) fn stats(stats: &StatsView) {
    let count = |CountView { count, complete }: CountView| {
        Some(format!("{}{count}", if complete { "" } else { "more than " }))
    };
    let rate = |of: &AttemptsView| {
        let all = of.succeeded + of.failed;
        of.success_rate.map(|rate| format!("{:.1} % of {all} attempts", rate * 100.0))
    };
    common::fields([
        ("health", Some(stats.health.text.clone())),
        ("pending", count(stats.deliveries.pending)),
        ("failed", count(stats.deliveries.failed)),
        ("delivered", count(stats.deliveries.delivered)),
        ("dead", count(stats.deliveries.dead)),
        ("last 15 minutes", rate(&stats.last_15_minutes)),
        ("last 24 hours", rate(&stats.last_24_hours)),
        ("oldest waits", stats.oldest_pending_age_seconds.map(|age| format!("{age:.1} s"))),
        ("breaker", Some(common::state(stats.breaker))),
        ("tripped", stats.tripped_at.clone()),
        ("next probe", stats.next_probe_at.clone()),
        ("paused until", stats.paused_until.clone()),
        ("failing since", stats.failing_since.clone()),
    ]);
}
