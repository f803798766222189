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
    /// From when on the job is late if it begins on own hardware now; `None` if it is never hedged. An answer in one piece is not: it
    /// does not tell when its prompt was read. Nor is one that the server may remember.
    pub(super) fn late_at(&self, cx: &Context, id: JobId) -> Option<Now> {
        let Active { job, delivered, .. } = &self.jobs[&id];
        let in_one = job.whole && delivered.is_empty();
        let streams = matches!(job.kind, Kind::Chat | Kind::Completion | Kind::Message) && !in_one;
        (cx.config.hedge && streams).then(|| {
            let first = cx.own.first_text(&job.model, job.prompt_units() + delivered.len() as u64, &job.prefix);
            cx.now.after(first.saturating_mul(2)).after(LATE)
        })
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
        let (running, is_hedge) = (*running, *hedge == Some(work));
        is_hedge && self.take_over(cx, id, running)
    }

    /// The hedge has the job from now on in place of `late`, if there is one. Says whether there was.
    pub(super) fn take_over(&mut self, cx: &mut Context, id: JobId, late: WorkId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { work, hedge, .. } = &mut active.stage else { return false };
        if *work != late {
            return false;
        }
        let Some(work) = hedge.take() else { return false };
        cx.emit(Effect::Stop(late));
        self.end_own(cx, id, late);
        let active = self.jobs.get_mut(&id).expect("seen above");
        let reason = Reason::OwnHedged;
        active.stage = Stage::Own { work, hedge: None, units: 0, cost: Credits::ZERO, placed: false, reason };
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

    /// Stops a hedge if every slot of the job's model is taken and one of them by a hedge.
    pub(super) fn make_room(&mut self, cx: &mut Context, id: JobId) {
        let Some((work, id)) = cx.own.hedge_in_the_way(&self.jobs[&id].job.model) else { return };
        cx.emit(Effect::Stop(work));
        self.hedge_ended(cx, id, work);
        cx.timers.set(Alarm::Job(id), cx.now.after(AGAIN));
    }
}

/// Stops work on own hardware and gives its slot back.
pub(super) fn stop(cx: &mut Context, work: WorkId) {
    cx.emit(Effect::Stop(work));
    cx.own.finish(cx.now, work);
}
