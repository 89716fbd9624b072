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
//! The server runs in a process group of its own and outlives a killed Posthaste; the next start finds it through
//! `postmaster.pid` and uses it. As root it runs as another user, because PostgreSQL refuses to run as root.
//! Everything here blocks: call it before the actors start and after they have stopped.

mod binaries;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::model::Secret;
use crate::store::{self, database};

use self::binaries::Binaries;

/// The superuser of the private server: no name that an installed PostgreSQL would use.
pub const SUPERUSER: &str = "posthaste";

/// Longest path of a Unix socket that every system takes.
const MAX_SOCKET_PATH: usize = 103;
/// PostgreSQL's name for the socket in its directory.
const SOCKET_NAME: &str = "/.s.PGSQL.5432";
/// How long a start may take: recovery after a crash of the machine reads the whole write-ahead log.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a fast shutdown may take: it ends with a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks at a server that starts or stops.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// A log larger than this is put aside (one old one is kept) at the next start.
const MAX_LOG_BYTES: u64 = 10 << 20;
/// Lines of the log that an error repeats.
const TOLD_LINES: usize = 5;

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
        "{} was written by PostgreSQL {data}, but only other versions (the newest is {newest}) are installed; \
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

/// The places of one data directory, and who owns them.
#[derive(Debug)]
struct Home {
    dir: PathBuf,
    data: PathBuf,
    /// Whom the server runs as; `None`: as we do.
    account: Option<Account>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
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
    /// Starts the server of `dir`, creating it where it does not exist yet, or takes over the one that still runs.
    /// Returns when it accepts connections.
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
        self.shut_down()?;
        if self.durability == Durability::Throwaway {
            let dir = &self.home.dir;
            fs::remove_dir_all(dir).map_err(io_error("remove", dir))?;
            if !self.socket.starts_with(dir) {
                fs::remove_dir_all(&self.socket).map_err(io_error("remove", &self.socket))?;
            }
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

impl Home {
    /// Makes the directory, locks it, and makes sure that the server's user can reach it.
    fn open(dir: &Path) -> Result<(Home, File), EmbeddedError> {
        let new = !dir.exists();
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let dir = dir.canonicalize().map_err(io_error("find", dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(io_error("create", &path))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => EmbeddedError::InUse(dir.clone()),
            fs::TryLockError::Error(source) => io_error("lock", &path)(source),
        })?;
        let data = dir.join("data");
        let home = Home { account: account(&data)?, data, dir };
        if new {
            home.claim_dir(&home.dir)?;
        }
        home.check_reachable()?;
        Ok((home, lock))
    }

    /// Makes the cluster unless it is there.
    fn make_cluster(&self) -> Result<(), EmbeddedError> {
        if self.data_version()?.is_some() {
            return Ok(());
        }
        let fresh = self.dir.join("data.new");
        if fresh.exists() {
            fs::remove_dir_all(&fresh).map_err(io_error("remove", &fresh))?;
        }
        self.make_dir(&fresh)?;
        let mut command = self.binaries()?.command("initdb");
        command.arg("-D").arg(&fresh).args(["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C"]);
        command.stdin(Stdio::null());
        let output = self.as_owner(&mut command).output().map_err(io_error("run initdb in", &fresh))?;
        if !output.status.success() {
            let detail = last_lines(&String::from_utf8_lossy(&output.stderr));
            return Err(EmbeddedError::Failed { step: "initdb failed", detail });
        }
        fs::rename(&fresh, &self.data).map_err(io_error("rename", &fresh))
    }

    fn binaries(&self) -> Result<Binaries, EmbeddedError> {
        binaries::choose(binaries::installed(), self.data_version()?, &self.data)
    }

    fn data_version(&self) -> Result<Option<u32>, EmbeddedError> {
        let path = self.data.join("PG_VERSION");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// The process of the server of this directory, if it lives.
    fn server_pid(&self) -> Option<Pid> {
        let pid = self.pid_file_line(0)?.trim().parse().ok().and_then(Pid::from_raw)?;
        let lives = test_kill_process(pid).is_ok() && works_in(pid, &self.data) != Some(false);
        lives.then_some(pid)
    }

    fn recorded_socket(&self) -> Option<PathBuf> {
        self.pid_file_line(4).filter(|line| line.starts_with('/')).map(PathBuf::from)
    }

    fn pid_file_line(&self, line: usize) -> Option<String> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        text.lines().nth(line).map(str::to_owned)
    }

    fn pid_file(&self) -> PathBuf {
        self.data.join("postmaster.pid")
    }

    /// PostgreSQL refuses to start while `postmaster.pid` names a living process, even one that only got the number
    /// of a dead server (in containers that is the rule). Where it is certain that no process of a server of this
    /// directory is left, the file goes; else PostgreSQL decides.
    fn forget_a_dead_server(&self) -> Result<(), EmbeddedError> {
        let path = self.pid_file();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).peekable();
        if !path.exists() || pids.peek().is_none() {
            return Ok(());
        }
        if pids.filter_map(Pid::from_raw).any(|pid| works_in(pid, &self.data) == Some(true)) {
            return Ok(());
        }
        fs::remove_file(&path).map_err(io_error("remove", &path))
    }

    fn socket_dir(&self) -> PathBuf {
        let near = self.dir.join("socket");
        if near.as_os_str().len() + SOCKET_NAME.len() <= MAX_SOCKET_PATH {
            return near;
        }
        let digest = Sha256::digest(self.dir.as_os_str().as_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        PathBuf::from("/tmp").join(format!("posthaste-{name}"))
    }

    /// Makes the socket's directory. In a directory that everybody may write to, somebody else may have been faster.
    fn make_socket_dir(&self) -> Result<PathBuf, EmbeddedError> {
        let dir = self.socket_dir();
        let Ok(found) = fs::symlink_metadata(&dir) else {
            self.make_dir(&dir)?;
            return Ok(dir);
        };
        let owner = self.account.map_or_else(|| geteuid().as_raw(), |account| account.uid);
        if found.is_dir() && found.uid() == owner && found.mode() & 0o077 == 0 {
            return Ok(dir);
        }
        let source = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else");
        Err(io_error("use", &dir)(source))
    }

    fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    fn open_log(&self) -> Result<File, EmbeddedError> {
        let path = self.log();
        if fs::metadata(&path).is_ok_and(|found| found.len() > MAX_LOG_BYTES) {
            fs::rename(&path, path.with_extension("log.old")).map_err(io_error("rename", &path))?;
        }
        OpenOptions::new().create(true).append(true).open(&path).map_err(io_error("write", &path))
    }

    fn log_tail(&self) -> String {
        last_lines(&String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()))
    }

    /// Lets `command` run as the owner of the data, where it may be: our own directory may be closed to that user.
    fn as_owner<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.current_dir(&self.dir)
    }

