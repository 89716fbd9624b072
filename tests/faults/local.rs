//! A fault is as local as its cause: what cannot be read or written holds up nothing but itself, is told once
//! with its ids, and goes on by itself when it is mended.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, run};

/// Raises for rows of `table` for which `condition` holds.
async fn raises(db: &Db, table: &str, when: &str, condition: &str) {
    db.execute(
        "CREATE OR REPLACE FUNCTION raises() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''the application says no''; END'",
    )
    .await;
    db.execute(&format!(
        "CREATE TRIGGER raises BEFORE {when} ON {table} FOR EACH ROW WHEN ({condition})
            EXECUTE FUNCTION raises()"
    ))
    .await;
}

async fn mend(db: &Db, table: &str) {
    db.execute(&format!("DROP TRIGGER raises ON {table}")).await;
}

/// Two organizations: one with trouble, and one that must not notice.
struct Two {
    db: Db,
    receiver: Receiver,
    troubled: Uuid,
    other: Uuid,
}

impl Two {
    async fn new() -> Two {
        let (db, receiver) = (Db::new().await, Receiver::start());
        let (troubled, other) = (db.org().await, db.org().await);
        db.destination(other, receiver.url("/other")).insert().await;
        Two { db, receiver, troubled, other }
    }

    /// Another organization's events arrive, and go on arriving.
    async fn others_go_on(&self) {
        for _ in 0..3 {
            let before = self.arrived();
            self.db.events(self.other, 5).await;
            eventually("others go on", async || self.arrived() >= before + 5).await;
        }
    }

    fn arrived(&self) -> usize {
        self.receiver.received().iter().filter(|request| request.path == "/other").count()
    }

    /// It is told once in the log, by `/readyz`, by the metrics and by `check`, each with these ids.
    async fn is_told(&self, program: &Posthaste, kind: &str, ids: &[Uuid]) {
        eventually("readyz names it", async || {
            let (status, body) = program.get("/readyz").await.unwrap_or_default();
            status == 200 && ids.iter().all(|id| body.contains(&id.to_string()))
        })
        .await;
        let sample = format!("posthaste_faults{{kind=\"{kind}\"}} 1");
        eventually("the metrics count it", async || {
            program.get("/metrics").await.is_some_and(|(_, page)| page.contains(&sample))
        })
        .await;
        let mut said = String::new();
        eventually("check names it", async || {
            let out = run(&["check"], &[("DATABASE_URL", self.db.url.reveal())]);
            said = String::from_utf8_lossy(&out.stdout).into_owned();
            ids.iter().all(|id| said.contains(&id.to_string()))
        })
        .await;
        let told =
            |line: &&str| line.contains("ERROR") && ids.iter().all(|id| line.contains(&id.to_string()));
        assert_eq!(program.log().lines().filter(told).count(), 1, "{}", program.log());
    }

    /// Events whose ids stand in the table `damaged` cannot be read.
    async fn damages(&self) {
        for sql in [
            "CREATE TABLE damaged (id uuid)",
            "ALTER FUNCTION posthaste_print RENAME TO print_undamaged",
            "CREATE FUNCTION posthaste_print(
                    ids uuid[], turns bigint[], limits bigint[], most int, room bigint)
                RETURNS text[] LANGUAGE plpgsql AS 'BEGIN
                    IF EXISTS (SELECT FROM public.damaged d WHERE d.id = ANY (ids)) THEN
                        RAISE EXCEPTION ''missing chunk number 0'' USING ERRCODE = ''XX001'';
                    END IF;
                    RETURN public.print_undamaged(ids, turns, limits, most, room);
                END'",
        ] {
            self.db.execute(sql).await;
        }
    }

    async fn delivery_of(&self, event: Uuid) -> Uuid {
        let sql = format!(
            "SELECT id::text FROM webhook_deliveries WHERE log_id = '{event}' AND destination_id IN
            (SELECT id FROM webhook_destinations WHERE org_id = '{}')",
            self.troubled
        );
        self.db.text(&sql).await.unwrap().parse().unwrap()
    }

    /// Nothing is told any more.
    async fn is_over(&self, program: &Posthaste) {
        eventually("it is over", async || self.db.number("SELECT count(*) FROM posthaste_faults").await == 0)
            .await;
        eventually("readyz says nothing", async || {
            let (status, body) = program.get("/readyz").await.unwrap_or_default();
            status == 200 && !body.contains("the others go on")
        })
        .await;
    }
}

