//! `posthaste demo`: the whole thing in one command, on a database of its own.
//!
//! The parts: [`plan`] says who takes part and what each should get; [`place`] is the database; [`receivers`]
//! is the other side, with its own records; [`dispatcher`] is the real one, on a thread of its own;
//! [`stream`] writes the events; [`progress`] shows how far things are; [`summary`] holds the records against
//! the plan.

mod dispatcher;
mod place;
mod plan;
mod progress;
mod receivers;
mod stream;
mod summary;

use std::io;
use std::process::ExitCode;

use self::dispatcher::Dispatcher;
use self::place::Place;
use self::receivers::Receivers;
use super::output;
use super::signals::Signals;
use crate::config::{DataDirArgs, DatabaseArgs};
use crate::embedded::EmbeddedError;
use crate::model::Secret;
use crate::store::migrate::MigrateError;
use crate::store::{self, StoreError};

/// Exit code of a program that Ctrl-C ended, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

/// Arguments of `posthaste demo`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// With a database URL, the demo makes a new database on that server and drops it at the end; without one
    /// it starts a private PostgreSQL.
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub data_dir: DataDirArgs,
    /// Events to write, 1 to 1000000
    #[arg(long, env = "POSTHASTE_EVENTS", default_value_t = 2000, value_name = "EVENTS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub events: u32,
    /// Seconds over which they are written, 1 to 3600
    #[arg(long, env = "POSTHASTE_SECONDS", default_value_t = 20, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
}

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Embedded(#[from] EmbeddedError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Migrate(#[from] MigrateError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Dispatcher(String),
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    // Failing receivers are part of the show: their lines would only tear the progress apart.
    if std::env::var_os("RUST_LOG").is_none_or(|filter| filter.is_empty()) {
        log::set_max_level(log::LevelFilter::Error);
    }
    match actix_rt::System::new().block_on(demo(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Failure::Interrupted) => {
            println!("Interrupted; the database of the demo is gone again.");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(failure) => {
            eprintln!("posthaste demo: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// `Ok(true)`: everything is as it should be.
async fn demo(args: &Args) -> Result<bool, Failure> {
    // From the first moment on: what was started must be ended.
    let mut signals = Signals::new()?;
    let place = Place::make(args).await?;
    let shown = show(args, &place.url()?, &mut signals).await;
    // Whatever happened, nothing stays behind.
    let cleared = place.clear().await;
    let shown = shown?;
    cleared?;
    Ok(shown)
}

async fn show(args: &Args, url: &Secret, signals: &mut Signals) -> Result<bool, Failure> {
    let participants = plan::participants();
    let receivers = Receivers::start(&participants)?;
    let mut conn = store::connect(&store::options(url)?).await?;
    let organizations = place::populate(&mut conn, &participants, &receivers).await?;
    let dispatcher = Dispatcher::start(url.clone()).await.map_err(Failure::Dispatcher)?;
    println!(
        "Its API, as long as this runs: http://{}/api/docs/ (token {}, organization {})",
        dispatcher.address, dispatcher.admin_token, organizations[0]
    );
    let written = tokio::select! {
        written = stream::write(args, &mut conn, &organizations, &participants, &receivers) => written,
        _ = signals.next() => Err(Failure::Interrupted),
        // Nobody watches any more.
        () = output::broken() => Err(Failure::Interrupted),
    };
    let stopped = dispatcher.stop().await.map_err(Failure::Dispatcher);
    let records = receivers.stop().await;
    let written = written?;
    stopped?;
    let not_delivered = store::demo::not_delivered(&mut conn).await?;
    Ok(summary::print(&participants, &written, &records, not_delivered))
}
