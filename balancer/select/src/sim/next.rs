//! Which of many backends is the next to do something.

use super::machine::NEVER;

/// The smallest of `n` times under changes of single ones: a tournament, log2(n) comparisons per change.
#[derive(Debug)]
pub(super) struct Next {
    /// A complete binary tree: the winner of all at 1, the leaves from `leaves` on. Index 0 is not used.
    winners: Vec<u32>,
    times: Vec<u64>,
    leaves: usize,
}

impl Next {
    /// All times are [`NEVER`].
    pub(super) fn new(count: usize) -> Self {
        let leaves = count.next_power_of_two();
        let mut winners = vec![0; 2 * leaves];
        for node in (1..2 * leaves).rev() {
            winners[node] = if node >= leaves { (node - leaves) as u32 } else { winners[2 * node] };
        }
        Self { winners, times: vec![NEVER; leaves], leaves }
    }

    /// The earliest time and whose it is; of equal ones, that of the lowest index.
    pub(super) fn first(&self) -> (u64, usize) {
        let winner = self.winners[1] as usize;
        (self.times[winner], winner)
    }

    pub(super) fn set(&mut self, index: usize, time_ns: u64) {
        self.times[index] = time_ns;
        let mut node = (index + self.leaves) / 2;
        while node > 0 {
            let (left, right) = (self.winners[2 * node], self.winners[2 * node + 1]);
            let later = self.times[right as usize] < self.times[left as usize];
            self.winners[node] = if later { right } else { left };
            node /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn first_is_the_smallest_of_all() {
        for count in [1, 2, 5, 8, 100] {
            let (mut next, mut times) = (Next::new(count), vec![NEVER; count]);
            assert_eq!(next.first(), (NEVER, 0));
            let mut random = Random::new(count as u64);
            for _ in 0..1000 {
                let (index, time) = (random.below(count), random.below(50) as u64);
                times[index] = time;
                next.set(index, time);
                let smallest = *times.iter().min().expect("not empty");
                let index = times.iter().position(|&t| t == smallest).expect("found");
                assert_eq!(next.first(), (smallest, index));
            }
        }
    }
}
