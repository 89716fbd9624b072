//! Errors of TLS in words: rustls, and what is below it, tell many of theirs by the names that they have in
//! the program.

/// `error` as a sentence.
pub(super) fn sentence(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => format!("the receiver sent an alert: {}", words(alert)),
        other => words_of(&other.to_string()),
    }
}

/// The name of something, `HandshakeFailure`, as words.
pub(super) fn words(name: &impl std::fmt::Debug) -> String {
    words_of(&format!("{name:?}"))
}

/// `text` with the names in it as words, and without what wraps them.
fn words_of(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for part in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
        let (name, mark) = part.split_at(end);
        match name {
            "Other" | "OtherError" if mark == "(" => continue,
            _ => split(name, &mut shown),
        }
        match mark {
            "(" | "{" | "[" => shown.push(' '),
            ")" | "}" | "]" => {}
            mark => shown.push_str(mark),
        }
    }
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Adds `name` to `shown`: `CaUsedAsEndEntity` as `ca used as end entity`.
fn split(name: &str, shown: &mut String) {
    let bytes = name.as_bytes();
    let is_hump = |at: usize| bytes[at].is_ascii_uppercase() && at > 0 && bytes[at - 1].is_ascii_lowercase();
    let is_name = (0..bytes.len()).any(is_hump);
    for (at, c) in name.char_indices() {
        if is_hump(at) {
            shown.push(' ');
        }
        shown.push(if is_name { c.to_ascii_lowercase() } else { c });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words_and_words_stay() {
        for (text, expected) in [
            ("cannot decrypt peer's message", "cannot decrypt peer's message"),
            ("peer misbehaved: TooManyEmptyFragments", "peer misbehaved: too many empty fragments"),
            (
                "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "invalid peer certificate: ca used as end entity",
            ),
            (
                "got ServerHello when expecting [Certificate, Finished]",
                "got server hello when expecting Certificate, Finished",
            ),
            ("Unknown(255)", "Unknown 255"),
            ("TLS 1.2 and SHA256", "TLS 1.2 and SHA256"),
            ("", ""),
        ] {
            assert_eq!(words_of(text), expected);
        }
        assert_eq!(words(&rustls::AlertDescription::HandshakeFailure), "handshake failure");
    }
}
