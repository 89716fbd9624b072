//! Reading input: text becomes values, and every fault is noted.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_path_to_error::Segment;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{Fault, FieldFault, List};
use crate::model::{DbTime, DestinationId, Status};
use crate::store::page::{Page, Position};

/// Rows of a page when nobody says how many.
pub const DEFAULT_LIMIT: u32 = 50;
/// Rows of a page at most.
pub const MAX_LIMIT: u32 = 200;
/// Characters of an event type, as its column has them.
pub const MAX_EVENT_TYPE: usize = 100;

/// Faults of one body that are told at once.
const MAX_FAULTS: usize = 50;
/// Characters of a field's name, and of what is wrong with it.
const MAX_TOLD: usize = 400;
/// Bytes that are read again for that.
const MAX_READ_AGAIN: usize = 8 * 1024 * 1024;
/// The earliest time that PostgreSQL has: 4714 BC, in microseconds since 1970.
const EARLIEST: i64 = -210_866_803_200_000_000;

/// A time in UTC, or a date, from 1970 on: what [`Faults::time`] reads, for the API's document.
#[derive(ToSchema)]
#[schema(
    pattern = r"^(19[7-9]\d|2\d{3})-(0\d|1[0-2])-[0-3]\d(T([01]\d|2[0-3])(:[0-5]\d){2}(\.\d{1,9})?Z)?$",
    example = "2026-01-31T12:00:00Z"
)]
pub struct Time(#[allow(dead_code, reason = "only described")] String);

/// Which page of a list, as it was asked, where nothing else can be.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Rows of the page.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 200)]
    pub limit: Option<String>,
    /// Where it starts.
    #[param(pattern = "^[A-Za-z0-9_-]{32}$")]
    pub cursor: Option<String>,
}

impl PageQuery {
    /// How many rows, and where they start.
    ///
    /// # Errors
    /// [`Fault::Invalid`].
    pub fn read(&self) -> Result<(u32, Option<Position>), Fault> {
        let mut faults = Faults::default();
        let limit = faults.limit(self.limit.as_deref());
        let cursor = faults.cursor(self.cursor.as_deref());
        faults.check((limit, cursor))
    }
}

/// Something with named members. serde would take an array for it as well, member by member.
pub struct Members<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<T>, D::Error> {
        struct OfMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(OfMap(PhantomData)).map(Members)
    }
}

/// Reads a JSON object.
///
/// # Errors
/// [`Fault::Invalid`] with every member that is wrong, by its path: `settings.ordered`.
pub fn read_object<T: DeserializeOwned>(json: &[u8]) -> Result<T, Fault> {
    read_json(json).map(|Members(read)| read)
}

/// Reads a JSON array of objects.
///
/// # Errors
/// [`Fault::Invalid`] with every member that is wrong, by its path: `[3].id`.
pub fn read_array<T: DeserializeOwned>(json: &[u8]) -> Result<Vec<T>, Fault> {
    read_json(json).map(|read: Vec<Members<T>>| read.into_iter().map(|Members(read)| read).collect())
}

fn read_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let ended = deserializer.end();
    let error = match (read, ended) {
        (Ok(value), Ok(())) => return Ok(value),
        (Err(error), _) => error.into_inner(),
        (_, Err(error)) => error,
    };
    let mut faults = match serde_json::from_slice(json) {
        Ok(value) if error.is_data() => {
            faults_of::<T>(value, (MAX_READ_AGAIN / json.len().max(1)).clamp(1, MAX_FAULTS))
        }
        _ => Vec::new(),
    };
    if faults.is_empty() {
        // It is no JSON, or a member stands twice.
        faults.push(FieldFault { field: "body".into(), detail: format!("cannot be read: {error}") });
    }
    Err(Fault::Invalid(faults))
}

