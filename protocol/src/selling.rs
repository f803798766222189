//! What strangers may have of own hardware: the one rule behind the advertisement, the probe's answer and the admission.
//! Invariant: the owner's jobs and the reserved slots come first; a closed market gives strangers nothing.
//!
//! Nothing here is stateful but [`Utilisation`], the owner's own use over the last minutes.

use crate::time::Now;
use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;

/// Most windows of a schedule.
pub const WINDOWS_MAX: usize = 16;
/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;
/// The span over which utilisation is measured.
pub const UTILISATION_SPAN: Duration = Duration::from_secs(300);
/// Its resolution.
const BUCKET_US: u64 = 15_000_000;

/// A daily stretch of time in UTC, from its first minute up to its last. It may run over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first minute of the day that lies within, 0 to 1439.
    pub from: u16,
    /// The first minute after it, 0 to 1439.
    pub until: u16,
}

impl Window {
    const fn contains(self, minute: u16) -> bool {
        if self.from < self.until {
            self.from <= minute && minute < self.until
        } else {
            self.from <= minute || minute < self.until
        }
    }
}

/// When strangers are served at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sell {
    /// Never.
    Never,
    /// Whenever a slot is idle.
    #[default]
    Always,
    /// Within these daily windows; at most [`WINDOWS_MAX`]. Work that runs at a window's end runs on.
    Schedule(Vec<Window>),
    /// While the owner's own jobs used less than so many per cent of the slots over the last [`UTILISATION_SPAN`].
    Below(u8),
}

/// Why a text is no [`Sell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SellError {
    /// It is none of the forms.
    #[error("neither `always`, `never`, windows such as `22:00-06:00`, nor `below 70%`")]
    Form,
    /// A time is none.
    #[error("a time is not between 00:00 and 23:59")]
    Time,
    /// A window is empty.
    #[error("a window ends when it begins; the whole day is `always`")]
    Empty,
    /// More than [`WINDOWS_MAX`] windows.
    #[error("more than 16 windows")]
    TooMany,
    /// The share is out of range.
    #[error("the share is not between 1% and 100%")]
    Share,
}

impl FromStr for Sell {
    type Err = SellError;

    fn from_str(text: &str) -> Result<Self, SellError> {
        let text = text.trim();
        match text {
            "always" => return Ok(Self::Always),
            "never" => return Ok(Self::Never),
            _ => {}
        }
        if let Some(share) = text.strip_prefix("below ") {
            let digits = share.trim().strip_suffix('%').ok_or(SellError::Form)?;
            let share = digits.trim().parse::<u8>().map_err(|_| SellError::Share)?;
            return if (1..=100).contains(&share) { Ok(Self::Below(share)) } else { Err(SellError::Share) };
        }
        let mut windows = Vec::new();
        for part in text.split(',') {
            let (from, until) = part.split_once('-').ok_or(SellError::Form)?;
            let window = Window { from: minute(from)?, until: minute(until)? };
            if window.from == window.until {
                return Err(SellError::Empty);
            }
            if windows.len() == WINDOWS_MAX {
                return Err(SellError::TooMany);
            }
            windows.push(window);
        }
        Ok(Self::Schedule(windows))
    }
}

fn minute(text: &str) -> Result<u16, SellError> {
    let (hour, minute) = text.trim().split_once(':').ok_or(SellError::Form)?;
    let number = |digits: &str, below: u16| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u16>().ok().filter(|number| plain && *number < below);
        number.ok_or(SellError::Time)
    };
    Ok(number(hour, 24)? * 60 + number(minute, 60)?)
}

impl std::fmt::Display for Sell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Always => f.write_str("always"),
            Self::Below(percent) => write!(f, "below {percent}%"),
            Self::Schedule(windows) => {
                for (index, Window { from, until }) in windows.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, until / 60, until % 60)?;
                }
                Ok(())
            }
        }
    }
}

/// What one model's slots do at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Jobs that may run at once.
    pub slots: u32,
    /// The owner's jobs that run.
    pub own_running: u32,
    /// Strangers' jobs that run.
    pub strangers_running: u32,
    /// The owner's jobs that wait for a slot.
    pub own_pending: u32,
    /// The owner's use of the slots over the last minutes, in per cent.
    pub utilisation_percent: u8,
}

/// An owner's terms for strangers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selling {
    /// When.
    pub mode: Sell,
    /// Slots per model that stay idle for the owner's next jobs.
    pub reserved_slots: u32,
}

