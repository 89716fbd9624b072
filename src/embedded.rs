//! The private PostgreSQL: a thin wrapper over `initdb` and `postgres` as they are installed on the machine.
//!
//! A data directory looks like this, and belongs to one [`Embedded`] at a time:
//!
//! ```text
//! <dir>/lock          held while an Embedded lives; the kernel frees it, whatever happens to the process
//! <dir>/data/         the cluster; made as data.new and renamed, so that it is complete or absent
//! <dir>/socket/       the only way in, 0700 (elsewhere when its path would be too long for a socket)
//! <dir>/postgres.log  what the server says
//! ```
//!
//! The server runs in a process group of its own and outlives a killed Posthaste; the next start finds it
//! through `postmaster.pid` and uses it. As root it runs as another user, because PostgreSQL refuses to run
//! as root. Everything here blocks: call it before the actors start and after they have stopped.

mod binaries;
mod home;

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::clock;
use crate::model::Secret;
use crate::store::{self, database};

use self::home::Home;

/// The superuser of the private server: no name that an installed PostgreSQL would use.
pub const SUPERUSER: &str = "posthaste";

/// How long a start may take: recovery after a crash of the machine reads the whole write-ahead log.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a fast shutdown may take: it ends with a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks at a server that starts or stops.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Whether what was committed survives a crash of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It does.
    Durable,
    /// It does not, and the whole directory is removed by [`Embedded::stop`]. For tests only.
    Throwaway,
}

/// What can go wrong with a private server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is nothing to start.
    #[error(
        "PostgreSQL's server programs (initdb and postgres, version {} or newer) are not installed; \
         install them with: {}",
        binaries::OLDEST,
        binaries::install_command_here()
    )]
    Missing,
    /// The data were written by a version that is not installed.
    #[error(
        "{} was written by PostgreSQL {data}, which is not installed (the newest that is: {newest}); \
         install PostgreSQL {data}, or use another data directory", directory.display()
    )]
    Version {
        /// The cluster.
        directory: PathBuf,
        /// Its version.
        data: u32,
        /// The newest version that is installed.
        newest: u32,
    },
    /// Another process uses the directory.
    #[error("the data directory {} is in use by another posthaste process", .0.display())]
    InUse(PathBuf),
    /// The user that the server runs as cannot reach the data.
    #[error(
        "the private PostgreSQL runs as user {uid}, who may not enter {}; choose another data directory, \
         or let others enter: chmod o+x {}", blocked.display(), blocked.display()
    )]
    Unreachable {
        /// The first directory on the way that is closed.
        blocked: PathBuf,
        /// Whom PostgreSQL runs as.
        uid: u32,
    },
    /// Root has nobody to run the server as.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as"
    )]
    NoUser,
    /// A program of PostgreSQL failed.
    #[error("{step}: {detail}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// What the program said.
        detail: String,
    },
    /// A file or directory cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server runs, but SQL on it failed.
    #[error("the private PostgreSQL: {0}")]
    Store(#[from] store::StoreError),
}

/// A running private server. Dropping it stops the server and keeps the data.
#[derive(Debug)]
pub struct Embedded {
    home: Home,
    socket: PathBuf,
    durability: Durability,
    /// `None` once there is nothing left to stop.
    pid: Option<Pid>,
    /// Present when this process started the server, and so has to collect it.
    child: Option<Child>,
    /// Held for as long as this value lives.
    _lock: File,
}

/// Where the private server's data are unless an option says otherwise.
pub fn default_data_dir() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/var/lib/posthaste");
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let share = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    share.unwrap_or_else(std::env::temp_dir).join("posthaste")
}

impl Embedded {
    /// Starts the server of `dir`, creating it where it does not exist yet, or takes over the one that still
    /// runs. Returns when it accepts connections.
    ///
    /// # Errors
    /// Each variant of [`EmbeddedError`] says what to do.
    pub fn start(dir: &Path, durability: Durability) -> Result<Embedded, EmbeddedError> {
        let (home, lock) = Home::open(dir)?;
        let mut server =
            Embedded { socket: home.socket_dir(), home, durability, pid: None, child: None, _lock: lock };
        block_on(server.run())?;
        Ok(server)
    }

    /// The URL of a database on this server; it need not exist.
    pub fn url(&self, database: &str) -> Secret {
        let socket = percent_encode(self.socket.as_os_str().as_bytes(), NON_ALPHANUMERIC);
        let database = percent_encode(database.as_bytes(), NON_ALPHANUMERIC);
        // The port is said because PGPORT could say another: it is part of the socket's name.
        Secret::new(format!(
            "postgres:///{database}?host={socket}&port=5432&user={SUPERUSER}&sslmode=disable"
        ))
    }

    /// The URL of a database that is created if it is missing.
    ///
    /// # Errors
    /// What the server says.
    pub fn database(&self, name: &str) -> Result<Secret, EmbeddedError> {
        let server = self.url("postgres");
        block_on(async { Ok(database::create_if_missing(&server, name).await?) })?;
        Ok(self.url(name))
    }

