//! pgbouncer between the dispatcher and PostgreSQL: a private one, on a port of its own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use posthaste::model::Secret;
use rustix::process::geteuid;
use url::Url;

use crate::common::{Db, Posthaste, copied, eventually, free_port, fresh_dir, library, run, skip, unpacked};
use crate::scene::Scene;

/// A pooler; it goes with this value.
struct Pooler {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Pooler {
    /// One before the server of `db`; none where there is no pgbouncer. `more` is added to its configuration.
    async fn before(db: &Db, mode: &str, more: &str) -> Option<Pooler> {
        let Some(program) = unpacked("usr/sbin/pgbouncer") else {
            skip("there is no pgbouncer (Debian: package pgbouncer)");
            return None;
        };
        let (dir, port) = (fresh_dir(), free_port());
        fs::create_dir(&dir).unwrap();
        let url = Url::parse(db.url.reveal()).unwrap();
        let pair = |name: &str| {
            let found = url.query_pairs().find(|(key, _)| key == name);
            found.map(|(_, value)| value.into_owned()).unwrap_or_else(|| panic!("no {name} in the URL"))
        };
        let (host, server) = (pair("host"), url.query_pairs().find(|(key, _)| key == "port"));
        let server = server.map_or("5432".to_owned(), |(_, value)| value.into_owned());
        let file = dir.join("pgbouncer.ini");
        let configuration = format!(
            "[databases]\n* = host={host} port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
            listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
            default_pool_size = 20\n{more}\n"
        );
        // Whoever `auth_type` lets in goes on as the user that the server knows.
        let configuration = configuration.replace("* = host", &format!("* = user={} host", pair("user")));
        fs::write(&file, configuration).unwrap();
        // Only unpacked ones are below this directory, and need their libraries.
        let libraries = Some(&program).filter(|program| program.starts_with(env!("CARGO_MANIFEST_DIR")));
        let libraries = libraries.and_then(|_| library("libcares.so.2"));
        let mut command = Command::new(copied(&program, libraries.as_deref(), &dir));
        command.arg("-q").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(dir.join("log")).unwrap());
        if libraries.is_some() {
            command.env("LD_LIBRARY_PATH", &dir);
        }
        if geteuid().is_root() {
            // It refuses to run as root. Whose the socket is may go there.
            let owner = fs::metadata(&host).unwrap();
            command.uid(owner.uid()).gid(owner.gid());
        }
        let mut pooler = Pooler { child: command.spawn().unwrap(), dir, port };
        eventually("the pooler listens", async || {
            let ended = pooler.child.try_wait().unwrap();
            let log = || fs::read_to_string(pooler.dir.join("log")).unwrap();
            assert!(ended.is_none(), "pgbouncer has ended: {}", log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        Some(pooler)
    }

    /// The database of `db` through it.
    fn url(&self, db: &Db) -> Secret {
        let url = Url::parse(db.url.reveal()).unwrap();
        let user = url.query_pairs().find(|(key, _)| key == "user").unwrap().1.into_owned();
        Secret::new(format!("postgres://{user}@127.0.0.1:{}{}", self.port, url.path()))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.dir).ok();
    }
}

#[tokio::test]
async fn through_a_pooler_in_session_mode_everything_works_whatever_it_does_to_settings() {
    // One refuses settings that come with the start of a session, the other one drops them.
    for more in ["", "ignore_startup_parameters = options"] {
        let db = Db::new().await;
        let Some(pooler) = Pooler::before(&db, "session", more).await else { return };
        let url = pooler.url(&db);
        let mut scene = Scene::at(db, &url).await;
        scene.produce(300).await;
        scene.db.settled().await;
        let (_, ready) = scene.posthaste.get("/readyz").await.unwrap();
        assert!(!ready.contains("notifications"), "{ready}");
        // Settings that sessions were told show in what they do: these wait no longer for a lock.
        let mut transaction = scene.db.pool.begin().await.unwrap();
        let lock = "LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE";
        sqlx::query(lock).execute(&mut *transaction).await.unwrap();
        scene.suffers(&["lock timeout"]).await;
        transaction.rollback().await.unwrap();
        scene.recovers("lock, through a pooler").await;
        scene.ends(1).await;
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_told_and_refused() {
    for more in ["", "ignore_startup_parameters = options", "default_pool_size = 1"] {
        let db = Db::new().await;
        let Some(pooler) = Pooler::before(&db, "transaction", more).await else { return };
        let url = pooler.url(&db);
        let environment = [("DATABASE_URL", url.reveal())];
        for (command, code) in [("check", 1), ("migrate", 1)] {
            let output = run(&[command], &environment);
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("pooler in transaction mode"), "{command}: {said}");
            assert_eq!(output.status.code(), Some(code), "{command}: {said}");
        }
        let mut serve = Posthaste::spawn(&["serve"], &environment);
        assert_eq!(serve.exit().await.code(), Some(2), "{}", serve.log());
        assert!(serve.log().contains("pooler in transaction mode"), "{}", serve.log());
    }
}
