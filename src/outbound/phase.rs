//! Where an attempt stands, so that a timeout can tell what took so long.
//!
//! What an attempt does is spread over awc, the connector and the connection. None of them is told for which
//! attempt it works, but all of them are polled by it: where it stands is a local of that future.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// What an attempt is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The resolver has been asked.
    NameLookup,
    /// TCP.
    Connecting,
    /// TLS.
    Handshake,
    /// Head and body of the request are being written: the first phase on a connection that is there already.
    Sending,
    /// All is written, and nothing came back but interim heads.
    Waiting,
    /// The answer has begun.
    Reading,
}

impl Phase {
    /// The message of what ended after `timeout` in this phase.
    pub(super) fn timed_out(self, timeout: Duration) -> String {
        let busy = match self {
            Phase::NameLookup => "waiting for the name lookup",
            Phase::Connecting => "connecting",
            Phase::Handshake => "waiting for the TLS handshake",
            Phase::Sending => "sending the request",
            Phase::Waiting => "waiting for the answer",
            Phase::Reading => "reading the answer",
        };
        format!("timed out after {} ms while {busy}", timeout.as_millis())
    }
}

tokio::task_local! {
    static PRESENT: Rc<Standing>;
}

/// Where an attempt stands.
struct Standing {
    phase: Cell<Phase>,
    accepted: Cell<Option<u16>>,
}

/// The phase of one attempt. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(super) struct Progress(Rc<Standing>);

impl Default for Progress {
    fn default() -> Progress {
        Progress(Rc::new(Standing { phase: Cell::new(Phase::Sending), accepted: Cell::new(None) }))
    }
}

impl Progress {
    /// Where `exchange` stands is known here from now on.
    pub(super) async fn track<F: Future>(&self, exchange: F) -> F::Output {
        self.0.phase.set(Phase::Sending);
        PRESENT.scope(self.0.clone(), exchange).await
    }

    /// The present phase, or the last one.
    pub(super) fn phase(&self) -> Phase {
        self.0.phase.get()
    }

    /// The status by which the receiver has accepted a request that was still being written.
    pub(super) fn accepted(&self) -> Option<u16> {
        self.0.accepted.get()
    }
}

/// The attempt that is being polled has come to `phase`. Connections are also polled at rest, for nobody.
pub(super) fn enter(phase: Phase) {
    PRESENT.try_with(|present| present.phase.set(phase)).ok();
}

/// The attempt that is being polled is accepted with `status`, and still writes its request.
pub(super) fn accepted(status: u16) {
    PRESENT.try_with(|present| present.accepted.set(Some(status))).ok();
}
