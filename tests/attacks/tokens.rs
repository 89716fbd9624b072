//! Guessing tokens, and what a guess costs.

use tokio::io::AsyncWriteExt as _;

use crate::common::{Db, Posthaste, Server, eventually, request};
use crate::{ADMIN, ask, key};

/// How often PostgreSQL has looked into the table of keys.
async fn looks(db: &Db) -> i64 {
    // What a session has counted is told a moment later.
    db.execute("SELECT pg_stat_clear_snapshot()").await;
    db.number("SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'posthaste_api_keys'")
        .await
}

#[actix_rt::test]
async fn wrong_tokens_cost_no_queries_and_are_told_to_wait_while_valid_ones_pass() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let valid = key(&posthaste, org, "read").await;
    let place = format!("/api/v1/orgs/{org}/destinations");
    assert_eq!(ask(&posthaste, &valid, "GET", &place, "").await.0, 200);
    let before = looks(&db).await;
    let mut statuses = Vec::new();
    for n in 0..300 {
        // Other secrets with a prefix that exists, and other prefixes.
        let guess = match n % 3 {
            0 => format!("{}{n}", &valid[..valid.len() - 4]),
            1 => format!("the-token-of-the-{n:05}"),
            _ => format!("{}_{n}", &valid[..12]),
        };
        statuses.push(ask(&posthaste, &guess, "GET", &place, "").await.0);
    }
    assert_eq!(statuses[..10], [401; 10]);
    assert!(statuses[10..].iter().all(|status| *status == 429), "{statuses:?}");
    let bearer = [("authorization", "Bearer nobody")];
    let (status, head, body) =
        request(posthaste.address().unwrap(), "GET", &place, &bearer, b"").await.unwrap();
    assert!(status == 429 && head.contains("retry-after: ") && body.contains("wrong"), "{head}{body}");
    // From the same address.
    for token in [ADMIN, &valid] {
        assert_eq!(ask(&posthaste, token, "GET", &place, "").await.0, 200);
    }
    // A key that is made now is found although the address is told to wait; and one that is revoked is not.
    let new = key(&posthaste, org, "read").await;
    assert_eq!(ask(&posthaste, &new, "GET", &place, "").await.0, 200);
    let id = db.text("SELECT id FROM posthaste_api_keys ORDER BY created_at DESC LIMIT 1").await.unwrap();
    assert_eq!(ask(&posthaste, ADMIN, "DELETE", &format!("/api/v1/keys/{id}"), "").await.0, 204);
    assert_eq!(ask(&posthaste, &new, "GET", &place, "").await.0, 429);
    let looked = looks(&db).await - before;
    assert!(looked < 40, "{looked} looks for 300 wrong tokens");
}

#[actix_rt::test]
async fn unknown_prefixes_cost_one_query_a_second_however_many_are_guessed() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let before = looks(&db).await;
    let began = std::time::Instant::now();
    let guesses = (0..64).map(|n| {
        let token = format!("phk_{n:08x}_{}", "x".repeat(43));
        let posthaste = &posthaste;
        async move { ask(posthaste, &token, "GET", "/api/v1/keys", "").await.0 }
    });
    let statuses = futures_util::future::join_all(guesses).await;
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{statuses:?}");
    let (looked, seconds) = (looks(&db).await - before, began.elapsed().as_secs() as i64);
    // Each look may read the table and an index.
    assert!(looked <= 2 * (seconds + 3), "{looked} looks in {seconds} s");
}

/// What is presented by those who have no token.
const NO_TOKENS: [&[(&str, &str)]; 4] = [
    &[],
    &[("authorization", "Bearer anything")],
    &[("authorization", "Bearer phk_no_key")],
    &[("authorization", "Basic dGhl")],
];

