//! What a secret looks like where it leaks.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Fails when one of `secrets` stands in `text`: as it is, in base64, in hexadecimal digits, or as `Debug`
/// prints bytes.
pub fn assert_silent(place: &str, text: &str, secrets: &[&str]) {
    for secret in secrets {
        for (form, written) in forms(secret) {
            if let Some(at) = text.find(&written) {
                let line = text[..at].rfind('\n').map_or(0, |at| at + 1);
                let rest: String =
                    text[line..].lines().next().unwrap_or_default().chars().take(400).collect();
                panic!("{place} holds the secret {secret} {form}: {rest}");
            }
        }
    }
}

/// All forms of a secret; of one with a prefix (`whsec_…`), those of the decoded key as well.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let mut forms = vec![("as it is", secret.to_owned()), ("in JSON", serde_json::json!(secret).to_string())];
    let mut of_bytes = |bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.push(("in hex", hex.to_uppercase()));
        forms.push(("in hex", hex));
        // Its own padding would hide it in a longer text.
        forms.push(("in base64", STANDARD_NO_PAD.encode(bytes)));
        forms.push(("in base64", URL_SAFE_NO_PAD.encode(bytes)));
        forms.push(("as bytes", format!("{bytes:?}").trim_matches(['[', ']']).to_owned()));
    };
    of_bytes(secret.as_bytes());
    let encoded = secret.strip_prefix("whsec_").or(secret.strip_prefix("whsk_")).unwrap_or(secret);
    if let Some(key) = STANDARD.decode(encoded).ok().filter(|key| key.len() >= 16) {
        of_bytes(&key);
    }
    forms
}
