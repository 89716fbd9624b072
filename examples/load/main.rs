//! The load driver: how fast Posthaste is on this machine, and whether it stays so.
//!
//! ```text
//! cargo build --release && cargo run --release --example load -- [SCENARIO]… [OPTIONS]
//! ```
//!
//! It starts a private PostgreSQL (or makes databases of its own on the server of `DATABASE_URL`), receivers,
//! and the release build of the real program, and ends all of them when it is done. Everything runs on one
//! machine, so everything competes for its cores: the figures are those of the whole, not of one part.
//!
//! - **PostgreSQL** is durable, as `serve --embedded` has it, and has room: see `place.rs` for the settings,
//!   which are printed. Each run of a variant has a database of its own.
//! - **Receivers** are processes of their own, with the least of HTTP/1.1 (`responder.rs`); their CPU time is
//!   told apart. They answer 200 with an empty body at once.
//! - **Destinations** have the defaults of the table and sign with HMAC-SHA256. Bodies are about 400 bytes.
//!   Unless said otherwise each destination is the only one of its organization, so that each delivery has an
//!   event of its own.
//! - **CPU** is user and system time from `/proc`, exact to 10 ms: of the posthaste process; of PostgreSQL's
//!   first process with all its children, also those that have ended; of the receivers. A figure `…_cpu_us`
//!   is per delivery.
//! - **Memory** is resident memory, in MB of 10^6 bytes; peaks are the kernel's (`VmHWM`).
//!
//! What the scenarios measure:
//!
//! - **floor**: 50,000 deliveries over 10 destinations claimed and recorded by the program's own statements,
//!   in turn on one connection, 1,000 rows each, without HTTP; then 50,000 signed requests by the program's
//!   own client to one receiver, 64 in flight on one thread, without a database. `serial_per_s` is what both
//!   allow one after the other: 1/(1/database + 1/http).
//! - **drain**: 100,000 deliveries are queued by INSERTs of 1,000 events (the trigger fans out) while nothing
//!   dispatches; VACUUM ANALYZE; CHECKPOINT; then the program starts. The time is from the first arrival to
//!   the moment at which the database has no undelivered row left, looked at every 10 ms once all have
//!   arrived. CPU counts from the start of the process. With `floor` in the same run, the ratio to it is
//!   printed.
//! - **steady**: 4 connections insert 10 events per transaction, for 10 organizations with 1 or 10
//!   destinations each. A rate is tried for 7 s. It holds if, after 2 s, the deliveries that were committed
//!   but have not arrived grew by no more than 2 % of those committed meanwhile (and the transactions under
//!   way), and the producers kept to the rate. Rates are doubled until one does not hold, then the interval
//!   is halved (by ratio) until it is known to 6 %. Everything arrives before the next rate is tried.
//! - **latency**: 8 connections insert events in fixed steps of time whether the last transaction has
//!   finished or not, for 10 destinations: single ones at 20 and 500 events/s, 4 per transaction at 2,000
//!   (`latency.rs` says why). The time is from the acknowledgement of the COMMIT in the producer to the
//!   arrival of the whole request in the receiver, by the machine's clock; what arrives before its
//!   acknowledgement counts as 0, and its share is printed. The first 5 s do not count: all is claimed on one
//!   connection until no other dispatcher has been seen for 3 s. Here a delivery's CPU includes its INSERT.
//! - **isolation**: 99 healthy destinations, without and with one that is well too (what that changes is
//!   noise), accepts and never answers, drips, resets, or answers 500; the hundredth one has a receiver
//!   process of its own, and as many events as any other. The healthy ones' p99 at 500 events/s in 5 s, by
//!   two programs that take 8 turns each; and the speed of their backlog of 500 deliveries each, from their
//!   first arrival to their last, in 4 turns each. The medians of the turns count.
//! - **tenants**: the latency of 50 events/s to the only destination of one organization, alone and beside
//!   another organization's backlog of 400,000 deliveries for 500 destinations.
//! - **replay**: the latency of 500 events/s to 10 destinations, as in `latency`, alone and while 100,000
//!   dead deliveries of one more destination of the first organization are replayed.
//! - **backlog**: the program's own claim of 1,000 rows for 10 destinations with 100 thousand, 1 and 10
//!   million due rows, and with 100 thousand due beside 10 million delivered ones. Filled once, growing
//!   (`bulk.rs`), 10 deliveries to an event; a run is the median of 5 claims of what is due first, and of 20
//!   that go on where the last one ended. Time as the caller sees it, the commit included.
//! - **bloat**: 1,000,000 deliveries for 100 destinations of 10 organizations, queued and drained as in
//!   `drain` while a session keeps a REPEATABLE READ transaction open; the rate at which the last tenth
//!   arrives against that of the first.
//! - **fleet**: 100, 1,000 and 10,000 enabled destinations with nothing to do: the time from the start of the
//!   process to `/readyz` saying yes, memory and CPU over 20 s, 2 s after that; then one event for each,
//!   timed from the first INSERT to the last arrival.
//! - **soak**: 500 events/s for as many minutes as `--minutes` says to 40 healthy destinations and 12 that
//!   are slow, flaky, hanging, dripping, resetting and failing; memory, descriptors and connections after a
//!   twentieth of the time, half of it, and all of it. It fails unless the healthy ones get everything.
//!
//! Where producers insert, the tables hold 100,000 delivered rows of another organization: on tables that
//! were empty when they were analyzed PostgreSQL checks foreign keys by scanning them, and keeps to that plan
//! while they grow.
//!
//! What was tried to make it faster, on two cores whose speed changed by a third within minutes, so that only
//! large differences count (one or two runs each):
//!
//! - A second connection that claims what is new, and backlogs that wait when 4,000 results are to be
//!   written: `tenants` p50 165 to 210 ms and p99 335 to 464 ms before, 4.2 and 55 ms with both; with the
//!   connection alone 13 and 153 to 260 ms. What is left is the claim statement of the trickle itself (p99 38
//!   ms), which shares two busy cores and the log of PostgreSQL with all others.
//! - Requests start by turns of the event loop: 1,000 destinations 14,100 to 17,300/s before, 15,100 to
//!   20,100/s with 16 starts a turn, 16,300 to 20,100/s with 32, 16,600 to 17,400/s with 64, 14,900 to
//!   16,500/s with 8. It is fair between organizations in any case.
//! - fillfactor 45 instead of 65, so that all claims are HOT instead of 60 %: 10 destinations 20,200 to
//!   20,800/s before, 22,000 to 22,500/s after, PostgreSQL 62 before and 55 us after for each delivery. With
//!   100 and 1,000 destinations the difference was less than the noise. The table is larger by 44 %.
//! - fillfactor 38 instead of 45: beside an open transaction the results of neighbours fill the pages, and
//!   at the end of `bloat` 70 % of the claims were not HOT. Its last tenth went at 0.75 to 0.81 times the
//!   rate of the first before (5 runs), at 0.83 to 0.87 after (5 runs; 0.79 in a sixth), and with 30 at 0.83,
//!   0.95 and 0.97; `drain` is as fast (3 runs each, in turn). The table is larger by 18 %.
//! - Backlogs that go on where the last claim ended, whatever comes meanwhile, and polls that do not search
//!   for who is busy with one. Beside an open transaction each poll read a million dead entries (1.1 s, every
//!   5 s), and so did the claim of each destination that it woke. On a machine twice as fast the rate did not
//!   change, as the pages above decided it.
//! - A due time of its own for each delivery of one INSERT, so that a claim goes on where the last one ended:
//!   4.3 entries of the index were read for each delivery before, 3.3 after; its speed was not measured
//!   apart.
//! - Results that cross to the database's thread once a turn instead of one by one, and claims that wait for
//!   free bytes only when they lack bytes (4 runs each, in turn): 67 us of its own CPU per delivery before,
//!   60 after with 100 destinations, 88 and 79 with 1,000.
//! - Statements of at most 500 rows instead of 2,000 (2 runs each, in turn): `tenants` p50 10.1 and 11.9 ms
//!   before, 5.9 and 6.6 after, p99 107 and 132 before, 47 and 61 after. `drain`, by the CPU that its
//!   receiver took as the machine changed its speed: 10 destinations 10 % faster, 1,000 5 %, and 100 2 %
//!   slower. With 200 rows p99 was 28 and 30 ms, but 100 destinations were 8 % slower, and 1,000 2 %.
//! - Searches in the order of the index that they should use, in sessions that sort nothing else: a plan that
//!   was made while nothing was due took the index of all that is due, and each claim looked at all of it.
//!   `fleet`, one event for each of 10,000: 7 to 20 s before (7 runs), 2.5 and 3.1 after.
//! - Backlogs that hold back where something new is held up: 32 rows a claim, and one statement at a time
//!   of those that claim from backlogs or record. `tenants` p99 28 and 37 ms before, 7.8 and 8.9 after, while
//!   the backlog went at 60 to 80 % of its speed. (Always on, with 200 rows: 21 and 23; 64: 13 and 13; 200,
//!   one at a time: 14 and 15; 64, one at a time: 9.8; 32, one at a time: 6.5, at half the speed.)
//! - 8 rows a claim instead of these 32 (3 runs each, in turn with 16): p99 7.5, 7.4 and 6.6 ms before, 3.4,
//!   3.9 and 3.9 after (16 rows: 6.1, 5.6 and 5.6), beside 1.9 to 4.2 alone; the backlog at half (16 rows: 80
//!   %) of its speed with 32. With commits that take 5 ms it loses a seventh. `steady` is the same.
//! - Claims that write the very row version that they locked, instead of finding each row by its id again:
//!   beside 10 million delivered rows 38 us per row before, 16 after (it read a page of the primary key for
//!   each), beside none 15.1 and 12.5; and no windows and sorts where the byte limits hold all that was
//!   picked: 10.7. `drain` (3 runs each, in turn): 50, 56, 62 and 50 us of PostgreSQL before for 10, 100 and
//!   1,000 destinations and batches, 47, 51, 58 and 41 after.
//!
//! What was tried and not kept:
//!
//! - Another allocator, mimalloc (4 runs each, in turn): 60 us of its own CPU before, 54 after with 100
//!   destinations, 79 and 68 with 1,000; but a peak of 76 and 95 MB instead of 37 and 58.
//! - One thread that sends instead of two: the same with 100 destinations (4 runs each, in turn).
//! - Without the indexes of retention and of the history of a destination, claim and record cost PostgreSQL
//!   as much as with them (6 runs each, in turn): they stay.
//! - Claims with `synchronous_commit=off`, results durable: `tenants` p50 1.6 ms before, 1.25 after alone, 8
//!   to 14 and 4 to 8 beside; p99 and `drain` the same. A crash of the server would lose claims, and so send
//!   twice what was in flight. Whoever wants that can have it (docs/performance.md).
//! - Results that find their rows by version as well: the same (3 times 40 statements of 1,000 rows); a new
//!   version is written to six indexes in any case, at 1.5 to 4 of 24 us each.
//! - Claims that lock nothing before they write: 10.7 us per row before, 9.9 after. They would wait for
//!   whoever has locked a row, and two dispatchers for each other.
//! - Results in two halves on two connections at once (3 runs each, in turn): 63, 79 and 54 us of PostgreSQL
//!   before, 74, 73 and 65 after with 10 destinations, and as many deliveries per second.
//! - Not tried, as it could not gain much, a lighter trigger: of the 1.9 ms that PostgreSQL takes for a
//!   single event at 500 events/s, the INSERT is 0.8 with the trigger and 0.3 without; claim and record are
//!   0.2 each, commits and wake-ups the rest.
//! - Polls that rest 20 times as long as they take: `bloat` 11,577 and 10,601/s before, 11,590 and 13,620
//!   after, PostgreSQL 111 and 113 us before, 107 and 92 after. But what nothing announces has to be found
//!   within the interval.
//! - awc makes a task and a timer for each request, for a date that requests do not carry: 2 % of the thread
//!   that sends. There is no way around it from outside.