#[tokio::test]
async fn a_410_that_cannot_be_written_stops_nobody_else() {
    let two = Two::new().await;
    let gone = Receiver::with(Reply::Status(410));
    let destination = two.db.destination(two.troubled, gone.url("/")).insert().await;
    raises(&two.db, "webhook_destinations", "UPDATE", "NOT new.enabled").await;
    let program = Posthaste::serve(&two.db.url).await;
    two.db.events(two.troubled, 1).await;
    two.is_told(&program, "disable", &[destination]).await;
    two.others_go_on().await;
    assert_eq!(gone.count(), 1, "nothing more is sent there");

    mend(&two.db, "webhook_destinations").await;
    let disabled =
        format!("SELECT count(*) FROM webhook_destinations WHERE id = '{destination}' AND NOT enabled");
    eventually("it is disabled", async || two.db.number(&disabled).await == 1).await;
    two.is_over(&program).await;
}

#[tokio::test]
async fn a_state_that_cannot_be_written_stops_nobody_else() {
    let two = Two::new().await;
    let pauses = Receiver::with(Reply::header(429, "retry-after", "3600"));
    let destination = two.db.destination(two.troubled, pauses.url("/")).insert().await;
    let of = format!("new.destination_id = '{destination}'");
    raises(&two.db, "posthaste_destination_state", "INSERT OR UPDATE", &of).await;
    let program = Posthaste::serve(&two.db.url).await;
    two.db.events(two.troubled, 1).await;
    two.is_told(&program, "state", &[destination]).await;
    two.others_go_on().await;

    mend(&two.db, "posthaste_destination_state").await;
    let paused = "SELECT count(*) FROM posthaste_destination_state WHERE paused_until IS NOT NULL";
    eventually("it is remembered", async || two.db.number(paused).await == 1).await;
    two.is_over(&program).await;
}

#[tokio::test]
async fn a_result_that_cannot_be_written_stops_no_other_and_is_not_sent_again() {
    let two = Two::new().await;
    let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    let event = Uuid::new_v4();
    let of = format!("new.status = 'delivered' AND new.log_id = '{event}'");
    raises(&two.db, "webhook_deliveries", "UPDATE", &of).await;
    let program = Posthaste::serve(&two.db.url).await;
    insert(&two, event).await;
    two.db.events(two.troubled, 20).await;
    let delivery = two.delivery_of(event).await;
    two.is_told(&program, "result", &[destination, delivery]).await;
    two.others_go_on().await;
    eventually("its neighbours are delivered", async || {
        two.db.deliveries("status <> 'delivered'").await == 1
    })
    .await;
    // Its lease ends, it is claimed again, and not sent again.
    two.db
        .execute("UPDATE webhook_deliveries SET last_attempt_at = last_attempt_at - interval '1 min'")
        .await;
    two.others_go_on().await;
    let again =
        "last_attempt_at > timezone('UTC', clock_timestamp()) - interval '30 s' AND status = 'pending'";
    eventually("it is claimed again", async || two.db.deliveries(again).await == 1).await;
    two.others_go_on().await;
    let sent = two.receiver.received().iter().filter(|request| request.event_ids().contains(&event)).count();
    assert_eq!(sent, 1);

    mend(&two.db, "webhook_deliveries").await;
    two.db.settled().await;
    two.is_over(&program).await;
    check_invariants(&two.db, &[&two.receiver]).await;
}

async fn insert(two: &Two, event: Uuid) {
    // Claims measure such a payload before they print it.
    let insert = "INSERT INTO activity_logs (id, org_id, event_type, event_category, payload)
        VALUES ($1, $2, 'a', 'b', jsonb_build_array(repeat('x', 5000)))";
    sqlx::query(insert).bind(event).bind(two.troubled).execute(&two.db.pool).await.unwrap();
}

