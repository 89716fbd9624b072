//! The head of an answer, on its way to awc.
//!
//! awc takes an interim answer (100 Continue, 103 Early Hints) for the answer itself, and loses a body whose
//! length only the end of the connection tells. Both are put right before it sees a byte: interim heads are
//! left out, and a head without a length says HTTP/1.0, for which awc does read to the end. What is no head,
//! or has no end, is passed on as it came, so that awc may say what is wrong with it.

use bytes::{Buf as _, BytesMut};
use tokio::io::ReadBuf;

/// Bytes of a head at most: they count nowhere else.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Header lines of a head at most, by awc's limit.
const MAX_HEADER_LINES: usize = 96;
/// Interim heads that are left out at most; the next one is taken for the answer.
const MAX_INTERIM_HEADS: u32 = 64;
/// How every head begins.
const START: &[u8] = b"HTTP/1.";

/// Collects the bytes of an answer until its head is complete, then hands them out.
#[derive(Debug)]
pub(super) struct Head {
    came: BytesMut,
    coming: bool,
    interim: u32,
}

/// What a complete head is, to awc and to us.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// The answer follows.
    Interim,
    /// Its body goes on until the connection ends, although it says HTTP/1.1.
    Endless,
    /// Nothing that needs help.
    Other,
}

impl Head {
    /// Of a connection at rest: nothing is coming.
    pub(super) fn none() -> Head {
        Head { came: BytesMut::new(), coming: false, interim: 0 }
    }

    /// Of an answer that is awaited.
    pub(super) fn awaited() -> Head {
        Head { coming: true, ..Head::none() }
    }

    /// Whether more bytes are wanted before any can be handed out.
    pub(super) fn is_coming(&self) -> bool {
        self.coming
    }

    /// Whether any of it came: what the receiver said before, on its way to an answer, does not count.
    pub(super) fn has_begun(&self) -> bool {
        !self.came.is_empty()
    }

    /// The status that stands at its beginning.
    pub(super) fn status(&self) -> Option<u16> {
        let line = self.came.strip_prefix(START)?;
        std::str::from_utf8(line.get(2..5)?).ok()?.parse().ok()
    }

    /// Takes in `bytes` that came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut looked_at = self.came.len();
        self.came.extend_from_slice(bytes);
        while self.coming {
            let known = START.len().min(self.came.len());
            let end = end_of_head(&self.came, looked_at);
            match end.map(|end| (end, kind(&self.came[..end]))) {
                _ if self.came[..known] != START[..known] => self.coming = false,
                Some((end, Kind::Interim)) if self.interim < MAX_INTERIM_HEADS => {
                    self.interim += 1;
                    self.came.advance(end);
                    looked_at = 0;
                }
                Some((_, kind)) => {
                    if kind == Kind::Endless {
                        self.came[START.len()] = b'0';
                    }
                    self.coming = false;
                }
                None if self.came.len() >= MAX_HEAD_BYTES => self.coming = false,
                None => return,
            }
        }
    }

    /// Hands out what is there, as far as `buf` has room; false when nothing is.
    pub(super) fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.coming || self.came.is_empty() {
            return false;
        }
        let length = buf.remaining().min(self.came.len());
        buf.put_slice(&self.came[..length]);
        self.came.advance(length);
        if self.came.is_empty() {
            // A connection at rest needs no memory.
            self.came = BytesMut::new();
        }
        true
    }
}

/// Where the first empty line ends, if it does so after `from`.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let ends = |at: &usize| {
        let before = &bytes[..*at];
        bytes[*at] == b'\n' && (before.ends_with(b"\n") || before.ends_with(b"\n\r"))
    };
    (from..bytes.len()).find(ends).map(|at| at + 1)
}

