//! OAuth2 client credentials (RFC 6749, section 4.4): what is asked of a token server, and what its answer
//! means. No connection is made here.

use std::time::{Duration, Instant};

use actix_http::StatusCode;
use actix_http::header::{self, HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::auth_config::Members;
use super::endpoint::{self, Endpoint};
use super::fault::Fault;
use super::header_rules::{USER_AGENT, sensitive};
use super::network::Network;
use crate::model::Secret;

/// Bytes of a token at most: tokens with many claims have several thousand.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How long a token is used whose server does not say how long it is good (`expires_in` is only recommended).
/// One that ends earlier is found by the 401 that it earns.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(300);
/// Shortest time that a token is taken to be good: a server that says 0 is not asked for each request.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// Longest time that a token is taken to be good, whatever its server says.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long before its end a token is replaced: clocks and requests take their time. For short lives, a tenth
/// of them.
const MARGIN: Duration = Duration::from_secs(60);

/// Error codes that may be repeated in messages (RFC 6749, sections 4.1.2.1 and 5.2; RFC 8707). What else
/// stands in an answer may hold secrets.
const ERROR_CODES: [&str; 10] = [
    "access_denied",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "invalid_target",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_grant_type",
];

/// What a destination's tokens are asked for with. Checked; holds secrets.
pub(super) struct ClientCredentials {
    pub(super) endpoint: Endpoint,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Stands, encoded, in one of them.
    pub(super) client_secret: Secret,
}

/// A token that was granted.
pub(super) struct Token {
    /// The value of `authorization`.
    pub(super) header: HeaderValue,
    /// When it came.
    pub(super) obtained: Instant,
    /// From then on another one is asked for.
    pub(super) use_until: Instant,
}

impl ClientCredentials {
    /// Reads the `auth_config` of `auth_type` `oauth2`.
    pub(super) fn compile(members: &Members<'_>, network: &Network) -> Result<ClientCredentials, Fault> {
        let fault = |why: &dyn std::fmt::Display| {
            Fault::Auth("auth_config.token_url".into(), format!("auth_config.token_url: {why}"))
        };
        let url = network.rules.check_url(members.text("token_url")?).map_err(|refusal| fault(&refusal))?;
        // The destination's own roots and client certificate are for the receiver, which is another host.
        let tls = (url.scheme() == "https").then(|| network.tls());
        let endpoint = endpoint::of(&url, tls).map_err(|error| fault(&error))?;

        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, endpoint::host_header(&url).map_err(|error| fault(&error))?);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let (id, secret) = (members.text("client_id")?, members.text("client_secret")?);
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        for name in ["scope", "audience"] {
            if let Some(value) = members.optional(name)? {
                form.append_pair(name, value);
            }
        }
        match members.optional("client_auth")?.unwrap_or("basic") {
            "basic" => {
                headers.insert(header::AUTHORIZATION, basic(id, secret)?);
            }
            "post" => {
                form.append_pair("client_id", id).append_pair("client_secret", secret);
            }
            _ => {
                let neither = "auth_config.client_auth is neither basic nor post";
                return Err(Fault::Auth("auth_config.client_auth".into(), neither.into()));
            }
        }
        Ok(ClientCredentials {
            endpoint,
            headers,
            body: form.finish().into(),
            client_secret: Secret::new(secret),
        })
    }
}

/// Id and secret are form-urlencoded before they are joined (RFC 6749, section 2.3.1): either may hold a
/// colon.
fn basic(id: &str, secret: &str) -> Result<HeaderValue, Fault> {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let credentials = format!("{}:{}", encoded(id), encoded(secret));
    sensitive("auth_config.client_secret", &format!("Basic {}", STANDARD.encode(credentials)))
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// The token in an answer to a request that was sent at `asked` and answered at `obtained`.
///
/// # Errors
/// Why there is none, as the end of a sentence; repeats nothing of the answer that could be a secret.
pub(super) fn token(
    status: StatusCode,
    body: &[u8],
    asked: Instant,
    obtained: Instant,
) -> Result<Token, String> {
    if status != StatusCode::OK {
        let code = serde_json::from_slice::<Refused>(body).ok();
        let known = code.and_then(|refused| ERROR_CODES.into_iter().find(|code| *code == refused.error));
        let code = known.map(|code| format!(" ({code})")).unwrap_or_default();
        return Err(format!("the token server answered {}{code}", status.as_u16()));
    }
    let granted: Granted = serde_json::from_slice(body)
        .map_err(|_| "the token server's answer is not a JSON object with an access_token".to_owned())?;
    // Required by RFC 6749, and left out by some who mean bearer.
    if granted.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("the token server's token_type is not bearer".into());
    }
    let token = granted.access_token;
    let is_usable = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_usable || token.len() > MAX_TOKEN_BYTES {
        return Err("the token server's access_token cannot be used in a header".into());
    }
    let mut header =
        HeaderValue::try_from(format!("Bearer {token}")).expect("visible ASCII is what a header can carry");
    header.set_sensitive(true);
    let lifetime = lifetime(granted.expires_in.as_deref());
    Ok(Token { header, obtained, use_until: asked + (lifetime - MARGIN.min(lifetime / 10)) })
}

