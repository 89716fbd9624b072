//! `posthaste serve`: the dispatcher, until SIGTERM, SIGINT or SIGHUP.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use actix_rt::System;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::signals::Signals;
use super::stderr;
use crate::actors::supervision::{Fatal, Supervision, TICK, Watchdog};
use crate::actors::{Dispatcher, StartError};
use crate::admin::{self, Pages, ServerHandle, State};
use crate::config::{
    Config, ConfigFaults, DataDirArgs, DatabaseArgs, DispatchArgs, MAX_CONNECTIONS, is_true,
};
use crate::embedded::{Durability, Embedded, EmbeddedError, default_data_dir};
use crate::model::Secret;
use crate::store::doctor::{self, RowSecurity};
use crate::store::migrate::{self, MigrateError};
use crate::store::schema::{self, NoAccess};
use crate::store::{self, ConnectOptions, StoreError};

/// Database that the private server keeps the tables in.
const EMBEDDED_DATABASE: &str = "posthaste";
/// Pause between two tries to reach the database at the start.
const RETRY: Duration = Duration::from_secs(1);

/// Descriptors besides those of requests, workers and connections to the HTTP servers: the database, the
/// standard ones, and some to spare.
const OTHER_DESCRIPTORS: u64 = 40;
/// An HTTP server gets one connection for so many files that may be open: deliveries need the others.
const FILES_PER_CONNECTION: u64 = 16;
/// A runtime of its own needs these.
const DESCRIPTORS_PER_WORKER: u64 = 4;

/// Arguments of `posthaste serve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    /// Start and use a private PostgreSQL server from the binaries installed on this machine
    #[arg(long, env = "POSTHASTE_EMBEDDED", default_value = "false", value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub embedded: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub data_dir: DataDirArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub dispatch: DispatchArgs,
}

/// Why `serve` ended other than by a signal.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Config(#[from] ConfigFaults),
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error("the private database: {0}")]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot listen on {listen}: {error}; {option} names another address")]
    Listen { listen: SocketAddr, error: std::io::Error, option: &'static str },
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    #[error(
        "this role may not execute functions that it calls: run examples/deploy/grants.sql again, or\n  {}",
        .0.join("\n  ")
    )]
    NotGranted(Vec<String>),
    #[error(transparent)]
    NoAccess(#[from] NoAccess),
    #[error("the database is not prepared, missing: {}; run posthaste migrate", .0.join(", "))]
    NotMigrated(Vec<&'static str>),
    #[error(
        "row-level security would hide rows from this role. An owner of the tables must run:\n  {}",
        .0.join("\n  ")
    )]
    RowsHidden(Vec<String>),
    #[error("cannot start the watchdog: {0}")]
    Watchdog(std::io::Error),
    #[error("{0}; it ends, to be started again. Nothing is lost, what was in flight will be sent again")]
    Fatal(Fatal),
}

impl ServeError {
    fn exit_code(&self) -> ExitCode {
        match self {
            ServeError::Config(_)
            | ServeError::Start(
                StartError::Store(StoreError::Url(_) | StoreError::Pooler) | StartError::Network(_),
            ) => ExitCode::from(super::EXIT_USAGE),
            ServeError::Fatal(_) => ExitCode::from(super::EXIT_PANIC),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match try_run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("posthaste serve: {error}");
            error.exit_code()
        }
    }
}

fn try_run(args: &Args) -> Result<(), ServeError> {
    let mut faults = Vec::new();
    let embedded = is_true("--embedded", &args.embedded, &mut faults);
    let url = args.database.database_url.clone().filter(|url| !url.is_empty());
    if url.is_none() && !embedded {
        faults.push(
            "DATABASE_URL (or --database-url) is missing: it says which PostgreSQL to use; \
             --embedded starts a private one instead"
                .into(),
        );
    }
    let url = Secret::new(url.unwrap_or_default());
    if !embedded && !url.reveal().is_empty() {
        faults.extend(store::options(&url).err().map(|error| format!("--database-url: {error}")));
    }
    let mut config = match args.dispatch.validate(url) {
        Ok(config) if faults.is_empty() => config,
        Ok(_) => return Err(ConfigFaults(faults).into()),
        Err(ConfigFaults(more)) => {
            faults.extend(more);
            return Err(ConfigFaults(faults).into());
        }
    };
    raise_descriptor_limit();
    respect_descriptor_limit(&mut config);
    let server = if embedded { Some(start_embedded(args, &mut config)?) } else { None };
    let served = System::new().block_on(serve(config, embedded));
    if let Some(server) = server {
        server.stop()?;
    }
    served
}

/// Each request in flight needs a descriptor, and the usual soft limit of 1024 is less than the default of
/// `--max-in-flight` and its connections at rest need. Raising it to the hard limit is every process's right.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

