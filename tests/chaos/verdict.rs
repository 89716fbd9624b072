//! What must hold after a chaos run.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::Row;
use uuid::Uuid;

use crate::cast::{Manner, Member};
use crate::producer::Written;
use crate::trouble::Stage;

/// A request that was sent before a kill may be read by its receiver a little later.
const READ_LATE: Duration = Duration::from_secs(2);

const ROWS: &str = "SELECT destination_id, log_id, status, attempts FROM webhook_deliveries
    ORDER BY destination_id, created_at, id";

const CHARGED: &str =
    "SELECT count(*) FROM posthaste_attempts a JOIN webhook_deliveries w ON w.id = a.delivery_id
    WHERE a.charged AND w.destination_id = ";

struct Delivery {
    event: Uuid,
    status: String,
    attempts: i32,
}

/// Fails with whatever is not as it should be, and prints what the run was like.
pub async fn judge(stage: &Stage, written: &Written) {
    let mut rows: HashMap<Uuid, Vec<Delivery>> = HashMap::new();
    for row in sqlx::query(ROWS).fetch_all(&stage.db.pool).await.unwrap() {
        let of = Delivery { event: row.get(1), status: row.get(2), attempts: row.get(3) };
        rows.entry(row.get(0)).or_default().push(of);
    }
    let mut wrong = Vec::new();
    let (mut receipts, mut twice, mut dead) = (0, 0, 0);
    for member in &*stage.members {
        let rows = rows.remove(&member.id).unwrap_or_default();
        let name = format!("{:?} {}", member.manner, member.id);
        let owed = written.owed.iter().filter(|(destination, _)| *destination == member.id);
        let owed: HashSet<Uuid> = owed.map(|(_, event)| *event).collect();
        wrong.extend(
            rows_and_events(member, &rows, &owed, written).into_iter().map(|w| format!("{name}: {w}")),
        );
        wrong.extend(receipts_and_rows(member, &rows).into_iter().map(|w| format!("{name}: {w}")));
        wrong.extend(order(member, &rows).map(|w| format!("{name}: {w}")));
        let charged = stage.db.number(&format!("{CHARGED} '{}'", member.id)).await;
        let ledger = member.ledger.lock().unwrap();
        if ledger.outages.is_empty() && charged > ledger.bad as i64 * 10 {
            wrong.push(format!("{name}: {charged} attempts charged for {} bad answers", ledger.bad));
        }
        let is_innocent = match member.manner {
            Manner::Healthy => true,
            // A pause that a receiver asks for is no failure; that it cannot be reached is one.
            Manner::Pausing => ledger.outages.is_empty(),
            _ => false,
        };
        if is_innocent && charged > 0 {
            wrong.push(format!("{name}: {charged} attempts charged"));
        }
        receipts += ledger.seen.values().sum::<usize>();
        dead += rows.iter().filter(|row| row.status == "dead").count();
        let mut causes: Vec<Instant> = stage.kills.iter().chain(&ledger.outages).copied().collect();
        if member.manner == Manner::Hanging {
            // Its time limit is short enough to end while a process is stopped.
            causes.extend(&stage.continued);
        }
        for (event, times) in &ledger.accepted {
            twice += times.len() - 1;
            wrong.extend(unexplained(stage, &causes, times).map(|w| format!("{name}: {event} {w}")));
        }
    }
    let deliveries = written.owed.len();
    println!(
        "{} events, {deliveries} deliveries ({dead} dead), {receipts} receipts, {twice} accepted again, \
         {} kills",
        written.events,
        stage.kills.len()
    );
    println!("{:?}", stage.counts);
    if stage.logs.iter().any(|log| log.contains("panicked")) {
        wrong.push("something panicked".into());
    }
    wrong.truncate(30);
    if !wrong.is_empty() {
        println!("{}", stage.story.join("\n"));
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        for (n, log) in stage.logs.iter().enumerate() {
            std::fs::write(directory.join(format!("{n}.log")), log).unwrap();
        }
        println!("the logs of the processes are in {}", directory.display());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every matching event has exactly one row, and nothing else has any.
fn rows_and_events(
    member: &Member,
    rows: &[Delivery],
    owed: &HashSet<Uuid>,
    written: &Written,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let have: HashSet<Uuid> = rows.iter().map(|row| row.event).collect();
    if have.len() != rows.len() {
        wrong.push(format!("{} rows for {} events", rows.len(), have.len()));
    }
    // One that answers 410 is disabled at a moment that only the database knows.
    let lost = owed.difference(&have).count();
    if lost > 0 && member.manner != Manner::Leaving {
        wrong.push(format!("{lost} events have no delivery"));
    }
    wrong.extend(have.difference(owed).map(|event| format!("{event} has a delivery and should have none")));
    // What was first told to wait, and then met an outage, may die of it: others got through in between.
    let paused_away = member.manner == Manner::Pausing && !member.ledger.lock().unwrap().outages.is_empty();
    for row in rows {
        let bad = written.bad.contains(&row.event);
        let may_die = paused_away
            || !matches!(member.manner, Manner::Healthy | Manner::Slow | Manner::Pausing)
                && (member.manner != Manner::Picky || bad);
        let may_live = member.manner != Manner::Picky || !bad;
        match row.status.as_str() {
            "delivered" if may_live => {}
            "dead" if may_die => {}
            status => wrong.push(format!("{} is {status}", row.event)),
        }
        if row.attempts < 1 || row.attempts > 4 {
            wrong.push(format!("{} has {} attempts", row.event, row.attempts));
        }
        if member.manner == Manner::Healthy && row.attempts != 1 {
            wrong.push(format!("{} was charged {} attempts", row.event, row.attempts));
        }
    }
    let ledger = member.ledger.lock().unwrap();
    wrong.extend(
        written.never.iter().filter(|e| ledger.seen.contains_key(e)).map(|e| format!("{e} never was")),
    );
    wrong
}

/// What is delivered was accepted, and what came has a row.
fn receipts_and_rows(member: &Member, rows: &[Delivery]) -> Vec<String> {
    let ledger = member.ledger.lock().unwrap();
    let have: HashSet<Uuid> = rows.iter().map(|row| row.event).collect();
    let delivered = rows.iter().filter(|row| row.status == "delivered");
    let unheard = delivered.filter(|row| !ledger.accepted.contains_key(&row.event));
    let mut wrong: Vec<String> =
        unheard.map(|row| format!("{} is delivered, and was never accepted", row.event)).collect();
    let strange = ledger.seen.keys().filter(|event| !have.contains(event));
    wrong.extend(strange.map(|event| format!("{event} came, and has no row")));
    wrong
}

/// Ordered destinations accept in the order of insertion.
fn order(member: &Member, rows: &[Delivery]) -> Option<String> {
    if !member.ordered {
        return None;
    }
    let place: HashMap<Uuid, usize> = rows.iter().enumerate().map(|(n, row)| (row.event, n)).collect();
    let ledger = member.ledger.lock().unwrap();
    let places: Vec<usize> = ledger.order.iter().filter_map(|event| place.get(event).copied()).collect();
    let wrong = places.windows(2).filter(|pair| pair[0] > pair[1]).count();
    (wrong > 0).then(|| format!("{wrong} times out of order"))
}

/// What was accepted again must have been in flight, or unrecorded, when one of `causes` came, or its answer
/// was lost with it.
fn unexplained(stage: &Stage, causes: &[Instant], times: &[Instant]) -> Option<String> {
    let between = |at: &Instant, pair: &[Instant]| *at + READ_LATE >= pair[0] && *at <= pair[1];
    let pair = times.windows(2).find(|pair| !causes.iter().any(|at| between(at, pair)))?;
    let [first, again] = [0, 1].map(|n| pair[n] - stage.start);
    Some(format!("was accepted at {first:.1?} and again at {again:.1?}, and nothing explains it"))
}
