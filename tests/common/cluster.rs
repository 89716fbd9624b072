//! One private PostgreSQL for all tests of a run, although every test is a process of its own.
//!
//! The first test starts it, the others find it. Each holds a shared lock on `<base>.users` for as long as it
//! lives, however it ends. A small watchdog (a shell loop with flock(1)) tries for the exclusive lock every
//! few seconds: once it gets it, nobody is left, and it stops the server and removes its directory. Without
//! flock(1) the server stays for the next run.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use posthaste::embedded::{Durability, Embedded};
use posthaste::model::Secret;
use posthaste::store::database;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use sha2::{Digest, Sha256};

/// Who owns the tables of the template.
pub const OWNER: &str = "tables_owner";

/// The shared server, as one test process sees it.
pub struct Cluster {
    /// The URL of its maintenance database.
    pub admin: Secret,
    /// The name of the migrated template.
    pub template: String,
    _user: File,
}

/// The shared server, started if need be.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(join)
}

impl Cluster {
    /// The URL of a database on this server.
    pub fn url(&self, database: &str) -> Secret {
        Secret::new(self.admin.reveal().replacen("/postgres?", &format!("/{database}?"), 1))
    }
}

fn join() -> Cluster {
    let base = base();
    // First the shared lock: from here on the watchdog leaves the server alone.
    let user = lock_file(&base.with_extension("users"));
    user.lock_shared().unwrap();
    let starter = lock_file(&base.with_extension("start"));
    starter.lock().unwrap();
    let server = Embedded::start(&base, Durability::Throwaway).unwrap();
    watch(&base, server.pid().unwrap());
    let cluster = Cluster {
        admin: server.url("postgres"),
        template: format!("template_{}", migrations()),
        _user: user,
    };
    server.leave_running();
    super::block_on(make_template(&cluster));
    cluster
}

/// Where this checkout's server lives. Directly below the temporary directory, since its path names a socket.
fn base() -> PathBuf {
    let checkout = hash(env!("CARGO_MANIFEST_DIR").as_bytes());
    std::env::temp_dir().join(format!("posthaste-tests-{}-{checkout}", geteuid().as_raw()))
}

/// Made under another name and renamed, so that a test that is killed leaves no half of it.
async fn make_template(cluster: &Cluster) {
    let options = posthaste::store::options(&cluster.admin).unwrap();
    let mut admin = posthaste::store::connect(&options).await.unwrap();
    let exists = sqlx::query("SELECT FROM pg_database WHERE datname = $1").bind(&cluster.template);
    if exists.fetch_optional(&mut admin).await.unwrap().is_some() {
        return;
    }
    database::drop(&cluster.admin, "unfinished_template").await.unwrap();
    database::create(&cluster.admin, "unfinished_template").await.unwrap();
    // The tables belong to a role that is no superuser, as they should.
    let own = format!(
        "DO $$ BEGIN CREATE ROLE {OWNER} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
         ALTER DATABASE unfinished_template OWNER TO {OWNER}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(own)).execute(&mut admin).await.unwrap();
    super::db::migrate(&super::db::with_user(&cluster.url("unfinished_template"), OWNER)).await;
    let rename = format!("ALTER DATABASE unfinished_template RENAME TO {}", cluster.template);
    sqlx::query(sqlx::AssertSqlSafe(rename)).execute(&mut admin).await.unwrap();
    database::close(admin).await;
}

/// A name for what the migrations are now: a server that outlived an edit must not serve the old tables.
fn migrations() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = Vec::new();
    for dir in ["migrations", "src/store", "src/store/migrate"] {
        files.extend(fs::read_dir(root.join(dir)).into_iter().flatten().map(|entry| entry.unwrap().path()));
    }
    files.retain(|path| path.is_file());
    files.sort();
    hash(&files.iter().flat_map(|path| fs::read(path).unwrap()).collect::<Vec<u8>>())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn lock_file(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap()
}

/// Starts the watchdog of the server `pid` unless it has one.
fn watch(base: &Path, pid: i32) {
    let watched = base.with_extension("watched");
    if lock_file(&watched).try_lock().is_err() {
        return;
    }
    // The outer flock makes it the only watchdog; the inner one succeeds only when no test process is left.
    // The server is given time to go before the lock is free again, so that the next test never meets a dying
    // one.
    let stop = "kill -INT $2; while kill -0 $2; do sleep 0.1; done; rm -rf \"$1\" \"$1\".watched";
    let watch =
        format!("while sleep 5 && kill -0 $2; do flock -n \"$1\".users sh -c '{stop}' x \"$1\" $2; done");
    let mut command = Command::new("flock");
    command.arg("-n").arg(&watched).args(["sh", "-c", &watch, "watchdog"]).arg(base).arg(pid.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    if let Err(error) = command.spawn() {
        eprintln!("no flock(1), so the tests' PostgreSQL stays in {}: {error}", base.display());
    }
}

/// A private PostgreSQL for one test alone: it may be crashed and started again.
pub struct Server {
    dir: PathBuf,
    running: Option<Embedded>,
}

impl Server {
    /// Starts one, durable: crashes are what it is for.
    pub fn start() -> Server {
        let dir = fresh_dir();
        let running = Embedded::start(&dir, Durability::Durable).unwrap();
        Server { dir, running: Some(running) }
    }

    /// An empty, migrated database on it.
    pub async fn db(&self) -> super::Db {
        let url = self.running.as_ref().unwrap().database("app").unwrap();
        super::db::migrate(&url).await;
        super::Db::at(url)
    }

    /// Ends the server without warning, as `pg_ctl stop -m immediate` does; the next start has to recover.
    pub fn crash(&mut self) {
        let server = self.running.take().unwrap();
        let pid = Pid::from_raw(server.pid().unwrap()).unwrap();
        kill_process(pid, Signal::QUIT).unwrap();
        // Dropping collects the process, whatever its end was.
        drop(server);
    }

    /// Stops the server in order, as `pg_ctl stop -m fast` does: whoever is connected is thrown out.
    pub fn stop(&mut self) {
        self.running.take().unwrap().stop().unwrap();
    }

    /// Where its data are.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts the server again.
    pub fn restart(&mut self) {
        self.running = Some(Embedded::start(&self.dir, Durability::Durable).unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.running.take());
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// A directory name that nothing uses yet, where PostgreSQL's user may go.
pub fn fresh_dir() -> PathBuf {
    std::env::temp_dir().join(format!("posthaste-test-{}", uuid::Uuid::new_v4().simple()))
}
