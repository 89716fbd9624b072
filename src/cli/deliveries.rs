//! `posthaste deliveries`: lists, one with its attempts, retry, replay.

use std::process::ExitCode;

use uuid::Uuid;

use super::common::{self, CommonArgs, PageArgs, Patience};
use crate::manage::List;
use crate::manage::deliveries::{self, DetailView, Query, RetriedView, View};
use crate::manage::jobs::{self, Replay};
use crate::model::{DeliveryId, DestinationId};

/// Arguments of `posthaste deliveries`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List deliveries, the newest first
    List(ListArgs),
    /// Show a delivery and its failed attempts
    Show(ShowArgs),
    /// Queue deliveries again, at once
    Retry(RetryArgs),
    /// Queue deliveries of a destination again, by a job beside live traffic
    Replay(ReplayArgs),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// Only those to this destination
    #[arg(long, value_name = "UUID")]
    pub destination: Option<String>,
    /// Only those in these statuses: pending, failed, delivered, dead, separated by commas
    #[arg(long)]
    pub status: Option<String>,
    /// Only events of this type
    #[arg(long, value_name = "TYPE")]
    pub event_type: Option<String>,
    /// From this time (UTC) on, e.g. 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Before this time (UTC) [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: PageArgs,
}

/// Arguments of `show`.
#[derive(clap::Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The delivery
    pub id: Uuid,
}

/// Arguments of `retry`.
#[derive(clap::Args, Debug)]
pub struct RetryArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The deliveries
    #[arg(required = true)]
    pub ids: Vec<Uuid>,
}

/// Arguments of `replay`.
#[derive(clap::Args, Debug)]
pub struct ReplayArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The destination
    #[arg(long, value_name = "UUID")]
    pub destination: Uuid,
    /// Deliveries in these statuses: dead, delivered, failed, separated by commas [default: dead]
    #[arg(long)]
    pub status: Option<String>,
    /// Only events of this type
    #[arg(long, value_name = "TYPE")]
    pub event_type: Option<String>,
    /// From this time (UTC) on, e.g. 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Before this time (UTC) [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
    /// Work on it here until it is done, instead of leaving it to a running dispatcher
    #[arg(long)]
    pub wait: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match &args.command {
        Command::List(args) => {
            let mut query = query(args);
            let read = async |conn: &mut _, org| {
                let patience = Patience::new();
                loop {
                    let page = deliveries::list(conn, org, &query).await?;
                    if !patience.wants_more(&page) {
                        return Ok(page);
                    }
                    query.cursor = page.next_cursor;
                }
            };
            common::run(&args.common, read, list)
        }
        Command::Show(args) => {
            let id = DeliveryId(args.id);
            common::run(&args.common, async |conn, org| Ok(deliveries::one(conn, org, id).await?), show)
        }
        Command::Retry(args) => {
            let ids: Vec<DeliveryId> = args.ids.iter().copied().map(DeliveryId).collect();
            common::run(
                &args.common,
                async |conn, org| Ok(deliveries::retry(conn, org, &ids).await?),
                retried,
            )
        }
        Command::Replay(args) => {
            let asked = Replay {
                status: args.status.as_ref().map(|names| names.split(',').map(str::to_owned).collect()),
                event_type: args.event_type.clone(),
                from: args.from.clone(),
                to: args.to.clone(),
                dry_run: args.dry_run,
            };
            let destination = DestinationId(args.destination);
            let replay = async |conn: &mut _, org| {
                let begun = jobs::replay(conn, org, destination, &asked, common::COUNTING).await?;
                common::begin(conn, org, args.wait, begun).await
            };
            common::run(&args.common, replay, common::begun)
        }
    }
}

fn query(args: &ListArgs) -> Query {
    Query {
        destination: args.destination.clone(),
        status: args.status.clone(),
        event_type: args.event_type.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
        limit: args.page.limit.clone(),
        cursor: args.page.cursor.clone(),
    }
}

fn list(page: &List<View>) {
    rows(&page.items);
    common::next(page.next_cursor.as_ref());
}

/// Deliveries as a table.
pub(super) fn rows(deliveries: &[View]) {
    let row = |one: &View| {
        let status = one.response_status.map(|status| status.to_string()).unwrap_or_default();
        [
            one.id.to_string(),
            one.created_at.clone(),
            common::state(one.status.name()),
            one.attempts.to_string(),
            one.event_type.clone(),
            one.destination_id.to_string(),
            status,
            one.reason.clone(),
        ]
    };
    let headings = ["ID", "QUEUED", "STATUS", "ATTEMPTS", "EVENT TYPE", "DESTINATION", "HTTP", "WHY"];
    common::table(headings, deliveries.iter().map(row));
}

fn show(detail: &DetailView) {
    let DetailView { delivery, response_body, failed_attempts } = detail;
    common::fields([
        ("delivery", Some(delivery.id.to_string())),
        ("status", Some(common::state(delivery.status.name()))),
        ("why", Some(delivery.reason.clone())),
        ("destination", Some(delivery.destination_id.to_string())),
        ("event", Some(delivery.event_id.to_string())),
        ("event type", Some(delivery.event_type.clone())),
        ("attempts", Some(delivery.attempts.to_string())),
        ("queued", Some(delivery.created_at.clone())),
        ("last attempt", delivery.last_attempt_at.clone()),
        ("next retry", delivery.next_retry_at.clone()),
        ("delivered", delivery.delivered_at.clone()),
        ("response", delivery.response_status.map(|status| status.to_string())),
        ("response body", response_body.clone()),
        ("error", delivery.error_message.clone()),
    ]);
    if failed_attempts.is_empty() {
        return;
    }
    println!();
    let row = |one: &deliveries::AttemptView| {
        [
            one.attempt.to_string(),
            one.started_at.clone(),
            format!("{} ms", one.duration_ms),
            one.response_status.map(|status| status.to_string()).unwrap_or_default(),
            if one.charged { "yes" } else { "no" }.to_owned(),
            one.error_message.clone().unwrap_or_default(),
        ]
    };
    let headings = ["FAILED", "STARTED", "TOOK", "HTTP", "CHARGED", "ERROR"];
    common::table(headings, failed_attempts.iter().map(row));
}

fn retried(retried: &RetriedView) {
    println!("{} queued again", retried.queued.len());
    for id in &retried.in_flight {
        println!("{id} is being sent at this moment, and was left as it is");
    }
}
