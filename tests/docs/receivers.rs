//! The receivers of docs/receiving.md, run by the interpreters that are installed, against the real program.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::common::{Db, Posthaste, check_invariants, eventually, free_port, fresh_dir};
use crate::{Block, page};

const SECRET: &str = "whsec_cG9zdGhhc3RlIHRlc3RzIGl0cyBwYWdlcyBoZXJl";
const OTHER: &str = "whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCBpcyBub3QgaXQ=";

#[tokio::test]
async fn the_receiver_in_python_verifies_and_drops_duplicates() {
    holds("python").await;
}

#[tokio::test]
async fn the_receiver_in_javascript_verifies_and_drops_duplicates() {
    holds("js").await;
}

#[tokio::test]
async fn the_receiver_in_go_verifies_and_drops_duplicates() {
    holds("go").await;
}

#[tokio::test]
async fn the_receiver_in_php_verifies_and_drops_duplicates() {
    holds("php").await;
}

#[tokio::test]
async fn the_receiver_in_ruby_verifies_and_drops_duplicates() {
    holds("ruby").await;
}

#[tokio::test]
async fn the_receiver_in_java_verifies_and_drops_duplicates() {
    holds("java").await;
}

async fn holds(language: &str) {
    let start = format!("{language} ");
    let blocks = page("docs/receiving.md").blocks();
    let block = blocks.iter().find(|block| block.info.starts_with(&start)).unwrap();
    // Nobody has to install six languages to work on this program.
    let Some(running) = Running::start(block) else {
        return eprintln!("{language} is not installed, so its receiver was not run");
    };
    let listens = || TcpStream::connect(("127.0.0.1", running.port)).is_ok();
    eventually("the receiver listens", async || listens()).await;
    let (db, url) = (Db::new().await, format!("http://127.0.0.1:{}/hook", running.port));
    let org = db.org().await;
    let at = |name: &str, secret: &str| db.destination(org, &*url).name(name).secret(secret).retry(0, 100);
    let good = at("good", SECRET).event_types("{one}").insert().await;
    at("batch", SECRET).event_types("{many}").batch_size(10).insert().await;
    at("bad", OTHER).event_types("{forged}").insert().await;
    let (one, forged) =
        (db.event(org, "one", r#"{"text": "é 日本"}"#).await, db.event(org, "forged", "{}").await);
    let many = [db.event(org, "many", "{}").await, db.event(org, "many", "{}").await];
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 3, "{}", running.printed());
    assert_eq!(db.deliveries("status = 'dead' AND response_status = 401").await, 1);
    // The same once more.
    db.execute(&format!(
        "UPDATE webhook_deliveries
         SET status = 'pending', attempts = 0, delivered_at = NULL, next_retry_at = timezone('UTC', now())
         WHERE destination_id = '{good}'"
    ))
    .await;
    eventually("it is delivered again", async || db.deliveries("status = 'delivered'").await == 3).await;
    assert!(posthaste.terminate().await.success());

    let printed = running.printed();
    let times = |id: uuid::Uuid| printed.matches(&id.to_string()).count();
    assert_eq!((times(one), times(forged)), (1, 0), "{printed}");
    // Java has no parser of JSON.
    if language != "java" {
        assert_eq!(many.map(times), [1, 1], "{printed}");
    }
    check_invariants(&db, &[]).await;
}

/// A receiver with a port of its own.
struct Running {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Running {
    /// `None` if its interpreter is not installed. The line before the program says how it is run.
    fn start(block: &Block) -> Option<Running> {
        let said = block.before.split('`').nth(1).unwrap_or_else(|| panic!("no command: {}", block.before));
        let port = free_port();
        let run = said.strip_prefix("WEBHOOK_SECRET=whsec_… ").unwrap().replace("9000", &port.to_string());
        let words: Vec<&str> = run.split(' ').collect();
        let installed =
            Command::new("sh").arg("-c").arg(format!("command -v {}", words[0])).output().unwrap();
        if !installed.status.success() {
            return None;
        }
        let dir = fresh_dir();
        fs::create_dir(&dir).unwrap();
        let file = block.info.split(' ').nth(1).unwrap();
        fs::write(dir.join(file), block.text.replace("9000", &port.to_string())).unwrap();
        let output = File::create(dir.join("printed")).unwrap();
        let child = Command::new(words[0])
            .args(&words[1..])
            .current_dir(&dir)
            .env("WEBHOOK_SECRET", SECRET)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        Some(Running { dir, port, child })
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.dir.join("printed")).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the receiver printed ---\n{}---", self.printed());
        }
        let group = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process_group(group, Signal::KILL).ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.dir).ok();
    }
}
