//! On whose behalf something is done, and what of a URL they see.

use url::Url;

use super::keys::Role;

/// Stands for what is not shown.
const HIDDEN: char = '…';

/// On whose behalf something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Whoever has the admin token, or uses the command line.
    Operator,
    /// Whoever presented a key of this role.
    Key(Role),
}

impl Principal {
    /// Whether it is a tenant, to whom the limits of tenants apply.
    pub fn is_key(self) -> bool {
        matches!(self, Principal::Key(_))
    }

    /// Whether it sees the query strings of URLs. Many services expect a token there, so they are for those
    /// who may write them.
    fn sees_queries(self) -> bool {
        self != Principal::Key(Role::Read)
    }

    /// A URL as this principal sees it.
    pub(super) fn url(self, url: String) -> String {
        if self.sees_queries() { url } else { without_query(&url) }
    }

    /// A text that may quote URLs, as this principal sees it.
    pub(super) fn text(self, text: String) -> String {
        if self.sees_queries() { text } else { without_queries(&text) }
    }

    /// The same of a text that may be missing.
    pub(super) fn optional_text(self, text: Option<String>) -> Option<String> {
        text.map(|text| self.text(text))
    }
}

/// The origin and the path of a URL.
fn without_query(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (shown, rest) = url.split_at(end);
    let hidden = rest.chars().next().map(|mark| format!("{mark}{HIDDEN}")).unwrap_or_default();
    match Url::parse(url) {
        // A user name or a password is refused where a destination is written, but SQL may have written it
        // before.
        Ok(mut parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            parsed.set_query(None);
            parsed.set_fragment(None);
            match parsed.set_username("").and_then(|()| parsed.set_password(None)) {
                Ok(()) => format!("{parsed}{hidden}"),
                Err(()) => HIDDEN.to_string(),
            }
        }
        // Nobody knows which part of it is what.
        Err(_) if shown.contains('@') => HIDDEN.to_string(),
        _ => format!("{shown}{hidden}"),
    }
}

/// `text` without the query strings of the URLs and paths that it quotes.
fn without_queries(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    let query = |word: &str| word.find('?').filter(|at| word[..*at].contains('/') && at + 1 < word.len());
    let mut shown = String::with_capacity(text.len());
    for piece in text.split_inclusive(ends) {
        let word = piece.trim_end_matches(ends);
        match query(word) {
            Some(at) => {
                shown.push_str(&word[..=at]);
                shown.push(HIDDEN);
                shown.push_str(&piece[word.len()..]);
            }
            None => shown.push_str(piece),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: Principal = Principal::Key(Role::Read);

    #[test]
    fn a_read_key_sees_origin_and_path_of_a_url_and_everybody_else_all_of_it() {
        for (url, shown) in [
            ("https://example.com/hook", "https://example.com/hook"),
            ("https://example.com/hook?token=hunter2", "https://example.com/hook?…"),
            ("https://example.com?hunter2", "https://example.com?…"),
            ("https://example.com/a/b?x=1#hunter2", "https://example.com/a/b?…"),
            ("https://example.com/hook#hunter2?x", "https://example.com/hook#…"),
            ("https://me:hunter2@example.com/hook?hunter2", "https://example.com/hook?…"),
            ("https:\\\\me:hunter2@example.com/", "https://example.com/"),
            ("https://example.com/@me/hook", "https://example.com/@me/hook"),
            ("https://me:hunter2@exa mple/?x", "…"),
            ("nowhere?hunter2", "nowhere?…"),
            ("", ""),
        ] {
            assert_eq!(READER.url(url.into()), shown);
            for principal in [Principal::Operator, Principal::Key(Role::Write)] {
                assert_eq!(principal.url(url.into()), url);
            }
        }
    }

    #[test]
    fn a_read_key_sees_no_query_in_a_text_that_quotes_a_url_or_a_path() {
        for (text, shown) in [
            ("the receiver answered 404", "the receiver answered 404"),
            ("are you there? yes/no?", "are you there? yes/no?"),
            ("Cannot POST /hook?token=hunter2", "Cannot POST /hook?…"),
            (
                r#"{"url": "http:\/\/h\/p?a=hunter2\u0026b=1", "n": 1}"#,
                r#"{"url": "http:\/\/h\/p?…", "n": 1}"#,
            ),
            ("<p>/a?hunter2</p>\n\n/b?hunter2 x", "<p>/a?…</p>\n\n/b?… x"),
            ("/ü?hunter2 ", "/ü?… "),
        ] {
            assert_eq!(READER.text(text.into()), shown);
            assert_eq!(Principal::Operator.text(text.into()), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_for_a_url_shows_no_query_to_a_read_key(
            before in "[^?#]{0,20}", mark in "[?#]", after in "[a-z=&]{1,20}",
        ) {
            let shown = READER.url(format!("http://h/{before}{mark}{after}"));
            proptest::prop_assert!(shown == "…" || shown.ends_with(&format!("{mark}…")), "{shown}");
        }
    }
}
