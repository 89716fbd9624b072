//! Times as the database's clock shows them.

use std::time::{Duration, SystemTime};

/// A point in time by the database's clock: microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, serde::Serialize)]
pub struct DbTime(pub i64);

impl DbTime {
    /// This time plus `duration`, saturating.
    pub fn after(self, duration: Duration) -> DbTime {
        DbTime(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: DbTime) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// `2026-01-31T12:00:00.000000Z`; `infinity` or `-infinity` for what no calendar has.
    pub fn iso(self) -> String {
        const LAST: i64 = 253_402_300_799_999_999;
        match u64::try_from(self.0) {
            Ok(micros) if self.0 <= LAST => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
                humantime::format_rfc3339_micros(time).to_string()
            }
            Ok(_) => "infinity".into(),
            Err(_) => "-infinity".into(),
        }
    }

    /// Reads a date, `2026-01-31`, or a time of it in UTC, `2026-01-31T12:00:00Z`, from 1970 on.
    pub fn from_iso(text: &str) -> Option<DbTime> {
        let midnight = if text.len() == 10 { "T00:00:00Z" } else { "" };
        let time = humantime::parse_rfc3339(&format!("{text}{midnight}")).ok()?;
        let micros = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros();
        Some(DbTime(i64::try_from(micros).ok()?))
    }

    /// The same moment for the standard library; 1970 for any before.
    pub fn system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }

    /// Whole seconds since 1970, as `webhook-timestamp` wants them.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_it_is_read() {
        let time = DbTime(1_769_860_800_123_456);
        assert_eq!(time.iso(), "2026-01-31T12:00:00.123456Z");
        assert_eq!(DbTime::from_iso(&time.iso()), Some(time));
        assert_eq!(DbTime::from_iso("2026-01-31"), DbTime::from_iso("2026-01-31T00:00:00Z"));
        assert_eq!(DbTime(i64::MAX).iso(), "infinity");
        assert_eq!(DbTime(-1).iso(), "-infinity");
        for text in ["", "yesterday", "2026-13-01", "2026-01-31T12:00:00+01:00", "1960-01-01", "2026-1-1"] {
            assert_eq!(DbTime::from_iso(text), None, "{text}");
        }
    }
}
