//! One request's way through a policy: which target is next, when it is tried again, and when it has had its time.
//! Invariant: at most one attempt is under way; once a piece of an answer came, that attempt is the last.

use super::condition::Facts;
use super::rule::{LIMIT_MAX, RETRY_WAIT_MAX};
use super::{ATTEMPTS_MAX, Breakers, Node, NodeId, Policy, Target};
use crate::time::Now;
use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Which time limit an attempt broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// To the first piece.
    First,
    /// Between two pieces.
    Between,
    /// For the whole.
    Total,
}

impl Limit {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "the first piece of the answer did not come in time",
            Self::Between => "the answer stood still for too long",
            Self::Total => "the answer took too long",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an answer.
    Done,
    /// Without, or without a whole one.
    Failed {
        /// The HTTP status: the server's where it is known, else the one that the client would get.
        status: u16,
        /// What the server asks to wait.
        retry_after: Option<Duration>,
    },
}

/// What a course is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request is here. Once, and first.
    Begin,
    /// A piece of the answer came.
    Output,
    /// The attempt under way ended; also after [`Effect::Stop`].
    Ended(End),
    /// The client is gone: nothing more will be asked of this course.
    Left,
    /// Time has come; see [`Course::deadline`].
    Tick,
}

/// What a course asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a copy to the policy's shadow, and forget it.
    Shadow,
    /// Begin an attempt at a target.
    Try {
        /// Which.
        target: NodeId,
        /// Counts the attempts of the request, from 0.
        attempt: u32,
    },
    /// End the attempt under way, which broke a limit. Answered by [`Event::Ended`].
    Stop(Limit),
    /// Nothing more is tried: how the last attempt ended is how the request ended. Without one, no target may have it.
    Over,
}

/// A fork on the way to the present target.
#[derive(Debug)]
struct Fork {
    node: NodeId,
    tried: Vec<NodeId>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Nothing yet, or nothing more.
    Idle,
    Running {
        target: NodeId,
        until: Option<(Now, Limit)>,
        total_until: Option<(Now, Limit)>,
        begun: bool,
    },
    Stopping {
        target: NodeId,
        begun: bool,
    },
    Waiting {
        target: NodeId,
        until: Now,
    },
}

/// One request's way.
#[derive(Debug)]
pub struct Course {
    policy: Arc<Policy>,
    /// What breakers' names begin with.
    scope: String,
    facts: Facts,
    rng: ChaCha8Rng,
    forks: Vec<Fork>,
    state: State,
    /// Attempts so far, and those of the present target.
    attempts: u32,
    repeated: u32,
    total_until: Option<Now>,
    effects: VecDeque<Effect>,
}

