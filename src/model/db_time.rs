//! Times as the database's clock shows them.

use std::time::{Duration, SystemTime};

const MICROS_A_DAY: i64 = 86_400_000_000;
/// After which the calendar repeats itself.
const DAYS_OF_400_YEARS: i64 = 146_097;

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

    /// `2026-01-31T12:00:00.000000Z`, as ISO 8601 has it: with a sign where a year has not four digits, and
    /// with a year 0, which is 1 BC; `infinity` or `-infinity` for what no calendar has.
    pub fn iso(self) -> String {
        match self.0 {
            i64::MAX => return "infinity".into(),
            i64::MIN => return "-infinity".into(),
            _ => {}
        }
        let (day, micros) = (self.0.div_euclid(MICROS_A_DAY), self.0.rem_euclid(MICROS_A_DAY));
        let (year, month, day) = date(day);
        let year = match year {
            0..=9_999 => format!("{year:04}"),
            year => format!("{year:+05}"),
        };
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }

    /// Reads a date, `2026-01-31`, or a time of it in UTC, `2026-01-31T12:00:00Z`; and whatever
    /// [`DbTime::iso`] writes of years other than those of four digits.
    pub fn from_iso(text: &str) -> Option<DbTime> {
        let unsigned = text.trim_start_matches(['+', '-']);
        let (sign, (year, rest)) = (&text[..text.len() - unsigned.len()], unsigned.split_once('-')?);
        let digits = match sign {
            "" => 4..=4,
            "+" => 5..=6,
            "-" => 4..=6,
            _ => return None,
        };
        if !digits.contains(&year.len()) || !year.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let year: i64 = format!("{sign}{year}").parse().ok()?;
        // The same day of a year with the same calendar that is later than 1970.
        let like = 2_000 + year.rem_euclid(400);
        let midnight = if rest.len() == "01-31".len() { "T00:00:00Z" } else { "" };
        let time = humantime::parse_rfc3339(&format!("{like}-{rest}{midnight}")).ok()?;
        let micros = i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros()).ok()?;
        Some(DbTime(micros + (year - like) / 400 * DAYS_OF_400_YEARS * MICROS_A_DAY))
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

/// The date of a day, counted from 1970-01-01, in the Gregorian calendar: see "days_from_civil" by Howard
/// Hinnant, whose years begin in March.
fn date(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (cycle, day) = (day.div_euclid(DAYS_OF_400_YEARS), day.rem_euclid(DAYS_OF_400_YEARS));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (cycle * 400 + year + next, month, day)
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
        assert_eq!(DbTime(i64::MIN).iso(), "-infinity");
        for text in ["", "yesterday", "2026-13-01", "2026-01-31T12:00:00+01:00", "10000-01-01", "2026-1-1"] {
            assert_eq!(DbTime::from_iso(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_of_any_year_is_written_as_iso_8601_has_it() {
        for (micros, text) in [
            (-1, "1969-12-31T23:59:59.999999Z"),
            (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),
            (-62_135_596_800_000_001, "0000-12-31T23:59:59.999999Z"),
            (-62_167_219_200_000_001, "-0001-12-31T23:59:59.999999Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
            (253_402_300_800_000_000, "+10000-01-01T00:00:00.000000Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
        ] {
            assert_eq!(DbTime(micros).iso(), text);
            assert_eq!(DbTime::from_iso(text), Some(DbTime(micros)), "{text}");
        }
    }
}