/// More requests in flight than there are descriptors would take those of the database.
fn respect_descriptor_limit(config: &mut Config) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = (limit / FILES_PER_CONNECTION).clamp(4, MAX_CONNECTIONS as u64);
    config.operations.max_connections = connections as usize;
    let servers = if config.operations.metrics_listen.is_some() { 2 } else { 1 };
    let others = OTHER_DESCRIPTORS + DESCRIPTORS_PER_WORKER * config.workers as u64 + servers * connections;
    let fitting = limit.saturating_sub(others).max(1);
    if fitting < u64::from(config.max_in_flight) {
        log::warn!(
            "only {fitting} requests will be in flight at once and not {}, as no more than {limit} files may \
             be open: raise that limit (LimitNOFILE=, ulimit -n) or lower POSTHASTE_MAX_IN_FLIGHT",
            config.max_in_flight
        );
        config.max_in_flight = fitting as u32;
    }
}

fn start_embedded(args: &Args, config: &mut Config) -> Result<Embedded, ServeError> {
    if !config.database_url.reveal().is_empty() {
        log::warn!("--embedded: DATABASE_URL is not used");
    }
    let dir = args.data_dir.data_dir.clone().unwrap_or_else(default_data_dir);
    let server = Embedded::start(&dir, Durability::Durable)?;
    config.database_url = server.database(EMBEDDED_DATABASE)?;
    log::info!(
        "private PostgreSQL in {}, reached by: psql '{}'",
        dir.display(),
        config.database_url.reveal()
    );
    Ok(server)
}

async fn serve(config: Config, embedded: bool) -> Result<(), ServeError> {
    let supervision = Supervision::default();
    supervision.watch_arbiter("the main thread", System::current().arbiter().clone());
    // Where this thread is what does not answer, nobody else can end the process.
    let last_resort = || {
        stderr::flush();
        std::process::exit(super::EXIT_PANIC.into())
    };
    let watchdog = Watchdog::start(supervision.clone(), TICK, last_resort).map_err(ServeError::Watchdog)?;
    let served = serve_supervised(config, embedded, supervision).await;
    // After a fault it sees to it that the process ends.
    if !matches!(served, Err(ServeError::Fatal(_))) {
        watchdog.stop();
    }
    served
}

async fn serve_supervised(
    config: Config,
    embedded: bool,
    supervision: Supervision,
) -> Result<(), ServeError> {
    let mut signals = Signals::new().map_err(ServeError::Signals)?;
    let state = State::starting("starting: the database has not answered yet", &config, supervision.clone());
    let servers = start_servers(&config, &state)?;
    let prepared = tokio::select! {
        prepared = prepare(&config, embedded, &state) => prepared,
        fatal = supervision.ended() => return Err(ServeError::Fatal(fatal)),
        name = signals.next() => {
            log::info!("{name}: stopping before the start");
            return Ok(());
        }
    };
    let dispatcher = Dispatcher::start(config, prepared?, supervision)?;
    state.set(Ok(dispatcher.clone()));
    dispatch(dispatcher, &state, &mut signals).await?;
    for server in servers {
        // Requests that are open are answered, within a limit of the server's own.
        server.stop().await;
    }
    Ok(())
}

/// Lets the dispatcher work until a signal comes, and stops it.
async fn dispatch(dispatcher: Dispatcher, state: &State, signals: &mut Signals) -> Result<(), ServeError> {
    let supervision = dispatcher.shared.supervision.clone();
    let name = tokio::select! {
        name = signals.next() => name,
        fatal = supervision.ended() => return Err(ServeError::Fatal(fatal)),
    };
    log::info!("{name}: finishing what is in flight; a second signal ends at once");
    state.set(Err("stopping".into()));
    let stop = dispatcher.clone().stop();
    tokio::select! {
        // A panic ends the stopping as well, and must not pass for success.
        biased;
        fatal = supervision.ended() => return Err(ServeError::Fatal(fatal)),
        () = stop => log::info!("stopped: everything is recorded"),
        name = signals.next() => {
            log::warn!("{name} again: ending at once; what was in flight will be sent again");
            stderr::flush();
            std::process::exit(1);
        }
    }
    Ok(())
}

/// The HTTP server, or one for health and metrics and one for the rest.
fn start_servers(config: &Config, state: &State) -> Result<Vec<ServerHandle>, ServeError> {
    let wanted = match config.operations.metrics_listen {
        None => vec![("--listen (POSTHASTE_LISTEN)", config.listen, Pages::All)],
        Some(metrics) => vec![
            ("--listen (POSTHASTE_LISTEN)", config.listen, Pages::Others),
            ("--metrics-listen (POSTHASTE_METRICS_LISTEN)", metrics, Pages::Operations),
        ],
    };
    let mut servers = Vec::new();
    for (option, listen, pages) in wanted {
        let started = admin::start(listen, pages, state.clone());
        let (address, server) = started.map_err(|error| ServeError::Listen { listen, error, option })?;
        let what = if pages == Pages::Operations { "health and metrics" } else { "listening" };
        log::info!("{what} on http://{address}");
        servers.push(server);
    }
    Ok(servers)
}