/// Something of the row is not what the dispatcher can take.
#[tokio::test]
async fn a_row_that_cannot_be_decoded_stops_nobody_else_and_arrives_when_it_can() {
    let two = Two::new().await;
    let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    two.db.execute("ALTER TABLE activity_logs ALTER COLUMN session_id TYPE text").await;
    let event = Uuid::new_v4();
    insert(&two, event).await;
    two.db.events(two.troubled, 3).await;
    let set = |session: &str| format!("UPDATE activity_logs SET session_id = {session} WHERE id = '{event}'");
    two.db.execute(&set("'not a session'")).await;
    let program = Posthaste::serve(&two.db.url).await;
    let delivery = two.delivery_of(event).await;
    two.is_told(&program, "claim", &[destination, delivery]).await;
    two.others_go_on().await;
    eventually("its neighbours are delivered", async || {
        two.db.deliveries("status <> 'delivered'").await == 1
    })
    .await;

    two.db.execute(&set("NULL")).await;
    try_again(&two.db, delivery).await;
    two.db.settled().await;
    two.is_over(&program).await;
    check_invariants(&two.db, &[&two.receiver]).await;
}

/// The database itself refuses to read the row, as it does where a page of its table is damaged.
#[tokio::test]
async fn a_row_that_the_database_cannot_read_stops_nobody_else_and_arrives_when_it_can() {
    let two = Two::new().await;
    let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    two.damages().await;
    let program = Posthaste::serve(&two.db.url).await;
    let event = Uuid::new_v4();
    two.db.execute(&format!("INSERT INTO damaged VALUES ('{event}')")).await;
    insert(&two, event).await;
    two.db.events(two.troubled, 10).await;
    let delivery = two.delivery_of(event).await;
    two.is_told(&program, "claim", &[destination, delivery]).await;
    two.others_go_on().await;
    eventually("its neighbours are delivered", async || {
        two.db.deliveries("status <> 'delivered'").await == 1
    })
    .await;

    two.db.execute("DELETE FROM damaged").await;
    try_again(&two.db, delivery).await;
    two.db.settled().await;
    two.is_over(&program).await;
    check_invariants(&two.db, &[&two.receiver]).await;
}

/// However many they are.
#[tokio::test]
async fn results_of_one_tenant_that_cannot_be_written_stop_nobody_else() {
    let two = Two::new().await;
    let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    let of = format!("new.status = 'delivered' AND new.destination_id = '{destination}'");
    raises(&two.db, "webhook_deliveries", "UPDATE", &of).await;
    let program = Posthaste::serve(&two.db.url).await;
    two.db.events(two.troubled, 200).await;
    let faults = "SELECT count(*) FROM posthaste_faults WHERE kind = 'result'";
    eventually("they are told", async || two.db.number(faults).await > 16).await;
    two.others_go_on().await;
    let (status, body) = program.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{body}");
    // Nothing more is sent there, and nothing twice.
    two.db
        .execute("UPDATE webhook_deliveries SET last_attempt_at = last_attempt_at - interval '1 min'")
        .await;
    two.db.events(two.troubled, 100).await;
    two.others_go_on().await;
    let sent = two.receiver.received().iter().filter(|request| request.path == "/troubled").count();
    assert!(sent <= 200, "{sent}");

    mend(&two.db, "webhook_deliveries").await;
    eventually("everything is written in the end", async || {
        two.db.deliveries("status <> 'delivered'").await == 0
    })
    .await;
    two.is_over(&program).await;
    check_invariants(&two.db, &[&two.receiver]).await;
}

/// What keeps the statement itself from working is no fault of any row.
#[tokio::test]
async fn a_right_that_is_missing_is_told_as_such_and_no_row_waits_for_it() {
    let two = Two::new().await;
    two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    let (role, url) = two.db.role(include_str!("../../examples/deploy/grants.sql")).await;
    let program = Posthaste::serve(&url).await;
    two.others_go_on().await;
    two.db.execute(&format!("REVOKE SELECT ON activity_logs FROM {role}")).await;
    two.db.events(two.troubled, 20).await;
    eventually("readyz says so", async || {
        let (status, body) = program.get("/readyz").await.unwrap_or_default();
        status == 503 && body.contains("permission denied for table activity_logs")
    })
    .await;
    two.db.execute(&format!("GRANT SELECT ON activity_logs TO {role}")).await;
    two.db.settled().await;
    assert_eq!(two.db.deliveries("status <> 'delivered' OR error_message IS NOT NULL").await, 0);
    assert_eq!(two.db.number("SELECT count(*) FROM posthaste_faults").await, 0);
    drop(program);
    two.db.drop_role(&role).await;
}

