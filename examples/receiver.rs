//! A receiver of webhooks: verifies each with the `standardwebhooks` crate, and handles each event once.
//!
//! ```text
//! WEBHOOK_SECRET=whsec_… cargo run --example receiver
//! ```
//!
//! The secret is the destination's `signing_secret`; the URL of the destination is
//! `http://127.0.0.1:9000/hook`, and Posthaste has to be told that loopback is allowed:
//! `POSTHASTE_ALLOW_NETWORKS=127.0.0.0/8`.

use std::collections::HashSet;
use std::sync::Mutex;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::Value;
use standardwebhooks::Webhook;

struct Receiver {
    verifier: Webhook,
    /// Ids of events that have been handled. Put them where they survive a restart: into a table with a
    /// unique key, in the transaction that does the work.
    handled: Mutex<HashSet<String>>,
}

async fn hook(request: HttpRequest, body: web::Bytes, receiver: web::Data<Receiver>) -> HttpResponse {
    // The verifier wants the headers as the http crate has them, and the body as it came: every byte counts.
    let mut headers = http::HeaderMap::new();
    for (name, value) in request.headers() {
        let name = http::HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_bytes(value.as_bytes())) {
            headers.insert(name, value);
        }
    }
    if let Err(error) = receiver.verifier.verify(&body, &headers) {
        eprintln!("refused: {error}");
        return HttpResponse::Unauthorized().finish();
    }
    let Ok(json) = serde_json::from_slice::<Value>(&body) else {
        return HttpResponse::BadRequest().body("no JSON");
    };
    // With a batch_size above 1 the body is an array.
    let events = match json {
        Value::Array(events) => events,
        event => vec![event],
    };
    for event in &events {
        let Some(id) = event["data"]["id"].as_str() else {
            return HttpResponse::BadRequest().body("an event without an id");
        };
        let new = receiver.handled.lock().is_ok_and(|mut handled| handled.insert(id.to_owned()));
        if new {
            println!("{} {id} {}", event["type"].as_str().unwrap_or("?"), event["data"]["payload"]);
        }
    }
    // Answer soon: what takes long belongs into a queue of your own.
    HttpResponse::NoContent().finish()
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secret = std::env::var("WEBHOOK_SECRET").map_err(|_| "WEBHOOK_SECRET is not set")?;
    let receiver =
        web::Data::new(Receiver { verifier: Webhook::new(&secret)?, handled: Mutex::new(HashSet::new()) });
    println!("listening on http://127.0.0.1:9000/hook");
    HttpServer::new(move || App::new().app_data(receiver.clone()).route("/hook", web::post().to(hook)))
        .bind(("127.0.0.1", 9000))?
        .run()
        .await?;
    Ok(())
}
