//! Results in fewer and simpler words, for databases that do not take them as they are: their encoding lacks
//! a character, an index cannot hold so much, a CHECK of the application wants less. That a delivery was
//! accepted, or why it was not, matters more than the text that came with it.

use std::sync::Arc;

use crate::model::Outcome;

/// Bytes that an index can hold, with some to spare.
const INDEXABLE: usize = 2_000;
/// Bytes that most columns can.
const SHORT: usize = 100;

/// `outcome` with what is no ASCII replaced.
pub fn in_ascii(outcome: &Outcome) -> Outcome {
    with(outcome, usize::MAX)
}

/// Whether [`in_ascii`] would change something.
pub fn is_ascii(outcome: &Outcome) -> bool {
    [&outcome.response_body, &outcome.error_message].into_iter().flatten().all(|text| text.is_ascii())
}

/// `outcome`, simpler each time; in the end without the answer's text.
pub fn simpler(outcome: &Outcome) -> [Outcome; 4] {
    let no_body = Outcome { response_body: None, ..with(outcome, SHORT) };
    [in_ascii(outcome), with(outcome, INDEXABLE), with(outcome, SHORT), no_body]
}

fn with(outcome: &Outcome, most: usize) -> Outcome {
    let text = |text: &Option<Arc<str>>| text.as_deref().map(|text| plain(text, most).into());
    Outcome {
        response_body: text(&outcome.response_body),
        error_message: text(&outcome.error_message),
        ..outcome.clone()
    }
}

/// The first `most` bytes of a text in ASCII.
pub fn plain(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_ascii_and_short() {
        assert_eq!(plain("gr\u{fc}n \u{2713} ok", 100), "gr?n ? ok");
        assert_eq!(plain(&"\u{2713}".repeat(300), 100), "?".repeat(100));
    }
}