/// Reads the pairs of a query as the members of a `T`, all of which are texts.
///
/// # Errors
/// [`Fault::Invalid`] with every one that is unknown or stands twice.
pub fn read_pairs<T: DeserializeOwned>(pairs: impl Iterator<Item = (String, String)>) -> Result<T, Fault> {
    let mut faults = Faults::default();
    let mut members = serde_json::Map::new();
    for (name, value) in pairs {
        if members.insert(name.clone(), value.into()).is_some() {
            faults.add(&name, "stands more than once");
        }
    }
    let value = Value::Object(members);
    match T::deserialize(&value) {
        Ok(read) => faults.check(read),
        Err(_) => {
            for fault in faults_of::<T>(value, MAX_FAULTS) {
                faults.add(&fault.field, fault.detail);
            }
            Err(Fault::Invalid(faults.0))
        }
    }
}

/// The beginning of what was sent, as far as it is told.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TOLD) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Everything in `value` that keeps it from being a `T`: what is wrong is noted, taken out, and the rest read
/// again.
fn faults_of<T: DeserializeOwned>(mut value: Value, most: usize) -> Vec<FieldFault> {
    let mut faults: Vec<FieldFault> = Vec::new();
    while faults.len() < most {
        let Err(error) = serde_path_to_error::deserialize::<_, T>(&value) else { break };
        let message = error.inner().to_string();
        let mut path: Vec<Segment> = error.path().iter().cloned().collect();
        let named = |start: &str| Some(message.strip_prefix(start)?.split('`').next()?.to_owned());
        let (unknown, missing) = (named("unknown field `"), named("missing field `"));
        let key = unknown.clone().or(missing.clone());
        // The path of an unknown member may end with it already.
        if let Some(key) = key
            && !matches!(path.last(), Some(Segment::Map { key: last }) if *last == key)
        {
            path.retain(|segment| !matches!(segment, Segment::Unknown));
            path.push(Segment::Map { key });
        }
        let field = field(&path);
        let detail = match (&unknown, &missing) {
            (Some(_), _) => "is unknown".into(),
            (_, Some(_)) => "is missing".into(),
            _ => message,
        };
        // What was wrong and taken out is not missing.
        let known = faults.iter().any(|fault| fault.field == field);
        if !known {
            faults.push(FieldFault { field: cut(&field), detail: cut(&detail) });
        }
        if known || !remove(&mut value, &path) {
            break;
        }
    }
    faults
}

/// A path as people write it.
fn field(path: &[Segment]) -> String {
    let mut field = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => field.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                field.push_str(if field.is_empty() { "" } else { "." });
                field.push_str(key);
            }
            Segment::Unknown => {}
        }
    }
    if field.is_empty() { "body".into() } else { field }
}

/// Takes the member at the end of `path` out of `value`; whether there was one.
fn remove(value: &mut Value, path: &[Segment]) -> bool {
    let Some((Segment::Map { key }, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get_mut(index),
        Segment::Map { key } => value.get_mut(key),
        _ => None,
    });
    parent.and_then(Value::as_object_mut).is_some_and(|members| members.remove(key).is_some())
}

/// The faults of an input, gathered while it is read.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldFault>);

impl Faults {
    /// Notes one.
    pub fn add(&mut self, field: &str, detail: impl Into<String>) {
        // The answer must not grow with what was sent.
        if self.0.len() < MAX_FAULTS {
            self.0.push(FieldFault { field: cut(field), detail: cut(&detail.into()) });
        }
    }

    /// `value`, unless there was a fault.
    ///
    /// # Errors
    /// [`Fault::Invalid`] with all of them.
    pub fn check<T>(self, value: T) -> Result<T, Fault> {
        if self.0.is_empty() { Ok(value) } else { Err(Fault::Invalid(self.0)) }
    }

    /// Whether something is wrong with `field`, or with what it is a part of.
    pub fn has(&self, field: &str) -> bool {
        let is_inside = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        self.0.iter().any(|fault| {
            fault.field.strip_prefix(field).is_some_and(is_inside)
                || field.strip_prefix(&*fault.field).is_some_and(is_inside)
        })
    }