/// Claims read rows with a due time and rows without in one statement.
#[tokio::test]
async fn of_rows_with_and_without_a_due_time_the_culprit_waits() {
    for without in [false, true] {
        let two = Two::new().await;
        let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
        two.damages().await;
        let event = Uuid::new_v4();
        two.db.execute(&format!("INSERT INTO damaged VALUES ('{event}')")).await;
        two.db.events(two.troubled, 5).await;
        insert(&two, event).await;
        let of = if without { "=" } else { "<>" };
        let set = "UPDATE webhook_deliveries SET next_retry_at = NULL WHERE log_id";
        two.db.execute(&format!("{set} {of} '{event}'")).await;
        let program = Posthaste::serve(&two.db.url).await;
        two.db.events(two.troubled, 5).await;
        let delivery = two.delivery_of(event).await;
        two.is_told(&program, "claim", &[destination, delivery]).await;
        eventually("its neighbours are delivered", async || {
            two.db.deliveries("status <> 'delivered'").await == 1
        })
        .await;
        assert_eq!(two.db.deliveries("error_message IS NOT NULL").await, 1, "no other was made to wait");
    }
}

#[tokio::test]
async fn an_ordered_queue_with_a_row_that_cannot_be_read_holds_up_no_other() {
    let two = Two::new().await;
    let troubled = two.db.destination(two.troubled, two.receiver.url("/troubled"));
    let destination = troubled.setting("ordered", true).insert().await;
    let other = two.db.destination(two.other, two.receiver.url("/other")).name("ordered");
    other.setting("ordered", true).insert().await;
    two.damages().await;
    let event = Uuid::new_v4();
    two.db.execute(&format!("INSERT INTO damaged VALUES ('{event}')")).await;
    let program = Posthaste::serve(&two.db.url).await;
    insert(&two, event).await;
    two.db.events(two.troubled, 3).await;
    let delivery = two.delivery_of(event).await;
    two.is_told(&program, "claim", &[destination, delivery]).await;
    two.others_go_on().await;

    two.db.execute("DELETE FROM damaged").await;
    try_again(&two.db, delivery).await;
    two.db.settled().await;
    let order: Vec<Uuid> = two
        .receiver
        .received()
        .iter()
        .filter(|request| request.path == "/troubled")
        .flat_map(|request| request.event_ids())
        .collect();
    assert_eq!(order[0], event);
    two.is_over(&program).await;
    check_invariants(&two.db, &[&two.receiver]).await;
}

/// Now, and not when its wait is over.
async fn try_again(db: &Db, delivery: Uuid) {
    let set = "UPDATE webhook_deliveries SET next_retry_at = NULL, last_attempt_at = NULL WHERE id = ";
    db.execute(&format!("{set}'{delivery}'")).await;
}

#[tokio::test]
async fn a_destination_that_cannot_be_read_stops_no_other() {
    let two = Two::new().await;
    let destination = two.db.destination(two.troubled, two.receiver.url("/troubled")).insert().await;
    for sql in [
        "ALTER FUNCTION posthaste_printed(jsonb, integer) RENAME TO printed_undamaged",
        "CREATE FUNCTION posthaste_printed(value jsonb, most integer)
            RETURNS text LANGUAGE plpgsql AS 'BEGIN
                IF value @> ''{\"damaged\": true}'' THEN
                    RAISE EXCEPTION ''missing chunk number 0 for toast value 1'' USING ERRCODE = ''XX001'';
                END IF;
                RETURN public.printed_undamaged(value, most);
            END'",
    ] {
        two.db.execute(sql).await;
    }
    let set = |config: &str| {
        format!("UPDATE webhook_destinations SET auth_config = '{config}' WHERE id = '{destination}'")
    };
    two.db.execute(&set("{\"damaged\": true}")).await;
    let program = Posthaste::serve(&two.db.url).await;
    two.db.events(two.troubled, 1).await;
    two.is_told(&program, "load", &[destination]).await;
    two.others_go_on().await;

    two.db.execute(&set("{}")).await;
    two.is_over(&program).await;
    two.db.settled().await;
    check_invariants(&two.db, &[&two.receiver]).await;
}
