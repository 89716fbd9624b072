//! Signatures: Standard Webhooks 1.0.0, and the legacy header with a hexadecimal HMAC of the body.
//!
//! Keys are decoded once, when a destination is read. HMAC keeps its keyed state, which is cloned for each
//! message.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::model::{DbTime, Secret};

/// Header of the standard scheme.
pub const STANDARD_HEADER: &str = "webhook-signature";
/// Header of the `hex` scheme unless the destination names another one.
pub const DEFAULT_HEX_HEADER: &str = "x-webhook-signature";
/// Length of a `whsec_` key in bytes, as Standard Webhooks demands.
const HMAC_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// What is wrong with a secret or its scheme. Never holds any part of the secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// The text after the prefix is no base64.
    #[error("{which} cannot be decoded: after {prefix} must follow standard base64, with padding")]
    NotBase64 {
        /// The column.
        which: &'static str,
        /// `whsec_` or `whsk_`.
        prefix: &'static str,
    },
    /// A key of a length that is not allowed.
    #[error("{which} has {found} bytes after decoding: {wanted}")]
    Length {
        /// The column.
        which: &'static str,
        /// Bytes found.
        found: usize,
        /// What is allowed.
        wanted: &'static str,
    },
    /// The two halves of an ed25519 key pair do not belong together.
    #[error("{which} is no ed25519 key pair: its public half does not belong to its private half")]
    KeyPair {
        /// The column.
        which: &'static str,
    },
    /// `hex` is defined for HMAC only.
    #[error("signature_scheme hex needs an HMAC secret, but {which} is an ed25519 key (whsk_)")]
    HexNeedsHmac {
        /// The column.
        which: &'static str,
    },
    /// A scheme that does not exist.
    #[error("signature_scheme {0:?} is unknown: use standard or hex")]
    Scheme(String),
    /// A header name that cannot be one.
    #[error("signature_header is not a valid header name")]
    Header,
}

/// Signs the messages of one destination.
#[derive(Clone)]
pub struct Signer {
    scheme: Scheme,
    current: Option<Key>,
    previous: Option<(Key, DbTime)>,
}

#[derive(Clone)]
enum Scheme {
    Standard,
    Hex { header: String },
}

#[derive(Clone)]
enum Key {
    Hmac(Box<Hmac<Sha256>>),
    Ed25519(Box<SigningKey>),
}

impl Signer {
    /// Prepares the keys. `previous` signs, too, until the time beside it; empty secrets count as missing.
    ///
    /// # Errors
    /// A secret that does not decode, a scheme or header that cannot be used.
    pub fn compile(
        secret: Option<&Secret>,
        previous: Option<(&Secret, DbTime)>,
        scheme: &str,
        header: Option<&str>,
    ) -> Result<Signer, SignatureFault> {
        let scheme = match scheme {
            "standard" => Scheme::Standard,
            "hex" => Scheme::Hex { header: header_name(header.unwrap_or(DEFAULT_HEX_HEADER))? },
            other => return Err(SignatureFault::Scheme(other.to_owned())),
        };
        let current = match secret {
            Some(secret) => Key::compile(secret, "signing_secret")?,
            None => None,
        };
        let previous = match previous {
            Some((secret, until)) => Key::compile(secret, "previous_signing_secret")?.map(|key| (key, until)),
            None => None,
        };
        if matches!((&scheme, &current), (Scheme::Hex { .. }, Some(Key::Ed25519(_)))) {
            return Err(SignatureFault::HexNeedsHmac { which: "signing_secret" });
        }
        Ok(Signer { scheme, current, previous })
    }

    /// The header that [`Signer::sign`] fills; `None` when there is no secret.
    pub fn header(&self) -> Option<&str> {
        self.current.as_ref()?;
        Some(match &self.scheme {
            Scheme::Standard => STANDARD_HEADER,
            Scheme::Hex { header } => header,
        })
    }

    /// Header and value for one message; `None` when there is no secret.
    ///
    /// The `hex` scheme has room for one signature only, so it goes by the current secret alone.
    pub fn sign(&self, id: &str, timestamp: i64, now: DbTime, body: &[u8]) -> Option<(&str, String)> {
        let current = self.current.as_ref()?;
        let header = self.header()?;
        if let (Scheme::Hex { .. }, Key::Hmac(keyed)) = (&self.scheme, current) {
            let mut mac = (**keyed).clone();
            mac.update(body);
            return Some((header, hex_value(&mac.finalize().into_bytes())));
        }
        let prefix = format!("{id}.{timestamp}.");
        let mut value = String::with_capacity(128);
        current.append(&mut value, &prefix, body);
        if let Some((key, until)) = &self.previous
            && now < *until
        {
            value.push(' ');
            key.append(&mut value, &prefix, body);
        }
        Some((header, value))
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.header().unwrap_or("none"))
    }
}

