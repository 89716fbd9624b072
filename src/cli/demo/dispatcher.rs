//! The real dispatcher with its API, in this process, on a thread with an actix System of its own.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::actors;
use crate::actors::supervision::Supervision;
use crate::admin::{self, Pages, State};
use crate::config::{Config, DispatchArgs};
use crate::model::Secret;
use crate::store;

/// The running dispatcher.
pub struct Dispatcher {
    /// Where its API is.
    pub address: SocketAddr,
    /// Who has this may use it.
    pub admin_token: String,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl Dispatcher {
    /// Starts it on the database at `url`; returns when it runs.
    pub async fn start(url: Secret) -> Result<Dispatcher, String> {
        // Said here is what the demo depends on; the rest may come from the environment.
        let flags = ["--allow-networks=127.0.0.0/8", "--https-only=false", "--listen=127.0.0.1:0"];
        let options = DispatchArgs::from_flags(&flags).map_err(|error| error.to_string())?;
        let mut config = options.validate(url).map_err(|faults| faults.to_string())?;
        let admin_token = Uuid::new_v4().simple().to_string();
        config.operations.admin_token = Some(Secret::new(&admin_token));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(run_dispatcher(config, ready, stopped))
        });
        match is_ready.await {
            Ok(address) => Ok(Dispatcher { address, admin_token, stop, thread }),
            // It has ended before it was ready; its thread knows why.
            Err(_) => Err(end(stop, thread).await.err().unwrap_or_else(|| "it ended at once".into())),
        }
    }

    /// Stops it as SIGTERM stops `serve`: what is in flight is finished and recorded.
    pub async fn stop(self) -> Result<(), String> {
        end(self.stop, self.thread).await
    }
}

async fn end(stop: oneshot::Sender<()>, thread: JoinHandle<Result<(), String>>) -> Result<(), String> {
    // An error here only says that the dispatcher has ended already.
    stop.send(()).ok();
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    joined.map_err(|error| error.to_string())?.unwrap_or_else(|_| Err("the dispatcher panicked".into()))
}

async fn run_dispatcher(
    config: Config,
    ready: oneshot::Sender<SocketAddr>,
    stop: oneshot::Receiver<()>,
) -> Result<(), String> {
    let options = store::options(&config.database_url).map_err(|error| error.to_string())?;
    let supervision = Supervision::default();
    let state = State::starting("starting", &config, supervision.clone());
    let (address, server) =
        admin::start(config.listen, Pages::All, state.clone()).map_err(|error| error.to_string())?;
    let dispatcher = actors::Dispatcher::start(config, options, supervision.clone());
    let dispatcher = dispatcher.map_err(|error| error.to_string())?;
    state.set(Ok(dispatcher.clone()));
    // Whoever started it may have given up by now; then `stop` says so as well.
    ready.send(address).ok();
    tokio::select! {
        _ = stop => {}
        fatal = supervision.ended() => return Err(fatal.to_string()),
    }
    dispatcher.stop().await;
    server.stop().await;
    Ok(())
}
