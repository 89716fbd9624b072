//! Signals.

use rustix::process::Signal;

use crate::common::{Db, Posthaste, check_invariants, eventually};

#[tokio::test]
async fn a_terminal_that_closes_ends_it_as_sigterm_does() {
    let db = Db::new().await;
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        let mut posthaste = Posthaste::serve(&db.url).await;
        posthaste.signal(signal);
        let status = posthaste.exit().await;
        assert!(status.success(), "{signal:?}: {status}");
        assert!(posthaste.log().contains("everything is recorded"));
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn signals_that_mean_nothing_to_it_do_not_kill_it() {
    let db = Db::new().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2")] {
        posthaste.signal(signal);
        eventually("it says so", async || posthaste.log().contains(name)).await;
    }
    posthaste.ready().await;
    assert!(posthaste.terminate().await.success());
}

#[tokio::test]
async fn under_nohup_it_goes_on_when_the_terminal_closes() {
    let db = Db::new().await;
    let mut posthaste = Posthaste::serve_under("trap '' HUP", &db.url).await;
    posthaste.signal(Signal::HUP);
    // A signal that is heard, sent after it, shows that it had its time.
    posthaste.signal(Signal::USR1);
    eventually("it says so", async || posthaste.log().contains("SIGUSR1")).await;
    posthaste.ready().await;
    assert!(!posthaste.log().contains("SIGHUP"));
    assert!(posthaste.terminate().await.success());
}