/// How long a token is good; some servers write the number as a string.
fn lifetime(expires_in: Option<&RawValue>) -> Duration {
    let seconds = expires_in.and_then(|value| value.get().trim_matches('"').parse::<f64>().ok());
    match seconds.filter(|seconds| !seconds.is_nan()) {
        None => DEFAULT_LIFETIME,
        Some(seconds) => {
            Duration::from_secs_f64(seconds.clamp(MIN_LIFETIME.as_secs_f64(), MAX_LIFETIME.as_secs_f64()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    fn granted(body: &str) -> Result<Token, String> {
        let now = clock::now();
        token(StatusCode::OK, body.as_bytes(), now, now)
    }

    #[test]
    fn a_token_is_replaced_before_it_expires_and_absurd_lifetimes_are_bounded() {
        for (expires_in, seconds) in [
            (r#", "expires_in": 3600"#, 3540.0),
            (r#", "expires_in": "3600""#, 3540.0),
            (r#", "expires_in": 3600.0"#, 3540.0),
            (r#", "expires_in": 100"#, 90.0),
            (r#", "expires_in": 0"#, 0.9),
            (r#", "expires_in": -7"#, 0.9),
            (r#", "expires_in": 1e400"#, 86_340.0),
            (r#", "expires_in": 99999999999999999999"#, 86_340.0),
            (r#", "expires_in": null"#, 270.0),
            (r#", "expires_in": "soon""#, 270.0),
            (r#", "expires_in": "NaN""#, 270.0),
            (r#", "expires_in": {}"#, 270.0),
            ("", 270.0),
        ] {
            let asked = clock::now();
            let body = format!(r#"{{"access_token": "t"{expires_in}}}"#);
            let token = token(StatusCode::OK, body.as_bytes(), asked, asked).unwrap();
            assert_eq!((token.use_until - asked).as_secs_f64(), seconds, "{body}");
        }
    }

    #[test]
    fn tokens_are_bearer_tokens_that_a_header_can_carry() {
        for kind in ["", r#", "token_type": "bearer""#, r#", "token_type": "BEARER", "scope": ["x"]"#] {
            let token = granted(&format!(r#"{{"access_token": "a.b-c~d+e/f="{kind}}}"#)).unwrap();
            assert_eq!(token.header, "Bearer a.b-c~d+e/f=");
            assert!(token.header.is_sensitive());
        }
        let (none, unusable) = ("not a JSON object with an access_token", "cannot be used in a header");
        let long = format!(r#"{{"access_token": "{}"}}"#, "x".repeat(MAX_TOKEN_BYTES + 1));
        for (body, reason) in [
            ("", none),
            ("hunter2", none),
            (r#""hunter2""#, none),
            ("[]", none),
            ("{}", none),
            (r#"{"access_token": 7}"#, none),
            (r#"{"access_token": null}"#, none),
            (r#"{"access_token": "hunter2", "access_token": "hunter2"}"#, none),
            (r#"{"access_token": "hunter2"} trailing"#, none),
            (r#"{"access_token": "hunter2", "token_type": 7}"#, none),
            (r#"{"access_token": "hunter2", "token_type": "mac"}"#, "token_type is not bearer"),
            (r#"{"access_token": ""}"#, unusable),
            (r#"{"access_token": "hunter2\r\nx: y"}"#, unusable),
            (r#"{"access_token": "hunter2 hunter2"}"#, unusable),
            (r#"{"access_token": "hünter2"}"#, unusable),
            (&long, unusable),
        ] {
            let fault = granted(body).err().expect(body);
            assert!(fault.contains(reason) && !fault.contains("hunter2"), "{body}: {fault}");
        }
    }

    #[test]
    fn a_refusal_names_its_status_and_only_codes_that_are_known() {
        let now = clock::now();
        for (status, body, expected) in [
            (401, r#"{"error": "invalid_client", "error_description": "hunter2"}"#, "401 (invalid_client)"),
            (400, r#"{"error": "hunter2"}"#, "400"),
            (400, "hunter2", "400"),
            (302, "", "302"),
            (201, r#"{"access_token": "hunter2"}"#, "201"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let fault = token(status, body.as_bytes(), now, now).err().unwrap();
            assert_eq!(fault, format!("the token server answered {expected}"));
        }
    }

    #[test]
    fn credentials_are_encoded_before_they_are_joined() {
        let value = basic("id:1", "p@ss wörd%:+").unwrap();
        let text = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(text).unwrap(), b"id%3A1:p%40ss+w%C3%B6rd%25%3A%2B");
        assert!(value.is_sensitive());
    }

    proptest! {
        #[test]
        fn no_answer_of_a_token_server_breaks_the_limits(
            status in 100u16..1000,
            body in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                r#"\{"access_token": ?"[ -~]{0,20}", ?"expires_in": ?[-"0-9.eE]{0,25}\}"#
                    .prop_map(String::into_bytes),
            ],
        ) {
            let now = clock::now();
            match token(StatusCode::from_u16(status).unwrap(), &body, now, now) {
                Ok(token) => {
                    prop_assert_eq!(status, 200);
                    prop_assert!(token.header.len() <= MAX_TOKEN_BYTES + "Bearer ".len());
                    prop_assert!(token.use_until > now && token.use_until < now + MAX_LIFETIME);
                }
                Err(why) => prop_assert!(why.starts_with("the token server") && why.len() < 100),
            }
        }
    }
}
