//! `floor`: what the database alone and what HTTP alone would allow.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste::model::{
    Answer, Change, DbTime, Delivery, DeliveryId, Destination, DestinationId, Event, EventId, OrgId, Outcome,
    RetryPolicy, Secret, Settings,
};
use posthaste::outbound::{Network, Request, Sender, Target};
use posthaste::policy::egress::Rules;
use posthaste::store::deliveries::{Ask, ClaimSql, Grant, Room, record};
use uuid::Uuid;

use crate::fill::{self, SECRET};
use crate::place::Place;
use crate::receiver::Receiver;
use crate::report::Row;
use crate::usage::micros_each;
use crate::{Bench, LoadError, clock, process};

/// Deliveries of either half.
const DELIVERIES: u64 = 50_000;
const DESTINATIONS: usize = 10;
/// Rows of one claim, and of one record statement.
const ROWS: u32 = 1_000;
/// Requests in flight.
const IN_FLIGHT: usize = 64;
/// Room for anything here; the largest event is as the dispatcher has it.
const ROOM: Room = Room { planned: 1 << 30, most: 1 << 30, max_event_bytes: 5 << 20 };

/// Deliveries per second.
#[derive(Clone, Copy)]
pub struct Floors {
    pub database: f64,
    pub http: f64,
}

impl Floors {
    /// One after the other.
    pub fn serial(&self) -> f64 {
        1.0 / (1.0 / self.database + 1.0 / self.http)
    }
}

/// One half: how long it took, and the CPU time of either side.
struct Half {
    seconds: f64,
    own: Option<Duration>,
    other: Option<Duration>,
}

/// Measures both.
pub async fn run(bench: &Bench, run: u32) -> Result<Floors, LoadError> {
    let count = bench.rows(DELIVERIES, u64::from(ROWS));
    let database = database(bench, count).await?;
    let http = http(count).await?;
    let floors = Floors { database: count as f64 / database.seconds, http: count as f64 / http.seconds };
    let each = |used: Option<Duration>| used.map(|used| micros_each(used, count));
    bench.done(
        Row::new("floor", "", run)
            .figure("database_per_s", floors.database)
            .maybe("database_postgres_cpu_us", each(database.other))
            .maybe("database_client_cpu_us", each(database.own))
            .figure("http_per_s", floors.http)
            .maybe("http_client_cpu_us", each(http.own))
            .maybe("http_receiver_cpu_us", each(http.other))
            .figure("serial_per_s", floors.serial()),
    );
    Ok(floors)
}

/// Claims and results in turn on one connection, without requests between them.
async fn database(bench: &Bench, count: u64) -> Result<Half, LoadError> {
    let database = bench.place.fresh().await?;
    let mut conn = database.connect().await?;
    let nowhere = vec!["http://127.0.0.1:9/".to_owned(); DESTINATIONS];
    let orgs = fill::one_each(&mut conn, nowhere, 1).await?;
    fill::backlog(&mut conn, &orgs, count, 1).await?;
    fill::settle(&mut conn).await?;
    let ids = sqlx::query_scalar("SELECT id FROM webhook_destinations").fetch_all(&mut conn).await?;

    let mut conn = database.connect_as_posthaste().await?;
    let claims = ClaimSql::read(&mut conn).await?;
    let mut asks = asks(&ids, ROWS);
    let (before, start) = (Cpu::now(&bench.place), Instant::now());
    let mut done = 0;
    while done < count {
        let grants = claims.claim(&mut conn, &asks, DbTime(0), ROOM).await?;
        advance(&mut asks, &grants);
        let outcomes: Vec<Outcome> =
            grants.iter().flat_map(|grant| &grant.deliveries).map(|c| delivered(&c.delivery)).collect();
        let written = record(&mut conn, &outcomes).await?;
        if written == 0 {
            return Err(LoadError::Other(format!("floor: nothing to claim after {done} of {count}")));
        }
        done += written;
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), Cpu::now(&bench.place));
    drop(conn);
    bench.place.discard(database).await?;
    let less = |now: Option<Duration>, then| Some(now?.saturating_sub(then?));
    Ok(Half { seconds, own: less(after.own, before.own), other: less(after.postgres, before.postgres) })
}

/// What this process and PostgreSQL have used so far.
struct Cpu {
    own: Option<Duration>,
    postgres: Option<Duration>,
}

impl Cpu {
    fn now(place: &Place) -> Cpu {
        Cpu { own: own_cpu(), postgres: place.postmaster.and_then(process::cpu_of_family) }
    }
}

fn own_cpu() -> Option<Duration> {
    process::cpu(std::process::id().cast_signed())
}