    /// A text that a column of the database is to hold.
    pub fn text(&mut self, field: &str, text: &str, least: usize, most: usize) {
        if !(least..=most).contains(&text.chars().count()) {
            self.add(field, format!("must have {least} to {most} characters"));
        }
        if text.contains('\0') {
            self.add(field, "must not contain the character NUL");
        }
    }

    /// What `read` makes of a text that may be missing.
    pub fn read<T>(
        &mut self,
        field: &str,
        text: Option<&str>,
        form: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = read(text?);
        if value.is_none() {
            self.add(field, format!("must be {form}"));
        }
        value
    }

    /// A point in time.
    pub fn time(&mut self, field: &str, text: Option<&str>) -> Option<DbTime> {
        let form = "a time in UTC, such as 2026-01-31T12:00:00Z, or a date";
        self.read(field, text, form, DbTime::from_iso)
    }

    /// A range of time: `from` and `to`.
    pub fn range(&mut self, from: Option<&str>, to: Option<&str>) -> (Option<DbTime>, Option<DbTime>) {
        let (from, to) = (self.time("from", from), self.time("to", to));
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            self.add("to", "must be later than from");
        }
        (from, to)
    }

    /// The id of a destination.
    pub fn destination(&mut self, field: &str, text: Option<&str>) -> Option<DestinationId> {
        self.read(field, text, "a UUID", |text| text.parse().ok().map(DestinationId))
    }

    /// An event type.
    pub fn event_type(&mut self, text: Option<&str>) -> Option<String> {
        let form = format!("1 to {MAX_EVENT_TYPE} characters");
        let fits = |text: &str| (1..=MAX_EVENT_TYPE).contains(&text.chars().count()) && !text.contains('\0');
        self.read("event_type", text, &form, |text| fits(text).then(|| text.to_owned()))
    }

    /// Statuses out of those that are `allowed`.
    pub fn statuses<'t>(&mut self, texts: impl Iterator<Item = &'t str>, allowed: &[Status]) -> Vec<Status> {
        let mut statuses = Vec::new();
        for text in texts {
            match Status::named(text).filter(|status| allowed.contains(status)) {
                Some(status) if !statuses.contains(&status) => statuses.push(status),
                Some(_) => {}
                None => {
                    let names: Vec<&str> = allowed.iter().map(|status| status.name()).collect();
                    self.add("status", format!("\"{text}\" is none of {}", names.join(", ")));
                }
            }
        }
        statuses
    }

    /// How many rows a page may have.
    pub fn limit(&mut self, text: Option<&str>) -> u32 {
        let form = format!("a number from 1 to {MAX_LIMIT}");
        let fits = |limit: &u32| (1..=MAX_LIMIT).contains(limit);
        self.read("limit", text, &form, |text| text.parse().ok().filter(fits)).unwrap_or(DEFAULT_LIMIT)
    }

    /// Where a page starts.
    pub fn cursor(&mut self, text: Option<&str>) -> Option<Position> {
        self.read("cursor", text, "the next_cursor of a page, unchanged", position)
    }
}

/// Whether JSON text contains NUL, which can only stand there escaped, and which jsonb cannot hold.
pub(super) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        // An even number of backslashes before it are as many halves as characters.
        json[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0
    })
}

