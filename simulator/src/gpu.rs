//! A simple GPU: some slots, each with a rate of its own, and a short queue before them.
//! Invariant: work ends once, by finishing, failing or being stopped; a continuation gives exactly the rest of the answer.

use crate::oracle::{self, Answer};
use crate::scenario::GpuRules;
use spillway_protocol::WorkId;
use std::collections::{BTreeMap, VecDeque};

/// Requests that may wait for a slot; more are turned away as busy.
const QUEUE_MAX: usize = 16;
/// What a request takes before its first text even if its prompt is short, in microseconds.
const OVERHEAD_US: u64 = 20_000;

/// One piece of work.
#[derive(Clone, Debug)]
struct Task {
    answer: Vec<u8>,
    /// How much of `answer` is out, or was delivered before.
    given: usize,
    /// Prompt and prefix still to be read, in bytes.
    prefill: u64,
    /// The first event, without text, is out.
    begun: bool,
}

/// What a GPU tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// An event with some text.
    Output(Vec<u8>),
    /// All is out.
    Finished,
    /// The request is not valid.
    Rejected,
}

/// What became of work that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It runs: its first event is due after that many microseconds.
    Running(u64),
    /// It waits.
    Waiting,
    /// There is no room.
    Busy,
}

/// The prefix that came with some work is not what this model would have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignPrefix;

/// One node's GPU.
#[derive(Debug)]
pub struct Gpu {
    rules: GpuRules,
    running: BTreeMap<WorkId, Task>,
    waiting: VecDeque<(WorkId, Task)>,
}