/// `rows` deliveries, in equal parts for each destination.
pub fn asks(destinations: &[Uuid], rows: u32) -> Vec<Ask> {
    let want = rows / destinations.len() as u32;
    let ask = |id: &Uuid| Ask {
        destination: DestinationId(*id),
        want,
        since: None,
        max_bytes: u64::MAX,
        ordered: None,
        fill: None,
    };
    destinations.iter().map(ask).collect()
}

/// Lets each ask begin where its last grant ended, as the dispatcher does.
pub fn advance(asks: &mut [Ask], grants: &[Grant]) {
    for ask in asks {
        let grant = grants.iter().find(|grant| grant.destination == ask.destination);
        ask.since = grant.and_then(|grant| grant.reached).or(ask.since);
    }
}

fn delivered(delivery: &Delivery) -> Outcome {
    Outcome {
        delivery: delivery.id,
        destination: delivery.destination,
        claimed_at: delivery.claimed_at,
        change: Change::Delivered,
        last_attempt_at: Some(delivery.claimed_at),
        response_status: Some(200),
        response_body: Some("".into()),
        error_message: None,
        failed: None,
    }
}

/// Signed requests over kept-alive connections, on this thread.
async fn http(count: u64) -> Result<Half, LoadError> {
    let mut receiver = Receiver::start().await?;
    let loopback = "127.0.0.0/8".parse().map_err(|error| LoadError::Other(format!("{error}")))?;
    let network = Network::new(Rules { allow: vec![loopback], ..Rules::default() }, None);
    let network = Arc::new(network.map_err(|error| LoadError::Other(error.to_string()))?);
    let delivery = delivery();
    let target = Target::compile(&destination(&delivery, receiver.url("ok", 0)), &network);
    let target = target.map_err(|error| LoadError::Other(error.to_string()))?;
    let sender = Rc::new(Sender::new(target, &network));

    let (own, other, start) = (own_cpu(), receiver.cpu(), Instant::now());
    let left = Rc::new(Cell::new(count));
    let worker = |_| {
        let (sender, left, delivery) = (sender.clone(), left.clone(), delivery.clone());
        actix_rt::spawn(async move {
            while let Some(one_less) = left.get().checked_sub(1) {
                left.set(one_less);
                request(&sender, &delivery).await?;
            }
            Ok::<_, LoadError>(())
        })
    };
    let workers: Vec<_> = (0..IN_FLIGHT).map(worker).collect();
    for worker in workers {
        worker.await.map_err(|error| LoadError::Other(error.to_string()))??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let less = |now: Option<Duration>, then| Some(now?.saturating_sub(then?));
    let half = Half { seconds, own: less(own_cpu(), own), other: less(receiver.cpu(), other) };
    let arrived = receiver.count().await?.events;
    if arrived != count {
        return Err(LoadError::Other(format!("floor: {arrived} of {count} requests arrived")));
    }
    Ok(half)
}

async fn request(sender: &Sender, delivery: &Delivery) -> Result<(), LoadError> {
    let started_at = DbTime(clock::micros() as i64);
    let deliveries = std::slice::from_ref(delivery);
    let attempt = sender.attempt(Request { deliveries, batch: false, attempt_number: 1, started_at }).await;
    match attempt.answer {
        Answer::Response { status: 200, .. } => Ok(()),
        other => Err(LoadError::Other(format!("floor: {other:?}"))),
    }
}

fn destination(delivery: &Delivery, url: String) -> Destination {
    Destination {
        id: delivery.destination,
        org: delivery.event.org,
        url,
        auth_type: "none".into(),
        auth_config: Secret::new("{}"),
        batch_size: 1,
        timeout: Duration::from_secs(5),
        retry: RetryPolicy { max: 3, backoff: Duration::from_secs(1) },
        signing_secret: Some(Secret::new(SECRET)),
        settings: Settings::default(),
    }
}

/// As the backlogs have them.
fn delivery() -> Delivery {
    let event = Event {
        id: EventId(Uuid::new_v4()),
        org: OrgId(Uuid::new_v4()),
        employee_id: None,
        session_id: None,
        client_name: None,
        client_version: None,
        event_type: "load.test".into(),
        event_category: "load".into(),
        content: Some("event 12345".into()),
        payload: r#"{"n": 12345, "tool": "Bash"}"#.into(),
        created_at: "2025-12-23T16:02:19.890000Z".into(),
    };
    Delivery {
        id: DeliveryId(Uuid::new_v4()),
        destination: DestinationId(Uuid::new_v4()),
        attempts: 0,
        claimed_at: DbTime(0),
        previous_attempt_at: None,
        created_at: DbTime(0),
        first_attempt_at: None,
        event: Arc::new(event),
    }
}