/// A position as a cursor: opaque, so that nobody counts on its form.
fn cursor(position: Position) -> String {
    let mut bytes = position.at.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(position.id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn position(cursor: &str) -> Option<Position> {
    let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()?;
    let (at, id) = bytes.split_at(8);
    let at = DbTime(i64::from_be_bytes(at.try_into().ok()?));
    if at.0 < EARLIEST && at.0 != i64::MIN {
        return None;
    }
    Some(Position { at, id: Uuid::from_slice(id).ok()? })
}

/// A page as it is shown.
pub fn shown<T, V>(page: Page<T>, view: impl Fn(T) -> V) -> List<V> {
    List { items: page.items.into_iter().map(view).collect(), next_cursor: page.next.map(cursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let place = Position { at: DbTime(-5), id: Uuid::from_u128(7) };
        assert_eq!(position(&cursor(place)), Some(place));
        let too_early = cursor(Position { at: DbTime(i64::MIN + 1), id: Uuid::nil() });
        let longer = format!("{}A", cursor(place));
        for text in ["", "x", "AAAA", &cursor(place)[1..], &longer, "ä", &too_early] {
            assert_eq!(position(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_for_a_cursor_or_a_time_is_one_or_refused(
            text in proptest::prop_oneof![".{0,40}", "[0-9TZ:.+ä-]{0,30}", "[A-Za-z0-9_-]{32}"],
            at in EARLIEST..i64::MAX,
            id in proptest::num::u128::ANY,
            micros in 0..253_402_300_799_999_999_i64,
        ) {
            let place = Position { at: DbTime(at), id: Uuid::from_u128(id) };
            proptest::prop_assert_eq!(position(&cursor(place)), Some(place));
            if let Some(place) = position(&text) {
                proptest::prop_assert_eq!(cursor(place), text.clone());
            }
            proptest::prop_assert_eq!(DbTime::from_iso(&DbTime(micros).iso()), Some(DbTime(micros)));
            if let Some(time) = DbTime::from_iso(&text) {
                proptest::prop_assert!(time.iso().starts_with(&text[..10]), "{}", time.iso());
            }
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let mut faults = Faults::default();
        faults.range(Some("yesterday"), Some("2026-01-01"));
        faults.limit(Some("0"));
        faults.limit(Some("201"));
        faults.cursor(Some("?"));
        faults.destination("destination", Some("1"));
        faults.event_type(Some(""));
        faults.statuses(["dead", "alive"].into_iter(), &Status::ALL);
        let Err(Fault::Invalid(told)) = faults.check(()) else { panic!("no fault") };
        let fields: Vec<&str> = told.iter().map(|fault| fault.field.as_str()).collect();
        assert_eq!(fields, ["from", "limit", "limit", "cursor", "destination", "event_type", "status"]);
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Thing {
        name: String,
        size: Option<u32>,
        part: Option<Part>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Part {
        kind: bool,
    }

    fn fields<T: std::fmt::Debug>(read: Result<T, Fault>) -> Vec<String> {
        let Err(Fault::Invalid(told)) = read else { panic!("no fault: {read:?}") };
        told.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn every_member_of_a_body_that_is_wrong_is_named_at_once() {
        for (json, expected) in [
            (r#"{"name": 1, "size": "x", "part": {"kind": 3, "more": 1}, "x": null}"#, &["name"][..]),
            (
                r#"{"name": "", "size": -1, "part": {"kind": true, "more": 1}, "y": null}"#,
                &["size", "part.more", "y"],
            ),
            (r#"{"size": 1}"#, &["name"]),
            (r#"{"name": "a", "part": {}}"#, &["part.kind"]),
            ("[]", &["body"]),
            (r#"["a", 1, null]"#, &["body"]),
            ("3", &["body"]),
            (r#"{"name": "a""#, &["body"]),
            (r#"{"name": "a"} x"#, &["body"]),
            ("", &["body"]),
            ("\u{ff}", &["body"]),
        ] {
            let told = fields(read_object::<Thing>(json.as_bytes()));
            assert!(expected.iter().all(|field| told.iter().any(|t| t == field)), "{json}: {told:?}");
        }
        let told = fields(read_array::<Thing>(br#"[{"name": "a"}, {"name": "b", "size": true, "z": 1}]"#));
        assert_eq!(told, ["[1].size", "[1].z"]);
    }

    #[test]
    fn every_parameter_that_is_unknown_or_stands_twice_is_named() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code)]
        struct Query {
            limit: Option<String>,
        }
        let pairs = [("limit", "1"), ("limit", "2"), ("x", ""), ("y", "")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(fields(read_pairs::<Query>(pairs.into_iter())), ["limit", "x", "y"]);
    }
}
