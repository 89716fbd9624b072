//! One data directory: its places, whom they belong to, and which server they say is running.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, geteuid, test_kill_process};
use sha2::{Digest, Sha256};

use super::binaries::{self, Binaries};
use super::{EmbeddedError, SUPERUSER, io_error};

/// Longest path of a Unix socket that every system takes.
const MAX_SOCKET_PATH: usize = 103;
/// PostgreSQL's name for the socket in its directory.
const SOCKET_NAME: &str = "/.s.PGSQL.5432";
/// A log larger than this is put aside (one old one is kept) at the next start.
const MAX_LOG_BYTES: u64 = 10 << 20;
/// Lines of the log that an error repeats.
const TOLD_LINES: usize = 5;

/// The places of one data directory, and who owns them.
#[derive(Debug)]
pub(super) struct Home {
    pub dir: PathBuf,
    pub data: PathBuf,
    /// Whom the server runs as; `None`: as we do.
    account: Option<Account>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Home {
    /// Makes the directory, locks it, and makes sure that the server's user can reach it.
    pub fn open(dir: &Path) -> Result<(Home, File), EmbeddedError> {
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
    pub fn make_cluster(&self) -> Result<(), EmbeddedError> {
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
        // Ctrl-C is for us: half a cluster would be of no use.
        command.stdin(Stdio::null()).process_group(0);
        let output = self.as_owner(&mut command).output().map_err(io_error("run initdb in", &fresh))?;
        if !output.status.success() {
            let detail = last_lines(&String::from_utf8_lossy(&output.stderr));
            return Err(EmbeddedError::Failed { step: "initdb failed", detail });
        }
        fs::rename(&fresh, &self.data).map_err(io_error("rename", &fresh))
    }

    pub fn binaries(&self) -> Result<Binaries, EmbeddedError> {
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
    pub fn server_pid(&self) -> Option<Pid> {
        let pid = self.pid_file_line(0)?.trim().parse().ok().and_then(Pid::from_raw)?;
        let lives = test_kill_process(pid).is_ok() && works_in(pid, &self.data) != Some(false);
        lives.then_some(pid)
    }

    pub fn recorded_socket(&self) -> Option<PathBuf> {
        self.pid_file_line(4).filter(|line| line.starts_with('/')).map(PathBuf::from)
    }

    fn pid_file_line(&self, line: usize) -> Option<String> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        text.lines().nth(line).map(str::to_owned)
    }

    fn pid_file(&self) -> PathBuf {
        self.data.join("postmaster.pid")
    }

    /// PostgreSQL refuses to start while `postmaster.pid` names a living process, even one that only got the
    /// number of a dead server (in containers that is the rule). Where it is certain that no process of a
    /// server of this directory is left, the file goes; else PostgreSQL decides.
    pub fn forget_a_dead_server(&self) -> Result<(), EmbeddedError> {
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

    pub fn socket_dir(&self) -> PathBuf {
        let near = self.dir.join("socket");
        if near.as_os_str().len() + SOCKET_NAME.len() <= MAX_SOCKET_PATH {
            return near;
        }
        let digest = Sha256::digest(self.dir.as_os_str().as_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        PathBuf::from("/tmp").join(format!("posthaste-{name}"))
    }

    /// Makes the socket's directory. In a directory that everybody may write to, somebody else may have been
    /// faster.
    pub fn make_socket_dir(&self) -> Result<PathBuf, EmbeddedError> {
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

    pub fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    pub fn open_log(&self) -> Result<File, EmbeddedError> {
        let path = self.log();
        if fs::metadata(&path).is_ok_and(|found| found.len() > MAX_LOG_BYTES) {
            fs::rename(&path, path.with_extension("log.old")).map_err(io_error("rename", &path))?;
        }
        OpenOptions::new().create(true).append(true).open(&path).map_err(io_error("write", &path))
    }

    pub fn log_tail(&self) -> String {
        last_lines(&String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()))
    }

    /// Lets `command` run as the owner of the data, where it may be: our own directory may be closed to that
    /// user.
    pub fn as_owner<'a>(&self, command: &'a mut Command) -> &'a mut Command {
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

/// Whether `pid` works in `directory`, as every process of a PostgreSQL server does; `None` if that cannot be
/// known.
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

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n")
}
