//! Finds the highest rate at which something holds, in a bounded number of steps: doubles or halves until one rate held
//! and one did not, then goes to their geometric mean until they are close.
//!
//! Pure: says which rate to try next, and is told what came of it. A rate of which nothing was shown is tried twice,
//! then the search goes on below it; after three such rates and none that held it ends, since lower ones take longer and
//! say no more.

use serde::{Deserialize, Serialize};

/// What came of one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    Held,
    NotHeld,
    /// Neither was shown.
    NotShown,
    /// The generator was the limit.
    ClientLimited,
}

impl Finding {
    /// As tables print it.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::NotHeld => "did not hold",
            Self::NotShown => "nothing shown",
            Self::ClientLimited => "the generator was the limit",
        }
    }
}

/// Where to search.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) start: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// The two rates are close enough when the higher one is at most this part above the lower one.
    pub(super) precision: f64,
    pub(super) steps: u64,
}

/// A rate to try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Try {
    pub(super) rate: f64,
    /// It was tried before, and nothing was shown.
    pub(super) is_second: bool,
}

/// Rates of which nothing is shown, before any has held.
const UNKNOWN_MAX: u32 = 3;

pub(super) struct Search {
    bounds: Bounds,
    /// The highest rate that held.
    held: Option<f64>,
    /// The lowest rate that did not, or that nothing could be said of.
    ceiling: Option<f64>,
    again: Option<f64>,
    /// Rates of which nothing could be said.
    unknown: u32,
    steps: u64,
}

impl Search {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, held: None, ceiling: None, again: None, unknown: 0, steps: 0 }
    }

    /// `None` when the search is over.
    pub(super) fn next(&self) -> Option<Try> {
        let is_hopeless = self.held.is_none() && self.unknown >= UNKNOWN_MAX;
        if self.steps >= self.bounds.steps || is_hopeless {
            return None;
        }
        if let Some(rate) = self.again {
            return Some(Try { rate, is_second: true });
        }
        let Bounds { start, min, max, precision, .. } = self.bounds;
        let rate = match (self.held, self.ceiling) {
            (None, None) => rounded(start.clamp(min, max)).clamp(min, max),
            (Some(held), None) => rounded(held * 2.0).min(max),
            (None, Some(ceiling)) => rounded(ceiling / 2.0).max(min),
            (Some(held), Some(ceiling)) if ceiling <= held * (1.0 + precision) => return None,
            (Some(held), Some(ceiling)) => rounded((held * ceiling).sqrt()),
        };
        let is_new =
            self.held.is_none_or(|held| rate > held) && self.ceiling.is_none_or(|ceiling| rate < ceiling);
        is_new.then_some(Try { rate, is_second: false })
    }

    /// What came of the rate that was given last.
    pub(super) fn record(&mut self, tried: Try, finding: Finding) {
        self.steps += 1;
        self.again = None;
        match finding {
            Finding::Held => self.held = Some(tried.rate),
            Finding::NotHeld => self.ceiling = Some(tried.rate),
            Finding::NotShown | Finding::ClientLimited if tried.is_second => {
                self.ceiling = Some(tried.rate);
                self.unknown += 1;
            }
            Finding::NotShown | Finding::ClientLimited => self.again = Some(tried.rate),
        }
    }
}