    fn make_dir(&self, path: &Path) -> Result<(), EmbeddedError> {
        DirBuilder::new().mode(0o700).create(path).map_err(io_error("create", path))?;
        self.claim_dir(path)
    }

    fn claim_dir(&self, path: &Path) -> Result<(), EmbeddedError> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error("protect", path))?;
        let Some(Account { uid, gid }) = self.account else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(io_error("give away", path))
    }

    /// Asks the kernel by entering the directory as that user; the modes only serve to name the culprit.
    fn check_reachable(&self) -> Result<(), EmbeddedError> {
        let Some(Account { uid, .. }) = self.account else { return Ok(()) };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", ":"]).stdin(Stdio::null());
        match self.as_owner(&mut command).status() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            _ => return Ok(()),
        }
        let mut way: Vec<&Path> = self.dir.ancestors().collect();
        way.reverse();
        let closed =
            |path: &&&Path| fs::metadata(path).is_ok_and(|m| m.uid() != uid && m.mode() & 0o001 == 0);
        let blocked = way.iter().find(closed).map_or(self.dir.as_path(), |path| path);
        Err(EmbeddedError::Unreachable { blocked: blocked.to_owned(), uid })
    }
}

/// Whom the server runs as when we are root: the owner of the data, else `postgres`, else `nobody`.
fn account(data: &Path) -> Result<Option<Account>, EmbeddedError> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    if let Ok(found) = fs::metadata(data)
        && found.uid() != 0
    {
        return Ok(Some(Account { uid: found.uid(), gid: found.gid() }));
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = ["postgres", "nobody"].iter().find_map(|name| find_account(&passwd, name));
    found.map(Some).ok_or(EmbeddedError::NoUser)
}

fn find_account(passwd: &str, name: &str) -> Option<Account> {
    let mut fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = fields.find(|fields| fields.len() > 3 && fields[0] == name)?;
    Some(Account { uid: line[2].parse().ok()?, gid: line[3].parse().ok()? })
}

/// Whether `pid` works in `directory`, as every process of a PostgreSQL server does; `None` if that cannot be known.
fn works_in(pid: Pid, directory: &Path) -> Option<bool> {
    match fs::read_link(format!("/proc/{}/cwd", pid.as_raw_pid())) {
        Ok(path) => Some(path == directory),
        // A process that has ended but is not collected has no directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound && Path::new("/proc/self").exists() => {
            Some(false)
        }
        Err(_) => None,
    }
}

/// A value of a setting that is a list of names: PostgreSQL splits it at commas unless it is quoted.
fn quoted_list(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n")
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
