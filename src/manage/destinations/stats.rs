//! How a destination does.

use serde::Serialize;
use utoipa::ToSchema;

use super::view::{HealthView, health};
use super::{unknown, written};
use crate::actors::metrics::Figures;
use crate::manage::{Fault, Principal};
use crate::model::{DbTime, DestinationId, OrgId};
use crate::store::Connection;
use crate::store::destinations::stats::{self, Count, Found, Rate};

/// How a destination does, as far as it is known.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DestinationStats)]
pub struct StatsView {
    /// Deliveries by status.
    pub deliveries: CountsView,
    /// How it is.
    pub health: HealthView,
    /// Attempts of the last 15 minutes.
    pub last_15_minutes: AttemptsView,
    /// Attempts of the last 24 hours.
    pub last_24_hours: AttemptsView,
    /// How long requests take; null where no dispatcher in this process has made any.
    pub latency: Option<LatencyView>,
    /// How long the oldest delivery that waits has waited; null: none waits.
    pub oldest_pending_age_seconds: Option<f64>,
    /// Whether events are queued and sent.
    pub enabled: bool,
    /// `closed`, or `tripped`: then only probes are sent.
    pub breaker: &'static str,
    /// Since when the breaker is tripped.
    #[schema(format = DateTime)]
    pub tripped_at: Option<String>,
    /// When the next probe is sent.
    #[schema(format = DateTime)]
    pub next_probe_at: Option<String>,
    /// The receiver has asked for a pause until then.
    #[schema(format = DateTime)]
    pub paused_until: Option<String>,
    /// Since when nothing has got through.
    #[schema(format = DateTime)]
    pub failing_since: Option<String>,
    /// When it was disabled.
    #[schema(format = DateTime)]
    pub disabled_at: Option<String>,
    /// Why it was disabled.
    pub disabled_reason: Option<String>,
}

/// Deliveries by status.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = DeliveryCounts)]
pub struct CountsView {
    /// Queued and not attempted yet.
    pub pending: CountView,
    /// Failed, to be tried again.
    pub failed: CountView,
    /// Delivered and not deleted by retention.
    pub delivered: CountView,
    /// Given up.
    pub dead: CountView,
}

/// How attempts of some time ended, of the latest 2,000 deliveries in each status.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = AttemptCounts)]
pub struct AttemptsView {
    /// Attempts that delivered.
    pub succeeded: i64,
    /// Attempts that failed.
    pub failed: i64,
    /// The part that delivered, 0 to 1; null: there were none.
    pub success_rate: Option<f64>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = CappedCount)]
pub struct CountView {
    /// As far as it was counted.
    pub count: i64,
    /// Whether that is all; otherwise there are more.
    pub complete: bool,
}

/// How long requests of this process took, by steps of its histogram.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(as = Latency)]
pub struct LatencyView {
    /// Requests since its dispatcher began to send to the destination.
    pub requests: u64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
}

/// How a destination of `org` does. `figures` are what the dispatcher of this process has counted of it.
///
/// # Errors
/// [`Fault::NotFound`], [`Fault::Store`].
pub async fn stats(
    db: &mut Connection,
    org: OrgId,
    principal: Principal,
    id: DestinationId,
    figures: Option<&Figures>,
) -> Result<StatsView, Fault> {
    let written = written(db, org, id).await?;
    let Found { counts, rates, oldest, now, saved } =
        stats::read(db, id).await?.ok_or_else(|| unknown(id))?;
    let [pending, failed, delivered_rows, dead] =
        counts.map(|Count { count, complete }| CountView { count, complete });
    let time = |time: Option<DbTime>| time.map(DbTime::iso);
    let [last_15_minutes, last_24_hours] = rates.map(attempts);
    Ok(StatsView {
        deliveries: CountsView { pending, failed, delivered: delivered_rows, dead },
        health: health(&written, principal),
        last_15_minutes,
        last_24_hours,
        latency: figures.and_then(latency),
        oldest_pending_age_seconds: oldest.map(|oldest| now.since(oldest).as_secs_f64()),
        enabled: written.enabled,
        breaker: if saved.tripped_at.is_some() { "tripped" } else { "closed" },
        tripped_at: time(saved.tripped_at),
        next_probe_at: time(saved.next_probe_at),
        paused_until: time(saved.paused_until.filter(|until| *until > now)),
        failing_since: time(saved.failing_since),
        disabled_at: time(written.disabled_at.filter(|_| !written.enabled)),
        disabled_reason: principal.optional_text(written.disabled_reason).filter(|_| !written.enabled),
    })
}

fn attempts(Rate { succeeded, failed }: Rate) -> AttemptsView {
    let all = succeeded + failed;
    AttemptsView { succeeded, failed, success_rate: (all > 0).then(|| succeeded as f64 / all as f64) }
}

fn latency(figures: &Figures) -> Option<LatencyView> {
    let durations = &figures.durations;
    let quantile = |part| durations.quantile(part).map(|micros| micros / 1_000.0);
    Some(LatencyView { requests: durations.count(), p50_ms: quantile(0.5)?, p99_ms: quantile(0.99)? })
}
