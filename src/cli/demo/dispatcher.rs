//! The real dispatcher, in this process, on a thread with an actix System of its own.

use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::actors;
use crate::config::{Config, DispatchArgs};
use crate::model::Secret;
use crate::store;

/// The running dispatcher.
pub struct Dispatcher {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl Dispatcher {
    /// Starts it on the database at `url`; returns when it runs.
    pub async fn start(url: Secret) -> Result<Dispatcher, String> {
        // Said here is what the demo depends on; the rest may come from the environment.
        let flags = ["--allow-networks=127.0.0.0/8", "--https-only=false", "--listen=127.0.0.1:0"];
        let options = DispatchArgs::from_flags(&flags).map_err(|error| error.to_string())?;
        let config = options.validate(url).map_err(|faults| faults.to_string())?;
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(run_dispatcher(config, ready, stopped))
        });
        let dispatcher = Dispatcher { stop, thread };
        match is_ready.await {
            Ok(()) => Ok(dispatcher),
            // It has ended before it was ready; its thread knows why.
            Err(_) => Err(dispatcher.stop().await.err().unwrap_or_else(|| "it ended at once".into())),
        }
    }

    /// Stops it as SIGTERM stops `serve`: what is in flight is finished and recorded.
    pub async fn stop(self) -> Result<(), String> {
        // An error here only says that the dispatcher has ended already.
        self.stop.send(()).ok();
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        joined.map_err(|error| error.to_string())?.unwrap_or_else(|_| Err("the dispatcher panicked".into()))
    }
}

async fn run_dispatcher(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: oneshot::Receiver<()>,
) -> Result<(), String> {
    let options = store::options(&config.database_url).map_err(|error| error.to_string())?;
    let dispatcher = actors::Dispatcher::start(config, options).map_err(|error| error.to_string())?;
    // Whoever started it may have given up by now; then `stop` says so as well.
    ready.send(()).ok();
    stop.await.ok();
    dispatcher.stop().await;
    Ok(())
}