impl Key {
    /// The key in `secret`, or `None` when it is empty.
    fn compile(secret: &Secret, which: &'static str) -> Result<Option<Key>, SignatureFault> {
        let text = secret.reveal();
        if text.is_empty() {
            return Ok(None);
        }
        let decode = |prefix: &'static str, encoded: &str| {
            STANDARD.decode(encoded).map_err(|_| SignatureFault::NotBase64 { which, prefix })
        };
        if let Some(encoded) = text.strip_prefix("whsk_") {
            return Ok(Some(Key::Ed25519(Box::new(ed25519(&decode("whsk_", encoded)?, which)?))));
        }
        let Some(encoded) = text.strip_prefix("whsec_") else {
            return Ok(Some(Key::hmac(text.as_bytes())));
        };
        let key = decode("whsec_", encoded)?;
        if !HMAC_KEY_BYTES.contains(&key.len()) {
            let wanted = "a whsec_ secret must have 24 to 64";
            return Err(SignatureFault::Length { which, found: key.len(), wanted });
        }
        Ok(Some(Key::hmac(&key)))
    }

    fn hmac(key: &[u8]) -> Key {
        Key::Hmac(Box::new(Hmac::new_from_slice(key).expect("HMAC takes keys of any length")))
    }

    fn append(&self, value: &mut String, prefix: &str, body: &[u8]) {
        match self {
            Key::Hmac(keyed) => {
                let mut mac = (**keyed).clone();
                mac.update(prefix.as_bytes());
                mac.update(body);
                value.push_str("v1,");
                STANDARD.encode_string(mac.finalize().into_bytes(), value);
            }
            Key::Ed25519(key) => {
                // ed25519 reads its message twice, so it needs it in one piece.
                let message = [prefix.as_bytes(), body].concat();
                value.push_str("v1a,");
                STANDARD.encode_string(key.sign(&message).to_bytes(), value);
            }
        }
    }
}

/// A private key is its 32-byte seed, or seed and public key together, as most tools store it.
fn ed25519(bytes: &[u8], which: &'static str) -> Result<SigningKey, SignatureFault> {
    if let Ok(seed) = <&[u8; 32]>::try_from(bytes) {
        return Ok(SigningKey::from_bytes(seed));
    }
    let wanted = "a whsk_ key must have 32 (seed) or 64 (seed and public key)";
    let pair = <&[u8; 64]>::try_from(bytes).map_err(|_| SignatureFault::Length {
        which,
        found: bytes.len(),
        wanted,
    })?;
    SigningKey::from_keypair_bytes(pair).map_err(|_| SignatureFault::KeyPair { which })
}

fn header_name(name: &str) -> Result<String, SignatureFault> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(SignatureFault::Header);
    }
    Ok(name.to_ascii_lowercase())
}

