//! The destinations of a chaos run: how their receivers behave, and what these have seen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::common::{Db, Received, Receiver, Reply};

/// Organizations of a run.
pub const ORGS: usize = 3;
/// Every so manieth event is one that the receivers of [`Manner::Picky`] never take.
const BAD_EVENT: u64 = 20;

/// How a receiver behaves, until the calm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers 200 at once.
    Healthy,
    /// Answers 200 after up to 800 ms.
    Slow,
    /// One request in four gets 500.
    Flaky,
    /// One request in thirty gets no answer.
    Hanging,
    /// One request in five is reset.
    Resetting,
    /// One request in ten asks for a pause, by 429 or by 503.
    Pausing,
    /// 422 for bad events, also when they are in a batch, and during the calm, too.
    Picky,
    /// One request in six gets 409.
    Refusing,
    /// One request in eight gets what is no HTTP, or 500 or 200 (which counts) with a body that breaks off.
    Garbled,
    /// One request in two hundred gets 410.
    Leaving,
}

/// What is to be known of a destination to judge it.
pub struct Member {
    pub id: Uuid,
    pub org: usize,
    pub manner: Manner,
    pub ordered: bool,
    /// Wants events of the type `chaos.even` only.
    pub even_only: bool,
    pub receiver: Receiver,
    pub ledger: Arc<Mutex<Ledger>>,
    calm: Arc<AtomicBool>,
}

/// What a receiver has seen.
#[derive(Default)]
pub struct Ledger {
    pub requests: usize,
    /// Requests that were not answered with 2xx.
    pub bad: usize,
    /// When each event was answered with 2xx, every time.
    pub accepted: HashMap<Uuid, Vec<Instant>>,
    /// Events in the order in which they were accepted first.
    pub order: Vec<Uuid>,
    /// Every event that ever came.
    pub seen: HashMap<Uuid, usize>,
    /// When its port was closed.
    pub outages: Vec<Instant>,
}

/// The destinations of a run, as `(manner, batch size, ordered, only even events)`.
const CAST: [(Manner, u32, bool, bool); 17] = [
    (Manner::Healthy, 1, false, false),
    (Manner::Healthy, 1, false, true),
    (Manner::Healthy, 10, false, false),
    (Manner::Healthy, 1, true, false),
    (Manner::Slow, 1, false, false),
    (Manner::Slow, 2, false, false),
    (Manner::Slow, 5, true, false),
    (Manner::Flaky, 1, false, false),
    (Manner::Flaky, 10, false, true),
    (Manner::Hanging, 1, false, false),
    (Manner::Resetting, 1, false, false),
    (Manner::Pausing, 1, false, false),
    (Manner::Picky, 1, false, false),
    (Manner::Picky, 8, false, false),
    (Manner::Refusing, 1, true, false),
    (Manner::Garbled, 1, false, false),
    (Manner::Leaving, 1, false, true),
];

impl Member {
    /// All of them, spread over `orgs`.
    pub async fn all(db: &Db, orgs: &[Uuid], seed: u64) -> Vec<Member> {
        let mut members = Vec::new();
        for (n, (manner, batch_size, ordered, even_only)) in CAST.into_iter().enumerate() {
            let receiver = Receiver::start();
            let (ledger, calm) = (Arc::default(), Arc::new(AtomicBool::new(false)));
            behave(&receiver, manner, &ledger, &calm, seed.wrapping_add(n as u64));
            let org = n % ORGS;
            let destination = db.destination(orgs[org], receiver.url("/")).batch_size(batch_size);
            let destination = destination.name(&format!("{n} {manner:?}")).retry(3, 100);
            // Nobody else may be charged for a busy machine.
            let timeout = if manner == Manner::Hanging { 1_000 } else { 20_000 };
            let types = if even_only { "{chaos.even}" } else { "{}" };
            let destination = destination.timeout_ms(timeout).event_types(types);
            let id = destination.setting("ordered", ordered).insert().await;
            members.push(Member { id, org, manner, ordered, even_only, receiver, ledger, calm });
        }
        members
    }

    /// Whether an event of `org`, the `number`th, is for this one.
    pub fn wants(&self, org: usize, number: u64) -> bool {
        self.org == org && (!self.even_only || number.is_multiple_of(2))
    }

    /// From now on it behaves.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    pub async fn outage(&self) {
        self.ledger.lock().unwrap().outages.push(Instant::now());
        self.receiver.outage().await;
    }
}

fn behave(
    receiver: &Receiver,
    manner: Manner,
    ledger: &Arc<Mutex<Ledger>>,
    calm: &Arc<AtomicBool>,
    seed: u64,
) {
    let rng = Mutex::new(fastrand::Rng::with_seed(seed));
    let (ledger, calm) = (ledger.clone(), calm.clone());
    receiver.script(move |request| {
        let reply = if calm.load(Ordering::SeqCst) && manner != Manner::Picky {
            Reply::Status(200)
        } else {
            reply(manner, request, &mut rng.lock().unwrap())
        };
        let accepts = match &reply {
            Reply::Status(200) | Reply::Slow(_) => true,
            Reply::Raw(bytes) => bytes.starts_with(b"HTTP/1.1 200"),
            _ => false,
        };
        let mut ledger = ledger.lock().unwrap();
        ledger.requests += 1;
        ledger.bad += usize::from(!accepts);
        for event in request.event_ids() {
            *ledger.seen.entry(event).or_default() += 1;
            if accepts {
                let times = ledger.accepted.entry(event).or_default();
                times.push(request.at);
                if times.len() == 1 {
                    ledger.order.push(event);
                }
            }
        }
        reply
    });
}

fn reply(manner: Manner, request: &Received, rng: &mut fastrand::Rng) -> Reply {
    let mut one_in = |n: u32| rng.u32(0..n) == 0;
    let bad = match manner {
        Manner::Healthy => false,
        Manner::Slow => return Reply::Slow(Duration::from_millis(rng.u64(0..800))),
        Manner::Flaky => one_in(4),
        Manner::Hanging => one_in(30),
        Manner::Resetting => one_in(5),
        Manner::Pausing => one_in(10),
        Manner::Picky => has_bad_event(request),
        Manner::Refusing => one_in(6),
        Manner::Garbled => one_in(8),
        Manner::Leaving => one_in(200),
    };
    if !bad {
        return Reply::Status(200);
    }
    let status = rng.bool();
    match manner {
        Manner::Hanging => Reply::Hang,
        Manner::Resetting => Reply::Reset,
        Manner::Pausing => Reply::header(if status { 429 } else { 503 }, "retry-after", "1"),
        Manner::Picky => Reply::Status(422),
        Manner::Refusing => Reply::Status(409),
        Manner::Garbled if status => Reply::Raw(b"what is this?\r\n\r\n".to_vec()),
        Manner::Garbled => {
            let status = if rng.bool() { 200 } else { 500 };
            Reply::Raw(format!("HTTP/1.1 {status} So\r\ncontent-length: 100\r\n\r\nshort").into_bytes())
        }
        Manner::Leaving => Reply::Status(410),
        Manner::Flaky | Manner::Healthy | Manner::Slow => Reply::Status(500),
    }
}

fn has_bad_event(request: &Received) -> bool {
    let json = request.json();
    let elements = json.as_array().cloned().unwrap_or_else(|| vec![json]);
    elements.iter().any(|element| is_bad(element["data"]["payload"]["n"].as_u64().unwrap()))
}

/// Whether the `number`th event is one that nobody picky takes.
pub fn is_bad(number: u64) -> bool {
    number.is_multiple_of(BAD_EVENT)
}
