//! The rules of `session.py` for samples that simply follow, and what of them waits for the end of the loop's turn.

use std::cell::Cell;

use crate::raw::Raw;

const MAX_POSITION: i64 = (1 << 53) - 1;
const KEPT: usize = 8; // samples for which there is always room
const MAX_AHEAD_US: i64 = 60_000_000;
const CATCH_UP: f64 = 0.875;
const JUMP_US: i64 = 1_000_000; // the twin tells of it

/// The state of a session between two messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionState {
    pub next_position: i64,
    pub count: i64,
    pub last_time_us: i64,
}

/// What does not change in a session: the time between two samples, 0 if unknown, and the age that is refused.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub period_us: f64,
    pub max_age_us: i64,
}

/// Samples that follow each other from `position`: `times_us[i]` is the time of the i-th row of `values`.
#[derive(Default)]
pub struct Run {
    pub position: i64,
    pub times_us: Vec<i64>,
    pub values: Vec<f32>,
    pub n_clamped: usize, // of them, moved in time
}

impl Run {
    pub fn clear(&mut self) {
        self.times_us.clear();
        self.values.clear();
        self.n_clamped = 0;
        self.times_us.shrink_to(KEPT); // what a burst took is not kept for an idle relay
        self.values.shrink_to(8 * KEPT);
    }

    pub fn n_channels(&self) -> usize {
        self.values.len() / self.times_us.len()
    }

    pub fn end(&self) -> i64 {
        self.position + self.times_us.len() as i64
    }

    /// Write it into the memory of a ring, to which `n_written` samples were written before.
    pub fn write(&self, times_us: &[Cell<i64>], samples: &[Cell<f32>], n_written: usize) {
        let (capacity, n_channels) = (times_us.len(), self.values.len() / self.times_us.len().max(1));
        for (i, &time_us) in self.times_us.iter().enumerate() {
            let at = (n_written + i) % capacity;
            times_us[at].set(time_us);
            for (cell, &value) in samples[at * n_channels..].iter().zip(&self.values[i * n_channels..][..n_channels]) {
                cell.set(value);
            }
        }
    }

    /// Take a message in, and return the session's state then; None, and nothing has changed, unless it follows.
    pub fn accept(&mut self, raw: &Raw, state: SessionState, rules: Rules, now_us: i64) -> Option<SessionState> {
        let Rules { period_us, max_age_us } = rules;
        let n = raw.n_samples as i64;
        let position = raw.position.unwrap_or(state.count);
        if position != state.next_position || position + n > MAX_POSITION || (n > 1 && period_us == 0.0) {
            return None;
        }
        let length_us = if n == 1 { 0 } else { spaced_us(n - 1, period_us) };
        let first_us = raw.time_us.unwrap_or(now_us - length_us);
        let in_range = (now_us - max_age_us).max(0)..=now_us + MAX_AHEAD_US;
        if !in_range.contains(&first_us) || !in_range.contains(&first_us.checked_add(length_us)?) {
            return None;
        }
        let last_us = state.last_time_us;
        if last_us - raw.time_us.unwrap_or(now_us) >= JUMP_US {
            return None;
        }
        if self.times_us.is_empty() {
            self.position = position;
        }
        let given_us = |i: i64| first_us + if i == 0 { 0 } else { spaced_us(i, period_us) };
        if first_us >= last_us {
            self.times_us.extend((0..n).map(given_us));
        } else {
            let latest_us = if last_us <= now_us { now_us } else { last_us.max(now_us + MAX_AHEAD_US) };
            let clamped = |i: i64| given_us(i).max((last_us + spaced_us(i + 1, CATCH_UP * period_us)).min(latest_us));
            self.n_clamped += (0..n).filter(|&i| clamped(i) != given_us(i)).count();
            self.times_us.extend((0..n).map(clamped));
        }
        self.values.extend_from_slice(&raw.values);
        let last_time_us = *self.times_us.last()?;
        Some(SessionState { next_position: position + n, count: position + n, last_time_us })
    }
}