/// Waits for the database, and makes sure that its tables are there and all rows can be seen. Returns how to
/// connect.
async fn prepare(config: &Config, embedded: bool, state: &State) -> Result<ConnectOptions, ServeError> {
    let options = store::options(&config.database_url).map_err(StartError::from)?;
    if embedded {
        migrate::migrate(&options, migrate::Options::default()).await?;
        return Ok(options);
    }
    let mut said = String::new();
    loop {
        let examined = async {
            let options = store::fitting(&options).await?;
            let mut connection = store::connect(&store::seeing_policies(options.clone())).await?;
            if let Err(no_access) = store::in_time(schema::access(&mut connection)).await? {
                return Ok(Err(no_access));
            }
            let missing = store::in_time(migrate::pending(&mut connection)).await?;
            let grants = match missing.is_empty() {
                true => store::in_time(doctor::missing_grants(&mut connection)).await?,
                false => Vec::new(),
            };
            let visible = match missing.is_empty() {
                true => store::in_time(doctor::row_security(&mut connection)).await?,
                false => RowSecurity::Inactive,
            };
            Ok::<_, StoreError>(Ok((missing, grants, visible, options)))
        };
        let examined = match examined.await {
            Ok(Err(no_access)) => return Err(ServeError::NoAccess(no_access)),
            Ok(Ok(examined)) => Ok(examined),
            Err(error) => Err(error),
        };
        let error = match examined {
            Ok((missing, ..)) if !missing.is_empty() => return Err(ServeError::NotMigrated(missing)),
            Ok((_, grants, ..)) if !grants.is_empty() => return Err(ServeError::NotGranted(grants)),
            Ok((.., RowSecurity::Hiding(remedies), _)) => return Err(ServeError::RowsHidden(remedies)),
            Ok((.., RowSecurity::Open, options)) => return Ok(store::seeing_policies(options)),
            Ok((.., RowSecurity::Inactive, options)) => return Ok(options),
            Err(error @ StoreError::Pooler) => return Err(StartError::from(error).into()),
            Err(error) => error.to_string(),
        };
        if error != said {
            log::error!("the database cannot be used yet, trying again until it works: {error}");
            state.set(Err(format!("starting: {error}")));
            said = error;
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::{Freeze, Panic};

    /// What is done to the database actor or the supervisor, and what it is called then.
    #[derive(Debug)]
    enum Fault {
        PanicOfTheSupervisor,
        PanicOfTheDbActor,
        FreezeOfTheDbActor,
    }

    #[actix_rt::test]
    async fn a_panic_of_what_everything_depends_on_ends_the_process() {
        assert_eq!(
            end(Fault::PanicOfTheSupervisor).await,
            "the supervisor panicked, which is a fault of this program"
        );
        assert_eq!(
            end(Fault::PanicOfTheDbActor).await,
            "the database actor panicked, which is a fault of this program"
        );
    }

    #[actix_rt::test]
    async fn an_actor_that_everything_depends_on_and_that_answers_nothing_ends_the_process_as_a_panic_does() {
        assert_eq!(end(Fault::FreezeOfTheDbActor).await, "frozen: the database actor");
    }

    /// Why `serve` ends after `fault`.
    async fn end(fault: Fault) -> String {
        // Nobody answers there: panics do not wait for a database.
        let url = Secret::new("postgres://nobody@127.0.0.1:1/nothing");
        let options = store::options(&url).expect("a URL");
        let mut signals = Signals::new().expect("signals");
        let args = DispatchArgs::from_flags(&[]).expect("all options have defaults");
        let config = args.validate(url.clone()).expect("valid");
        let supervision = Supervision::default();
        let quick = Duration::from_millis(100);
        Watchdog::start(supervision.clone(), quick, || {}).expect("a thread");
        let state = State::starting("", &config, supervision.clone());
        let dispatcher = Dispatcher::start(config, options, supervision).expect("a dispatcher");
        state.set(Ok(dispatcher.clone()));
        match fault {
            Fault::PanicOfTheSupervisor => dispatcher.supervisor.do_send(Panic),
            Fault::PanicOfTheDbActor => dispatcher.db.do_send(Panic),
            Fault::FreezeOfTheDbActor => dispatcher.db.do_send(Freeze),
        }
        let dispatch = dispatch(dispatcher, &state, &mut signals);
        let ended = tokio::time::timeout(Duration::from_secs(30), dispatch).await.expect("an end");
        let error = ended.expect_err("not the end");
        assert_eq!(error.exit_code(), ExitCode::from(crate::cli::EXIT_PANIC));
        let ServeError::Fatal(fatal) = error else { panic!("{error}") };
        fatal.to_string()
    }
}
