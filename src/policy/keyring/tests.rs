//! What the key ring promises.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const HERE: DestinationId = DestinationId(Uuid::from_u128(1));
const THERE: DestinationId = DestinationId(Uuid::from_u128(2));

fn ring(keys: &[u8]) -> KeyRing {
    let texts: Vec<String> = keys.iter().map(|key| key_text([*key; KEY_BYTES]).reveal().to_owned()).collect();
    KeyRing::parse(&Secret::new(texts.join(","))).unwrap()
}

fn sealed(ring: &KeyRing, field: Field, plain: &str) -> Secret {
    ring.seal(HERE, field, &Secret::new(plain), [7; NONCE_BYTES]).unwrap()
}

fn any_field() -> impl Strategy<Value = Field> {
    proptest::sample::select(Field::ALL.to_vec())
}

proptest! {
    #[test]
    fn what_is_sealed_opens_again(field in any_field(), plain in ".{0,38}", nonce: [u8; NONCE_BYTES]) {
        let (old, both) = (ring(&[1]), ring(&[2, 1]));
        let text = old.seal(HERE, field, &Secret::new(plain.as_str()), nonce).unwrap();
        prop_assert_eq!(Stored::of(text.reveal()), Stored::Under(old.ids().next().unwrap()));
        prop_assert!(plain.len() < 8 || !text.reveal().contains(&plain));
        let opened = both.open(HERE, field, &text).unwrap();
        prop_assert_eq!(opened.reveal(), plain);
    }

    #[test]
    fn not_one_character_can_be_altered(at: prop::sample::Index, other in "[ -~]", plain in ".{1,38}") {
        let ring = ring(&[1]);
        let mut text = sealed(&ring, Field::SigningSecret, &plain).reveal().to_owned();
        let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
        prop_assume!(text[at..=at] != *other);
        text.replace_range(at..=at, &other);
        prop_assert!(ring.open(HERE, Field::SigningSecret, &Secret::new(text)).is_err());
    }

    #[test]
    fn nothing_can_be_cut_off_or_added(at: prop::sample::Index, more in "[A-Za-z0-9+/=]{1,8}") {
        let ring = ring(&[1]);
        let text = sealed(&ring, Field::SigningSecret, "a secret").reveal().to_owned();
        let shorter = &text[..PREFIX.len() + at.index(text.len() - PREFIX.len())];
        for altered in [shorter.to_owned(), format!("{text}{more}")] {
            prop_assert!(ring.open(HERE, Field::SigningSecret, &Secret::new(altered)).is_err());
        }
    }

    #[test]
    fn garbage_is_plain_text_or_a_fault_and_never_a_panic(
        text in prop_oneof![
            any::<String>(), "phs[0-9]{0,3}:?.{0,40}", "phs1:[0-9a-f]{7,9}:[A-Za-z0-9+/=é]{0,60}",
            "phs1:[0-9a-f]{7,9}"
        ],
    ) {
        let ring = ring(&[1]);
        let opened = ring.open(HERE, Field::SigningSecret, &Secret::new(text.as_str()));
        match Stored::of(&text) {
            Stored::Plain => prop_assert!(opened.is_ok_and(|plain| plain.reveal() == text)),
            _ => prop_assert!(opened.is_err()),
        }
        ring.open_members(HERE, Secret::new(text.as_str())).ok();
        KeyRing::parse(&Secret::new(text)).ok();
    }
}

#[test]
fn a_ciphertext_is_of_no_use_anywhere_else() {
    let ring = ring(&[1]);
    for field in Field::ALL {
        let text = sealed(&ring, field, "hunter2");
        assert!(matches!(ring.open(THERE, field, &text), Err(Locked::Damaged { .. })));
        for other in Field::ALL {
            // Rotating moves the one to where the other is.
            let same = |field| [Field::SigningSecret, Field::PreviousSigningSecret].contains(&field);
            let opens = other == field || (same(field) && same(other));
            assert_eq!(ring.open(HERE, other, &text).is_ok(), opens, "{field} as {other}");
        }
    }
}

#[test]
fn a_key_that_is_missing_is_named_by_its_id() {
    let text = sealed(&ring(&[1]), Field::Auth("token"), "hunter2");
    let locked = ring(&[2, 3]).open(HERE, Field::Auth("token"), &text).unwrap_err().to_string();
    // The beginning of: printf '\1%.0s' $(seq 32) | sha256sum
    assert!(locked.contains("auth_config.token is encrypted under the key 72cd6e84,"), "{locked}");
    assert_eq!(ring(&[1]).ids().collect::<Vec<_>>(), ["72cd6e84"]);
}

