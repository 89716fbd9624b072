//! Listening for notifications, and telling the [`Supervisor`] what they hint at.

use std::time::Duration;

use actix::prelude::*;

use super::supervision::{Part, Stop, StopHandle, Supervision};
use super::supervisor::Supervisor;
use crate::store::listener::{Hint, Listener, Where};
use crate::store::{self, Pool};

/// Pause before listening is tried again.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// To the supervisor: look again.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Hinted(pub(super) Hint);

/// To the supervisor: whether notifications arrive, or why not.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Listening(pub(super) Result<(), String>);

/// Begins to listen, until it is stopped.
pub(super) fn start(supervision: Supervision, pool: Pool, supervisor: Addr<Supervisor>) -> StopHandle {
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
async fn listen(pool: &Pool, supervisor: &Addr<Supervisor>) {
    while supervisor.connected() {
        let failed = match Listener::connect(pool).await {
            Ok(mut listener) => {
                supervisor.do_send(Listening(Ok(())));
                supervisor.do_send(Hinted(Hint::Wake(Where::Everywhere)));
                loop {
                    match listener.next().await {
                        Ok(hint) => supervisor.do_send(Hinted(hint)),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => store::cause(pool, error).await,
        };
        supervisor.do_send(Listening(Err(failed.to_string())));
        tokio::time::sleep(LISTEN_RETRY).await;
    }
}
