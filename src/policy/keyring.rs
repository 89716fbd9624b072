//! Secrets at rest: which texts are encrypted, under which key, and what they say.
//!
//! An encrypted secret is the text `phs1:<key id>:<base64>`: AES-256-GCM, 12 bytes of nonce, the ciphertext,
//! 16 bytes of tag. The id is the beginning of the key's SHA-256, so that nobody has to number keys. The id
//! of the destination and the name of the field are authenticated with it: a ciphertext that is copied
//! elsewhere does not decrypt there. Every other text is a plain one.
//!
//! The cipher is that of `ring`, which TLS brings along. Nonces are random: a key would be good for 2^32 of
//! them, far more than there are secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};

use crate::model::{Destination, DestinationId, Secret};

/// Length of a key in bytes.
pub const KEY_BYTES: usize = 32;
/// Length of a nonce in bytes.
pub const NONCE_BYTES: usize = NONCE_LEN;
/// How keys are written: base64 with or without its padding, as tools differ in that.
const KEY_TEXT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, KEY_TEXT_CONFIG);
const KEY_TEXT_CONFIG: GeneralPurposeConfig =
    NO_PAD.with_encode_padding(true).with_decode_padding_mode(DecodePaddingMode::Indifferent);
/// Hexadecimal digits of a key's id.
const ID_DIGITS: usize = 8;
/// What every encrypted text begins with, whatever its version.
const FAMILY: &str = "phs";
/// What this version writes and reads.
const PREFIX: &str = "phs1:";

/// Where a destination keeps a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// `webhook_destinations.signing_secret`
    SigningSecret,
    /// `posthaste_destination_settings.previous_signing_secret`
    PreviousSigningSecret,
    /// The member of this name of `webhook_destinations.auth_config`.
    Auth(&'static str),
    /// `posthaste_destination_settings.tls_client_key`
    TlsClientKey,
}

impl Field {
    /// All there are. The members of `auth_config` that are not among them are no secrets.
    pub const ALL: [Field; 7] = [
        Field::SigningSecret,
        Field::PreviousSigningSecret,
        Field::Auth("token"),
        Field::Auth("header_value"),
        Field::Auth("password"),
        Field::Auth("client_secret"),
        Field::TlsClientKey,
    ];

    /// The field that [`Field`] displays as `name`.
    pub fn named(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.to_string() == name)
    }

    /// Bytes of plain text that fit into the column encrypted; `None`: any number.
    pub fn most_bytes(self) -> Option<usize> {
        let characters = match self {
            Field::SigningSecret | Field::PreviousSigningSecret => 255,
            Field::TlsClientKey => 65_536,
            Field::Auth(_) => return None,
        };
        let head = PREFIX.len() + ID_DIGITS + 1;
        Some((characters - head) * 3 / 4 - NONCE_BYTES - AES_256_GCM.tag_len())
    }

    /// What is authenticated beside the text. Rotating copies the signing secret as it is stored to where the
    /// previous one belongs, so these two count as one field.
    fn context(self, destination: DestinationId) -> Vec<u8> {
        let field = if self == Field::PreviousSigningSecret { Field::SigningSecret } else { self };
        format!("{destination}/{field}").into_bytes()
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::SigningSecret => f.write_str("signing_secret"),
            Field::PreviousSigningSecret => f.write_str("previous_signing_secret"),
            Field::Auth(member) => write!(f, "auth_config.{member}"),
            Field::TlsClientKey => f.write_str("tls_client_key"),
        }
    }
}

/// How a secret is stored, as far as can be told without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored<'a> {
    /// As it is.
    Plain,
    /// Encrypted under the key with this id.
    Under(&'a str),
    /// It begins like an encrypted one and is none: cut off, misspelt, or written by a later version.
    Malformed,
}

impl Stored<'_> {
    /// Looks at the text of a secret.
    pub fn of(text: &str) -> Stored<'_> {
        let version = text.strip_prefix(FAMILY).unwrap_or_default();
        let after = version.trim_start_matches(|c: char| c.is_ascii_digit());
        if after.len() == version.len() || !after.starts_with(':') {
            return Stored::Plain;
        }
        match text.strip_prefix(PREFIX).and_then(|rest| rest.split_once(':')) {
            Some((id, _)) if is_id(id) => Stored::Under(id),
            _ => Stored::Malformed,
        }
    }
}

/// Why a secret cannot be decrypted. Holds no part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    /// The key is missing.
    #[error("{field} is encrypted under the key {key}, which POSTHASTE_SECRET_KEY does not hold")]
    NoKey {
        /// Which secret.
        field: Field,
        /// The id of the key.
        key: String,
    },
    /// The key is there and does not fit.
    #[error("{field} does not decrypt with the key {key}: it was altered, or belongs to another destination")]
    Damaged {
        /// Which secret.
        field: Field,
        /// The id of the key.
        key: String,
    },
    /// See [`Stored::Malformed`].
    #[error("{field} begins like an encrypted secret and is none, or one of a later version")]
    Malformed {
        /// Which secret.
        field: Field,
    },
}

/// Why a secret cannot be encrypted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotSeal {
    /// There is no key.
    #[error("POSTHASTE_SECRET_KEY holds no key")]
    NoKey,
    /// The column has no room for it.
    #[error("{field} has {found} bytes, and only {most} fit into its column once they are encrypted")]
    TooLong {
        /// Which secret.
        field: Field,
        /// Its length in bytes.
        found: usize,
        /// The limit in bytes.
        most: usize,
    },
}