#[test]
fn all_secrets_of_a_destination_are_opened_and_nothing_else_is_touched() {
    let ring = ring(&[1]);
    let seal = |field, plain| Some(sealed(&ring, field, plain));
    let token = sealed(&ring, Field::Auth("token"), "the \"token\"");
    let auth = |token: &str| {
        let token = serde_json::to_string(token).unwrap();
        Secret::new(format!(r#"{{"a":12345678901234567890.10,"b":["phs1:"],"password":5,"token":{token}}}"#))
    };
    let mut stored = destination(auth(token.reveal()));
    stored.signing_secret = seal(Field::SigningSecret, "new");
    stored.settings.previous_signing_secret = seal(Field::SigningSecret, "old");
    stored.settings.tls_client_key = seal(Field::TlsClientKey, "pem");
    let mut plain = destination(auth("the \"token\""));
    plain.signing_secret = Some(Secret::new("new"));
    plain.settings.previous_signing_secret = Some(Secret::new("old"));
    plain.settings.tls_client_key = Some(Secret::new("pem"));
    assert_eq!(ring.open_all(stored.clone()), Ok(plain.clone()));
    assert_eq!(ring.open_all(plain.clone()), Ok(plain));
    for lock in [
        (|d| d.signing_secret = Some(Secret::new("phs1:"))) as fn(&mut Destination),
        |d| d.settings.previous_signing_secret = Some(Secret::new("phs1:")),
        |d| d.settings.tls_client_key = Some(Secret::new("phs1:")),
        |d| d.auth_config = Secret::new(r#"{"client_secret":"phs2:00000000:AAAA"}"#),
    ] {
        let mut stored = stored.clone();
        lock(&mut stored);
        assert!(matches!(ring.open_all(stored), Err(Locked::Malformed { .. })));
    }
}

fn destination(auth_config: Secret) -> Destination {
    Destination {
        id: HERE,
        org: crate::model::OrgId(Uuid::nil()),
        url: String::new(),
        auth_type: "bearer".into(),
        auth_config,
        batch_size: 1,
        timeout: std::time::Duration::ZERO,
        retry: crate::model::RetryPolicy { max: 0, backoff: std::time::Duration::ZERO },
        signing_secret: None,
        settings: crate::model::Settings::default(),
    }
}

#[test]
fn the_longest_secret_fills_its_column_and_a_longer_one_is_refused() {
    let ring = ring(&[1]);
    let lengths = [(Field::SigningSecret, 255), (Field::TlsClientKey, 65_536)];
    for (field, column) in lengths {
        let most = field.most_bytes().unwrap();
        let length = |bytes: usize| {
            let plain = Secret::new("x".repeat(bytes));
            ring.seal(HERE, field, &plain, [7; NONCE_BYTES]).map(|text| text.reveal().len())
        };
        assert!(length(most).is_ok_and(|length| length <= column && length + 1 >= column));
        let fault = length(most + 1).unwrap_err();
        assert_eq!(fault, CannotSeal::TooLong { field, found: most + 1, most });
    }
    assert_eq!(Field::SigningSecret.most_bytes(), Some(152));
    assert_eq!(Field::Auth("token").most_bytes(), None);
    let none = KeyRing::default().seal(HERE, Field::SigningSecret, &Secret::new("x"), [7; 12]);
    assert_eq!(none, Err(CannotSeal::NoKey));
}

#[test]
fn keys_are_read_leniently_and_their_faults_name_places_not_keys() {
    let key = key_text([1; KEY_BYTES]).reveal().to_owned();
    let bare = key.trim_end_matches('=');
    for (text, keys) in [
        (String::new(), 0),
        (" , ".into(), 0),
        (key.clone(), 1),
        (format!(" {bare} ,\n"), 1),
        (format!("{key},{bare},{}", key_text([2; KEY_BYTES]).reveal()), 2),
    ] {
        assert_eq!(KeyRing::parse(&Secret::new(text)).unwrap().ids().count(), keys);
    }
    let text = format!("{key},hunter2!,,aHVudGVyMg==,{}", "00".repeat(32));
    let faults = KeyRing::parse(&Secret::new(text)).unwrap_err();
    let expected = [
        "key 2 is no base64",
        "key 3 has 7 bytes after decoding, not 32",
        "key 4 has 48 bytes after decoding, not 32",
    ];
    assert_eq!(faults, expected);
}

#[test]
fn debug_shows_ids_and_no_keys() {
    assert_eq!(format!("{:?}", ring(&[1])), r#"["72cd6e84"]"#);
}
