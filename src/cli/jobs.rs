//! `posthaste jobs`: replays and backfills, looked at and cancelled.

use std::process::ExitCode;

use uuid::Uuid;

use super::common::{self, CommonArgs, PageArgs};
use crate::manage::List;
use crate::manage::jobs::{self, Query, View};
use crate::model::JobId;

/// Arguments of `posthaste jobs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List replays and backfills, the newest first
    List(ListArgs),
    /// Show how far one is
    Show(OneArgs),
    /// Stop one; what it has queued stays queued
    Cancel(OneArgs),
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: PageArgs,
}

/// Arguments of `show` and `cancel`.
#[derive(clap::Args, Debug)]
pub struct OneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
    /// The job
    pub id: Uuid,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    match &args.command {
        Command::List(args) => {
            let query = Query { limit: args.page.limit.clone(), cursor: args.page.cursor.clone() };
            common::run(&args.common, async |conn, org| Ok(jobs::list(conn, org, &query).await?), list)
        }
        Command::Show(args) => {
            let id = JobId(args.id);
            common::run(&args.common, async |conn, org| Ok(jobs::one(conn, org, id).await?), common::job)
        }
        Command::Cancel(args) => {
            let id = JobId(args.id);
            common::run(&args.common, async |conn, org| Ok(jobs::cancel(conn, org, id).await?), common::job)
        }
    }
}

fn list(page: &List<View>) {
    let row = |job: &View| {
        [
            job.id.to_string(),
            job.created_at.clone(),
            job.kind.to_owned(),
            common::state(job.state),
            common::progress(job),
            job.queued.to_string(),
            job.destination_id.to_string(),
            job.error.clone().unwrap_or_default(),
        ]
    };
    let headings = ["ID", "CREATED", "KIND", "STATE", "SEEN", "QUEUED", "DESTINATION", "ERROR"];
    common::table(headings, page.items.iter().map(row));
    common::next(page.next_cursor.as_ref());
}
