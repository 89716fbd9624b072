//! Listening for notifications, and telling the supervisor what they hint at.

use std::time::Duration;

use actix::prelude::*;

use super::supervision::{Part, Stop, StopHandle, Supervision};
use crate::store::listener::{Hint, Listener, Scope};
use crate::store::{self, Pool};

/// Pause before listening is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// To the supervisor.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum Heard {
    /// Look again.
    Hint(Hint),
    /// Whether notifications arrive, or why not.
    Listening(Result<(), String>),
}

/// Begins to listen, until it is stopped.
pub(super) fn start(supervision: Supervision, pool: Pool, supervisor: Recipient<Heard>) -> StopHandle {
    let (handle, stop) = StopHandle::new();
    actix_rt::spawn(async move {
        let listen = async |mut stop: Stop| {
            tokio::select! {
                () = stop.asked() => {}
                () = listen(&pool, &supervisor) => {}
            }
        };
        supervision.keep_running(Part::Listener, stop, listen).await;
    });
    handle
}

/// Listens for as long as the supervisor lives. After every connect it has everything looked at once: what
/// was notified meanwhile is lost.
async fn listen(pool: &Pool, supervisor: &Recipient<Heard>) {
    while supervisor.connected() {
        let failed = match Listener::connect(pool).await {
            Ok(mut listener) => {
                supervisor.do_send(Heard::Listening(Ok(())));
                supervisor.do_send(Heard::Hint(Hint::Wake(Scope::All)));
                loop {
                    match listener.next().await {
                        Ok(hint) => supervisor.do_send(Heard::Hint(hint)),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => store::cause(pool, error).await,
        };
        supervisor.do_send(Heard::Listening(Err(failed.to_string())));
        tokio::time::sleep(LISTEN_RETRY).await;
    }
}