/// Three significant digits: nobody wants to read more, and precision is coarser.
fn rounded(rate: f64) -> f64 {
    let unit = 10f64.powi(rate.log10().floor() as i32 - 2);
    let scaled = (rate / unit).round();
    // Dividing by a whole number is exact where multiplying by a fraction is not.
    if unit < 1.0 { scaled / (1.0 / unit).round() } else { scaled * unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { start: 400.0, min: 1.0, max: 100_000.0, precision: 0.05, steps: 20 };

    /// Plays a search; gives the rates in the order tried, and what held and did not.
    fn search(
        bounds: Bounds,
        mut target: impl FnMut(f64) -> Finding,
    ) -> (Vec<f64>, Option<f64>, Option<f64>) {
        let (mut search, mut tried) = (Search::new(bounds), Vec::new());
        while let Some(next) = search.next() {
            tried.push(next.rate);
            search.record(next, target(next.rate));
            assert!(tried.len() <= bounds.steps as usize);
        }
        (tried, search.held, search.ceiling)
    }

    fn limit(capacity: f64) -> impl FnMut(f64) -> Finding {
        move |rate| if rate <= capacity { Finding::Held } else { Finding::NotHeld }
    }

    #[test]
    fn the_capacity_is_between_two_rates_that_are_close() {
        for capacity in [1.3, 9.0, 77.0, 399.0, 401.0, 1234.5, 25_000.0, 99_000.0] {
            let (tried, held, ceiling) = search(BOUNDS, limit(capacity));
            let (held, ceiling) = (held.unwrap(), ceiling.unwrap());
            assert!(
                held <= capacity && capacity < ceiling && ceiling <= held * 1.05,
                "{capacity}: {tried:?}"
            );
            assert!(tried.len() <= 16, "{capacity}: {tried:?}");
        }
    }

    #[test]
    fn a_good_start_needs_few_steps() {
        let (tried, ..) = search(Bounds { start: 500.0, ..BOUNDS }, limit(930.0));
        assert_eq!(tried.len(), 6, "{tried:?}");
        assert_eq!(tried[..3], [500.0, 1000.0, 707.0]);
    }

    #[test]
    fn the_search_stays_within_its_bounds() {
        let bounds = Bounds { min: 100.0, max: 3000.0, ..BOUNDS };
        let (tried, held, ceiling) = search(bounds, limit(1e9));
        assert_eq!((tried, held, ceiling), (vec![400.0, 800.0, 1600.0, 3000.0], Some(3000.0), None));
        let (tried, held, ceiling) = search(bounds, limit(1.0));
        assert_eq!((tried, held, ceiling), (vec![400.0, 200.0, 100.0], None, Some(100.0)));
        let (tried, held, ceiling) = search(Bounds { steps: 3, ..BOUNDS }, limit(500.0));
        assert_eq!((tried, held, ceiling), (vec![400.0, 800.0, 566.0], Some(400.0), Some(566.0)));
    }

    #[test]
    fn what_shows_nothing_is_tried_twice_and_then_avoided() {
        for nothing in [Finding::NotShown, Finding::ClientLimited] {
            let target = |rate: f64| match rate {
                rate if rate < 700.0 => Finding::Held,
                rate if rate > 900.0 => Finding::NotHeld,
                _ => nothing,
            };
            let (tried, held, ceiling) = search(BOUNDS, target);
            assert_eq!(tried[..4], [400.0, 800.0, 800.0, 566.0]);
            assert!(held.unwrap() < 700.0 && ceiling.unwrap() <= 800.0, "{tried:?}");
        }
        // The second try decides.
        let mut tries = 0;
        let target = |rate: f64| {
            tries += 1;
            if tries == 1 { Finding::NotShown } else { limit(600.0)(rate) }
        };
        let (tried, held, _) = search(BOUNDS, target);
        assert_eq!(tried[..3], [400.0, 400.0, 800.0]);
        assert!(held.unwrap() > 560.0);
    }

    #[test]
    fn a_search_that_learns_nothing_ends() {
        let (tried, held, _) = search(BOUNDS, |_| Finding::ClientLimited);
        assert_eq!((tried, held), (vec![400.0, 400.0, 200.0, 200.0, 100.0, 100.0], None));
        // Not one that has learnt something.
        let target = |rate: f64| if rate < 301.0 { Finding::Held } else { Finding::ClientLimited };
        let (tried, held, _) = search(BOUNDS, target);
        assert_eq!(tried[..4], [400.0, 400.0, 200.0, 283.0]);
        assert_eq!(held, Some(295.0), "{tried:?}");
    }

    #[test]
    fn rates_have_three_digits() {
        let rates = [0.012_34, 1.0, 9.996, 707.106, 123_456.0].map(rounded);
        assert_eq!(rates, [0.0123, 1.0, 10.0, 707.0, 123_000.0]);
    }
}