impl Course {
    /// A request of which `facts` are known. Breakers are kept by `scope` and the target's name.
    #[must_use]
    pub fn new(policy: Arc<Policy>, scope: &str, facts: Facts, seed: [u8; 32]) -> Self {
        Self {
            policy,
            scope: scope.to_owned(),
            facts,
            rng: ChaCha8Rng::from_seed(seed),
            forks: Vec::new(),
            state: State::Idle,
            attempts: 0,
            repeated: 0,
            total_until: None,
            effects: VecDeque::new(),
        }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What its breakers are kept by.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to send the next [`Event::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        match self.state {
            State::Idle | State::Stopping { .. } => None,
            State::Waiting { until, .. } => Some(until),
            State::Running { until, total_until, .. } => until.into_iter().chain(total_until).map(|(at, _)| at).min(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Now, event: Event, breakers: &mut Breakers) {
        match (event, self.state) {
            (Event::Begin, State::Idle) => {
                self.total_until = self.policy.total.map(|total| now.after(total.min(LIMIT_MAX)));
                let policy = Arc::clone(&self.policy);
                if let Some(shadow) = &policy.shadow
                    && self.rng.random_range(0..1_000_000) < shadow.per_million
                {
                    self.effects.push_back(Effect::Shadow);
                }
                self.descend(now, Policy::ROOT, breakers);
            }
            (Event::Output, State::Running { target, total_until, .. }) => {
                let until = self.target(target).timeouts.between.map(|span| (now.after(span), Limit::Between));
                self.state = State::Running { target, until, total_until, begun: true };
            }
            (Event::Ended(end), State::Running { target, begun, .. } | State::Stopping { target, begun }) => {
                self.ended(now, target, begun, end, breakers);
            }
            (Event::Left, State::Running { target, .. } | State::Stopping { target, .. }) => {
                breakers.release(&self.breaker_name(target));
                self.state = State::Idle;
            }
            (Event::Left, State::Waiting { .. }) => self.state = State::Idle,
            (Event::Tick, State::Running { target, until, total_until, begun }) => {
                let broken =
                    until.into_iter().chain(total_until).filter(|(at, _)| now >= *at).min_by_key(|(at, _)| *at);
                if let Some((_, limit)) = broken {
                    self.effects.push_back(Effect::Stop(limit));
                    self.state = State::Stopping { target, begun };
                }
            }
            (Event::Tick, State::Waiting { target, until }) if now >= until => self.start(now, target, breakers),
            // Early, or late; not wrong.
            (Event::Begin | Event::Output | Event::Ended(_) | Event::Left | Event::Tick, _) => {}
        }
    }

    fn target(&self, id: NodeId) -> &Target {
        self.policy.target(id).expect("only targets are tried")
    }

    fn breaker_name(&self, id: NodeId) -> String {
        format!("{}\u{0}{}", self.scope, self.target(id).name)
    }

    fn start(&mut self, now: Now, id: NodeId, breakers: &mut Breakers) {
        if self.attempts >= ATTEMPTS_MAX || self.total_until.is_some_and(|until| now >= until) {
            return self.over();
        }
        let target = self.target(id);
        let span = |span: Option<Duration>, limit| span.map(|span| (now.after(span.min(LIMIT_MAX)), limit));
        let until = span(target.timeouts.first, Limit::First);
        let own_total = span(target.timeouts.total, Limit::Total);
        let total = self.total_until.map(|until| (until, Limit::Total));
        let total_until = own_total.into_iter().chain(total).min_by_key(|(at, _)| *at);
        if let Some(rule) = &target.breaker {
            breakers.begin(now, &self.breaker_name(id), rule);
        }
        self.state = State::Running { target: id, until, total_until, begun: false };
        self.effects.push_back(Effect::Try { target: id, attempt: self.attempts });
        self.attempts += 1;
    }

    fn over(&mut self) {
        self.state = State::Idle;
        self.forks.clear();
        self.effects.push_back(Effect::Over);
    }

    fn ended(&mut self, now: Now, id: NodeId, begun: bool, end: End, breakers: &mut Breakers) {
        let name = self.breaker_name(id);
        if let Some(rule) = &self.target(id).breaker {
            match end {
                End::Done => breakers.ended(now, &name, rule, true),
                End::Failed { status, .. } if rule.on.has(status) => breakers.ended(now, &name, rule, false),
                End::Failed { .. } => breakers.release(&name),
            }
        }
        let End::Failed { status, retry_after } = end else { return self.over() };
        if begun {
            return self.over();
        }
        if let Some(wait) = self.repeats(now, id, status, retry_after)
            && breakers.allows(now, &name)
        {
            self.repeated += 1;
            if wait.is_zero() {
                return self.start(now, id, breakers);
            }
            self.state = State::Waiting { target: id, until: now.after(wait) };
            return;
        }
        self.unwind(now, status, breakers);
    }

    /// How long to wait until the target is tried again; `None` if it is not.
    fn repeats(&mut self, now: Now, id: NodeId, status: u16, retry_after: Option<Duration>) -> Option<Duration> {
        let retry = self.target(id).retry.clone();
        if self.repeated >= retry.attempts || !retry.on.has(status) {
            return None;
        }
        let longest = retry.wait_max.min(RETRY_WAIT_MAX);
        let doubled = retry.wait.saturating_mul(1 << self.repeated.min(16)).min(longest);
        // Shortened by up to half, so that those who failed together do not come back together.
        let shortened = doubled.mul_f64(0.5 + f64::from(self.rng.random_range(0..=1024_u32)) / 2048.0);
        let wait = match retry_after.filter(|_| retry.heed_server) {
            Some(asked) if asked > longest => return None,
            Some(asked) => asked.max(shortened),
            None => shortened,
        };
        let too_late = self.total_until.is_some_and(|until| now.after(wait) >= until);
        (!too_late).then_some(wait)
    }

    /// Goes back to the last fork that has another way for such a failure, and takes it.
    fn unwind(&mut self, now: Now, status: u16, breakers: &mut Breakers) {
        let policy = Arc::clone(&self.policy);
        while let Some(fork) = self.forks.last() {
            let left = |id: &NodeId| !fork.tried.contains(id) && self.is_open(now, *id, breakers);
            let next = match policy.node(fork.node) {
                Node::Fallback { tries, on } if on.has(status) => tries.iter().copied().find(left),
                Node::Weighted { choices, on, .. } if on.has(status) => {
                    let rest: Vec<_> = choices.iter().filter(|(_, id)| left(id)).copied().collect();
                    let even = rest.iter().all(|(weight, _)| *weight == 0);
                    let rest: Vec<_> =
                        rest.into_iter().map(|(weight, id)| (if even { 1 } else { weight }, id)).collect();
                    draw(&mut self.rng, &rest)
                }
                Node::Fallback { .. } | Node::Weighted { .. } | Node::Conditional { .. } | Node::Target(_) => None,
            };
            if let Some(next) = next {
                self.forks.last_mut().expect("seen above").tried.push(next);
                return self.descend(now, next, breakers);
            }
            self.forks.pop();
        }
        self.over();
    }

    /// Goes down from a place to the target that is tried first there.
    fn descend(&mut self, now: Now, from: NodeId, breakers: &mut Breakers) {
        let policy = Arc::clone(&self.policy);
        let mut at = from;
        loop {
            let next = match policy.node(at) {
                Node::Target(_) => {
                    self.repeated = 0;
                    return self.start(now, at, breakers);
                }
                Node::Conditional { cases, default } => {
                    let case = cases.iter().find(|(condition, _)| condition.holds(&self.facts));
                    case.map(|(_, id)| *id).or(*default)
                }
                Node::Fallback { tries, .. } => {
                    let suits = |id: &&NodeId| self.suits(**id);
                    // Where all rest, resting is no reason.
                    let open = tries.iter().filter(suits).find(|id| self.is_open(now, **id, breakers));
                    let next = open.or_else(|| tries.iter().find(suits)).copied();
                    if let Some(next) = next {
                        // What was passed over because it rests is not gone back to.
                        let passed = tries.iter().copied().take_while(|id| *id != next);
                        let tried = passed.chain([next]).collect();
                        self.forks.push(Fork { node: at, tried });
                    }
                    next
                }
                Node::Weighted { choices, sticky, .. } => {
                    let suiting: Vec<_> = choices.iter().filter(|(_, id)| self.suits(*id)).copied().collect();
                    let open: Vec<_> =
                        suiting.iter().filter(|(_, id)| self.is_open(now, *id, breakers)).copied().collect();
                    let from = if weight(&open) > 0 { &open } else { &suiting };
                    let next = match self.facts.sticky.filter(|_| *sticky) {
                        Some(sticky) => at_point(from, sticky % weight(from).max(1)),
                        None => draw(&mut self.rng, from),
                    };
                    if let Some(next) = next {
                        self.forks.push(Fork { node: at, tried: vec![next] });
                    }
                    next
                }
            };
            let Some(next) = next else {
                // No condition holds here. Another fork above may have a way.
                return self.unwind(now, NO_WAY, breakers);
            };
            at = next;
        }
    }

    /// Whether a target below may have the request, resting or not.
    fn suits(&self, id: NodeId) -> bool {
        match self.policy.node(id) {
            Node::Target(_) => true,
            Node::Fallback { tries, .. } => tries.iter().any(|id| self.suits(*id)),
            Node::Weighted { choices, .. } => choices.iter().any(|(_, id)| self.suits(*id)),
            Node::Conditional { cases, default } => {
                let case = cases.iter().find(|(condition, _)| condition.holds(&self.facts));
                case.map(|(_, id)| *id).or(*default).is_some_and(|id| self.suits(id))
            }
        }
    }

    /// Whether a target below may have the request and does not rest.
    fn is_open(&self, now: Now, id: NodeId, breakers: &Breakers) -> bool {
        match self.policy.node(id) {
            Node::Target(target) => target.breaker.is_none() || breakers.allows(now, &self.breaker_name(id)),
            Node::Fallback { tries, .. } => tries.iter().any(|id| self.is_open(now, *id, breakers)),
            Node::Weighted { choices, .. } => choices.iter().any(|(_, id)| self.is_open(now, *id, breakers)),
            Node::Conditional { cases, default } => {
                let case = cases.iter().find(|(condition, _)| condition.holds(&self.facts));
                case.map(|(_, id)| *id).or(*default).is_some_and(|id| self.is_open(now, id, breakers))
            }
        }
    }
}

/// A status that stands for "no condition holds": other ways are tried wherever a failed server would be left.
const NO_WAY: u16 = 503;

fn weight(choices: &[(u32, NodeId)]) -> u64 {
    choices.iter().map(|(weight, _)| u64::from(*weight)).sum()
}

/// The choice at a point of the line that the weights make.
fn at_point(choices: &[(u32, NodeId)], mut point: u64) -> Option<NodeId> {
    for (weight, id) in choices {
        match point.checked_sub(u64::from(*weight)) {
            None => return Some(*id),
            Some(rest) => point = rest,
        }
    }
    choices.first().map(|(_, id)| *id)
}

fn draw(rng: &mut impl Rng, choices: &[(u32, NodeId)]) -> Option<NodeId> {
    match weight(choices) {
        0 => choices.first().map(|(_, id)| *id),
        sum => at_point(choices, rng.random_range(0..sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BreakerRule, Condition, Place, Retry, Statuses, Timeouts, Tree};
    use super::*;
    use serde_json::json;

    fn at(ms: u64) -> Now {
        Now::from_ms(1_000_000_000 + ms)
    }

    fn leaf(name: &str) -> Tree {
        Tree::Target(Box::new(Target::new(name, Place::Market)))
    }

    fn leaf_with(name: &str, change: impl FnOnce(&mut Target)) -> Tree {
        let mut target = Target::new(name, Place::Market);
        change(&mut target);
        Tree::Target(Box::new(target))
    }

    fn fallback(tries: Vec<Tree>) -> Tree {
        Tree::Fallback { tries, on: Statuses::default() }
    }

    fn weighted(choices: Vec<(u32, Tree)>, on: Statuses) -> Tree {
        Tree::Weighted { choices, on, sticky: false }
    }

    /// A course and its breakers; what it does is told in words.
    struct Play {
        course: Course,
        breakers: Breakers,
        now: u64,
    }

    impl Play {
        fn new(tree: Tree, facts: Facts, seed: u8) -> Self {
            Self::with(Policy::new(tree).expect("a policy"), facts, seed, Breakers::default())
        }

        fn with(policy: Policy, facts: Facts, seed: u8, breakers: Breakers) -> Self {
            let course = Course::new(Arc::new(policy), "test", facts, [seed; 32]);
            Self { course, breakers, now: 0 }
        }

        fn tell(&mut self, event: Event) -> String {
            self.course.handle(at(self.now), event, &mut self.breakers);
            let mut said = Vec::new();
            while let Some(effect) = self.course.poll() {
                said.push(match effect {
                    Effect::Shadow => "shadow".to_owned(),
                    Effect::Try { target, .. } => self.course.target(target).name.clone(),
                    Effect::Stop(limit) => format!("stop {limit:?}"),
                    Effect::Over => "over".to_owned(),
                });
            }
            said.join(" ")
        }

        fn fails(&mut self, status: u16) -> String {
            self.tell(Event::Ended(End::Failed { status, retry_after: None }))
        }

        /// Lets time pass until the course asks for it.
        fn wait(&mut self) -> String {
            let until = self.course.deadline().expect("it waits");
            self.now = until.ms() - at(0).ms() + 1;
            self.tell(Event::Tick)
        }
    }

    #[test]
    fn the_next_is_tried_on_chosen_statuses_only() {
        for (on, status, next) in [
            (Statuses::default(), 503, "b"),
            (Statuses::default(), 400, "over"),
            (Statuses::Codes(vec![400]), 400, "b"),
            (Statuses::Codes(vec![400]), 503, "over"),
            (Statuses::Any, 422, "b"),
            (Statuses::Codes(vec![408]), 504, "b"),
        ] {
            let mut play = Play::new(Tree::Fallback { tries: vec![leaf("a"), leaf("b")], on }, Facts::default(), 1);
            assert_eq!(play.tell(Event::Begin), "a");
            assert_eq!(play.fails(status), next, "{status}");
        }
        let mut play = Play::new(fallback(vec![leaf("a"), leaf("b")]), Facts::default(), 1);
        assert_eq!(play.tell(Event::Begin), "a");
        assert_eq!(play.fails(500), "b");
        assert_eq!(play.fails(500), "over");
    }

    #[test]
    fn what_was_begun_is_not_begun_again() {
        let mut play = Play::new(fallback(vec![leaf("a"), leaf("b")]), Facts::default(), 1);
        play.tell(Event::Begin);
        assert_eq!(play.tell(Event::Output), "");
        assert_eq!(play.fails(500), "over");
    }

    #[test]
    fn retries_wait_and_heed_the_server_within_bounds() {
        let retry =
            Retry { attempts: 2, wait: Duration::from_secs(1), wait_max: Duration::from_secs(8), ..Retry::default() };
        let tree = || fallback(vec![leaf_with("a", |a| a.retry = retry.clone()), leaf("b")]);
        let mut play = Play::new(tree(), Facts::default(), 1);
        play.tell(Event::Begin);
        assert_eq!(play.fails(500), "");
        let waited = play.course.deadline().expect("it waits").since(at(play.now));
        assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&waited), "{waited:?}");
        assert_eq!(play.wait(), "a");
        assert_eq!(play.fails(429), "");
        let waited = play.course.deadline().expect("it waits").since(at(play.now));
        assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&waited), "{waited:?}");
        assert_eq!(play.wait(), "a");
        assert_eq!(play.fails(500), "b", "two repetitions, then the next");
        // What the server asks, whether it is heeded, and how long is waited; none: the next at once.
        for (asks, heeds, waits) in [(5, true, Some(5)), (9, true, None), (9, false, Some(1))] {
            let mut play = Play::new(
                fallback(vec![leaf_with("a", |a| a.retry = Retry { heed_server: heeds, ..retry.clone() }), leaf("b")]),
                Facts::default(),
                1,
            );
            play.tell(Event::Begin);
            let retry_after = Some(Duration::from_secs(asks));
            let said = play.tell(Event::Ended(End::Failed { status: 429, retry_after }));
            let waited = play.course.deadline().map(|until| until.since(at(0)).as_secs_f64().ceil() as u64);
            assert_eq!((said.as_str(), waited), (if waits.is_some() { "" } else { "b" }, waits), "{asks} {heeds}");
        }
        // Not on other failures.
        let mut play = Play::new(tree(), Facts::default(), 1);
        play.tell(Event::Begin);
        assert_eq!(play.fails(400), "over");
    }

    #[test]
    fn weights_are_shares() {
        let mut counts = [0_u32; 3];
        for seed in 0..=255_u8 {
            let tree = weighted(vec![(3, leaf("0")), (1, leaf("1")), (0, leaf("2"))], Statuses::default());
            let first = Play::new(tree, Facts::default(), seed).tell(Event::Begin);
            counts[first.parse::<usize>().expect("a number")] += 1;
        }
        // 256 draws at 3/4: six standard deviations are 42.
        assert!(counts[0].abs_diff(192) < 42 && counts[2] == 0, "{counts:?}");
        // The others follow, by weight and at last those without.
        let tree = weighted(vec![(1, leaf("a")), (1, leaf("b")), (0, leaf("c"))], Statuses::default());
        let mut play = Play::new(tree, Facts::default(), 7);
        let first = play.tell(Event::Begin);
        let second = play.fails(500);
        assert!([&*first, &*second].contains(&"a") && [&*first, &*second].contains(&"b"));
        assert_eq!((play.fails(500), play.fails(500)), ("c".into(), "over".into()));
        // Or none does.
        let mut play =
            Play::new(weighted(vec![(1, leaf("a")), (1, leaf("b"))], Statuses::Codes(vec![])), Facts::default(), 7);
        play.tell(Event::Begin);
        assert_eq!(play.fails(500), "over");
    }

    #[test]
    fn what_belongs_together_goes_together() {
        let tree = |share| Tree::Weighted {
            choices: vec![(100 - share, leaf("old")), (share, leaf("new"))],
            on: Statuses::default(),
            sticky: true,
        };
        for (share, sticky, goes) in
            [(10, 89, "old"), (10, 90, "new"), (10, 199, "new"), (50, 89, "new"), (0, 99, "old")]
        {
            for seed in 0..4 {
                let mut facts = Facts::default();
                facts.sticky = Some(sticky);
                assert_eq!(Play::new(tree(share), facts, seed).tell(Event::Begin), goes, "{share} {sticky}");
            }
        }
    }

    #[test]
    fn conditions_choose() {
        let when = |value: &str| Condition::parse(&json!({"metadata.plan": value})).expect("good");
        let tree = |default: Option<&str>| Tree::Conditional {
            cases: vec![(when("gold"), leaf("big")), (when("free"), leaf("small"))],
            default: default.map(|name| Box::new(leaf(name))),
        };
        for (plan, default, goes) in
            [("gold", None, "big"), ("free", Some("any"), "small"), ("x", Some("any"), "any"), ("x", None, "over")]
        {
            let mut facts = Facts::default();
            facts.insert("metadata.plan".into(), json!(plan));
            assert_eq!(Play::new(tree(default), facts.clone(), 1).tell(Event::Begin), goes, "{plan}");
            // What has no way here is passed over where there is another.
            let around = fallback(vec![tree(default), leaf("last")]);
            let want = if goes == "over" { "last" } else { goes };
            assert_eq!(Play::new(around, facts, 1).tell(Event::Begin), want, "{plan}");
        }
    }

    #[test]
    fn limits_stop_an_attempt_and_the_next_has_its_own() {
        let timeouts = Timeouts {
            first: Some(Duration::from_secs(1)),
            between: Some(Duration::from_secs(2)),
            total: Some(Duration::from_secs(5)),
        };
        let tree = || fallback(vec![leaf_with("a", |a| a.timeouts = timeouts), leaf("b")]);
        let mut play = Play::new(tree(), Facts::default(), 1);
        play.tell(Event::Begin);
        assert_eq!(play.wait(), "stop First");
        assert_eq!(play.fails(504), "b");
        assert_eq!(play.course.deadline(), None);
        // Silence in the middle.
        let mut play = Play::new(tree(), Facts::default(), 1);
        play.tell(Event::Begin);
        play.tell(Event::Output);
        assert_eq!(play.wait(), "stop Between");
        assert_eq!(play.fails(504), "over");
        // It goes on and on.
        let mut play = Play::new(tree(), Facts::default(), 1);
        play.tell(Event::Begin);
        for ms in [900, 2500, 4000, 4900] {
            play.now = ms;
            assert_eq!(play.tell(Event::Output), "");
        }
        assert_eq!(play.wait(), "stop Total");
        // The request's own limit holds over all attempts.
        let mut policy = Policy::new(tree()).expect("a policy");
        policy.total = Some(Duration::from_millis(1500));
        let mut play = Play::with(policy, Facts::default(), 1, Breakers::default());
        play.tell(Event::Begin);
        assert_eq!(play.wait(), "stop First");
        assert_eq!(play.fails(504), "b");
        assert_eq!(play.wait(), "stop Total");
        assert_eq!(play.fails(504), "over");
    }

    #[test]
    fn targets_that_rest_are_passed_over() {
        let rule = BreakerRule { failures: Some(1), ..BreakerRule::default() };
        let resting = |name: &str| leaf_with(name, |target| target.breaker = Some(rule.clone()));
        let policy = || Policy::new(fallback(vec![resting("a"), resting("b")])).expect("a policy");
        let mut play = Play::with(policy(), Facts::default(), 1, Breakers::default());
        assert_eq!(play.tell(Event::Begin), "a");
        assert_eq!(play.fails(500), "b");
        assert_eq!(play.tell(Event::Ended(End::Done)), "over");
        let mut play = Play::with(policy(), Facts::default(), 1, play.breakers);
        assert_eq!(play.tell(Event::Begin), "b");
        assert_eq!(play.fails(500), "over", "a rests");
        // Where all rest, none is passed over.
        let mut play = Play::with(policy(), Facts::default(), 1, play.breakers);
        assert_eq!(play.tell(Event::Begin), "a");
        // A client that leaves says nothing of the target.
        play.tell(Event::Left);
        let mut play = Play::with(policy(), Facts::default(), 1, play.breakers);
        play.now = 30_001;
        assert_eq!(play.tell(Event::Begin), "a", "its time is over");
        // A failure that does not count does not make it rest either.
        let mut play = Play::with(policy(), Facts::default(), 1, Breakers::default());
        play.tell(Event::Begin);
        play.fails(400);
        assert_eq!(Play::with(policy(), Facts::default(), 1, play.breakers).tell(Event::Begin), "a");
    }

    #[test]
    fn shadows_are_a_share_and_first() {
        let mut count = 0;
        for seed in 0..=255_u8 {
            let mut policy = Policy::new(leaf("a")).expect("a policy");
            policy.shadow =
                Some(super::super::Shadow { target: Target::new("s", Place::Market), per_million: 250_000 });
            count += u32::from(
                Play::with(policy, Facts::default(), seed, Breakers::default()).tell(Event::Begin) == "shadow a",
            );
        }
        assert!(count.abs_diff(64) < 42, "{count} of 256");
    }

    #[test]
    fn attempts_are_bounded() {
        let retry = Retry { attempts: 5, wait: Duration::ZERO, ..Retry::default() };
        let many = (0..60).map(|_| leaf_with("a", |a| a.retry = retry.clone())).collect();
        let mut play = Play::new(fallback(many), Facts::default(), 1);
        let mut said = play.tell(Event::Begin);
        let mut tries = 0;
        while said == "a" {
            tries += 1;
            said = play.fails(500);
        }
        assert_eq!((tries, said.as_str()), (ATTEMPTS_MAX, "over"));
    }

    #[test]
    fn trees_are_bounded() {
        let deep = |depth| (0..depth).fold(leaf("a"), |inner, _| fallback(vec![inner]));
        use super::super::PolicyError as E;
        for (tree, error) in [
            (deep(8), None),
            (deep(9), Some(E::TooDeep)),
            (fallback((0..63).map(|_| leaf("a")).collect()), None),
            (fallback((0..64).map(|_| leaf("a")).collect()), Some(E::TooLarge)),
            (fallback(vec![]), Some(E::Empty)),
            (weighted(vec![], Statuses::Any), Some(E::Empty)),
            (weighted(vec![(0, leaf("a"))], Statuses::Any), Some(E::NoWeight)),
            (Tree::Conditional { cases: vec![], default: None }, Some(E::Empty)),
        ] {
            assert_eq!(Policy::new(tree).err(), error);
        }
    }
}
