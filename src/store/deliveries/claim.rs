//! Claims: one statement leases deliveries for many destinations and reads their events.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgHasArrayType, PgRow};
use sqlx::{AssertSqlSafe, Connection, Encode, Postgres, Row};
use uuid::Uuid;

use super::LEASE;
use super::claim_sql::{
    ANSWER, CLAIM, CLAIM_ORDERED, COUNTED, COUNTED_ORDERED, CREATED_AT, EVENT, FILLED, LEASED, LOCK_ORDERED,
    NEXT, NEXT_ORDERED, NULLS, PLAIN, TAKE, TAKE_MEASURED, UNCHANGED,
};
use crate::model::{
    Category, Change, DbTime, Delivery, DeliveryId, DestinationId, EVENT_OVERHEAD_BYTES, Event, EventId,
    FailedAttempt, Fill, Ordered, OrgId, Outcome,
};
use crate::store::events::EventColumns;
use crate::store::schema;
use crate::store::statement::is_stale;
use crate::store::{StoreError, in_time};

/// Deliveries that one claim statement takes at most. Larger ones cost no less per row, and whatever is new
/// meanwhile shares the cores, the log and this process' main thread with them.
pub const MAX_CLAIM_ROWS: usize = 500;
/// How far an ordered claim looks for leases of other processes when it has no reason to look further.
const ORDERED_LOOKAHEAD: i64 = 1_000;
/// How far it looks when the destination may have been unordered a moment ago. Bounded: a queue of millions
/// must not hold up the claims of all.
const ORDERED_LOOKAHEAD_AT_START: i64 = 50_000;

/// What one destination asks of a claim.
#[derive(Clone, Debug)]
pub struct Ask {
    /// For whom.
    pub destination: DestinationId,
    /// How many deliveries at most; and as many again that have no `next_retry_at`, unless `ordered`.
    pub want: u32,
    /// Where to start looking in the order of `next_retry_at`: a hint that spares the index what is claimed
    /// already.
    pub since: Option<DbTime>,
    /// Stop after the event with which their sizes, as estimated, reach this many bytes.
    pub max_bytes: u64,
    /// Claim in insertion order, nothing while a lease is live.
    pub ordered: Option<Ordered>,
    /// Nothing until a batch of this is there, or one has waited for long enough.
    pub fill: Option<Fill>,
}

/// How much one claim may read for all who ask.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// It ends with the event with which the sizes, as estimated by what is stored, reach this many bytes.
    pub planned: u64,
    /// Estimates can be wrong: what comes after this many bytes is given back unread.
    pub most: u64,
    /// Larger payloads and contents stay where they are.
    pub max_event_bytes: usize,
}

impl Room {
    /// The room for `part` of `all` asks.
    pub fn part(self, part: usize, all: usize) -> Room {
        let of = |bytes: u64| (bytes / all.max(1) as u64 * part as u64).max(1);
        Room { planned: of(self.planned), most: of(self.most), ..self }
    }
}

/// What one destination got from a claim.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who asked.
    pub destination: DestinationId,
    /// What is leased now, in the order in which it should be sent.
    pub deliveries: Vec<Claimed>,
    /// Whether more is due than was given.
    pub more: bool,
    /// When the next delivery falls due that was not due yet.
    pub next_due: Option<DbTime>,
    /// The clock of the claim.
    pub now: DbTime,
    /// The latest `next_retry_at` among `deliveries`: the next [`Ask::since`]. None when something lies
    /// before it.
    pub reached: Option<DbTime>,
    /// What was leased and not read, as there was no room for it: to be written.
    pub returned: Vec<Outcome>,
    /// Those of them that cannot be read, and why.
    pub unreadable: Vec<(DeliveryId, String)>,
}

/// A claimed delivery and whether its event may be sent at all.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The delivery.
    pub delivery: Delivery,
    /// Its payload or content is beyond the limit, and was left in the database.
    pub too_large: bool,
}

/// The claim statements, made for the columns that this database's `activity_logs` has.
#[derive(Clone, Debug)]
pub struct ClaimSql {
    claim: Texts,
    claim_ordered: Texts,
}

