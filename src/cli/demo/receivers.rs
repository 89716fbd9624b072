//! The receivers of the demo: an HTTP server on loopback, with one path for each participant, that keeps its
//! own record of what arrived, and checks signatures with code of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;
use uuid::Uuid;

use super::plan::{Manner, Participant};
use crate::clock;

/// What the slow receiver takes for each request.
const SLOWNESS: Duration = Duration::from_millis(150);
/// What the hanging receiver takes: longer than any timeout.
const FOREVER: Duration = Duration::from_secs(3600);
/// Threads that serve all receivers.
const WORKERS: usize = 1;

/// What one receiver has seen.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When each event was first accepted.
    pub arrived: HashMap<Uuid, Instant>,
    /// Events accepted once more.
    pub duplicates: usize,
    /// Requests of all kinds.
    pub requests: usize,
    /// Requests that were answered with 500, or not at all.
    pub refused: usize,
    /// Requests whose signature did not hold, or whose body was not what it should be.
    pub invalid: usize,
}

struct Receiver {
    participant: Participant,
    record: Mutex<Record>,
    /// Decides which request of a flaky receiver fails.
    turn: AtomicUsize,
}

/// All receivers.
pub struct Receivers {
    address: SocketAddr,
    server: ServerHandle,
    shared: Arc<Shared>,
}

struct Shared {
    receivers: Vec<Receiver>,
    healed: AtomicBool,
}

impl Receivers {
    /// Starts a receiver for each participant; each is known by its index from here on.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(participants: &[Participant]) -> std::io::Result<Receivers> {
        let receivers = participants.iter().map(|participant| Receiver {
            participant: participant.clone(),
            record: Mutex::default(),
            turn: AtomicUsize::new(0),
        });
        let shared = Arc::new(Shared { receivers: receivers.collect(), healed: AtomicBool::new(false) });
        let data = web::Data::from(shared.clone());
        let app = move || {
            let limit = web::PayloadConfig::new(64 << 20);
            App::new().app_data(data.clone()).app_data(limit).route("/{index}", web::post().to(receive))
        };
        let server = HttpServer::new(app).workers(WORKERS).disable_signals().shutdown_timeout(0);
        let server = server.bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = server.addrs()[0];
        let running = server.run();
        let handle = running.handle();
        actix_rt::spawn(running);
        Ok(Receivers { address, server: handle, shared })
    }

    /// The URL of the receiver `index`.
    pub fn url(&self, index: usize) -> String {
        format!("http://{}/{index}", self.address)
    }

    /// From now on the flaky and the hanging receivers are healthy.
    pub fn heal(&self) {
        self.shared.healed.store(true, Ordering::SeqCst);
    }

    /// How many events the receiver `index` has accepted.
    pub fn arrived(&self, index: usize) -> usize {
        lock(&self.shared.receivers[index].record).arrived.len()
    }

    /// How many requests all receivers refused.
    pub fn refused(&self) -> usize {
        self.shared.receivers.iter().map(|receiver| lock(&receiver.record).refused).sum()
    }

    /// Closes the port; what the receivers have seen.
    pub async fn stop(self) -> Vec<Record> {
        self.server.stop(false).await;
        self.shared.receivers.iter().map(|receiver| lock(&receiver.record).clone()).collect()
    }
}

async fn receive(
    request: HttpRequest,
    body: web::Bytes,
    index: web::Path<usize>,
    shared: web::Data<Shared>,
) -> HttpResponse {
    let at = clock::now();
    let Some(receiver) = shared.receivers.get(*index) else { return HttpResponse::NotFound().finish() };
    lock(&receiver.record).requests += 1;
    let ids = match verified_ids(&request, &body, &receiver.participant) {
        Some(ids) => ids,
        None => {
            lock(&receiver.record).invalid += 1;
            return HttpResponse::BadRequest().body("the signature does not hold");
        }
    };
    let healed = shared.healed.load(Ordering::SeqCst);
    match receiver.participant.manner {
        Manner::Slow => actix_rt::time::sleep(SLOWNESS).await,
        Manner::Flaky if !healed && receiver.turn.fetch_add(1, Ordering::SeqCst) % 3 == 2 => {
            return receiver.refuse("out of order");
        }
        Manner::Hanging if !healed => {
            // Counted before it hangs: the other side will hang up, and this code then ends here.
            let refusal = receiver.refuse("overslept");
            actix_rt::time::sleep(FOREVER).await;
            return refusal;
        }
        Manner::Healthy | Manner::Flaky | Manner::Hanging => {}
    }
    let mut record = lock(&receiver.record);
    for id in ids {
        match record.arrived.contains_key(&id) {
            true => record.duplicates += 1,
            false => drop(record.arrived.insert(id, at)),
        }
    }
    HttpResponse::Ok().finish()
}

impl Receiver {
    fn refuse(&self, why: &'static str) -> HttpResponse {
        lock(&self.record).refused += 1;
        HttpResponse::build(StatusCode::INTERNAL_SERVER_ERROR).body(why)
    }
}

/// The part of an event that the demo looks at.
#[derive(Deserialize)]
struct Envelope {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    id: Uuid,
}

/// The ids of the events in a request; `None` when it is not signed as agreed, or not what was agreed.
fn verified_ids(request: &HttpRequest, body: &[u8], participant: &Participant) -> Option<Vec<Uuid>> {
    let header = |name: &str| request.headers().get(name)?.to_str().ok();
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let signatures = header("webhook-signature")?;
    if !signature_holds(participant.secret.reveal(), id, timestamp, body, signatures) {
        return None;
    }
    let envelopes: Vec<Envelope> = match participant.batch_size {
        1 => vec![serde_json::from_slice(body).ok()?],
        _ => serde_json::from_slice(body).ok()?,
    };
    let ids: Vec<Uuid> = envelopes.iter().map(|envelope| envelope.data.id).collect();
    // A single event is known by its own id.
    (participant.batch_size > 1 || ids[0].to_string() == id).then_some(ids)
}

/// Standard Webhooks, from the receiver's side: one of the signatures must be ours.
fn signature_holds(secret: &str, id: &str, timestamp: &str, body: &[u8], signatures: &str) -> bool {
    let key = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
    let Some(mac) = key.and_then(|key| Hmac::<Sha256>::new_from_slice(&key).ok()) else { return false };
    let mac = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body]
        .iter()
        .fold(mac, |mac, part| mac.chain_update(part));
    signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

/// A panic in one request must not hide what the others have recorded.
fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_signature_holds() {
        let secret = format!("whsec_{}", STANDARD.encode([7; 32]));
        let webhook = standardwebhooks::Webhook::new(&secret).unwrap();
        let signature = webhook.sign("msg_1", 1_700_000_000, b"{}").unwrap();
        let holds = |id: &str, body: &[u8], signature: &str| {
            signature_holds(&secret, id, "1700000000", body, signature)
        };
        assert!(holds("msg_1", b"{}", &signature));
        assert!(holds("msg_1", b"{}", &format!("v1,AAAA {signature}")));
        assert!(!holds("msg_2", b"{}", &signature));
        assert!(!holds("msg_1", b"[]", &signature));
        assert!(!holds("msg_1", b"{}", "v1,AAAA"));
        assert!(!holds("msg_1", b"{}", ""));
    }
}