/// The keys: the first one encrypts, all of them decrypt. `Debug` shows their ids only.
#[derive(Clone, Default)]
pub struct KeyRing(Arc<[Key]>);

struct Key {
    id: String,
    cipher: LessSafeKey,
}

impl KeyRing {
    /// Reads keys, separated by commas. Empty ones are left out, repeated ones count once.
    ///
    /// # Errors
    /// What is wrong with each key, named by its place, 1-based; a key itself is never repeated.
    pub fn parse(text: &Secret) -> Result<KeyRing, Vec<String>> {
        let (mut keys, mut faults) = (Vec::<Key>::new(), Vec::new());
        let texts = text.reveal().split(',').map(str::trim).filter(|text| !text.is_empty());
        for (place, text) in (1..).zip(texts) {
            match KEY_TEXT.decode(text).map(|bytes| (Key::new(&bytes), bytes.len())) {
                Ok((Some(key), _)) if keys.iter().any(|known| known.id == key.id) => {}
                Ok((Some(key), _)) => keys.push(key),
                Ok((None, bytes)) => {
                    faults.push(format!("key {place} has {bytes} bytes after decoding, not {KEY_BYTES}"));
                }
                Err(_) => faults.push(format!("key {place} is no base64")),
            }
        }
        if faults.is_empty() { Ok(KeyRing(keys.into())) } else { Err(faults) }
    }

    /// The ids of the keys, in their order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }

    /// Encrypts a secret under the first key. `nonce` must be random, and new every time.
    ///
    /// # Errors
    /// There is no key, or no room.
    pub fn seal(
        &self,
        destination: DestinationId,
        field: Field,
        plain: &Secret,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Secret, CannotSeal> {
        let key = self.0.first().ok_or(CannotSeal::NoKey)?;
        let found = plain.reveal().len();
        if let Some(most) = field.most_bytes().filter(|most| found > *most) {
            return Err(CannotSeal::TooLong { field, found, most });
        }
        let mut text = plain.reveal().as_bytes().to_vec();
        let context = Aad::from(field.context(destination));
        let sealed =
            key.cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), context, &mut text);
        sealed.expect("a column holds less than the 64 GiB that one nonce is good for");
        let encoded = STANDARD_NO_PAD.encode([&nonce[..], &text].concat());
        Ok(Secret::new(format!("{PREFIX}{}:{encoded}", key.id)))
    }

    /// Decrypts a secret; a plain one stays what it is.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn open(&self, destination: DestinationId, field: Field, text: &Secret) -> Result<Secret, Locked> {
        let id = match Stored::of(text.reveal()) {
            Stored::Plain => return Ok(text.clone()),
            Stored::Malformed => return Err(Locked::Malformed { field }),
            Stored::Under(id) => id,
        };
        let key = self.0.iter().find(|key| key.id == id);
        let key = key.ok_or_else(|| Locked::NoKey { field, key: id.to_owned() })?;
        let encoded = &text.reveal()[PREFIX.len() + ID_DIGITS + 1..];
        let plain = key.decrypt(encoded, &field.context(destination));
        plain.map(Secret::new).ok_or_else(|| Locked::Damaged { field, key: id.to_owned() })
    }

    /// Decrypts all secrets of a destination.
    ///
    /// # Errors
    /// Why the first one that cannot be decrypted cannot be.
    pub fn open_all(&self, mut destination: Destination) -> Result<Destination, Locked> {
        let id = destination.id;
        let open = |field: Field, secret: &mut Option<Secret>| {
            if let Some(text) = secret {
                *text = self.open(id, field, text)?;
            }
            Ok(())
        };
        open(Field::SigningSecret, &mut destination.signing_secret)?;
        open(Field::PreviousSigningSecret, &mut destination.settings.previous_signing_secret)?;
        open(Field::TlsClientKey, &mut destination.settings.tls_client_key)?;
        destination.auth_config = self.open_members(id, destination.auth_config)?;
        Ok(destination)
    }

    /// Decrypts the secret members of an `auth_config` and leaves the others as they are, letter by letter.
    fn open_members(&self, id: DestinationId, config: Secret) -> Result<Secret, Locked> {
        // What is no object is found fault with where it is used.
        let members = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(config.reveal());
        let Ok(mut members) = members else { return Ok(config) };
        for field in Field::ALL {
            let Field::Auth(name) = field else { continue };
            let Some(value) = members.get_mut(name) else { continue };
            let Ok(text) = serde_json::from_str::<String>(value.get()) else { continue };
            let plain = self.open(id, field, &Secret::new(text))?;
            *value = to_raw_value(plain.reveal()).expect("a string can be written as JSON");
        }
        let text = serde_json::to_string(&members).expect("JSON that was read can be written");
        Ok(Secret::new(text))
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

impl Key {
    /// `None`: the length is wrong.
    fn new(bytes: &[u8]) -> Option<Key> {
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
        let id = Sha256::digest(bytes).iter().take(ID_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        Some(Key { id, cipher })
    }

    fn decrypt(&self, encoded: &str, context: &[u8]) -> Option<String> {
        let mut bytes = STANDARD_NO_PAD.decode(encoded).ok()?;
        let (nonce, text) = bytes.split_first_chunk_mut::<NONCE_BYTES>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.cipher.open_in_place(nonce, Aad::from(context), text).ok()?;
        String::from_utf8(plain.to_vec()).ok()
    }
}

/// How a key of these bytes is written.
pub fn key_text(bytes: [u8; KEY_BYTES]) -> Secret {
    Secret::new(KEY_TEXT.encode(bytes))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests;
