//! Paths and methods as monitors, proxies and other clients write them.

use crate::common::{Db, Posthaste, request};

const TOKEN: &str = "the-token-of-the-admin";

#[tokio::test]
async fn head_is_wherever_get_is_and_a_slash_at_the_end_changes_nothing() {
    let db = Db::new().await;
    let org = db.org().await;
    db.event(org, "a", "{}").await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_ADMIN_TOKEN", TOKEN)]).await;
    let address = posthaste.address().unwrap();
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", bearer.as_str())];
    let orgs = format!("/api/v1/orgs/{org}");
    for path in [
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/docs",
        "/api/openapi.json",
        "/api/v1/keys",
        &format!("{orgs}/destinations"),
        &format!("{orgs}/deliveries"),
        &format!("{orgs}/events"),
        &format!("{orgs}/jobs"),
        &format!("{orgs}/nothing"),
        &format!("{orgs}/events/00000000-0000-0000-0000-000000000000"),
    ] {
        let (status, head, body) = request(address, "GET", path, &headers, b"").await.unwrap();
        assert!(!body.is_empty() || path == "/api/docs", "{path}: {head}");
        let (of_head, head, body) = request(address, "HEAD", path, &headers, b"").await.unwrap();
        assert_eq!((of_head, body.as_str()), (status, ""), "HEAD {path}: {head}");
        assert!(
            head.contains("content-length: ") && head.contains("content-type: ") || status == 308,
            "{head}"
        );
        let slash = format!("{path}/?");
        let (of_slash, _, body) = request(address, "GET", &slash, &headers, b"").await.unwrap();
        // The browser of the document has its files below.
        let expected = if path == "/api/docs" { 200 } else { status };
        assert_eq!(of_slash, expected, "GET {slash}: {body}");
    }
    let events = format!("{orgs}/events/");
    let posted = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let (status, _, body) =
        request(address, "POST", &events, &posted, br#"{"event_type": "b"}"#).await.unwrap();
    assert_eq!(status, 201, "{body}");
    let (status, head, body) = request(address, "DELETE", &events, &headers, b"").await.unwrap();
    assert_eq!(status, 405, "{body}");
    assert!(head.contains("allow: get, head, post"), "{head}");
    assert!(body.contains("GET, HEAD, POST is"), "{body}");
    // Without the token a HEAD learns no more than a GET.
    let (status, ..) = request(address, "HEAD", &events, &[], b"").await.unwrap();
    assert_eq!(status, 401);
}