#[actix_rt::test]
async fn who_has_no_token_is_answered_at_once_also_while_the_database_is_away() {
    for admin in [false, true] {
        let mut server = Server::start();
        let db = server.db().await;
        let environment = [("POSTHASTE_ADMIN_TOKEN", ADMIN)];
        let posthaste = Posthaste::serve_with(&db.url, &environment[..usize::from(admin)]).await;
        let ask = async |headers: &[(&str, &str)]| {
            let path = format!("/api/v1/orgs/{}/events", uuid::Uuid::nil());
            request(posthaste.address().unwrap(), "GET", &path, headers, b"").await.unwrap()
        };
        let (expected, said) = match admin {
            true => (401, "Send the admin token or an API key"),
            false => (503, "posthaste keys create"),
        };
        assert_eq!(ask(&[]).await.0, expected);
        server.stop();
        let began = std::time::Instant::now();
        for headers in NO_TOKENS.into_iter().cycle().take(20) {
            let (status, head, body) = ask(headers).await;
            assert!(status == expected && body.contains(said), "{headers:?}: {head}{body}");
            assert!(head.contains("application/problem+json"), "{head}");
        }
        // A query each, or a wait for one, would take a second.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[actix_rt::test]
async fn who_has_no_token_costs_one_query_a_second_while_there_is_no_key_and_is_told_when_there_is_one() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = Posthaste::serve(&db.url).await;
    let ask = async |headers: &[(&str, &str)]| {
        request(posthaste.address().unwrap(), "GET", "/api/v1/keys", headers, b"").await.unwrap().0
    };
    assert_eq!(ask(&[]).await, 503);
    let (before, began) = (looks(&db).await, std::time::Instant::now());
    for headers in NO_TOKENS.into_iter().cycle().take(200) {
        assert_eq!(ask(headers).await, 503);
    }
    let (looked, seconds) = (looks(&db).await - before, began.elapsed().as_secs() as i64);
    // Each look may read the table and an index.
    assert!(looked <= 2 * (seconds + 2) && seconds < 60, "{looked} looks in {seconds} s");
    // Nobody has used it yet.
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_ORG", &org.to_string())];
    let made = crate::common::run(&["keys", "create", "--name", "first", "--role", "read"], &environment);
    assert!(made.status.success(), "{made:?}");
    eventually("others are refused instead", async || ask(&[]).await == 401).await;
}

#[actix_rt::test]
async fn a_key_that_was_revoked_costs_no_more_than_any_guess() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut posthaste = crate::serve(&db).await;
    let key = key(&posthaste, org, "read").await;
    let place = format!("/api/v1/orgs/{org}/destinations");
    assert_eq!(ask(&posthaste, &key, "GET", &place, "").await.0, 200);
    db.execute("UPDATE posthaste_api_keys SET revoked_at = timezone('UTC', now())").await;
    assert_eq!(ask(&posthaste, &key, "GET", &place, "").await.0, 401);
    let began = std::time::Instant::now();
    for _ in 0..4 {
        let asked = (0..50).map(|_| async { ask(&posthaste, &key, "GET", &place, "").await.0 });
        let statuses = futures_util::future::join_all(asked).await;
        assert!(statuses.iter().all(|status| matches!(status, 401 | 429)), "{statuses:?}");
    }
    let seconds = began.elapsed().as_secs() as i64;
    // All has been counted when the sessions have ended.
    assert!(posthaste.terminate().await.success());
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'posthaste%'
        AND datname = current_database()";
    eventually("its sessions have ended", async || db.number(sessions).await == 0).await;
    let looked = looks(&db).await;
    // A few before it was revoked; each look may read the table and an index.
    assert!(looked <= 2 * (seconds + 20), "{looked} looks in {seconds} s");
}

#[actix_rt::test]
async fn behind_a_trusted_proxy_the_guesser_is_told_to_wait_and_not_the_proxy() {
    let db = Db::new().await;
    let environment = [("POSTHASTE_ADMIN_TOKEN", ADMIN), ("POSTHASTE_TRUSTED_PROXIES", "127.0.0.0/8")];
    let posthaste = Posthaste::serve_with(&db.url, &environment).await;
    let guess = async |forwarded: &str| {
        let headers = [("authorization", "Bearer wrong"), ("x-forwarded-for", forwarded)];
        request(posthaste.address().unwrap(), "GET", "/api/v1/keys", &headers, b"").await.unwrap().0
    };
    for _ in 0..10 {
        // What the client itself has written before the proxy's word does not count.
        assert_eq!(guess(&format!("{}, 198.51.100.7", uuid::Uuid::new_v4())).await, 401);
    }
    assert_eq!(guess("203.0.113.9, 198.51.100.7, 127.0.0.1").await, 429);
    // A proxy that adds the port says which address as well; one that says nothing of use is taken for it.
    assert_eq!(guess("203.0.113.9, 198.51.100.7:4711").await, 429);
    for n in 0..10 {
        assert_eq!(guess(&format!("203.0.113.{n}, unknown")).await, 401);
    }
    assert_eq!(guess("203.0.113.11, unknown").await, 429);
    assert_eq!(guess("198.51.100.8").await, 401);
    // One client has a whole network of IPv6.
    for n in 0..10 {
        assert_eq!(guess(&format!("2001:db8:1:2::{n}")).await, 401);
    }
    assert_eq!(guess("2001:db8:1:2:ffff::1").await, 429);
}