mod backlog;
mod bloat;
mod bulk;
mod clock;
mod drain;
mod fill;
mod fleet;
mod floor;
mod isolation;
mod latency;
mod machine;
mod place;
mod process;
mod producer;
mod program;
mod receiver;
mod replay;
mod report;
mod responder;
mod soak;
mod steady;
mod tenants;
mod usage;

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use posthaste::config::{DataDirArgs, DatabaseArgs};
use posthaste::embedded::EmbeddedError;
use posthaste::store::StoreError;
use posthaste::store::migrate::MigrateError;
use tokio::signal::unix::{SignalKind, signal};

use crate::machine::Machine;
use crate::place::Place;
use crate::report::Row;

/// The first argument of the driver's own children.
const RECEIVE: &str = "receive";
/// Exit code of a program that Ctrl-C ended, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

/// Measures how fast Posthaste is on this machine.
#[derive(Parser, Debug)]
#[command(name = "load")]
struct Args {
    /// What to measure [default: everything but soak]
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// How often; the table has the median, the least and the most of all runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Only the variants of a scenario whose name contains this
    #[arg(long, value_name = "TEXT")]
    variant: Option<String>,
    /// Multiplies rows and durations; below 1 for a quick look
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
    /// Minutes that soak takes
    #[arg(long, default_value_t = 30.0, value_parser = scale)]
    minutes: f64,
    /// Write the lines of JSON to this file instead of below the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program to measure [default: the posthaste of the same build]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// A setting of the private PostgreSQL; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// An environment variable of the program, such as POSTHASTE_WORKERS=1; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// With a database URL, databases are made on that server and dropped at the end
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    data_dir: DataDirArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Scenario {
    Floor,
    Drain,
    Steady,
    Latency,
    Isolation,
    Tenants,
    Replay,
    Backlog,
    Bloat,
    Fleet,
    Soak,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Embedded(#[from] EmbeddedError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Sql(#[from] sqlx::Error),
    #[error("{0}")]
    Migrate(#[from] MigrateError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Other(String),
}

/// What every scenario works with.
struct Bench {
    args: Args,
    place: Place,
    /// The program to measure.
    binary: PathBuf,
    /// For its log.
    scratch: tempfile::TempDir,
    rows: RefCell<Vec<Row>>,
}

impl Bench {
    /// `count` rows, scaled, in multiples of `of`.
    fn rows(&self, count: u64, of: u64) -> u64 {
        ((count as f64 * self.args.scale / of as f64).round() as u64).max(1) * of
    }

    /// A duration, scaled.
    fn seconds(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.args.scale)
    }

    /// Whether a variant is to be measured.
    fn wants(&self, variant: &str) -> bool {
        self.args.variant.as_ref().is_none_or(|text| variant.contains(text.as_str()))
    }

    /// Keeps a result.
    fn done(&self, row: Row) {
        eprintln!("{}", row.line());
        self.rows.borrow_mut().push(row);
    }

    async fn measure(&self) -> Result<(), LoadError> {
        let mut scenarios = self.args.scenarios.clone();
        if scenarios.is_empty() {
            scenarios.extend(Scenario::value_variants().iter().filter(|one| **one != Scenario::Soak));
        }
        scenarios.sort_unstable();
        scenarios.dedup();
        for run in 1..=self.args.runs {
            let mut floors = None;
            for scenario in &scenarios {
                match scenario {
                    Scenario::Floor => floors = Some(floor::run(self, run).await?),
                    Scenario::Drain => drain::run(self, run, floors).await?,
                    Scenario::Steady => steady::run(self, run).await?,
                    Scenario::Latency => latency::run(self, run).await?,
                    Scenario::Isolation => isolation::run(self, run).await?,
                    Scenario::Tenants => tenants::run(self, run).await?,
                    Scenario::Replay => replay::run(self, run).await?,
                    Scenario::Bloat => bloat::run(self, run).await?,
                    Scenario::Fleet => fleet::run(self, run).await?,
                    // These two repeat themselves, or take as long as they are told.
                    Scenario::Backlog if run == 1 => backlog::run(self).await?,
                    Scenario::Soak if run == 1 => soak::run(self).await?,
                    Scenario::Backlog | Scenario::Soak => {}
                }
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == RECEIVE) {
        return responder::run();
    }
    match actix_rt::System::new().block_on(load(Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(LoadError::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn load(args: Args) -> Result<(), LoadError> {
    let mut interrupts = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    let [interrupt, terminate] = &mut interrupts;
    let (Ok(interrupt), Ok(terminate)) = (interrupt, terminate) else {
        return Err(LoadError::Other("cannot wait for signals".into()));
    };
    let binary = program::find(args.binary.as_deref())?;
    let scratch = tempfile::tempdir()?;
    let place = Place::start(&args).await?;
    let bench = Bench { args, place, binary, scratch, rows: RefCell::default() };
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        _ = interrupt.recv() => Err(LoadError::Interrupted),
        _ = terminate.recv() => Err(LoadError::Interrupted),
    };
    // What was measured is worth showing, whatever came then.
    let shown = show(&bench).await;
    let cleared = bench.place.clear().await;
    measured?;
    shown?;
    cleared
}

async fn show(bench: &Bench) -> Result<(), LoadError> {
    let rows = bench.rows.borrow().clone();
    if rows.is_empty() {
        return Ok(());
    }
    let machine = Machine::describe(&bench.args, &bench.place).await?;
    println!("{}\n{}", machine.header(), report::table(&rows));
    let lines = report::json_lines(&rows, &machine);
    match &bench.args.json {
        Some(file) => std::fs::write(file, lines)?,
        None => print!("{lines}"),
    }
    Ok(())
}

fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e4 => Ok(number),
        _ => Err("it must be a number above 0".into()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "it must be NAME=VALUE".into())
}