impl Gpu {
    /// An idle one.
    #[must_use]
    pub const fn new(rules: GpuRules) -> Self {
        Self { rules, running: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// What it is.
    #[must_use]
    pub const fn rules(&self) -> &GpuRules {
        &self.rules
    }

    /// How much it has to do.
    #[must_use]
    pub fn load(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Slots that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        (self.rules.slots as usize).saturating_sub(self.load())
    }

    /// Takes work on.
    ///
    /// # Errors
    /// The prefix is not the beginning of the answer: whoever sent it lost or doubled text.
    pub fn run(&mut self, work: WorkId, body: &[u8], prefix: &[u8]) -> Result<Taken, ForeignPrefix> {
        let prefill = (body.len() + prefix.len()) as u64;
        let task = match oracle::answer(body) {
            Answer::Rejected => Task { answer: Vec::new(), given: usize::MAX, prefill, begun: false },
            Answer::Text(answer) => {
                if answer.get(..prefix.len()).is_none_or(|start| !oracle::agrees(prefix, start)) {
                    return Err(ForeignPrefix);
                }
                Task { answer, given: prefix.len(), prefill, begun: false }
            }
        };
        if self.running.len() < self.rules.slots as usize {
            let wait = self.prefill_us(&task);
            self.running.insert(work, task);
            return Ok(Taken::Running(wait));
        }
        if self.waiting.len() >= QUEUE_MAX {
            return Ok(Taken::Busy);
        }
        self.waiting.push_back((work, task));
        Ok(Taken::Waiting)
    }

    fn prefill_us(&self, task: &Task) -> u64 {
        OVERHEAD_US + task.prefill * 1_000_000 / self.rules.prefill_bytes_per_s
    }

    /// The next thing of running work, and after how many microseconds the one after it is due, if there is one.
    /// `None` for work that is not running.
    pub fn step(&mut self, work: WorkId) -> Option<(Made, Option<u64>)> {
        let task = self.running.get_mut(&work)?;
        if task.given == usize::MAX {
            self.running.remove(&work);
            return Some((Made::Rejected, None));
        }
        let text_us = |bytes: usize| (bytes as u64 * 1_000_000 / self.rules.bytes_per_s).max(1);
        if !std::mem::replace(&mut task.begun, true) {
            let end = oracle::chunk_end(&task.answer, task.given, self.rules.event_bytes as usize);
            return Some((Made::Output(oracle::event(b"")), Some(text_us(end - task.given))));
        }
        if task.given == task.answer.len() {
            self.running.remove(&work);
            return Some((Made::Finished, None));
        }
        let end = oracle::chunk_end(&task.answer, task.given, self.rules.event_bytes as usize);
        let event = oracle::event(&task.answer[task.given..end]);
        task.given = end;
        let next = oracle::chunk_end(&task.answer, end, self.rules.event_bytes as usize);
        Some((Made::Output(event), Some(text_us(next - end))))
    }

    /// Forgets work.
    pub fn stop(&mut self, work: WorkId) {
        self.running.remove(&work);
        self.waiting.retain(|(waiting, _)| *waiting != work);
    }

    /// Starts the next in the queue if a slot is free: its number, and when its first event is due.
    pub fn next(&mut self) -> Option<(WorkId, u64)> {
        if self.running.len() >= self.rules.slots as usize {
            return None;
        }
        let (work, task) = self.waiting.pop_front()?;
        let wait = self.prefill_us(&task);
        self.running.insert(work, task);
        Some((work, wait))
    }

    /// Drops all work, and names it.
    pub fn fail(&mut self) -> Vec<WorkId> {
        let all = self.running.keys().copied().chain(self.waiting.iter().map(|(work, _)| *work)).collect();
        self.running.clear();
        self.waiting.clear();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(slots: u32) -> Gpu {
        Gpu::new(GpuRules { model: "m".into(), slots, bytes_per_s: 100, prefill_bytes_per_s: 1000, event_bytes: 10 })
    }

    /// All text that work gives, and how long it takes after the first event.
    fn drain(gpu: &mut Gpu, work: WorkId) -> (Vec<u8>, u64) {
        let (mut text, mut micros) = (Vec::new(), 0);
        loop {
            match gpu.step(work).expect("it runs") {
                (Made::Output(event), wait) => {
                    text.extend_from_slice(oracle::text_of(&event));
                    micros += wait.expect("more follows");
                }
                (Made::Finished, wait) => {
                    assert_eq!(wait, None);
                    return (text, micros);
                }
                (Made::Rejected, _) => panic!("rejected"),
            }
        }
    }

    #[test]
    fn a_continuation_gives_exactly_the_rest_at_the_rate() {
        let body = oracle::body(100, 95, [3; 16], false);
        let Answer::Text(whole) = oracle::answer(&body) else { panic!("rejected") };
        for given in [0, oracle::chunk_end(&whole, 0, 40), whole.len()] {
            let mut gpu = gpu(1);
            let taken = gpu.run(WorkId(1), &body, &whole[..given]).unwrap();
            assert_eq!(taken, Taken::Running(OVERHEAD_US + (100 + given as u64) * 1000));
            let (text, micros) = drain(&mut gpu, WorkId(1));
            assert_eq!(text, whole[given..]);
            let ideal = (whole.len() - given) as u64 * 10_000;
            assert!((ideal..ideal + 20_000).contains(&micros), "{micros} for {ideal}");
            assert_eq!(gpu.load(), 0);
        }
        assert_eq!(gpu(1).run(WorkId(1), &body, b"not it"), Err(ForeignPrefix));
    }

    #[test]
    fn slots_then_queue_then_busy() {
        let mut gpu = gpu(2);
        let body = oracle::body(40, 20, [0; 16], false);
        let mut taken = |work| gpu.run(WorkId(work), &body, b"").unwrap();
        assert!(matches!(taken(0), Taken::Running(_)));
        assert!(matches!(taken(1), Taken::Running(_)));
        for work in 2..2 + QUEUE_MAX as u64 {
            assert_eq!(taken(work), Taken::Waiting);
        }
        assert_eq!(taken(99), Taken::Busy);
        assert_eq!(gpu.next(), None);
        gpu.stop(WorkId(0));
        gpu.stop(WorkId(2));
        assert_eq!(gpu.next().map(|(work, _)| work), Some(WorkId(3)));
        assert_eq!(gpu.fail().len(), QUEUE_MAX);
        assert_eq!(gpu.load(), 0);
    }

    #[test]
    fn a_bad_request_is_rejected_everywhere() {
        let mut gpu = gpu(1);
        gpu.run(WorkId(1), &oracle::body(40, 20, [0; 16], true), b"").unwrap();
        assert_eq!(gpu.step(WorkId(1)), Some((Made::Rejected, None)));
        assert_eq!(gpu.load(), 0);
    }
}
