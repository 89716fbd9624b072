//! Takes secrets out of what receivers and token servers say: they may repeat what they were sent, and
//! whoever may read answers need not know it.
//!
//! A secret is recognised as it is, and as answers usually write it: escaped as in JSON, in URLs or in HTML,
//! in any mixture; in hexadecimal digits; both in any letter case; and in base64, wherever it begins within a
//! longer text; the latter two also in several lines. What is encoded twice, compressed, encrypted or taken
//! apart is not recognised.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use actix_http::header::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::model::Secret;

/// Bytes of the shortest secret that is looked for: shorter ones would be found everywhere.
const LEAST_SECRET_BYTES: usize = 6;
/// Bytes that a character takes at most: two surrogates such as `\ud83d\ude00`, or `&#x0001F600;`.
const MAX_ESCAPE_BYTES: usize = 12;
/// Characters that are compared at most for one text. Only a text that is almost a long secret, over and over
/// again, or many of them, reaches this; nothing of it is shown then.
const MAX_COMPARISONS: usize = 1 << 17;
/// What stands in the place of a secret. Shorter than any.
const MASK: &str = "***";

/// Knows the secrets of one destination.
#[derive(Clone, Default)]
pub(super) struct Redactor {
    secrets: Vec<Arc<[u8]>>,
}

impl Redactor {
    /// Adds `secret`, unless it is too short.
    pub(super) fn add(&mut self, secret: &[u8]) {
        let is_new = !self.secrets.iter().any(|known| **known == *secret);
        if secret.len() >= LEAST_SECRET_BYTES && is_new {
            self.secrets.push(secret.into());
        }
    }

    /// Adds what a header proves, without the name of its scheme, and the password that stands in it.
    pub(super) fn add_header(&mut self, value: &HeaderValue) {
        let (scheme, credentials) = scheme_and_credentials(value.as_bytes().trim_ascii());
        self.add(credentials);
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return;
        }
        let Ok(pair) = STANDARD.decode(credentials) else { return };
        let password = pair.splitn(2, |byte| *byte == b':').nth(1).unwrap_or_default();
        // Of a short password, the user's name beside it makes something to look for.
        self.add(if password.len() < LEAST_SECRET_BYTES { &pair } else { password });
    }

    /// Adds a signing secret: what follows its prefix, and the key which that is the base64 of.
    pub(super) fn add_signing_secret(&mut self, secret: &Secret) {
        let text = secret.reveal();
        let Some(encoded) = text.strip_prefix("whsec_").or(text.strip_prefix("whsk_")) else {
            return self.add(text.as_bytes());
        };
        self.add(encoded.as_bytes());
        if let Ok(key) = STANDARD.decode(encoded) {
            self.add(&key);
        }
    }

    /// The same with what more headers prove.
    pub(super) fn with_headers<'v>(&self, values: impl IntoIterator<Item = &'v HeaderValue>) -> Redactor {
        let mut more = self.clone();
        values.into_iter().for_each(|value| more.add_header(value));
        more
    }

    /// Bytes that a secret takes at most, however it is escaped.
    pub(super) fn reach(&self) -> usize {
        let longest = self.secrets.iter().map(|secret| secret.len()).max().unwrap_or(0);
        longest.saturating_mul(MAX_ESCAPE_BYTES)
    }

    /// `text` without secrets.
    pub(super) fn redact(&self, text: String) -> String {
        self.beginning(text, usize::MAX, false)
    }

    /// The first `most` bytes of `text` without secrets. One that begins there is known to its end if the
    /// text has [`Redactor::reach`] more bytes. Where the text `is_cut` before, what agrees with a secret up
    /// to the end of the text is taken for it.
    pub(super) fn beginning(&self, mut text: String, most: usize, is_cut: bool) -> String {
        let Ok(hidden) = self.find(&text, most, is_cut) else { return MASK.to_owned() };
        // From the last to the first: those before keep their places.
        text.truncate(floor(&text, hidden.last().map_or(0, |range| range.end).max(most)));
        for range in hidden.into_iter().rev() {
            text.replace_range(range, MASK);
        }
        text.truncate(floor(&text, most));
        text
    }

    /// The parts of `text` that hold secrets and begin before `most`, in order and apart from each other.
    fn find(&self, text: &str, most: usize, is_cut: bool) -> Result<Vec<Range<usize>>, TooCostly> {
        // Most answers are empty.
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let spellings = self.secrets.iter().flat_map(|secret| Spelling::all(secret));
        let spellings: Vec<(Spelling<'_>, Symbol)> =
            spellings.filter_map(|spelling| Some((spelling, spelling.symbol(0)?.0))).collect();
        // Those that may begin with each character of ASCII, and those that another one may fold to: found
        // once for each that occurs.
        let by_first = [const { OnceCell::<Vec<usize>>::new() }; 129];
        let fitting = |c: char| {
            let fits = |symbol: &Symbol| match c.is_ascii() {
                true => symbol.fits(c),
                false => matches!(symbol, Symbol::Letter(_)),
            };
            let all = || (0..spellings.len()).filter(|at| fits(&spellings[*at].1)).collect();
            by_first[(c as usize).min(128)].get_or_init(all).as_slice()
        };
        let mut search = Search { text, is_cut, left: MAX_COMPARISONS };
        let mut hidden: Vec<Range<usize>> = Vec::new();
        for (start, _) in text.char_indices().take_while(|(start, _)| *start < most) {
            let first = readings(text, start).map(|reading| reading.map_or(&[][..], |(c, _)| fitting(c)));
            let [plain, escaped] = first;
            for at in plain.iter().chain(escaped.iter().filter(|at| !plain.contains(at))) {
                let Some(end) = search.end(spellings[*at].0, start)? else { continue };
                match hidden.last_mut() {
                    Some(last) if start <= last.end => last.end = last.end.max(end),
                    _ => hidden.push(start..end),
                }
            }
        }
        Ok(hidden)
    }
}

