//! Hedges: a job whose own backend is late is given to another own one as well, and whichever speaks first has it. `docs/routing.md`.
//! Invariants: a job has at most one hedge, and none once anything of its answer was said; hedges cost nothing, hold at most a quarter
//! of the slots that other work leaves idle, and make way for other work of the owner.

use super::*;
use crate::job::Kind;

/// What a first text may take beside twice what was expected, before it counts as late.
const LATE: Duration = Duration::from_millis(250);
/// When a late job that could not be hedged is looked at again.
const AGAIN: Duration = Duration::from_millis(500);

impl Consumer {
    /// The job has begun on own hardware, where its first text is expected after `first`: sets the moment from which it is late.
    /// An answer in one piece is never late: it does not tell when its prompt was read. Nor is one that the server may remember.
    pub(super) fn expect_first(&self, cx: &mut Context, id: JobId, first: Duration) {
        let Some(Active { job, delivered, .. }) = self.jobs.get(&id) else { return };
        let in_one = job.whole && delivered.is_empty();
        let streams = matches!(job.kind, Kind::Chat | Kind::Completion | Kind::Message) && !in_one;
        if cx.config.hedge && streams {
            cx.timers.set(Alarm::Job(id), cx.now.after(first.saturating_mul(2)).after(LATE));
        }
    }

    /// Nothing was heard of the job's own backend for long.
    pub(super) fn late(&mut self, cx: &mut Context, id: JobId) {
        let Some(active) = self.jobs.get(&id) else { return };
        let Stage::Own { work, hedge: None, placed: false, .. } = active.stage else { return };
        if !cx.own.may_hedge(&active.job.model) {
            return cx.timers.set(Alarm::Job(id), cx.now.after(AGAIN));
        }
        let hedging = self.start_own(cx, id, WorkFor::Hedge(id), Some(work));
        if let Some(Stage::Own { hedge, .. }) = self.jobs.get_mut(&id).map(|active| &mut active.stage) {
            *hedge = Some(hedging);
        }
    }

    /// A backend speaks for the job: from now on it has it alone. False if the job is not its own any more.
    pub(super) fn speaks(&mut self, cx: &mut Context, id: JobId, work: WorkId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { work: running, hedge, .. } = &mut active.stage else { return false };
        if *running == work {
            let beside = hedge.take();
            beside.into_iter().for_each(|beside| stop(cx, beside));
            return true;
        }
        let is_hedge = *hedge == Some(work);
        if is_hedge {
            self.take_over(cx, id);
        }
        is_hedge
    }

    /// The hedge has the job from now on, if there is one. Says whether there was.
    pub(super) fn take_over(&mut self, cx: &mut Context, id: JobId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { work, hedge, units, cost, reason, .. } = &mut active.stage else { return false };
        let Some(hedging) = hedge.take() else { return false };
        stop(cx, *work);
        let usage =
            Usage { input: active.job.prompt_units() + active.delivered.len() as u64, cached: 0, output: *units };
        active.legs.push(Leg { route: Route::Own, provider: None, reason: *reason, usage, cost: *cost });
        (*work, *cost, *reason) = (hedging, Credits::ZERO, Reason::OwnHedged);
        true
    }

    /// The job's hedge came to nothing, if this is it: the job goes on where it is. Says whether it was.
    pub(super) fn hedge_ended(&mut self, cx: &mut Context, id: JobId, work: WorkId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { hedge, .. } = &mut active.stage else { return false };
        let is_hedge = *hedge == Some(work);
        if is_hedge {
            *hedge = None;
            cx.own.finish(cx.now, work);
        }
        is_hedge
    }

    /// Stops a hedge if every slot of the model is taken and one of them by a hedge.
    pub(super) fn make_room(&mut self, cx: &mut Context, model: &str) {
        let Some((work, id)) = cx.own.hedge_in_the_way(model) else { return };
        cx.emit(Effect::Stop(work));
        self.hedge_ended(cx, id, work);
        cx.timers.set(Alarm::Job(id), cx.now.after(AGAIN));
    }
}

/// Stops work on own hardware and gives its slot back.
fn stop(cx: &mut Context, work: WorkId) {
    cx.emit(Effect::Stop(work));
    cx.own.finish(cx.now, work);
}
