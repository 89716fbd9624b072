//! Asking for something once, however many want to know: who asks while an answer is on its way waits for
//! that one, and who asks later may use it for as long as it is good.

use std::cell::RefCell;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};

/// An answer that is on its way, or came.
pub(super) type Pending<T> = Shared<LocalBoxFuture<'static, T>>;

/// The asking that is under way, or the last one.
pub(super) struct Flight<T>(RefCell<Option<Pending<T>>>);

impl<T> Default for Flight<T> {
    fn default() -> Flight<T> {
        Flight(RefCell::new(None))
    }
}

impl<T: Clone + 'static> Flight<T> {
    /// The asking under way, or the last answer if it `is_usable`, or else what `start` begins. `stopped` is
    /// the answer when the asking was ended by the end of the process.
    pub(super) fn join<F>(
        &self,
        is_usable: impl FnOnce(&T) -> bool,
        start: impl FnOnce() -> F,
        stopped: impl FnOnce() -> T + 'static,
    ) -> Pending<T>
    where
        F: Future<Output = T> + 'static,
    {
        let mut slot = self.0.borrow_mut();
        if let Some(pending) = slot.as_ref().filter(|pending| pending.peek().is_none_or(is_usable)) {
            return pending.clone();
        }
        // A task of its own: it goes on, and its answer is kept, even if everybody stops waiting.
        let task = actix_rt::spawn(start());
        let answer = async move { task.await.unwrap_or_else(|_| stopped()) };
        slot.insert(answer.boxed_local().shared()).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    /// Counts the askings that begin; each ends when its sender is used.
    #[derive(Default)]
    struct Asked {
        flight: Flight<u32>,
        begun: Cell<usize>,
        end: RefCell<Option<oneshot::Sender<u32>>>,
    }

    impl Asked {
        /// Even answers may be used again.
        fn join(&self) -> Pending<u32> {
            let start = || {
                self.begun.set(self.begun.get() + 1);
                let (sender, receiver) = oneshot::channel();
                self.end.replace(Some(sender));
                async { receiver.await.unwrap() }
            };
            self.flight.join(|answer| answer % 2 == 0, start, || 1)
        }

        fn end(&self, answer: u32) {
            self.end.take().unwrap().send(answer).unwrap();
        }
    }

    #[actix_rt::test]
    async fn one_under_way_is_shared_outlives_whoever_waits_and_is_used_again_while_it_is_good() {
        let asked = Rc::new(Asked::default());
        for _ in 0..5 {
            assert!(tokio::time::timeout(Duration::from_millis(5), asked.join()).await.is_err());
        }
        assert_eq!(asked.begun.get(), 1);
        asked.end(2);
        assert_eq!((asked.join().await, asked.join().await, asked.begun.get()), (2, 2, 1));
    }

    #[actix_rt::test]
    async fn an_answer_that_is_no_use_is_asked_for_again() {
        let asked = Asked::default();
        for begun in 1..4 {
            let waiting = asked.join();
            asked.end(3);
            assert_eq!((waiting.await, asked.begun.get()), (3, begun));
        }
    }
}