/// The scheme before the credentials in a header, or nothing, and the credentials.
fn scheme_and_credentials(value: &[u8]) -> (&[u8], &[u8]) {
    let Some(space) = value.iter().position(|byte| *byte == b' ') else { return (b"", value) };
    let (scheme, credentials) = (&value[..space], value[space..].trim_ascii_start());
    let is_known = [&b"bearer"[..], b"basic"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let is_name = scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte));
    let is_one_word = !credentials.contains(&b' ') && credentials.len() >= LEAST_SECRET_BYTES;
    if is_known || is_name && is_one_word { (scheme, credentials) } else { (b"", value) }
}

/// The place of the last character that begins at `at` or before, or the end of `text`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// See [`MAX_COMPARISONS`].
struct TooCostly;

/// One text that is searched.
struct Search<'t> {
    text: &'t str,
    is_cut: bool,
    left: usize,
}

impl Search<'_> {
    /// Where the secret ends that begins at `start` in this spelling, if one does.
    fn end(&mut self, spelling: Spelling<'_>, start: usize) -> Result<Option<usize>, TooCostly> {
        // A backslash may stand for itself or begin an escape: there can be several places to go on from.
        let (mut places, mut after) = (vec![start], Vec::new());
        let mut index = 0;
        while let Some((symbol, next)) = spelling.symbol(index) {
            for at in places.drain(..) {
                if self.is_cut && at > start && at + MAX_ESCAPE_BYTES > self.text.len() {
                    return Ok(Some(self.text.len()));
                }
                self.left = self.left.checked_sub(1).ok_or(TooCostly)?;
                let at = if index > 0 && spelling.is_wrapped() { after_breaks(self.text, at) } else { at };
                let fitting = readings(self.text, at).into_iter().flatten().filter(|(c, _)| symbol.fits(*c));
                after.extend(fitting.map(|(_, end)| end));
            }
            after.sort_unstable();
            after.dedup();
            if after.is_empty() {
                return Ok(None);
            }
            (places, after) = (after, places);
            index = next;
        }
        Ok(places.last().copied())
    }
}