fn hex_value(mac: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut value = String::with_capacity(7 + 2 * mac.len());
    value.push_str("sha256=");
    for byte in mac {
        write!(value, "{byte:02x}").expect("a String takes whatever is written");
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the Standard Webhooks documentation: key, message and signature.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const AT: i64 = 1_614_265_330;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    fn sign(signer: &Signer, now: DbTime) -> Option<(&str, String)> {
        signer.sign(ID, AT, now, BODY)
    }

    #[test]
    fn the_published_example_comes_out() {
        let signer = Signer::compile(Some(&secret(KEY)), None, "standard", None).unwrap();
        assert_eq!(sign(&signer, DbTime(0)), Some(("webhook-signature", SIGNATURE.to_owned())));
    }

    #[test]
    fn the_official_verifier_accepts_what_is_signed_now() {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let raw = "an old secret without any prefix";
        for (text, verifier) in [
            (KEY, standardwebhooks::Webhook::new(KEY).unwrap()),
            (raw, standardwebhooks::Webhook::from_bytes(raw.as_bytes().to_vec()).unwrap()),
        ] {
            let signer = Signer::compile(Some(&secret(text)), None, "standard", None).unwrap();
            let (_, value) = signer.sign("id", now, DbTime(0), BODY).unwrap();
            assert_eq!(value, verifier.sign("id", now, BODY).unwrap());
        }
    }

    #[test]
    fn while_rotating_both_secrets_sign_and_the_new_one_comes_first() {
        let (new, old) = (secret("the new one"), secret(KEY));
        let signer = Signer::compile(Some(&new), Some((&old, DbTime(100))), "standard", None).unwrap();
        let (_, both) = sign(&signer, DbTime(99)).unwrap();
        let (_, one) = sign(&signer, DbTime(100)).unwrap();
        let (first, second) = both.split_once(' ').unwrap();
        assert_eq!(second, SIGNATURE);
        assert_eq!(first, one);
    }

    #[test]
    fn ed25519_signs_with_seed_or_pair() {
        use ed25519_dalek::{Signature, Verifier as _};
        let key = SigningKey::from_bytes(&[7; 32]);
        for bytes in [key.to_bytes().to_vec(), key.to_keypair_bytes().to_vec()] {
            let text = secret(&format!("whsk_{}", STANDARD.encode(bytes)));
            let signer = Signer::compile(Some(&text), None, "standard", None).unwrap();
            let (header, value) = sign(&signer, DbTime(0)).unwrap();
            assert_eq!(header, "webhook-signature");
            let signature = STANDARD.decode(value.strip_prefix("v1a,").unwrap()).unwrap();
            let message = [format!("{ID}.{AT}.").as_bytes(), BODY].concat();
            let signature = Signature::from_slice(&signature).unwrap();
            key.verifying_key().verify(&message, &signature).unwrap();
        }
    }

    #[test]
    fn the_hex_scheme_signs_the_body_in_its_own_header() {
        // RFC 4231, test case 2.
        let signer = Signer::compile(Some(&secret("Jefe")), None, "hex", None).unwrap();
        let signed = signer.sign(ID, AT, DbTime(0), b"what do ya want for nothing?");
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signed, Some(("x-webhook-signature", expected.to_owned())));
        let signer =
            Signer::compile(Some(&secret("Jefe")), None, "hex", Some("X-Hub-Signature-256")).unwrap();
        assert_eq!(signer.header(), Some("x-hub-signature-256"));
    }

    #[test]
    fn without_a_secret_nothing_is_signed() {
        for missing in [None, Some(&secret(""))] {
            let signer = Signer::compile(missing, None, "standard", None).unwrap();
            assert_eq!(sign(&signer, DbTime(0)), None);
            assert_eq!(signer.header(), None);
        }
    }

    #[test]
    fn faults_are_clear_and_hold_no_secret() {
        let pair = {
            let mut bytes = SigningKey::from_bytes(&[7; 32]).to_keypair_bytes();
            bytes[40] ^= 1;
            format!("whsk_{}", STANDARD.encode(bytes))
        };
        let seed = format!("whsk_{}", STANDARD.encode([7; 32]));
        let table = [
            ("whsec_hunter2!", "standard", None, "signing_secret cannot be decoded: after whsec_"),
            ("whsk_hunter2!", "standard", None, "signing_secret cannot be decoded: after whsk_"),
            ("whsec_aHVudGVyMg==", "standard", None, "has 7 bytes after decoding: a whsec_"),
            ("whsk_aHVudGVyMg==", "standard", None, "has 7 bytes after decoding: a whsk_"),
            (&pair, "standard", None, "no ed25519 key pair"),
            (&seed, "hex", None, "needs an HMAC secret"),
            ("hunter2", "base32", None, "signature_scheme \"base32\" is unknown"),
            ("hunter2", "hex", Some("x\r\ny"), "signature_header"),
            ("hunter2", "hex", Some(""), "signature_header"),
        ];
        for (text, scheme, header, expected) in table {
            let fault = Signer::compile(Some(&secret(text)), None, scheme, header).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
            assert!(!fault.contains("hunter2") && !fault.contains("aHVudGVyMg"), "{fault}");
        }
        let old = secret("whsec_?");
        let fault = Signer::compile(None, Some((&old, DbTime(0))), "standard", None).unwrap_err();
        assert!(fault.to_string().starts_with("previous_signing_secret"), "{fault}");
    }

    proptest! {
        #[test]
        fn every_text_is_a_secret_that_signs_or_is_refused_without_being_repeated(
            text in prop_oneof![
                ".{0,80}",
                "(whsec_|whsk_)[A-Za-z0-9+/]{0,90}={0,2}",
                (prop::sample::select(vec!["whsec_", "whsk_"]), prop::collection::vec(any::<u8>(), 20..70))
                    .prop_map(|(prefix, key)| format!("{prefix}{}", STANDARD.encode(key))),
            ],
            scheme in prop::sample::select(vec!["standard", "hex"]),
            body in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let key = secret(&text);
            match Signer::compile(Some(&key), Some((&key, DbTime(1))), scheme, None) {
                Ok(signer) => {
                    let signed = signer.sign("id", 1, DbTime(0), &body);
                    prop_assert_eq!(signed.is_some(), !text.is_empty());
                    let fits = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
                    prop_assert!(signed.is_none_or(|(_, value)| value.bytes().all(fits)));
                }
                Err(fault) => {
                    let hidden = text.trim_start_matches("whsec_").trim_start_matches("whsk_");
                    prop_assert!(hidden.len() < 8 || !fault.to_string().contains(hidden), "{}", fault);
                }
            }
        }
    }
}
