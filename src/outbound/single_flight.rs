//! Single flight: something is asked for once, however many want to know. Whoever asks while an answer is on
//! its way waits for that one, and whoever asks later uses the last answer for as long as it is good.

use std::cell::RefCell;
use std::time::Instant;

use tokio::sync::watch;

use crate::clock;

/// The asking that is under way, or the last one.
pub(super) struct SingleFlight<T>(RefCell<Option<Asking<T>>>);

/// An answer, as those see it who did not begin the asking themselves.
pub(super) struct Answer<'a, T> {
    pub(super) value: &'a T,
    /// When its asking began: the world may have changed since.
    pub(super) begun: Instant,
    /// Whether it came while the one who judges it waited. One that was there before may be of any age, also
    /// when nobody has seen it yet: an asking goes on when those who waited for it have left.
    pub(super) is_awaited: bool,
}

#[derive(Clone)]
struct Asking<T> {
    begun: Instant,
    /// `None` until the answer comes.
    answer: watch::Receiver<Option<T>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> SingleFlight<T> {
        SingleFlight(RefCell::new(None))
    }
}

impl<T: Clone + 'static> SingleFlight<T> {
    /// The last answer or that of the asking under way, if it `is_usable`, or else what `start` begins. There
    /// is never more than one asking under way: one whose answer will be too old is waited for as well.
    ///
    /// An asking that began after this call is taken as it comes, so nobody waits for more than two.
    /// `stopped` is the answer of an asking that was ended by the end of the process.
    pub(super) async fn get<F>(
        &self,
        is_usable: impl Fn(Answer<'_, T>) -> bool,
        start: impl Fn() -> F,
        stopped: impl FnOnce() -> T,
    ) -> T
    where
        F: Future<Output = T> + 'static,
    {
        let called = clock::now();
        loop {
            let last = self.0.borrow().clone();
            let mut asking = match last {
                Some(last) if last.is_under_way() => last,
                Some(Asking { begun, answer }) => match &*answer.borrow() {
                    Some(value) if is_usable(Answer { value, begun, is_awaited: false }) => {
                        return value.clone();
                    }
                    _ => self.begin(start()),
                },
                None => self.begin(start()),
            };
            let begun = asking.begun;
            let Ok(answer) = asking.answer.wait_for(Option::is_some).await else { return stopped() };
            if let Some(value) = &*answer
                && (begun >= called || is_usable(Answer { value, begun, is_awaited: true }))
            {
                return value.clone();
            }
        }
    }

    fn begin(&self, asked: impl Future<Output = T> + 'static) -> Asking<T> {
        let begun = clock::now();
        let (sender, answer) = watch::channel(None);
        // A task of its own: it goes on, and its answer is kept, even if everybody stops waiting.
        actix_rt::spawn(async move { sender.send_replace(Some(asked.await)) });
        let asking = Asking { begun, answer };
        self.0.replace(Some(asking.clone()));
        asking
    }
}

impl<T> Asking<T> {
    fn is_under_way(&self) -> bool {
        // One whose task ended without an answer (a panic, the end of the process) will never bring one.
        self.answer.borrow().is_none() && self.answer.has_changed().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use futures_util::FutureExt as _;
    use futures_util::future::{LocalBoxFuture, join};
    use tokio::sync::oneshot;

    use super::*;

    /// Counts the askings that begin; each ends when its sender is used.
    #[derive(Default)]
    struct Asked {
        flight: SingleFlight<u32>,
        begun: Cell<usize>,
        end: RefCell<Option<oneshot::Sender<u32>>>,
    }

    impl Asked {
        /// Even answers may be used again, odd ones only by those who waited, those from 100 on by neither.
        fn get(&self) -> LocalBoxFuture<'_, u32> {
            let is_usable = |answer: Answer<'_, u32>| {
                *answer.value < 100 && (answer.is_awaited || answer.value.is_multiple_of(2))
            };
            let start = || {
                self.begun.set(self.begun.get() + 1);
                let (sender, receiver) = oneshot::channel();
                self.end.replace(Some(sender));
                async { receiver.await.unwrap() }
            };
            self.flight.get(is_usable, start, || 77).boxed_local()
        }

        /// Asks, and leaves before the answer comes.
        fn get_and_leave(&self) {
            assert_eq!(self.get().now_or_never(), None);
        }

        fn end(&self, answer: u32) {
            self.end.take().unwrap().send(answer).unwrap();
        }

        /// Ends the asking under way while nobody waits for it.
        async fn end_unseen(&self, answer: u32) {
            self.end(answer);
            while self.flight.0.borrow().as_ref().unwrap().is_under_way() {
                tokio::task::yield_now().await;
            }
        }
    }

    #[actix_rt::test]
    async fn one_under_way_is_shared_outlives_whoever_waits_and_is_used_again_while_it_is_good() {
        let asked = Asked::default();
        for _ in 0..5 {
            asked.get_and_leave();
        }
        assert_eq!(asked.begun.get(), 1);
        asked.end(2);
        assert_eq!((asked.get().await, asked.get().await, asked.begun.get()), (2, 2, 1));
    }

    #[actix_rt::test]
    async fn an_answer_that_came_while_nobody_looked_is_judged_like_any_other() {
        let asked = Asked::default();
        asked.get_and_leave();
        for (begun, unseen) in (1..).zip([3, 100, 5, 101]) {
            asked.end_unseen(unseen).await;
            assert_eq!(asked.begun.get(), begun);
            asked.get_and_leave();
            assert_eq!(asked.begun.get(), begun + 1, "{unseen} is asked for again");
        }
        asked.end_unseen(2).await;
        assert_eq!((asked.get().await, asked.begun.get()), (2, 5));
    }

    #[actix_rt::test]
    async fn an_answer_that_is_too_old_for_who_came_later_is_asked_for_again_once_for_all() {
        let asked = Asked::default();
        asked.get_and_leave();
        let (mut first, mut second) = (pin!(asked.get()), pin!(asked.get()));
        let both = join(&mut first, &mut second);
        let mut both = pin!(both);
        assert!(poll_fn(|cx| Poll::Ready(both.as_mut().poll(cx))).await.is_pending());
        assert_eq!(asked.begun.get(), 1, "one at a time, though its answer will be no use");
        asked.end_unseen(100).await;
        assert!(poll_fn(|cx| Poll::Ready(both.as_mut().poll(cx))).await.is_pending());
        assert_eq!(asked.begun.get(), 2);
        // It began after they asked: there is none that is newer.
        asked.end(102);
        assert_eq!((both.await, asked.begun.get()), ((102, 102), 2));
    }

    #[actix_rt::test]
    async fn an_answer_that_is_no_use_is_asked_for_again_but_by_those_who_waited_for_it() {
        let asked = Asked::default();
        for begun in 1..4 {
            let (mut first, mut second) = (asked.get(), asked.get());
            assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
            asked.end(3);
            assert_eq!((first.await, second.await, asked.begun.get()), (3, 3, begun));
        }
    }

    #[actix_rt::test]
    async fn an_asking_that_panicked_is_over() {
        let flight = SingleFlight::default();
        let panicking = || async { panic!("on purpose") };
        assert_eq!(flight.get(|_| true, panicking, || 1).await, 1);
        assert_eq!(flight.get(|_| true, || async { 2 }, || 1).await, 2);
    }
}
