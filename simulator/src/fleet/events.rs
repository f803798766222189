//! What is due and when: messages under way, and each replica's next step.
//! Invariant: what is due at the same time comes out in one fixed order, replicas by number, then messages as sent.

use super::job::JobKey;
use super::policy::{GatewayId, ReplicaId};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A follow-up request is made.
    Arrive(JobKey),
    /// A job reaches the replica it was sent to.
    Deliver(JobKey),
    /// A job reaches the gateway it was forwarded to.
    Forwarded(JobKey),
    /// The first text reaches the gateway that sent the job.
    First(JobKey),
    /// The last text does.
    Done(JobKey),
    /// The replica's refusal does.
    Refused(JobKey),
    /// News that the replica stopped the job for its owner's.
    Cut(JobKey),
    /// The gateway has heard nothing for too long.
    Silent(JobKey),
    /// A waiting job's time is up, if it still waits.
    Expire(JobKey),
    /// A probe reaches its replica.
    Probe(u32),
    /// A probe's answer reaches its gateway.
    Answer(u32),
    /// A probe is given up, if it is still out.
    ProbeLimit(u32, u32),
    /// A gateway looks at its queue again.
    Retry(GatewayId),
    /// A replica dies.
    Down(ReplicaId),
    /// It is back, with nothing in it.
    Up(ReplicaId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    at_us: u64,
    order: u64,
    event: Event,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Earliest first, in a heap that gives the greatest.
        (other.at_us, other.order).cmp(&(self.at_us, self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Messages and timers.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Entry>,
    order: u64,
}

impl Events {
    /// Adds an event.
    pub(super) fn push(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.heap.push(Entry { at_us, order: self.order, event });
    }

    /// When the next is due; `u64::MAX` if there is none.
    pub(super) fn next_at(&self) -> u64 {
        self.heap.peek().map_or(u64::MAX, |entry| entry.at_us)
    }

    /// Takes the next.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.heap.pop().map(|entry| entry.event)
    }
}

/// The next step of every replica: a winner tree, so that a change costs the logarithm and nothing stale is left behind.
#[derive(Debug)]
pub(super) struct Wakes {
    /// `tree[1]` is the winner; leaves from `leaves` on. Each is the time and the replica.
    tree: Vec<(u64, u32)>,
    leaves: usize,
}

impl Wakes {
    /// No replica has anything to do.
    pub(super) fn new(replicas: usize) -> Self {
        let leaves = replicas.max(1).next_power_of_two();
        Self { tree: vec![(u64::MAX, 0); 2 * leaves], leaves }
    }

    /// Sets when that replica is next to be woken; `None` for never.
    pub(super) fn set(&mut self, replica: ReplicaId, at_us: Option<u64>) {
        let mut node = self.leaves + replica.index();
        self.tree[node] = (at_us.unwrap_or(u64::MAX), replica.0);
        while node > 1 {
            node /= 2;
            let winner = self.tree[2 * node].min(self.tree[2 * node + 1]);
            if self.tree[node] == winner {
                return;
            }
            self.tree[node] = winner;
        }
    }

    /// The earliest time, and whose it is. The time is `u64::MAX` if there is none.
    pub(super) fn next(&self) -> (u64, ReplicaId) {
        let (at_us, replica) = self.tree[1];
        (at_us, ReplicaId(replica))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;

    #[test]
    fn events_come_in_order_of_time_then_as_sent() {
        let mut events = Events::default();
        for (at_us, replica) in [(5, 0), (3, 1), (5, 2), (3, 3)] {
            events.push(at_us, Event::Up(ReplicaId(replica)));
        }
        let mut order = Vec::new();
        while let Some(Event::Up(replica)) = events.pop() {
            order.push(replica.0);
        }
        assert_eq!(order, [1, 3, 0, 2]);
        assert_eq!(events.next_at(), u64::MAX);
    }

    #[test]
    fn the_tree_agrees_with_a_search() {
        for replicas in [1, 2, 5, 8, 13] {
            let mut draws = Draws::new(replicas, "wakes");
            let mut wakes = Wakes::new(replicas as usize);
            let mut plain = vec![u64::MAX; replicas as usize];
            for _ in 0..500 {
                let replica = draws.below(replicas) as u32;
                let at_us = (draws.below(4) > 0).then(|| draws.below(50));
                wakes.set(ReplicaId(replica), at_us);
                plain[replica as usize] = at_us.unwrap_or(u64::MAX);
                let first = plain.iter().enumerate().map(|(index, at)| (*at, index as u32)).min().unwrap();
                assert_eq!(wakes.next().0, first.0);
                if first.0 < u64::MAX {
                    assert_eq!(wakes.next().1, ReplicaId(first.1));
                }
            }
        }
    }
}
