//! How many requests may be sent a second time.

/// Retries per request, and per second besides, so that a cluster in trouble gets at most a fifth more (Finagle's
/// and linkerd's budget).
const PER_REQUEST: f64 = 0.2;
const PER_SECOND: f64 = 10.0;
/// What can be saved up: ten seconds without load.
const SAVED_MAX: f64 = 100.0;

/// A budget of retries: earned by requests and by time, spent by retries. Each thread has its share of one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    saved: f64,
    saved_max: f64,
    per_second: f64,
    at_ms: u64,
}

impl RetryBudget {
    /// The share of one of `threads` threads.
    pub(crate) fn new(threads: usize, now_ms: u64) -> Self {
        let share = 1.0 / threads as f64;
        // Less than one retry could never be spent.
        let saved_max = (SAVED_MAX * share).max(1.0);
        Self { saved: saved_max, saved_max, per_second: PER_SECOND * share, at_ms: now_ms }
    }

    /// Notes a request.
    pub(crate) fn earn(&mut self) {
        self.saved = (self.saved + PER_REQUEST).min(self.saved_max);
    }

    /// Whether one more retry is allowed; counts it if so.
    pub(crate) fn spend(&mut self, now_ms: u64) -> bool {
        let seconds = now_ms.saturating_sub(self.at_ms) as f64 / 1000.0;
        self.at_ms = self.at_ms.max(now_ms);
        self.saved = (self.saved + seconds * self.per_second).min(self.saved_max);
        let allowed = self.saved >= 1.0;
        if allowed {
            self.saved -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::RetryBudget;

    #[test]
    fn retries_are_a_fifth_of_the_requests_once_savings_are_spent() {
        let mut budget = RetryBudget::new(1, 0);
        while budget.spend(0) {}
        let allowed = (0..1000).filter(|_| {
            budget.earn();
            budget.spend(0)
        });
        let allowed = allowed.count();
        assert!((195..=205).contains(&allowed), "{allowed}");
    }

    #[test]
    fn time_alone_earns_ten_a_second() {
        let mut budget = RetryBudget::new(1, 0);
        while budget.spend(0) {}
        assert_eq!((0..100).filter(|_| budget.spend(1000)).count(), 10);
    }

    #[test]
    fn threads_share_one_budget() {
        let mut budgets: Vec<_> = (0..4).map(|_| RetryBudget::new(4, 0)).collect();
        let mut spent = |now_ms| {
            budgets.iter_mut().map(|budget| (0..1000).filter(|_| budget.spend(now_ms)).count()).sum::<usize>()
        };
        assert_eq!((spent(0), spent(2000)), (100, 20));
    }
}
