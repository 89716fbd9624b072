//! What is wrong with the database, told once.

use std::time::{Duration, Instant};

use crate::store::StoreError;

/// Causes of one outage that are told at most: one may lead to another, and some count something.
const MOST_TOLD: usize = 5;
/// What comes and goes, as on a disk that is almost full, is told no more often than this.
const CALM: Duration = Duration::from_secs(10);

/// What one who needs the database knows of its outage, if there is one.
#[derive(Default)]
pub(super) struct Outage {
    begun: Option<Instant>,
    cause: Option<String>,
    told: Vec<(String, Instant)>,
}

impl Outage {
    /// Notes what is wrong now. Whether that should be told: during this outage it has not been, nor a moment
    /// ago.
    pub(super) fn is_news(&mut self, error: &StoreError, now: Instant) -> bool {
        let begun = *self.begun.get_or_insert(now);
        let cause = error.to_string();
        self.told.retain(|(_, at)| *at >= begun || now < *at + CALM);
        let is_news = self.told.len() < MOST_TOLD && self.told.iter().all(|(told, _)| *told != cause);
        if is_news {
            self.told.push((cause.clone(), now));
        }
        self.cause = Some(cause);
        is_news
    }

    /// It is over, if there was one. Whether that should be told: something of it was.
    pub(super) fn ends(&mut self) -> bool {
        self.cause = None;
        self.begun.take().is_some_and(|begun| self.told.iter().any(|(_, at)| *at >= begun))
    }

    /// What is wrong now, if anything is.
    pub(super) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> StoreError {
        StoreError::Url(text.to_owned())
    }

    #[test]
    fn each_cause_is_told_once_in_an_outage_and_not_more_than_a_few() {
        let (mut outage, mut now) = (Outage::default(), crate::clock::now());
        assert!(!outage.ends());
        for _ in 0..2 {
            for (cause, is_news) in [("a", true), ("b", true), ("a", false), ("b", false)] {
                now += 2 * CALM;
                assert_eq!(outage.is_news(&error(cause), now), is_news, "{cause}");
                assert!(outage.cause().is_some_and(|told| told.contains(cause)));
            }
            let told = (0..10).filter(|n| outage.is_news(&error(&n.to_string()), now)).count();
            assert_eq!(told, MOST_TOLD - 2);
            assert!(outage.ends());
            assert_eq!(outage.cause(), None);
            now += CALM;
        }
    }

    #[test]
    fn what_comes_and_goes_is_told_once_and_again_when_it_stays() {
        let (mut outage, start) = (Outage::default(), crate::clock::now());
        assert!(outage.is_news(&error("a"), start));
        assert!(outage.ends());
        for seconds in 1..=5 {
            assert!(!outage.is_news(&error("a"), start + Duration::from_secs(seconds)));
            assert!(!outage.ends());
        }
        assert!(!outage.is_news(&error("a"), start + CALM / 2));
        assert!(outage.is_news(&error("a"), start + CALM), "it is still there");
        assert!(!outage.is_news(&error("a"), start + 3 * CALM));
        assert!(outage.ends());
    }
}
