//! Bodies and headers as other clients, and proxies on the way, make them.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::common::{Db, Posthaste, request};

const TOKEN: &str = "the-token-of-the-admin";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One request by the admin: status, head and body.
async fn ask(
    posthaste: &Posthaste,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String, Value) {
    let bearer = format!("Bearer {TOKEN}");
    let mut all = vec![("authorization", bearer.as_str())];
    all.extend_from_slice(headers);
    let address = posthaste.address().unwrap();
    let (status, head, body) = request(address, method, path, &all, body).await.unwrap();
    (status, head, serde_json::from_str(&body).unwrap_or_default())
}

#[tokio::test]
async fn bodies_with_a_byte_order_mark_or_compressed_are_read_and_others_refused_with_the_reason() {
    let db = Db::new().await;
    let org = db.org().await;
    let environment = [("POSTHASTE_ADMIN_TOKEN", TOKEN), ("POSTHASTE_MAX_EVENT_BYTES", "1KiB")];
    let posthaste = Posthaste::serve_with(&db.url, &environment).await;
    let events = format!("/api/v1/orgs/{org}/events");
    let destinations = format!("/api/v1/orgs/{org}/destinations");
    let event = br#"{"event_type": "a", "payload": {"city": "M\u00fcnchen"}}"#.to_vec();
    let mut marked = vec![0xef, 0xbb, 0xbf];
    marked.extend_from_slice(&event);
    let utf16: Vec<u8> =
        "\u{feff}{\"event_type\": \"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bomb = gzip(&vec![b' '; 8 << 20]);
    let two = [gzip(&event[..10]), gzip(&event[10..])].concat();
    let json = ("content-type", "application/json");
    let latin = ("content-type", "application/json; charset=iso-8859-1");
    let utf8 = ("content-type", "application/json; Charset=\"UTF-8\"");
    let encoded = |name| [json, ("content-encoding", name)];
    for (headers, body, status, told) in [
        (&[json][..], &marked, 201, ""),
        (&[utf8], &event, 201, ""),
        (&encoded("gzip"), &gzip(&event), 201, ""),
        (&encoded("x-gzip"), &gzip(&marked), 201, ""),
        (&encoded("GZIP"), &two, 201, ""),
        (&encoded("identity"), &event, 201, ""),
        (&encoded("gzip"), &event, 400, "gzip"),
        (&encoded("gzip"), &gzip(&event)[..20].to_vec(), 400, "gzip"),
        (&encoded("gzip"), &bomb, 413, "larger"),
        (&encoded("br"), &event, 415, "gzip"),
        (&encoded("gzip, gzip"), &event, 415, "gzip"),
        (&[latin], &event, 415, "UTF-8"),
        (&[json], &utf16, 415, "UTF-8"),
        (&[json], &utf16[2..].to_vec(), 415, "UTF-8"),
        (&[json], &b"{\"event_type\": \"M\xfcnchen\"}".to_vec(), 415, "UTF-8"),
    ] {
        let (found, head, answer) = ask(&posthaste, "POST", &events, headers, body).await;
        assert_eq!(found, status, "{headers:?}: {answer}");
        let detail = answer["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(told), "{headers:?}: {detail}");
        assert_eq!(status == 415 && told == "gzip", head.contains("accept-encoding: gzip"), "{head}");
    }
    // Every body is read the same way, also one that may be missing.
    let new = gzip(&json!({"name": "n", "url": "https://example.com/"}).to_string().into_bytes());
    let (status, _, made) = ask(&posthaste, "POST", &destinations, &encoded("gzip"), &new).await;
    assert_eq!(status, 201, "{made}");
    let disable = format!("{destinations}/{}/disable", made["id"].as_str().unwrap());
    let why = gzip(&[&[0xef, 0xbb, 0xbf][..], br#"{"reason": "why"}"#].concat());
    let (status, _, disabled) = ask(&posthaste, "POST", &disable, &encoded("gzip"), &why).await;
    assert_eq!((status, &disabled["disabled_reason"]), (200, &json!("why")), "{disabled}");
    let (status, ..) = ask(&posthaste, "POST", &disable, &[], &[0xef, 0xbb, 0xbf]).await;
    assert_eq!(status, 200, "a mark alone is no body");
}

#[tokio::test]
async fn an_entity_tag_that_a_compressing_proxy_made_of_ours_is_ours() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_ADMIN_TOKEN", TOKEN)]).await;
    let destinations = format!("/api/v1/orgs/{org}/destinations");
    let json = ("content-type", "application/json");
    let new = br#"{"name": "n", "url": "https://example.com/"}"#;
    let (_, _, made) = ask(&posthaste, "POST", &destinations, &[json], new).await;
    let one = format!("{destinations}/{}", made["id"].as_str().unwrap());
    for (number, (form, status)) in [
        ("\"TAG\"", 200),
        ("W/\"TAG\"", 200),
        ("\"TAG-gzip\"", 200),
        ("\"other\", W/\"TAG\"", 200),
        ("W/\"a, b\",\"TAG\" , \"c\"", 200),
        ("*", 200),
        ("TAG", 200),
        ("W/\"other\"", 412),
        ("\"other\", \"another\"", 412),
        ("", 412),
    ]
    .into_iter()
    .enumerate()
    {
        let (_, _, view) = ask(&posthaste, "GET", &one, &[], b"").await;
        let tag = form.replace("TAG", view["version"].as_str().unwrap());
        let change = json!({"name": format!("n{number}")}).to_string();
        let headers = [json, ("if-match", tag.as_str())];
        let (found, _, answer) = ask(&posthaste, "PATCH", &one, &headers, change.as_bytes()).await;
        assert_eq!(found, status, "{tag}: {answer}");
    }
}