impl Selling {
    /// How many more of strangers' jobs may start now. Owner's jobs that run or wait, and the reserved slots, are taken off.
    #[must_use]
    pub fn slots_for_strangers(&self, now: Now, at: Slots) -> u32 {
        let open = match &self.mode {
            Sell::Never => false,
            Sell::Always => true,
            Sell::Schedule(windows) => is_within(windows, now),
            Sell::Below(percent) => at.utilisation_percent < *percent,
        };
        if !open {
            return 0;
        }
        let taken = at.own_running.saturating_add(at.strangers_running).saturating_add(at.own_pending);
        at.slots.saturating_sub(self.reserved_slots).saturating_sub(taken)
    }

    /// Whether a schedule is closed.
    #[must_use]
    pub fn is_closed(&self, now: Now) -> bool {
        match &self.mode {
            Sell::Schedule(windows) => !is_within(windows, now),
            Sell::Never | Sell::Always | Sell::Below(_) => false,
        }
    }

    /// When the schedule opens or closes next; `None` for what depends on no clock.
    #[must_use]
    pub fn turns_at(&self, now: Now) -> Option<Now> {
        let Sell::Schedule(windows) = &self.mode else { return None };
        let today = now.ms() / DAY_MS * DAY_MS;
        let open = is_within(windows, now);
        let borders = windows.iter().flat_map(|window| [window.from, window.until]);
        let moments = borders.flat_map(|border| {
            let at = today + u64::from(border) * MINUTE_MS;
            [Now::from_ms(at), Now::from_ms(at + DAY_MS)]
        });
        moments.filter(|at| *at > now && is_within(windows, *at) != open).min()
    }
}

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = DAY_MINUTES as u64 * MINUTE_MS;

fn is_within(windows: &[Window], now: Now) -> bool {
    let minute = u16::try_from(now.ms() % DAY_MS / MINUTE_MS).expect("below 1440");
    windows.iter().any(|window| window.contains(minute))
}

/// The owner's use of some slots over the last [`UTILISATION_SPAN`], exact to 15 s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utilisation {
    /// Busy and possible slot time of each stretch of [`BUCKET_US`], newest last.
    buckets: VecDeque<Bucket>,
    at: Option<Now>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    number: u64,
    busy: u64,
    whole: u64,
}

impl Utilisation {
    /// Notes that from the last note until `now`, `running` of `slots` were in use.
    pub fn note(&mut self, now: Now, running: u32, slots: u32) {
        let span = u64::try_from(UTILISATION_SPAN.as_micros()).expect("minutes");
        let Some(before) = self.at.replace(now) else { return };
        let mut at = before.0.max(now.0.saturating_sub(span));
        while at < now.0 {
            let number = at / BUCKET_US;
            let until = now.0.min((number + 1) * BUCKET_US);
            let bucket = match self.buckets.back_mut() {
                Some(last) if last.number == number => last,
                _ => {
                    self.buckets.push_back(Bucket { number, busy: 0, whole: 0 });
                    self.buckets.back_mut().expect("just pushed")
                }
            };
            bucket.busy += (until - at) * u64::from(running.min(slots));
            bucket.whole += (until - at) * u64::from(slots);
            at = until;
        }
        let oldest = now.0.saturating_sub(span) / BUCKET_US;
        while self.buckets.front().is_some_and(|first| first.number < oldest) {
            self.buckets.pop_front();
        }
    }

