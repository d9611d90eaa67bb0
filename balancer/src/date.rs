//! Moments as people read them, in UTC.
//!
//! This module reads no clock, and knows neither time zones nor leap seconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// 1 January 1970 was a Thursday.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A day of the calendar and a time of that day.
pub(crate) struct Date {
    weekday: usize,
    year: u64,
    /// From 1.
    month: u64,
    day: u64,
    /// Of the day.
    second: u64,
    millisecond: u32,
}

impl Date {
    /// Times before 1970 are taken for its beginning.
    pub(crate) fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let weekday = (days % 7) as usize;
        // Days from 1 March of year 0, in eras of 400 years; months then begin in March, so that a leap day comes last.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let march_month = (5 * day + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let day = day - (153 * march_month + 2) / 5 + 1;
        Self { weekday, year, month, day, second, millisecond: since.subsec_millis() }
    }

    /// As RFC 3339 has it, to the millisecond.
    pub(crate) fn timestamp(&self) -> String {
        let Self { year, month, day, millisecond, .. } = self;
        format!("{year:04}-{month:02}-{day:02}T{}.{millisecond:03}Z", self.time())
    }

    /// As HTTP has it (RFC 9110, 5.6.7), to the second.
    pub(crate) fn http(&self) -> String {
        let (weekday, month) = (WEEKDAYS[self.weekday], MONTHS[self.month as usize - 1]);
        let Self { year, day, .. } = self;
        format!("{weekday}, {day:02} {month} {year:04} {} GMT", self.time())
    }

    fn time(&self) -> String {
        let second = self.second;
        format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_are_counted_as_calendars_do() {
        for (second, timestamp, http) in [
            (0, "1970-01-01T00:00:00.000Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "1994-11-06T08:49:37.000Z", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "2000-02-29T00:00:00.000Z", "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_799, "2000-02-29T23:59:59.000Z", "Tue, 29 Feb 2000 23:59:59 GMT"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z", "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z", "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z", "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            let date = Date::of(UNIX_EPOCH + Duration::from_secs(second));
            assert_eq!((date.timestamp().as_str(), date.http().as_str()), (timestamp, http));
        }
    }
}
