//! `posthaste events`: lists, one with its deliveries, sending, backfill.

use std::path::PathBuf;
use std::process::ExitCode;

use uuid::Uuid;

use super::common::{self, CommonArgs, Failure, PageArgs};
use crate::config::DEFAULT_MAX_EVENT_BYTES;
use crate::manage::events::{self, DetailView, NotQueuedView, Query, Receipt, View};
use crate::manage::jobs::{self, Backfill};
use crate::manage::{List, Principal};
use crate::model::{DestinationId, EventId};

/// Bytes of a file of events.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Bytes of an event that is shown: as large as one may be by any configuration.
const MAX_SHOWN_BYTES: usize = 64 << 20;
/// What is said of a part that is larger.
const TOO_LARGE: &str = "(larger than 64 MiB, not shown)";

/// Arguments of `posthaste events`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List events, the newest first
    List(ListArgs),
    /// Show an event and its deliveries
    Show(ShowArgs),
    /// Write events, as an INSERT into activity_logs does: JSON, an object or an array of up to 1,000
    Send(SendArgs),
    /// Queue past events for a destination that never got them, by a job beside live traffic
    Backfill(BackfillArgs),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
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
    /// The event
    pub id: Uuid,
}

/// Arguments of `send`.
#[derive(clap::Args, Debug)]
pub struct SendArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// A file with the events; without, or -, standard input
    pub file: Option<PathBuf>,
    /// Largest event and largest batch, in bytes of JSON, 1KiB to 64MiB; larger events are dead at once
    #[arg(long, env = "POSTHASTE_MAX_EVENT_BYTES", default_value = DEFAULT_MAX_EVENT_BYTES,
          value_name = "BYTES")]
    pub max_event_bytes: String,
}

/// Arguments of `backfill`.
#[derive(clap::Args, Debug)]
pub struct BackfillArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The destination
    #[arg(long, value_name = "UUID")]
    pub destination: Uuid,
    /// From this time (UTC) on, e.g. 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Before this time (UTC) [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Also over a time of which retention has deleted deliveries: what was delivered then is sent again
    #[arg(long)]
    pub force: bool,
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
            let query = Query {
                event_type: args.event_type.clone(),
                from: args.from.clone(),
                to: args.to.clone(),
                limit: args.page.limit.clone(),
                cursor: args.page.cursor.clone(),
            };
            common::run(&args.common, async |conn, org| Ok(events::list(conn, org, &query).await?), list)
        }
        Command::Show(args) => {
            let id = EventId(args.id);
            let read = async |conn: &mut _, org| {
                Ok(events::one(conn, org, Principal::Operator, id, MAX_SHOWN_BYTES).await?)
            };
            common::run(&args.common, read, show)
        }
        Command::Send(args) => {
            let send = async |conn: &mut _, org| {
                let most = crate::config::parse_bytes(&args.max_event_bytes);
                let most = most.map_err(|fault| Failure::invalid("--max-event-bytes", fault))?;
                let sent = events::read(&common::input(args.file.as_deref(), MAX_FILE_BYTES)?)?;
                Ok(events::send(conn, org, sent, most as usize).await?)
            };
            common::run(&args.common, send, |receipts| sent(receipts))
        }
        Command::Backfill(args) => {
            let asked = Backfill {
                from: args.from.clone(),
                to: args.to.clone(),
                force: args.force,
                dry_run: args.dry_run,
            };
            let destination = DestinationId(args.destination);
            let backfill = async |conn: &mut _, org| {
                let begun = jobs::backfill(conn, org, destination, &asked, common::COUNTING).await?;
                common::begin(conn, org, args.wait, begun).await
            };
            common::run(&args.common, backfill, common::begun)
        }
    }
}

fn list(page: &List<View>) {
    let row = |event: &View| {
        [
            event.id.to_string(),
            event.created_at.clone(),
            event.event_type.clone(),
            event.event_category.clone().unwrap_or_default(),
        ]
    };
    common::table(["ID", "CREATED", "TYPE", "CATEGORY"], page.items.iter().map(row));
    common::next(page.next_cursor.as_ref());
}

fn show(detail: &DetailView) {
    let or_too_large = |text: Option<String>, is: bool| if is { Some(TOO_LARGE.to_owned()) } else { text };
    common::fields([
        ("event", Some(detail.event.id.to_string())),
        ("type", Some(detail.event.event_type.clone())),
        ("category", detail.event.event_category.clone()),
        ("created", Some(detail.event.created_at.clone())),
        ("employee", detail.employee_id.map(|id| id.to_string())),
        ("session", detail.session_id.map(|id| id.to_string())),
        ("client", detail.client_name.clone()),
        ("client version", detail.client_version.clone()),
        ("content", or_too_large(detail.content.clone(), detail.content_too_large)),
        ("payload", or_too_large(Some(detail.payload.get().to_owned()), detail.payload_too_large)),
    ]);
    if !detail.deliveries.is_empty() {
        println!();
        super::deliveries::rows(&detail.deliveries);
    }
    if !detail.not_queued.is_empty() {
        println!();
        let row = |one: &NotQueuedView| [one.destination_name.clone(), one.reason.clone()];
        common::table(["DESTINATION", "WHY NOT QUEUED"], detail.not_queued.iter().map(row));
    }
}

fn sent(receipts: &[Receipt]) {
    let row = |receipt: &Receipt| [receipt.id.to_string(), receipt.created_at.clone()];
    common::table(["ID", "CREATED"], receipts.iter().map(row));
}
