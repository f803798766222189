//! The same for many seeds, on all cores.
//! Invariant: the result depends on the seeds alone, not on how many threads worked on it.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What `run` gives for each seed, in their order. `progress` is told how many are done.
pub fn each<T: Send>(seeds: Range<u64>, run: impl Fn(u64) -> T + Sync, progress: impl Fn(u64) + Sync) -> Vec<T> {
    let next = AtomicU64::new(seeds.start);
    let done = AtomicU64::new(0);
    let all = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let made = run(seed);
                    all.lock().expect("nobody panics while holding it").push((seed, made));
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    let mut all = all.into_inner().expect("nobody panics while holding it");
    all.sort_by_key(|(seed, _)| *seed);
    all.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_is_that_of_the_seeds() {
        let squares = super::each(3..200, |seed| seed * seed, |_| {});
        assert!(squares.iter().copied().eq((3..200).map(|seed| seed * seed)));
    }
}