#[actix_rt::test]
async fn the_admin_token_is_not_guessed_at_another_door() {
    let db = Db::new().await;
    let listen = ("POSTHASTE_LISTEN", "0.0.0.0:0");
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_ADMIN_TOKEN", ADMIN), listen];
    let posthaste = Posthaste::spawn(&["serve"], &environment);
    crate::common::eventually("it listens", async || posthaste.address().is_some()).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], posthaste.address().unwrap().port()));
    let guess = async |path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        request(address, "GET", path, &[("authorization", &bearer)], b"").await.unwrap()
    };
    for n in 0..10 {
        let path = if n % 2 == 0 { "/metrics" } else { "/readyz" };
        assert_ne!(guess(path, &format!("the-token-of-the-{n:05}")).await.0, 429);
    }
    assert_eq!(guess("/metrics", "the-token-of-the-11111").await.0, 429);
    assert_eq!(guess("/api/v1/keys", "the-token-of-the-11111").await.0, 429);
    assert_eq!(guess("/metrics", ADMIN).await.0, 200);
}

#[actix_rt::test]
async fn a_flood_of_guesses_from_one_address_leaves_room_for_others() {
    let db = Db::new().await;
    let org = db.org().await;
    let posthaste = crate::serve(&db).await;
    let valid = key(&posthaste, org, "read").await;
    let place = format!("/api/v1/orgs/{org}/destinations");
    // Each of them looks like a key that might be new.
    let flood = (0..200).map(|n| {
        let posthaste = &posthaste;
        async move {
            for round in 0..5 {
                let token = format!("phk_{n:04x}{round:04x}_{}", "x".repeat(43));
                let bearer = format!("Bearer {token}");
                let headers = [("authorization", bearer.as_str())];
                request(posthaste.address().unwrap(), "GET", "/api/v1/keys", &headers, b"").await;
            }
        }
    });
    let beside = async {
        let mut statuses = Vec::new();
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let stream = crate::listener::from([127, 0, 0, 9], posthaste.address().unwrap()).await.unwrap();
            statuses.push(crate::listener::get(stream, &place, &valid).await);
        }
        statuses
    };
    let (_, statuses) = tokio::join!(futures_util::future::join_all(flood), beside);
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
}

#[actix_rt::test]
async fn guesses_from_many_addresses_refuse_no_valid_token() {
    let db = Db::new().await;
    let posthaste = crate::serve(&db).await;
    let address = posthaste.address().unwrap();
    let mut guesses = Vec::new();
    for n in 0..420_u32 {
        let mut stream = crate::listener::from([127, 0, 3, 1 + (n % 7) as u8], address).await.unwrap();
        let token = format!("phk_{n:08x}_{}", "x".repeat(43));
        let head = format!("GET /api/v1/keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        guesses.push(stream);
        if n % 20 == 0 {
            assert_eq!(ask(&posthaste, ADMIN, "GET", "/api/v1/keys", "").await.0, 200, "beside {n}");
        }
    }
}

#[test]
fn an_admin_token_that_can_be_guessed_is_refused() {
    let environment =
        [("DATABASE_URL", "postgres://u@127.0.0.1:1/x"), ("POSTHASTE_ADMIN_TOKEN", "fifteen-letters")];
    let said = crate::common::run(&["serve"], &environment);
    let text = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(2), "{text}");
    assert!(text.contains("at least 16 characters") && !text.contains("fifteen-letters"), "{text}");
}
