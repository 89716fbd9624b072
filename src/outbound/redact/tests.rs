//! What is recognised as a secret, and what is left alone.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

fn knows(secret: &str) -> Redactor {
    let mut redactor = Redactor::default();
    redactor.add(secret.as_bytes());
    redactor
}

fn lines(text: &str, end: &str) -> String {
    text.as_bytes().chunks(9).map(String::from_utf8_lossy).collect::<Vec<_>>().join(end)
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_secret_is_recognised_in_every_encoding() {
    let secret = r#"Ab1/+="\ &<é€😀'%"#;
    let table = [
        ("as it is", secret.to_owned()),
        ("in lower case", secret.to_lowercase()),
        ("in upper case", secret.to_uppercase()),
        ("JSON", r#"Ab1/+=\"\\ &<é€😀'%"#.into()),
        ("JSON, with slashes", r#"Ab1\/+=\"\\ &<é€😀'%"#.into()),
        ("JSON in ASCII", r#"Ab1\u002f+=\"\\ \u0026\u003c\u00e9\u20ac\ud83d\ude00\u0027%"#.into()),
        ("JSON, capitals", r#"Ab1\u002F+=\u0022\u005C\u0020\u0026\u003C\u00E9\u20AC\uD83D\uDE00'%"#.into()),
        ("JSON, all in capitals", r#"AB1\U002F+=\U0022\U005C\U0020&<É€\UD83D\UDE00'%"#.into()),
        ("as in a source text", r#"Ab1/+=\"\\\x20\x26\x3c\xe9€😀\'%"#.into()),
        ("URL", "Ab1%2F%2B%3D%22%5C%20%26%3C%C3%A9%E2%82%AC%F0%9F%98%80%27%25".into()),
        ("URL, small letters", "%41b1%2f%2b%3d%22%5c%20%26%3c%c3%a9%e2%82%ac%f0%9f%98%80%27%25".into()),
        ("a form", r#"Ab1/%2B=%22%5C+%26%3C%C3%A9%E2%82%AC%F0%9F%98%80'%25"#.into()),
        ("HTML", "Ab1/+=&quot;\\ &amp;&lt;é€😀&#39;%".into()),
        (
            "HTML, numbers",
            "Ab1&#x2F;&#43;&#61;&#34;&#x5c;&#32;&#38;&#60;&#233;&#8364;&#x1F600;&#x27;&#37;".into(),
        ),
        ("HTML, odd", "&#0000065;b1/+=&QUOT;\\ &AMP;&#X03c;é€&#x0001f600;&apos;%".into()),
        ("a mixture", r#"Ab1\u002f%2B=&quot;\\+%26&lt;\u00e9%E2%82%AC😀&#39;%25"#.into()),
        ("hex", digits(secret.as_bytes())),
        ("hex, capitals", digits(secret.as_bytes()).to_uppercase()),
        ("hex, in lines", lines(&digits(secret.as_bytes()), "\n")),
        ("base64, in lines", lines(&STANDARD_NO_PAD.encode(secret), "\r\n")),
        ("base64, in lines, JSON", lines(&STANDARD_NO_PAD.encode(secret), "\\r\\n")),
    ];
    for (encoding, text) in table {
        for (before, after) in [("", ""), ("{\"a\":\"", "\"}"), ("%", "4"), ("\\", "\\"), ("&", ";")] {
            let shown = knows(secret).redact(format!("{before}{text}{after}"));
            // What escapes the first character goes with it.
            let bare = before.trim_end_matches('\\');
            let is_hidden = [before, bare].iter().any(|before| shown == format!("{before}***{after}"));
            assert!(is_hidden, "{encoding}: {shown}");
        }
    }
}

#[test]
fn base64_is_recognised_wherever_a_secret_begins_in_it() {
    for secret in ["a-secret", "a-secre", "a-secr", "\u{fb}\u{ff}\u{fe}ÿþ"] {
        for (before, after) in (0..7).flat_map(|before| (0..7).map(move |after| (before, after))) {
            // Some of these make every character of base64 that two alphabets write differently.
            let text = [&b"\xff\xfe>?=;+"[..before], secret.as_bytes(), &b"\xff~>?=;+"[..after]].concat();
            for encoded in [
                STANDARD.encode(&text),
                STANDARD_NO_PAD.encode(&text),
                URL_SAFE.encode(&text),
                URL_SAFE_NO_PAD.encode(&text),
                STANDARD.encode(&text).replace('/', "\\/").replace('+', "\\u002b"),
                STANDARD.encode(&text).replace('/', "%2F").replace('+', "%2b").replace('=', "%3D"),
            ] {
                let shown = knows(secret).redact(format!("token={encoded}."));
                let left = shown.replace("***", "").replace("token=", "");
                // All that is left is what stood around it; three bytes take four characters, or twelve.
                let most = 12 * (before.div_ceil(3) + after.div_ceil(3)) + "%3D%3D.".len();
                assert!(shown.contains("***") && left.len() <= most, "{encoded}: {shown}");
            }
        }
        // Letter case is contents here.
        let other = STANDARD.encode(secret).to_lowercase();
        assert_eq!(knows(secret).redact(other.clone()), other);
    }
}

#[test]
fn what_is_kept_holds_no_part_of_a_secret() {
    const MOST: usize = 4096;
    let secret = "abcdefghij".repeat(3);
    let escaped: String = secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let encoded = STANDARD.encode(&secret);
    for (written, part) in [(&secret, "abc"), (&escaped, "u006"), (&encoded, &encoded[..3])] {
        for before in 0..=MOST + 1 {
            // A character of two bytes may lie across the edge as well.
            let filler = "ä".repeat(before / 2) + &"-".repeat(before % 2);
            let kept = knows(&secret).beginning(format!("{filler}{written}{}", "ü".repeat(9)), MOST, false);
            assert!(kept.len() <= MOST && !kept.contains(part), "after {before} bytes: {kept}");
            assert!(kept.len() + 1 >= before.min(MOST), "after {before} bytes: {}", kept.len());
        }
    }
    let [short, long] = [String::from("abcdef"), "ab".repeat(300)];
    let body = format!("{}{short}{long}{short}{}", "-".repeat(MOST - 300), "-".repeat(5_000));
    let mut redactor = knows(&long);
    redactor.add(short.as_bytes());
    assert_eq!(redactor.beginning(body, MOST, true), "-".repeat(MOST - 300) + "***");
    assert!(redactor.reach() >= 6 * long.len());
    // Replacement characters are longer than what they replace.
    assert!(redactor.beginning("\u{fffd}".repeat(MOST), MOST, false).len() <= MOST);
}

#[test]
fn a_secret_whose_end_was_not_read_is_hidden_as_far_as_it_was() {
    let secret: String = (0..8_000).map(|n| char::from(b'a' + (n * n % 23) as u8)).collect();
    let escaped: String = secret.bytes().map(|byte| format!("&#x{byte:02x};")).collect();
    for end in [500, 1_000, 1_001, 1_002, 1_003, 1_004, 1_005] {
        let text = format!("{}{}", "-".repeat(90), &escaped[..end]);
        assert_eq!(knows(&secret).beginning(text, 100, true), "-".repeat(90) + "***", "{end}");
    }
    // What is whole was not cut.
    assert_eq!(knows(&secret).beginning("a short text".into(), 100, false), "a short text");
}

#[test]
fn secrets_that_overlap_or_touch_are_hidden_together() {
    let mut redactor = knows("abcdef");
    redactor.add(b"defghi");
    redactor.add(b"abc");
    for (text, shown) in [
        ("-abcdefghi-", "-***-"),
        ("-abcdefdefghi-", "-***-"),
        ("-abcdef-defghi-", "-***-***-"),
        ("-abc-def-ghi-", "-abc-def-ghi-"),
    ] {
        assert_eq!(redactor.redact(text.into()), shown);
    }
}

#[test]
fn what_would_cost_too_much_to_search_is_not_shown_at_all() {
    for piece in ["a", "\\", "%25", "&amp;", "ab"] {
        let secret = piece.repeat(4_096);
        assert_eq!(knows(&secret).redact(piece.repeat(16_384)), MASK, "{piece}");
    }
    // Even a long row of the same is not too much.
    let dashes = "-".repeat(4_096);
    assert_eq!(knows(&"-".repeat(60)).redact(dashes), MASK);
    assert_eq!(knows(&("-".repeat(24) + "x")).redact("-".repeat(4_096)), "-".repeat(4_096));
}

#[test]
fn credentials_are_what_is_secret_of_a_header() {
    let of = |text: &str| {
        let mut redactor = Redactor::default();
        redactor.add_header(&HeaderValue::from_bytes(text.as_bytes()).expect("a value"));
        let known = redactor.secrets.iter().map(|secret| String::from_utf8(secret.to_vec()));
        known.collect::<Result<Vec<_>, _>>().expect("texts")
    };
    assert_eq!(of("Bearer a-token"), ["a-token"]);
    assert_eq!(of("bearer  a token of words "), ["a token of words"]);
    assert_eq!(of("Basic bWU6YS1wYXNzd29yZA=="), ["bWU6YS1wYXNzd29yZA==", "a-password"]);
    assert_eq!(of("Basic bWU6YTpwYXNzOndvcmQ="), ["bWU6YTpwYXNzOndvcmQ=", "a:pass:word"]);
    assert_eq!(of("Basic bWU6c2hvcnQ="), ["bWU6c2hvcnQ=", "me:short"]);
    assert_eq!(of("Basic ?"), [""; 0]);
    assert_eq!(of("GenieKey 0a1b2c3d"), ["0a1b2c3d"]);
    assert_eq!(of("Token abc"), ["Token abc"]);
    assert_eq!(of("Digest username=\"a\", response=\"b\""), ["Digest username=\"a\", response=\"b\""]);
    assert_eq!(of("a clé of ours"), ["a clé of ours"]);
    assert_eq!(of("short"), [""; 0]);
}

#[test]
fn of_a_signing_secret_the_text_and_the_key_are_secret() {
    let key = b"\x31\xf2\x90\xf6\xbf\x06\x29\x8a\xab\x4f\x08\xd4\x3d\x1f\x0b\xff\xf6\x48\xfa\xfe";
    let encoded = STANDARD.encode(key);
    for prefix in ["whsec_", "whsk_"] {
        let mut redactor = Redactor::default();
        redactor.add_signing_secret(&Secret::new(format!("{prefix}{encoded}")));
        for (text, shown) in [
            (format!("{prefix}{encoded}"), format!("{prefix}***")),
            (encoded.to_uppercase(), "***".into()),
            (digits(key), "***".into()),
            (URL_SAFE_NO_PAD.encode(key), "***".into()),
            (STANDARD_NO_PAD.encode([&b"1234"[..], key].concat()), "MTIzN***".into()),
        ] {
            let shown_now = redactor.redact(text.clone());
            assert!(shown_now.starts_with(&shown) && shown_now.len() < shown.len() + 2, "{shown_now}");
        }
    }
    let mut redactor = Redactor::default();
    redactor.add_signing_secret(&Secret::new("an old secret"));
    assert_eq!(redactor.redact("it is An old Secret!".into()), "it is ***!");
}

/// `c` in one of the ways to write it.
fn spelled(c: char, way: u8) -> String {
    let utf8 = c.to_string().into_bytes();
    let units = || c.encode_utf16(&mut [0; 2]).to_vec();
    match way {
        0 => units().iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        1 => units().iter().map(|unit| format!("\\u{unit:04X}")).collect(),
        2 => utf8.iter().map(|byte| format!("%{byte:02x}")).collect(),
        3 => utf8.iter().map(|byte| format!("%{byte:02X}")).collect(),
        4 => format!("&#{};", u32::from(c)),
        5 => format!("&#x{:X};", u32::from(c)),
        6 if c == ' ' => "+".into(),
        6 if c.is_ascii_punctuation() => format!("\\{c}"),
        7 if c == '&' => "&amp;".into(),
        7 if c == '"' => "&quot;".into(),
        8 => c.to_ascii_uppercase().to_string(),
        9 => c.to_ascii_lowercase().to_string(),
        _ => c.to_string(),
    }
}

proptest! {
    #[test]
    fn any_mixture_of_escapes_of_a_secret_is_found(
        secret in prop_oneof!["[ -~é€😀]{6,40}", "[\\\\%&u0125;#x]{6,24}"],
        ways in prop::collection::vec(0..14u8, 40),
        around in "[\u{2014}\n]{0,20}",
    ) {
        let written: String = secret.chars().zip(ways).map(|(c, way)| spelled(c, way)).collect();
        let shown = knows(&secret).redact(format!("{around}{written}{around}"));
        prop_assert_eq!(shown, format!("{around}***{around}"), "{}", written);
    }

    #[test]
    fn a_text_without_the_secret_stays_as_it_is(
        secret in "[b-z]{4}[0-9]{4}[b-z]{4}",
        text in prop_oneof![
            ".{0,300}",
            prop::collection::vec(
                prop::sample::select(vec![
                    "%41", "%c3", "%", "\\u0061", "\\u", "\\", "\\ud83d", "&amp;", "&", "&#x61;", ";", "+",
                    "ä", "{\"a\": 1}", "YWJj", "0a1B",
                ]),
                0..60,
            )
            .prop_map(|parts| parts.concat()),
        ],
    ) {
        prop_assert_eq!(knows(&secret).redact(text.clone()), text);
    }

    #[test]
    fn whatever_is_looked_for_in_whatever_text_the_rest_is_of_that_text(
        secrets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4),
        text in prop_oneof![".{0,200}", "[ab%\\\\&;#u0-9é]{0,200}"],
        most in 0..250usize,
        is_cut in any::<bool>(),
    ) {
        let mut redactor = Redactor::default();
        secrets.iter().for_each(|secret| redactor.add(secret));
        let shown = redactor.beginning(text.clone(), most, is_cut);
        prop_assert!(shown.len() <= most.max(MASK.len()));
        let mut rest = text.as_str();
        for part in shown.split(MASK) {
            let part = part.trim_end_matches('*');
            let at = rest.find(part);
            prop_assert!(at.is_some(), "{}", shown);
            rest = &rest[at.unwrap() + part.len()..];
        }
    }
}