    /// The share of slot time in use, in per cent, rounded down; 0 before anything was noted.
    #[must_use]
    pub fn percent(&self) -> u8 {
        let busy: u64 = self.buckets.iter().map(|bucket| bucket.busy).sum();
        let whole: u64 = self.buckets.iter().map(|bucket| bucket.whole).sum();
        let percent = (u128::from(busy) * 100).checked_div(u128::from(whole)).unwrap_or_default();
        u8::try_from(percent).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some day at that time, UTC.
    fn at(hour: u64, minute: u64) -> Now {
        Now::from_ms(1_700_006_400_000 / DAY_MS * DAY_MS + (hour * 60 + minute) * MINUTE_MS)
    }

    #[test]
    fn modes_are_read_as_written() {
        for text in ["always", "never", "22:00-06:00", "00:00-07:30, 12:00-13:00", "below 70%", "below 100%"] {
            assert_eq!(text.parse::<Sell>().map(|sell| sell.to_string()), Ok(text.to_owned()));
        }
        for (text, error) in [
            ("", SellError::Form),
            ("sometimes", SellError::Form),
            ("below 70", SellError::Form),
            ("below 0%", SellError::Share),
            ("below 101%", SellError::Share),
            ("below x%", SellError::Share),
            ("22:00", SellError::Form),
            ("22-06", SellError::Form),
            ("24:00-06:00", SellError::Time),
            ("22:60-06:00", SellError::Time),
            ("2:00-06:00", SellError::Time),
            ("+2:00-06:00", SellError::Time),
            ("06:00-06:00", SellError::Empty),
        ] {
            assert_eq!(text.parse::<Sell>(), Err(error), "{text:?}");
        }
        let many = vec!["01:00-02:00"; WINDOWS_MAX + 1].join(",");
        assert_eq!(many.parse::<Sell>(), Err(SellError::TooMany));
    }

    #[test]
    fn strangers_get_what_neither_the_owner_nor_the_reserve_needs() {
        let slots = |slots, own_running, strangers_running, own_pending| Slots {
            slots,
            own_running,
            strangers_running,
            own_pending,
            utilisation_percent: 50,
        };
        let noon = at(12, 0);
        // mode, reserved, slots, own, strangers, waiting, free
        for (mode, reserved, s, own, strangers, waiting, free) in [
            ("always", 0, 4, 0, 0, 0, 4),
            ("always", 0, 4, 1, 2, 0, 1),
            ("always", 1, 4, 0, 0, 0, 3),
            ("always", 1, 4, 1, 2, 0, 0),
            ("always", 0, 4, 2, 0, 1, 1),
            ("always", 0, 4, 4, 0, 9, 0),
            ("always", 9, 4, 0, 0, 0, 0),
            ("always", 0, 2, 3, 3, 0, 0),
            ("always", u32::MAX, 4, u32::MAX, u32::MAX, u32::MAX, 0),
            ("never", 0, 4, 0, 0, 0, 0),
            ("11:00-13:00", 0, 4, 0, 0, 0, 4),
            ("13:00-11:00", 0, 4, 0, 0, 0, 0),
            ("below 51%", 1, 4, 0, 0, 0, 3),
            ("below 50%", 0, 4, 0, 0, 0, 0),
        ] {
            let selling = Selling { mode: mode.parse().unwrap(), reserved_slots: reserved };
            let got = selling.slots_for_strangers(noon, slots(s, own, strangers, waiting));
            assert_eq!(
                got, free,
                "{mode}, {reserved} reserved, {s} slots, {own} own, {strangers} strangers, {waiting}"
            );
        }
    }

    #[test]
    fn a_schedule_opens_and_closes_on_the_minute_also_over_midnight() {
        let selling = Selling { mode: "22:00-06:00, 05:00-08:00".parse().unwrap(), reserved_slots: 0 };
        let free = |now| selling.slots_for_strangers(now, Slots { slots: 1, ..Slots::default() });
        for (hour, minute, open) in [(21, 59, 0), (22, 0, 1), (0, 0, 1), (5, 59, 1), (6, 0, 1), (7, 59, 1), (8, 0, 0)] {
            assert_eq!(free(at(hour, minute)), open, "{hour}:{minute:02}");
        }
        assert_eq!(selling.turns_at(at(12, 0)), Some(at(22, 0)));
        assert_eq!(selling.turns_at(at(22, 0)), Some(at(32, 0)), "the overlap at six is no turn");
        assert_eq!(Selling::default().turns_at(at(12, 0)), None);
    }

    #[test]
    fn utilisation_is_that_of_the_last_minutes() {
        let mut used = Utilisation::default();
        let mut now = at(1, 0);
        let mut pass = |used: &mut Utilisation, seconds, running| {
            now = now.after(Duration::from_secs(seconds));
            used.note(now, running, 4);
            used.percent()
        };
        assert_eq!(pass(&mut used, 0, 0), 0);
        assert_eq!(pass(&mut used, 60, 4), 100, "all it has seen");
        assert_eq!(pass(&mut used, 60, 0), 50);
        assert_eq!(pass(&mut used, 180, 2), 50);
        assert_eq!(pass(&mut used, 300, 1), 25, "older use is forgotten");
        assert_eq!(pass(&mut used, 86_400, 9), 100, "a long stretch, and more running than there are slots");
        assert!(used.buckets.len() <= 22);
        used.note(Now(0), 4, 4);
        assert_eq!(used.percent(), 100, "time that goes back adds nothing");
    }
}
