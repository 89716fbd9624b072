//! The [`Watchdog`]: a thread of its own that asks every event loop, and every actor without which nothing
//! goes on, for a sign of life.
//!
//! It counts its own ticks and does not look at a clock: while the process is stopped (SIGSTOP) or the
//! machine sleeps, the watchdog does as well, and that is no freeze.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use actix::prelude::*;

use super::{Fatal, Supervision};

/// Time between two looks.
pub const TICK: Duration = Duration::from_secs(1);
/// Ticks without an answer after which something is frozen. Then the process has as many to end in order.
pub const TICKS: u32 = 10;

/// A question of the watchdog, answered when it is dropped: by whoever has got it, or as nobody is there.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ping(Arc<AtomicBool>);

impl Drop for Ping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Something that must answer.
pub(super) struct Watched {
    name: String,
    /// Passes the question on; `false`: nobody is there any more.
    ask: Box<dyn Fn(Ping) -> bool + Send>,
    /// Whether the last question was.
    answered: Arc<AtomicBool>,
    /// Ticks since it was asked.
    ticks: u32,
}

impl Watched {
    /// Asks again where the last question was answered; one is under way at most. `false`: nobody is there.
    fn tick(&mut self) -> bool {
        if !self.answered.swap(false, Ordering::AcqRel) {
            self.ticks += 1;
            return true;
        }
        self.ticks = 0;
        (self.ask)(Ping(self.answered.clone()))
    }
}

impl Supervision {
    /// Has the watchdog watch a thread with an event loop, called `name` in the log, while it is there.
    pub fn watch_arbiter(&self, name: impl Into<String>, arbiter: ArbiterHandle) {
        self.watch(name.into(), move |ping| arbiter.spawn_fn(move || drop(ping)));
    }

    /// Has it watch an actor.
    pub fn watch_actor(&self, name: impl Into<String>, actor: Recipient<Ping>) {
        self.watch(name.into(), move |ping| {
            actor.do_send(ping);
            actor.connected()
        });
    }

    fn watch(&self, name: String, ask: impl Fn(Ping) -> bool + Send + 'static) {
        let watched = Watched { name, ask: Box::new(ask), answered: Arc::new(true.into()), ticks: 0 };
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
    }

    /// Asks everybody; the names of those who have not answered for too long.
    fn find_frozen(&self) -> Option<String> {
        let mut watched = self.0.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain_mut(Watched::tick);
        let frozen: Vec<&str> =
            watched.iter().filter(|one| one.ticks >= TICKS).map(|one| one.name.as_str()).collect();
        (!frozen.is_empty()).then(|| frozen.join(", "))
    }
}

/// See the module. Dropping it does not stop it: it sees to the end of a process that must end.
pub struct Watchdog(mpsc::Sender<()>);

impl Watchdog {
    /// Starts it. It looks every `tick`, tells what is frozen and has the process end; if that still lives
    /// [`TICKS`] after it was to end, for whatever reason, it calls `last_resort`.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn start(
        supervision: Supervision,
        tick: Duration,
        last_resort: impl FnOnce() + Send + 'static,
    ) -> io::Result<Watchdog> {
        let (stop, stopped) = mpsc::channel();
        let watchdog = Watchdog(stop.clone());
        thread::Builder::new().name("watchdog".into()).spawn(move || {
            // Only a word ends it, and not that nobody is left who could say it.
            let _stop = stop;
            watch(&supervision, &stopped, tick, last_resort);
        })?;
        Ok(watchdog)
    }

    /// Stops it: the process ends as it should, and event loops with it.
    pub fn stop(self) {
        // An error says that it has ended.
        self.0.send(()).ok();
    }
}

fn watch(
    supervision: &Supervision,
    stopped: &mpsc::Receiver<()>,
    tick: Duration,
    last_resort: impl FnOnce(),
) {
    let mut ending = 0;
    while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
        if supervision.is_ending() {
            ending += 1;
            if ending == TICKS {
                return last_resort();
            }
        } else if let Some(names) = supervision.find_frozen() {
            tell(&names, tick);
            supervision.end(Fatal::Frozen(names));
        }
    }
}

/// Says it in a thread of its own, and does not wait for long: what takes the log may be what everybody else
/// waits for.
fn tell(names: &str, patience: Duration) {
    let line = format!("frozen: {names} did not answer for {TICKS} s; the process ends, to be started again");
    let (told, is_told) = mpsc::channel();
    let teller = thread::Builder::new().spawn(move || {
        log::error!("{line}");
        told.send(()).ok();
    });
    if teller.is_ok() {
        is_told.recv_timeout(patience).ok();
    }
}

#[cfg(test)]
mod tests {
    use actix_rt::{Arbiter, System};

    use super::*;

    /// Short enough for a test, and ten of them long enough for a busy machine.
    const SHORT: Duration = Duration::from_millis(200);

    /// Blocks the thread for so many ticks.
    fn block(ticks: u32) {
        let (_sender, never) = mpsc::channel::<()>();
        never.recv_timeout(SHORT * ticks).unwrap_err();
    }

    #[actix_rt::test]
    async fn an_event_loop_without_a_turn_for_ten_ticks_is_frozen_and_one_that_is_slow_or_gone_is_not() {
        let supervision = Supervision::default();
        let [slow, gone, frozen, fine] = [(); 4].map(|()| Arbiter::new());
        for (name, arbiter) in [("slow", &slow), ("gone", &gone), ("frozen", &frozen), ("fine", &fine)] {
            supervision.watch_arbiter(name, arbiter.handle());
        }
        slow.spawn_fn(|| block(TICKS / 2));
        gone.spawn_fn(|| {
            block(2);
            Arbiter::current().stop();
        });
        let (last_resort, is_called) = tokio::sync::oneshot::channel();
        Watchdog::start(supervision.clone(), SHORT, || last_resort.send(()).unwrap()).unwrap();
        let ended = tokio::time::timeout(SHORT * TICKS * 2, supervision.ended()).await;
        assert!(ended.is_err(), "{ended:?}");
        frozen.spawn_fn(|| block(10 * TICKS));
        let ended = tokio::time::timeout(SHORT * TICKS * 5, supervision.ended()).await;
        assert_eq!(ended, Ok(Fatal::Frozen("frozen".into())));
        // This test does not end, whatever it was told.
        tokio::time::timeout(SHORT * TICKS * 5, is_called).await.unwrap().unwrap();
    }

    #[test]
    fn a_main_thread_that_is_frozen_is_ended_by_the_watchdog_itself() {
        let (last_resort, is_called) = mpsc::channel();
        let supervision = Supervision::default();
        Watchdog::start(supervision.clone(), SHORT, move || last_resort.send(()).unwrap()).unwrap();
        let watched = supervision.clone();
        thread::spawn(move || {
            System::new().block_on(async {
                watched.watch_arbiter("the main thread", System::current().arbiter().clone());
                block(10 * TICKS);
            });
        });
        is_called.recv_timeout(SHORT * TICKS * 5).unwrap();
        assert!(supervision.is_ending());
    }

    #[test]
    fn a_watchdog_that_is_stopped_asks_nobody() {
        let supervision = Supervision::default();
        let (last_resort, is_called) = mpsc::channel::<()>();
        let watchdog = Watchdog::start(supervision.clone(), SHORT, || drop(last_resort)).unwrap();
        watchdog.stop();
        // Its thread has ended, and dropped what it would have called.
        assert_eq!(is_called.recv_timeout(SHORT * TICKS), Err(RecvTimeoutError::Disconnected));
        assert!(!supervision.is_ending());
    }
}