fn kind(head: &[u8]) -> Kind {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = parsed.parse(head) else { return Kind::Other };
    let has = |name: &str| parsed.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    match parsed.code {
        // Nobody asked to switch protocols: that one is an answer, and a wrong one.
        Some(101 | 204 | 304) | None => Kind::Other,
        Some(100..=199) => Kind::Interim,
        Some(_) if has("content-length") || has("transfer-encoding") => Kind::Other,
        Some(_) if parsed.version == Some(1) => Kind::Endless,
        Some(_) => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is handed out when `answer` comes in pieces of `piece` bytes, and whether more is wanted then.
    fn handed_out(answer: &[u8], piece: usize) -> (Vec<u8>, bool) {
        let mut head = Head::awaited();
        let mut out = Vec::new();
        for piece in answer.chunks(piece) {
            match head.is_coming() {
                true => head.push(piece),
                false => out.extend_from_slice(piece),
            }
            let mut space = [0; 7];
            let mut buf = ReadBuf::new(&mut space);
            while head.give(&mut buf) {
                out.extend_from_slice(buf.filled());
                buf.clear();
            }
        }
        (out, head.is_coming())
    }

    #[test]
    fn interim_heads_are_left_out_and_endless_bodies_announced() {
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        for (answer, expected) in [
            (length.to_owned(), length),
            (format!("HTTP/1.1 100 Continue\r\n\r\n{length}"), length),
            (format!("HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\nHTTP/1.1 102 P\n\n{length}"), length),
            ("HTTP/1.1 200 OK\r\n\r\nwhole".into(), "HTTP/1.0 200 OK\r\n\r\nwhole"),
            ("HTTP/1.1 500 No\r\nx: y\r\n\r\n".into(), "HTTP/1.0 500 No\r\nx: y\r\n\r\n"),
            ("HTTP/1.0 200 OK\r\n\r\nwhole".into(), "HTTP/1.0 200 OK\r\n\r\nwhole"),
            ("HTTP/1.1 204 No\r\n\r\n".into(), "HTTP/1.1 204 No\r\n\r\n"),
            ("HTTP/1.1 304 No\r\n\r\n".into(), "HTTP/1.1 304 No\r\n\r\n"),
            ("HTTP/1.1 101 Switch\r\n\r\n".into(), "HTTP/1.1 101 Switch\r\n\r\n"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            ("220 mail ESMTP\r\n".into(), "220 mail ESMTP\r\n"),
            ("HTTP/2 200\r\n\r\n".into(), "HTTP/2 200\r\n\r\n"),
            ("\r\n\r\n".into(), "\r\n\r\n"),
        ] {
            for piece in [1, 3, 1000] {
                let (out, wants_more) = handed_out(answer.as_bytes(), piece);
                assert_eq!(String::from_utf8(out).unwrap(), expected, "in pieces of {piece}");
                assert!(!wants_more);
            }
        }
    }

    #[test]
    fn what_does_not_end_is_held_back_only_up_to_the_limit() {
        assert_eq!(handed_out(b"HTTP/1.1 200 OK\r\nx: y\r\n", 5), (Vec::new(), true));
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert_eq!(handed_out(long.as_bytes(), 4096), (long.clone().into_bytes(), false));
        let interim = "HTTP/1.1 103 Early\r\n\r\n";
        let most = MAX_INTERIM_HEADS as usize;
        assert_eq!(handed_out(interim.repeat(most).as_bytes(), 1000), (Vec::new(), true));
        assert_eq!(handed_out(interim.repeat(most + 1).as_bytes(), 9), (interim.into(), false));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whatever_comes_in_whatever_pieces(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                prop::collection::vec(
                    prop::sample::select(vec![
                        "HTTP/1.1 ", "100", "200", " x", "\r\n", "\n", "\r", "a: b", "content-length: 1",
                    ]),
                    0..30,
                )
                .prop_map(|parts| parts.concat().into_bytes()),
            ],
            piece in 1..20usize,
        ) {
            let (out, wants_more) = handed_out(&bytes, piece);
            prop_assert_eq!(handed_out(&bytes, bytes.len().max(1)), (out.clone(), wants_more));
            // What is handed out is the end of what came, save for the one digit.
            let rest = &bytes[bytes.len() - out.len()..];
            let changed = out.iter().zip(rest).filter(|(out, came)| out != came).count();
            prop_assert!(changed <= 1 && (wants_more || !out.is_empty() || bytes.is_empty()));
        }
    }
}