/// A secret in one of the ways to write it.
#[derive(Clone, Copy)]
enum Spelling<'s> {
    /// As it is, each character escaped or not.
    Text(&'s str),
    /// base64 of something in which the secret stands after this many bytes, modulo 3.
    Base64(&'s [u8], usize),
    /// Two hexadecimal digits for each byte.
    Hex(&'s [u8]),
}

impl<'s> Spelling<'s> {
    fn all(secret: &'s [u8]) -> impl Iterator<Item = Spelling<'s>> {
        let text = std::str::from_utf8(secret).ok().map(Spelling::Text);
        let base64 = (0..3).map(|before| Spelling::Base64(secret, before));
        text.into_iter().chain(base64).chain([Spelling::Hex(secret)])
    }

    /// Whether line breaks may stand in it.
    fn is_wrapped(self) -> bool {
        !matches!(self, Spelling::Text(_))
    }

    /// The symbol at `index`, and the index of the next one; `None` at the end.
    fn symbol(self, index: usize) -> Option<(Symbol, usize)> {
        match self {
            Spelling::Text(text) => {
                let c = text[index..].chars().next()?;
                Some((Symbol::Letter(folded(c)), index + c.len_utf8()))
            }
            Spelling::Base64(secret, before) => Some((sextet(secret, before, index)?, index + 1)),
            Spelling::Hex(secret) => {
                let byte = secret.get(index / 2)?;
                let digit = if index.is_multiple_of(2) { byte >> 4 } else { byte & 0xf };
                Some((Symbol::Digit(digit), index + 1))
            }
        }
    }
}

/// What a character of a text has to be.
#[derive(Clone, Copy)]
enum Symbol {
    /// This letter, in either case.
    Letter(char),
    /// A character of base64, of either alphabet, with this value in its `known` bits.
    Sextet { value: u8, known: u8 },
    /// A hexadecimal digit, in either case.
    Digit(u8),
}

impl Symbol {
    fn fits(self, c: char) -> bool {
        match self {
            Symbol::Letter(letter) => folded(c) == letter,
            Symbol::Sextet { value, known } => of_base64(c).is_some_and(|found| found & known == value),
            Symbol::Digit(digit) => c.to_digit(16) == Some(digit.into()),
        }
    }
}

fn folded(c: char) -> char {
    if c.is_ascii() { c.to_ascii_lowercase() } else { c.to_lowercase().next().unwrap_or(c) }
}

/// The character at `index` among those that hold bits of `secret`, which follows `before` other bytes. The
/// first and the last of them may hold bits of its neighbours as well.
fn sextet(secret: &[u8], before: usize, index: usize) -> Option<Symbol> {
    let first = 6 * (8 * before / 6 + index);
    let (mut value, mut known) = (0, 0);
    for bit in first..first + 6 {
        let own = bit.checked_sub(8 * before).and_then(|bit| Some(secret.get(bit / 8)? >> (7 - bit % 8) & 1));
        value = value << 1 | own.unwrap_or(0);
        known = known << 1 | u8::from(own.is_some());
    }
    (known > 0).then_some(Symbol::Sextet { value, known })
}

fn of_base64(c: char) -> Option<u8> {
    let byte = u8::try_from(c).ok()?;
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    }
}

/// What may stand at `at`: the character that is there, and the one that it begins an escape of. Each with
/// the place after it.
fn readings(text: &str, at: usize) -> [Option<(char, usize)>; 2] {
    let rest = &text[at..];
    let Some(c) = rest.chars().next() else { return [None, None] };
    let escaped = match c {
        '\\' => backslash(rest),
        '%' => percent(rest),
        '&' => reference(rest),
        '+' => Some((' ', 1)),
        _ => None,
    };
    [Some((c, at + c.len_utf8())), escaped.map(|(c, length)| (c, at + length))]
}

/// The place after the line breaks at `at`, escaped or not.
fn after_breaks(text: &str, mut at: usize) -> usize {
    let is_break = |(c, _): &(char, usize)| matches!(c, '\n' | '\r');
    while let Some((_, end)) = readings(text, at).into_iter().flatten().find(is_break) {
        at = end;
    }
    at
}

/// The character that `rest` begins an escape of as in JSON and most languages, and the escape's length.
fn backslash(rest: &str) -> Option<(char, usize)> {
    let kind = *rest.as_bytes().get(1)?;
    let plain = match kind.to_ascii_lowercase() {
        b'u' => return utf16(rest),
        b'x' => return Some((char::from_u32(hex(rest, 2, 2)?)?, 4)),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        _ if kind.is_ascii_punctuation() => char::from(kind),
        _ => return None,
    };
    Some((plain, 2))
}

/// `\u00e9`, or the two that make a character beyond the first 65,536.
fn utf16(rest: &str) -> Option<(char, usize)> {
    let first = hex(rest, 2, 4)?;
    if let Some(c) = char::from_u32(first) {
        return Some((c, 6));
    }
    let follows = rest.get(6..8)?.eq_ignore_ascii_case("\\u");
    let second = hex(rest, 8, 4).filter(|_| follows)?;
    let both = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
    Some((char::decode_utf16(both).next()?.ok()?, 12))
}

/// `%41`, or the two to four that make another character.
fn percent(rest: &str) -> Option<(char, usize)> {
    let byte = |index: usize| {
        let follows = rest.as_bytes().get(3 * index) == Some(&b'%');
        hex(rest, 3 * index + 1, 2).filter(|_| follows).and_then(|byte| u8::try_from(byte).ok())
    };
    let mut bytes = [byte(0)?, 0, 0, 0];
    let length = match bytes[0] {
        0..=0x7f => 1,
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => return None,
    };
    for (index, place) in bytes[..length].iter_mut().enumerate().skip(1) {
        *place = byte(index)?;
    }
    let c = std::str::from_utf8(&bytes[..length]).ok()?.chars().next()?;
    Some((c, 3 * length))
}

/// `&amp;`, `&#39;`, `&#x27;`
fn reference(rest: &str) -> Option<(char, usize)> {
    let end = rest.bytes().take(MAX_ESCAPE_BYTES).position(|byte| byte == b';')?;
    let name = rest.get(1..end)?.to_ascii_lowercase();
    let c = match (name.strip_prefix("#x"), name.strip_prefix('#')) {
        (Some(digits), _) => char::from_u32(u32::from_str_radix(digits, 16).ok()?)?,
        (_, Some(digits)) => char::from_u32(digits.parse().ok()?)?,
        _ => match name.as_str() {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => return None,
        },
    };
    Some((c, end + 1))
}

/// The number that `digits` hexadecimal digits of `text` make, from `from` on.
fn hex(text: &str, from: usize, digits: usize) -> Option<u32> {
    let digits = text.get(from..from + digits)?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests;