    /// The directory that everything is in.
    pub fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// The server's process.
    pub fn pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw_pid)
    }

    /// Stops the server: open transactions are rolled back, everything committed is kept, unless it is
    /// [`Durability::Throwaway`].
    ///
    /// # Errors
    /// When the server cannot be stopped, or its directory not be removed.
    pub fn stop(mut self) -> Result<(), EmbeddedError> {
        match self.durability {
            Durability::Durable => self.shut_down(),
            Durability::Throwaway => self.remove(),
        }
    }

    /// Stops the server and removes its data.
    ///
    /// # Errors
    /// When the server cannot be stopped, or its directory not be removed.
    pub fn remove(mut self) -> Result<(), EmbeddedError> {
        self.shut_down()?;
        let dir = &self.home.dir;
        fs::remove_dir_all(dir).map_err(io_error("remove", dir))?;
        if !self.socket.starts_with(dir) {
            fs::remove_dir_all(&self.socket).map_err(io_error("remove", &self.socket))?;
        }
        Ok(())
    }

    /// Lets the server run on without us, as a kill would; the next [`Embedded::start`] finds it.
    pub fn leave_running(mut self) {
        self.pid = None;
    }

    /// Brings the server to where it accepts connections: first the one that is there, then one of our own.
    async fn run(&mut self) -> Result<(), EmbeddedError> {
        if let Some(pid) = self.home.server_pid() {
            self.pid = Some(pid);
            if let Some(socket) = self.home.recorded_socket() {
                self.socket = socket;
            }
            if self.accepts_connections().await? {
                return Ok(());
            }
            // It was shutting down.
        }
        self.home.make_cluster()?;
        self.home.forget_a_dead_server()?;
        self.socket = self.home.make_socket_dir()?;
        self.launch()?;
        if self.accepts_connections().await? {
            return Ok(());
        }
        Err(EmbeddedError::Failed {
            step: "the private PostgreSQL did not start",
            detail: self.home.log_tail(),
        })
    }

    fn launch(&mut self) -> Result<(), EmbeddedError> {
        let home = &self.home;
        let log = home.open_log()?;
        let errors = log.try_clone().map_err(io_error("write", &home.log()))?;
        let mut command = home.binaries()?.command("postgres");
        command.arg("-D").arg(&home.data).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("listen_addresses", "");
        set("port", "5432");
        set("unix_socket_directories", &quoted_list(&self.socket.to_string_lossy()));
        set("timezone", "UTC");
        // A statement that fails may hold a destination's secret: it is not for a log.
        set("log_min_error_statement", "panic");
        set("log_checkpoints", "off");
        if self.durability == Durability::Throwaway {
            ["fsync", "synchronous_commit", "full_page_writes"].iter().for_each(|name| set(name, "off"));
            set("max_connections", "300");
            set("max_prepared_transactions", "20");
        }
        let child = home.as_owner(&mut command).spawn().map_err(io_error("run postgres in", &home.data))?;
        self.pid = Pid::from_raw(child.id().cast_signed());
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the server accepts connections; `false` when it ends instead.
    async fn accepts_connections(&mut self) -> Result<bool, EmbeddedError> {
        let options = store::options(&self.url("postgres"))?;
        let deadline = clock::now() + START_LIMIT;
        loop {
            let error = match store::connect(&options).await {
                Ok(connection) => {
                    database::close(connection).await;
                    return Ok(true);
                }
                Err(error) => error,
            };
            if self.has_ended() {
                return Ok(false);
            }
            if clock::now() > deadline {
                let detail = format!("{error}; its log ends with: {}", self.home.log_tail());
                return Err(EmbeddedError::Failed { step: "the private PostgreSQL does not answer", detail });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn shut_down(&mut self) -> Result<(), EmbeddedError> {
        let Some(pid) = self.pid.take() else { return Ok(()) };
        // SIGINT is PostgreSQL's fast shutdown. A server that is gone already needs none.
        if !self.has_ended() && kill_process(pid, Signal::INT).is_ok() {
            block_on(self.end())?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), EmbeddedError> {
        let deadline = clock::now() + STOP_LIMIT;
        while !self.has_ended() {
            if clock::now() > deadline {
                let detail = self.home.log_tail();
                return Err(EmbeddedError::Failed { step: "the private PostgreSQL does not stop", detail });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => self.home.server_pid().is_none(),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            log::error!("{error}");
        }
    }
}

/// A value of a setting that is a list of names: PostgreSQL splits it at commas unless it is quoted.
fn quoted_list(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError + use<> {
    let path = path.to_owned();
    move |source| EmbeddedError::Io { action, path, source }
}

/// Runs `future` on a thread of its own, so that callers inside of a runtime may call, too.
fn block_on<T: Send>(
    future: impl Future<Output = Result<T, EmbeddedError>> + Send,
) -> Result<T, EmbeddedError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(io_error("start a runtime for", Path::new("the private PostgreSQL")))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || runtime.block_on(future));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