/// The two texts of a claim, of which the second is run where the first one takes nothing.
#[derive(Clone, Debug)]
struct Texts {
    plain: Arc<str>,
    measured: Arc<str>,
}

/// A delivery that cannot be read waits at least so long ...
const SHORTEST_ASIDE: Duration = Duration::from_secs(60);
/// ... and at most so long.
const LONGEST_ASIDE: Duration = Duration::from_secs(3600);

impl ClaimSql {
    /// Reads which columns this database's events have.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn read(connection: &mut PgConnection) -> Result<ClaimSql, StoreError> {
        Ok(ClaimSql::new(&EventColumns::read(connection).await?))
    }

    fn new(columns: &EventColumns) -> ClaimSql {
        // Columns of an application may hold any text. LEAST and + overlook or spread nulls.
        let texts = ["content", "client_name", "client_version", "event_type", "event_category"];
        let length = |column: &&str| format!("coalesce(octet_length(l.{column}), 0)::bigint");
        let there = texts.iter().filter(|column| columns.has(column));
        let text_bytes = there.map(length).collect::<Vec<_>>().join(" + ");
        let event = format!("{EVENT}, {text_bytes} AS text_bytes");
        let events = columns.table();
        // Nothing is read to learn how large it is. What is compressed is taken for as large as it can be,
        // or, where that would cut too much off, for larger than it usually is.
        let stored = "coalesce(pg_column_size(l.payload), 0)::bigint";
        let payload = format!(
            "least($7, {stored} * CASE WHEN pg_column_compression(l.payload) IS NULL THEN 1 \
             WHEN {stored} < 8192 THEN 8 ELSE 90 END)"
        );
        let size = format!("(least($7, {text_bytes}) + {payload} + {EVENT_OVERHEAD_BYTES})::int");
        let overhead = EVENT_OVERHEAD_BYTES.to_string();
        let text = |claim: &str, take: &str, [from, counted, next, order]: [&str; 4]| {
            // What comes later may stand in what comes earlier.
            let parts = [
                ("{FILLED}", FILLED),
                ("{COUNTED}", counted),
                ("{FROM}", from),
                ("{TAKE}", take),
                ("{ANSWER}", ANSWER),
                ("{LEASED}", LEASED),
                ("{UNCHANGED}", UNCHANGED),
                ("{CREATED_AT}", CREATED_AT),
                ("{EVENT}", &event),
                ("{EVENTS}", &events),
                ("{PLAIN}", PLAIN),
                ("{SIZE}", &size),
                ("{OVERHEAD}", &overhead),
                ("{ORDER}", order),
                ("{NEXT}", next),
                ("{NULLS}", NULLS),
            ];
            let text = parts.iter().fold(claim.to_owned(), |text, (name, part)| text.replace(name, part));
            Arc::from(schema::qualified(&text))
        };
        let texts = |claim: &str, parts: [&str; 4]| Texts {
            plain: text(claim, TAKE, parts),
            measured: text(claim, TAKE_MEASURED, parts),
        };
        ClaimSql {
            claim: texts(CLAIM, ["since", COUNTED, NEXT, "next_retry_at"]),
            claim_ordered: texts(CLAIM_ORDERED, ["lookahead", COUNTED_ORDERED, NEXT_ORDERED, "created_at"]),
        }
    }

    /// Leases what `asks` (all unordered) ask for, in one statement, or two.
    ///
    /// `floor`: leases before it are void. `room`: for all of it.
    ///
    /// # Errors
    /// After any error the connection must be dropped: whether the claim has happened is not known.
    pub async fn claim(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, StoreError> {
        let from = asks.iter().map(|ask| ask.since.unwrap_or(DbTime(i64::MIN))).collect::<Vec<_>>();
        in_time(self.claim.run(connection, asks, &from, floor, room)).await
    }

    /// Leases what `asks` (all ordered) ask for: the head of each queue, or nothing where a lease is live or
    /// another process is claiming at this moment.
    ///
    /// # Errors
    /// As [`ClaimSql::claim`].
    pub async fn claim_ordered(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, StoreError> {
        in_time(async {
            match self.try_claim_ordered(connection, asks, floor, room).await {
                // The transaction was rolled back; what was prepared is forgotten.
                Err(error) if is_stale(&error) => self.try_claim_ordered(connection, asks, floor, room).await,
                done => done,
            }
        })
        .await
    }

    async fn try_claim_ordered(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, sqlx::Error> {
        let mut transaction = connection.begin().await?;
        let ids: Vec<Uuid> = asks.iter().map(|a| a.destination.0).collect();
        let locked: Vec<Uuid> =
            schema::query_scalar(LOCK_ORDERED).bind(ids).fetch_all(&mut *transaction).await?;
        let asks: Vec<Ask> = asks.iter().filter(|a| locked.contains(&a.destination.0)).cloned().collect();
        let lookahead = |ask: &Ask| match ask.ordered {
            Some(Ordered::Everywhere) => ORDERED_LOOKAHEAD_AT_START,
            _ => ORDERED_LOOKAHEAD,
        };
        let from = asks.iter().map(lookahead).collect::<Vec<_>>();
        let grants = self.claim_ordered.run(&mut transaction, &asks, &from, floor, room).await?;
        transaction.commit().await?;
        Ok(grants)
    }
}

impl Texts {
    /// `from`: the third parameter.
    async fn run<T>(
        &self,
        connection: &mut PgConnection,
        asks: &[Ask],
        from: &[T],
        floor: DbTime,
        room: Room,
    ) -> Result<Vec<Grant>, sqlx::Error>
    where
        T: PgHasArrayType,
        for<'t> &'t [T]: Encode<'t, Postgres>,
    {
        if let Some(grants) = run_claim(&self.plain, connection, asks, from, floor, room).await? {
            return Ok(grants);
        }
        let grants = run_claim(&self.measured, connection, asks, from, floor, room).await?;
        grants.ok_or_else(|| sqlx::Error::Protocol("a claim said nothing of its rows".to_owned()))
    }
}

/// None: nothing was taken, as not all is plain.
async fn run_claim<T>(
    text: &Arc<str>,
    connection: &mut PgConnection,
    asks: &[Ask],
    from: &[T],
    floor: DbTime,
    room: Room,
) -> Result<Option<Vec<Grant>>, sqlx::Error>
where
    T: PgHasArrayType,
    for<'t> &'t [T]: Encode<'t, Postgres>,
{
    let bigint = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let query = schema::query_verbatim(AssertSqlSafe(Arc::clone(text)))
        .bind(asks.iter().map(|ask| ask.destination.0).collect::<Vec<_>>())
        .bind(asks.iter().map(|ask| ask.want as i32).collect::<Vec<_>>())
        .bind(from)
        .bind(asks.iter().map(|ask| bigint(ask.max_bytes)).collect::<Vec<_>>())
        .bind(LEASE)
        .bind(floor)
        .bind(i32::try_from(room.max_event_bytes).unwrap_or(i32::MAX))
        .bind(bigint(room.planned))
        .bind(asks.iter().map(|ask| ask.fill.map(|fill| fill.events as i32)).collect::<Vec<_>>())
        .bind(asks.iter().map(|ask| ask.fill.map(|fill| fill.wait.as_micros() as i64)).collect::<Vec<_>>());
    let mut grants: Vec<Grant> = asks.iter().map(|ask| Grant::none(ask.destination)).collect();
    let mut place = std::collections::HashMap::with_capacity(asks.len());
    place.extend(asks.iter().enumerate().map(|(i, ask)| (ask.destination.0, i)));
    let (mut held, mut seen, mut all) = (0, 0, Some(0));
    let each = |row: PgRow| {
        let Some(&i) = place.get(&row.try_get::<Uuid, _>(1)?) else { return Ok(()) };
        let grant = &mut grants[i];
        grant.now = row.try_get(2)?;
        match row.try_get::<i16, _>(0)? {
            0 => {
                seen += 1;
                grant.take(&row, &mut held, room.most)?;
            }
            1 => {
                grant.next_due = row.try_get(20)?;
                all = row.try_get::<Option<i32>, _>(4)?;
            }
            _ => {
                seen += 1;
                grant.more = true;
            }
        }
        Ok(())
    };
    query.for_each(connection, each).await?;
    let Some(all) = all else { return Ok(None) };
    for (grant, ask) in grants.iter_mut().zip(asks) {
        // Where nothing can be taken at all, asking again at once would never end.
        let is_whole = grant.returned.is_empty() && (seen >= all || grant.deliveries.is_empty());
        grant.more |= grant.deliveries.len() >= ask.want as usize || !is_whole;
        grant.reached = grant.reached.filter(|_| is_whole);
        if ask.ordered.is_some() && !grant.unreadable.is_empty() {
            // It holds back what is behind it: what comes before it is claimed again.
            let rest = grant.deliveries.drain(..).map(|claimed| Outcome::given_back(&claimed.delivery));
            grant.returned.extend(rest);
        }
        if ask.ordered.is_some() {
            grant.deliveries.sort_by_key(|c| (c.delivery.created_at, c.delivery.id));
        }
    }
    Ok(Some(grants))
}

/// Reads a row of kind 0; its event without content and payload where there is no `room` for them.
fn read_claimed(row: &PgRow, room: bool) -> Result<Claimed, sqlx::Error> {
    let text = |column| if room { row.try_get(column) } else { Ok(None) };
    let payload: Option<String> = text(17)?;
    let too_large = payload.is_none() || row.try_get(19)?;
    let event = Event {
        id: EventId(row.try_get(8)?),
        org: OrgId(row.try_get(9)?),
        employee_id: row.try_get(10)?,
        session_id: row.try_get(11)?,
        client_name: row.try_get(12)?,
        client_version: row.try_get(13)?,
        event_type: row.try_get(14)?,
        event_category: Category(row.try_get(15)?),
        content: text(16)?,
        payload: payload.unwrap_or_default(),
        created_at: row.try_get::<DbTime, _>(18)?.iso(),
    };
    let delivery = Delivery {
        destination: DestinationId(row.try_get(1)?),
        claimed_at: row.try_get(2)?,
        id: DeliveryId(row.try_get(3)?),
        attempts: u32::try_from(row.try_get::<i32, _>(4)?).unwrap_or(0),
        previous_attempt_at: row.try_get(5)?,
        created_at: row.try_get(6)?,
        first_attempt_at: row.try_get(7)?,
        event: Arc::new(event),
    };
    Ok(Claimed { delivery, too_large })
}

impl Grant {
    /// Nothing, for `destination`.
    pub fn none(destination: DestinationId) -> Grant {
        Grant {
            destination,
            deliveries: Vec::new(),
            more: false,
            next_due: None,
            now: DbTime(0),
            reached: None,
            returned: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// A row of kind 0, as long as no more than `most` bytes are `held`.
    fn take(&mut self, row: &PgRow, held: &mut u64, most: u64) -> Result<(), sqlx::Error> {
        self.reached = self.reached.max(row.try_get(20)?);
        match read_claimed(row, *held < most) {
            Err(error) => return self.set_aside(row, error.into()),
            Ok(claimed) if *held < most => {
                *held += claimed.delivery.event.bytes_held();
                self.deliveries.push(claimed);
            }
            Ok(claimed) => self.returned.push(Outcome::given_back(&claimed.delivery)),
        }
        Ok(())
    }

    /// A delivery is leased that cannot be read: it waits, the older it is the longer.
    fn set_aside(&mut self, row: &PgRow, error: StoreError) -> Result<(), sqlx::Error> {
        let (delivery, claimed_at): (Uuid, DbTime) = (row.try_get(3)?, row.try_get(2)?);
        let age = row.try_get(6).map_or(Duration::ZERO, |created_at| claimed_at.since(created_at));
        let why = error.to_string();
        self.returned.push(Outcome {
            delivery: DeliveryId(delivery),
            destination: self.destination,
            claimed_at,
            change: Change::Postponed { delay: (age / 4).clamp(SHORTEST_ASIDE, LONGEST_ASIDE) },
            last_attempt_at: Some(claimed_at),
            response_status: None,
            response_body: None,
            error_message: Some(why.as_str().into()),
            failed: Some(FailedAttempt { number: 1, duration: Duration::ZERO, charged: false }),
        });
        self.unreadable.push((DeliveryId(delivery), why));
        Ok(())
    }
}