fn spaced_us(i: i64, period_us: f64) -> i64 {
    (i as f64 * period_us).round_ties_even() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: SessionState = SessionState { next_position: 5, count: 5, last_time_us: 1_000_000 };

    fn rules(period_us: f64) -> Rules {
        Rules { period_us, max_age_us: 1_500_000 }
    }

    fn raw(position: Option<i64>, time_us: Option<i64>, n_samples: usize) -> Raw {
        Raw { position, time_us, n_samples, values: vec![0.0; n_samples] }
    }

    #[test]
    fn samples_that_follow_are_spaced_and_never_run_backwards() {
        let mut run = Run::default();
        let state = run.accept(&raw(None, Some(999_000), 3), STATE, rules(1_000.0), 2_000_000).unwrap();
        assert_eq!(run.times_us, [1_000_875, 1_001_750, 1_002_625]);
        assert_eq!(state, SessionState { next_position: 8, count: 8, last_time_us: 1_002_625 });
        let state = run.accept(&raw(Some(8), None, 1), state, rules(1_000.0), 2_000_000).unwrap();
        assert_eq!((run.position, run.end(), state.last_time_us, run.n_clamped), (5, 9, 2_000_000, 3));
    }

    #[test]
    fn what_is_moved_in_time_meets_the_times_it_was_given_and_goes_not_beyond_now() {
        let mut run = Run::default();
        let state = SessionState { last_time_us: 1_000_000, ..STATE };
        let state = run.accept(&raw(None, Some(999_900), 4), state, rules(1_000.0), 1_001_500).unwrap();
        assert_eq!(run.times_us, [1_000_875, 1_001_500, 1_001_900, 1_002_900]);
        assert_eq!((state.last_time_us, run.n_clamped), (1_002_900, 2));
        run.accept(&raw(None, Some(1_000_000), 1), state, rules(1_000.0), 1_001_500).unwrap();
        assert_eq!(run.times_us[4], 1_003_775); // the one before was in the future
    }

    #[test]
    fn a_ring_is_overwritten_from_its_beginning() {
        let run = Run { times_us: vec![1, 2, 3], values: vec![1.0, 1.5, 2.0, 2.5, 3.0, 3.5], ..Run::default() };
        let (times_us, samples) = (vec![Cell::new(0); 4], vec![Cell::new(0.0); 8]);
        run.write(&times_us, &samples, 6);
        assert_eq!(times_us.iter().map(Cell::get).collect::<Vec<_>>(), [3, 0, 1, 2]);
        let values: Vec<f32> = samples.iter().map(Cell::get).collect();
        assert_eq!(values, [3.0, 3.5, 0.0, 0.0, 1.0, 1.5, 2.0, 2.5]);
    }

    #[test]
    fn what_does_not_simply_follow_changes_nothing() {
        let mut run = Run::default();
        for (raw, state, period_us) in [
            (raw(Some(6), None, 1), STATE, 1_000.0),
            (raw(Some(4), None, 1), STATE, 1_000.0),
            (raw(None, None, 1), SessionState { count: 4, ..STATE }, 1_000.0),
            (raw(None, None, 2), STATE, 0.0),
            (raw(None, Some(-1), 1), STATE, 1_000.0),
            (raw(None, Some(499_999), 1), STATE, 1_000.0),
            (raw(None, Some(2_000_001 + MAX_AHEAD_US), 1), STATE, 1_000.0),
            (raw(None, Some(i64::MAX), 2), STATE, 1_000.0),
            (raw(None, Some(0), 1), SessionState { last_time_us: JUMP_US, ..STATE }, 1_000.0),
            (
                raw(None, None, 1),
                SessionState { next_position: MAX_POSITION, count: MAX_POSITION, last_time_us: 0 },
                1_000.0,
            ),
        ] {
            assert!(run.accept(&raw, state, rules(period_us), 2_000_000).is_none(), "{raw:?} {state:?}");
        }
        assert!(run.times_us.is_empty() && run.values.is_empty());
    }
}
