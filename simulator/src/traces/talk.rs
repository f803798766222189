//! People who talk with a model: a fixed number of them, each of whom waits for the answer, or ones who come as they like.
//! Invariant: what a person asks follows from the seed and the person's number; only when they go on depends on how they are
//! served. So two routers that are compared get the same questions.

use super::arrivals::{Arrivals, Times};
use super::error::{SettingError, within};
use super::names::{Prompt, mix};
use super::sampling::{Length, Lengths, TOKENS_MAX, exponential, unit};
use super::{Request, Workload};
use crate::draws::Draws;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Persons of one workload.
const PERSONS_MAX: f64 = 1e6;
const SECONDS_MAX: f64 = 1e9;

/// What they talk about. Lengths in tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Talk {
    /// Groups; each has a system prompt of its own.
    pub groups: u32,
    /// Users in each group. A user's number is [`Request::client`]: the group's times this, plus the place in the group.
    pub users: u32,
    /// The system prompt, with which each prompt of the group begins.
    #[serde(default)]
    pub system: u32,
    /// What a user adds in a turn.
    pub question: Length,
    /// What the model says in a turn.
    pub answer: Length,
    /// Turns of a conversation, from and to. Each turn's prompt holds what was said before.
    #[serde(default = "one")]
    pub rounds: [u32; 2],
    /// A conversation ends where prompt and answer would be longer.
    #[serde(default = "context")]
    pub context: u32,
    /// A user asks the same in every conversation, as benchmarks do that send fixed prompts over and over.
    #[serde(default)]
    pub repeats: bool,
}

const fn one() -> [u32; 2] {
    [1, 1]
}

const fn context() -> u32 {
    131_072
}

/// A fixed number of users: as many conversations at a time, never more (a closed loop). Times in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// Users begin evenly within this time.
    #[serde(default)]
    pub ramp_s: f64,
    /// How long a user thinks after an answer before asking on, on average, exponentially distributed.
    #[serde(default)]
    pub think_s: f64,
    /// Nobody asks from then on.
    pub until_s: f64,
    /// Conversations of each user; as many as there is time for, if not set.
    #[serde(default)]
    pub conversations: Option<u32>,
}

/// Conversations that begin whether or not others are done (an open loop). Times in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// When conversations begin. Each is by the user whose turn it is, in an order drawn anew for each round of all users.
    pub arrivals: Arrivals,
    /// How long a user thinks after an answer before asking on, on average, exponentially distributed.
    #[serde(default)]
    pub think_s: f64,
    /// Nobody asks from then on.
    pub until_s: f64,
}

/// [`Talk`], ready to be drawn from.
#[derive(Debug)]
struct Rules {
    seed: u64,
    talk: Talk,
    question: Lengths,
    answer: Lengths,
    think_s: f64,
    until_us: u64,
}

/// One conversation.
#[derive(Debug)]
struct Conversation {
    draws: Draws,
    user: u32,
    session: u64,
    /// What makes its texts unlike others'.
    content: u64,
    prompt: Prompt,
    turn: u32,
    turns: u32,
}

impl Rules {
    fn new(seed: u64, talk: Talk, think_s: f64, until_s: f64) -> Result<Self, SettingError> {
        within("groups", talk.groups.into(), 1.0, PERSONS_MAX)?;
        within("users", talk.users.into(), 1.0, PERSONS_MAX)?;
        within("users", f64::from(talk.groups) * f64::from(talk.users), 1.0, PERSONS_MAX)?;
        within("rounds", talk.rounds[0].into(), 1.0, 1e6)?;
        within("rounds", talk.rounds[1].into(), talk.rounds[0].into(), 1e6)?;
        within("context", talk.context.into(), 2.0, TOKENS_MAX.into())?;
        within("system", talk.system.into(), 0.0, f64::from(talk.context) - 2.0)?;
        within("think_s", think_s, 0.0, SECONDS_MAX)?;
        within("until_s", until_s, 1e-6, SECONDS_MAX)?;
        let (question, answer) = (talk.question.lengths("question")?, talk.answer.lengths("answer")?);
        Ok(Self { seed, talk, question, answer, think_s, until_us: (until_s * 1e6) as u64 })
    }

    const fn users(&self) -> u32 {
        self.talk.groups * self.talk.users
    }

    /// The `count`-th conversation of a user.
    fn begin(&self, user: u32, count: u64, session: u64) -> Conversation {
        let told = if self.talk.repeats { 0 } else { count };
        let mut draws = Draws::new(self.seed, &format!("conversation {told} of user {user}"));
        let group = user / self.talk.users;
        let mut prompt = Prompt::default();
        prompt.push(mix(mix(self.seed, 1), group.into()), self.talk.system);
        let rounds = self.talk.rounds.map(u64::from);
        let turns = draws.within(rounds) as u32;
        let content = mix(mix(mix(self.seed, 2), user.into()), told);
        Conversation { draws, user, session, content, prompt, turn: 0, turns }
    }

    /// A conversation's next turn; `None` if it is over. The first turn always is one: its question is cut to what fits.
    fn ask(&self, conversation: &mut Conversation, at_us: u64) -> Option<Request> {
        if at_us >= self.until_us || conversation.turn == conversation.turns {
            return None;
        }
        let Conversation { draws, prompt, turn, content, .. } = conversation;
        let room = u64::from(self.talk.context).saturating_sub(prompt.tokens());
        let (mut question, mut output) = (self.question.draw(draws), self.answer.draw(draws));
        if u64::from(question) + u64::from(output) > room {
            if *turn > 0 {
                return None;
            }
            // At least 2, as `system` leaves that much.
            let room = room as u32;
            output = output.min(room - 1);
            question = question.min(room - output);
        }
        prompt.push(mix(*content, u64::from(*turn) * 2), question);
        let input = prompt.tokens() as u32;
        let prefix = prompt.names();
        prompt.push(mix(*content, u64::from(*turn) * 2 + 1), output);
        *turn += 1;
        let (client, session) = (conversation.user, conversation.session);
        Some(Request { at_us, client, session, input, output, prefix })
    }

    /// When a user goes on who got an answer now.
    fn after(&self, conversation: &mut Conversation, now_us: u64) -> u64 {
        now_us.saturating_add((self.think_s * exponential(&mut conversation.draws) * 1e6) as u64)
    }
}

/// A closed loop at work. Holds one conversation for each user.
#[derive(Debug)]
pub struct Users {
    rules: Rules,
    conversations_max: u64,
    /// Each user's conversation, and how many came before it.
    at: Vec<(Conversation, u64)>,
    /// When each begins, the last to begin first.
    first: Vec<(u64, u32)>,
}

impl Users {
    /// Before anyone asks.
    pub fn new(seed: u64, talk: Talk, closed: &Closed) -> Result<Self, SettingError> {
        within("ramp_s", closed.ramp_s, 0.0, SECONDS_MAX)?;
        within("conversations", closed.conversations.unwrap_or(1).into(), 1.0, u32::MAX.into())?;
        let rules = Rules::new(seed, talk, closed.think_s, closed.until_s)?;
        let mut draws = Draws::new(seed, "when users begin");
        let mut first: Vec<(u64, u32)> =
            (0..rules.users()).map(|user| ((closed.ramp_s * unit(&mut draws) * 1e6) as u64, user)).collect();
        first.sort_unstable_by(|a, b| b.cmp(a));
        let at = (0..rules.users()).map(|user| (rules.begin(user, 0, user.into()), 0)).collect();
        let conversations_max = closed.conversations.map_or(u64::MAX, u64::from);
        Ok(Self { rules, conversations_max, at, first })
    }
}

impl Workload for Users {
    fn next(&mut self) -> Option<Request> {
        let (at_us, user) = self.first.pop()?;
        self.rules.ask(&mut self.at.get_mut(user as usize)?.0, at_us)
    }

    fn ended(&mut self, now_us: u64, request: &Request) -> Option<Request> {
        let users = u64::from(self.rules.users());
        let (conversation, count) = self.at.get_mut(usize::try_from(request.session % users).ok()?)?;
        if conversation.session != request.session {
            return None;
        }
        let at_us = self.rules.after(conversation, now_us);
        let next = self.rules.ask(conversation, at_us);
        if next.is_some() || *count + 1 >= self.conversations_max {
            return next;
        }
        *count += 1;
        *conversation = self.rules.begin(conversation.user, *count, request.session + users);
        self.rules.ask(conversation, at_us)
    }
}

/// An open loop at work. Holds the conversations that are not over.
#[derive(Debug)]
pub struct Visitors {
    rules: Rules,
    times: Times,
    draws: Draws,
    /// Who of this round is yet to come.
    turn: Vec<u32>,
    round: u64,
    live: BTreeMap<u64, Conversation>,
    sessions: u64,
}

impl Visitors {
    /// Before anyone comes.
    pub fn new(seed: u64, talk: Talk, open: Open) -> Result<Self, SettingError> {
        let rules = Rules::new(seed, talk, open.think_s, open.until_s)?;
        let times = Times::new(seed, "visitors", open.arrivals)?;
        let draws = Draws::new(seed, "whose turn it is");
        Ok(Self { rules, times, draws, turn: Vec::new(), round: 0, live: BTreeMap::new(), sessions: 0 })
    }

    /// Conversations that are not over.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.len()
    }
}

impl Workload for Visitors {
    fn next(&mut self) -> Option<Request> {
        let at_us = (self.times.next()? * 1e6) as u64;
        if self.turn.is_empty() {
            self.turn = (0..self.rules.users()).collect();
            for left in (1..self.turn.len()).rev() {
                self.turn.swap(left, self.draws.below(left as u64 + 1) as usize);
            }
            self.round += 1;
        }
        let user = self.turn.pop()?;
        let session = self.sessions;
        let mut conversation = self.rules.begin(user, self.round - 1, session);
        let request = self.rules.ask(&mut conversation, at_us)?;
        self.sessions += 1;
        if conversation.turn < conversation.turns {
            self.live.insert(session, conversation);
        }
        Some(request)
    }

    fn ended(&mut self, now_us: u64, request: &Request) -> Option<Request> {
        let conversation = self.live.get_mut(&request.session)?;
        let at_us = self.rules.after(conversation, now_us);
        let next = self.rules.ask(conversation, at_us);
        if next.is_none() || conversation.turn == conversation.turns {
            self.live.remove(&request.session);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// llm-d's benchmark: 150 groups of 5 with 6,000 shared tokens and 1,200 of their own.
    fn llm_d() -> Talk {
        Talk {
            groups: 150,
            users: 5,
            system: 6000,
            question: Length::Fixed(1200),
            answer: Length::Fixed(1000),
            rounds: [1, 1],
            context: 131_072,
            repeats: true,
        }
    }

    fn chat() -> Talk {
        Talk {
            groups: 3,
            users: 4,
            system: 100,
            question: Length::Even { min: 20, max: 400 },
            answer: Length::Even { min: 50, max: 300 },
            rounds: [2, 6],
            context: 4000,
            repeats: false,
        }
    }

    /// Serves each request in `serve_us(request)`, and gives all of them by when they were asked.
    fn played(workload: &mut dyn Workload, serve_us: impl Fn(&Request) -> u64) -> Vec<Request> {
        let mut running: BTreeMap<(u64, u64), Request> = BTreeMap::new();
        let mut asked = Vec::new();
        let mut count = 0;
        let mut coming = workload.next();
        loop {
            let first_end = running.keys().next().map(|(end, _)| *end);
            if let Some(request) = coming.take_if(|request| first_end.is_none_or(|end| request.at_us <= end)) {
                running.insert((request.at_us + serve_us(&request), count), request.clone());
                count += 1;
                asked.push(request);
                coming = workload.next();
                continue;
            }
            let Some(((end, _), request)) = running.pop_first() else { break };
            if let Some(next) = workload.ended(end, &request) {
                assert!(next.at_us >= end);
                running.insert((next.at_us + serve_us(&next), count), next.clone());
                count += 1;
                asked.push(next);
            }
        }
        asked.sort_by_key(|request| request.at_us);
        asked
    }

    fn shared(a: &Request, b: &Request) -> usize {
        a.prefix.iter().zip(&b.prefix).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn groups_share_their_system_prompt() {
        let arrivals = Arrivals::Steps {
            steps: [3.0, 10.0, 60.0].map(|per_s| super::super::arrivals::Step { for_s: 40.0, per_s }).to_vec(),
        };
        let mut visitors = Visitors::new(1, llm_d(), Open { arrivals, think_s: 0.0, until_s: 1e6 }).unwrap();
        let asked = played(&mut visitors, |_| 2_000_000);
        assert!((2700..3200).contains(&asked.len()), "{} of 2,920 expected", asked.len());
        assert!(asked.iter().all(|request| (request.input, request.output, request.prefix.len()) == (7200, 1000, 14)));
        // Every user once in each round of all 750.
        let users: BTreeSet<u32> = asked[..750].iter().map(|request| request.client).collect();
        assert_eq!(users.len(), 750);
        for a in &asked[..300] {
            for b in &asked[300..400] {
                let expected = match (a.client == b.client, a.client / 5 == b.client / 5) {
                    (true, _) => 14,
                    // 11 whole blocks of 512 tokens in 6,000.
                    (false, true) => 11,
                    (false, false) => 0,
                };
                assert_eq!(shared(a, b), expected, "users {} and {}", a.client, b.client);
            }
        }
        assert_eq!(visitors.live(), 0);
    }

    #[test]
    fn a_closed_loop_has_one_request_a_user_at_a_time() {
        let closed = Closed { ramp_s: 5.0, think_s: 2.0, until_s: 300.0, conversations: None };
        let asked = played(&mut Users::new(1, chat(), &closed).unwrap(), |request| u64::from(request.output) * 20_000);
        let mut free_at = [0; 12];
        let mut last: BTreeMap<u64, Request> = BTreeMap::new();
        for request in &asked {
            let user = request.client as usize;
            assert!(request.at_us >= free_at[user], "user {user} asks while it waits");
            free_at[user] = request.at_us + u64::from(request.output) * 20_000;
            assert!(request.at_us < 300_000_000 && request.input + request.output <= 4000);
            if let Some(before) = last.insert(request.session, request.clone()) {
                assert_eq!(before.client, request.client);
                // The prompt grew by the answer and a question, and begins with all that was said.
                let question = request.input - before.input - before.output;
                assert!((20..=400).contains(&question));
                assert_eq!(shared(&before, request), before.prefix.len());
            }
        }
        let turns: Vec<usize> =
            last.keys().map(|session| asked.iter().filter(|request| request.session == *session).count()).collect();
        assert!(turns.iter().all(|turns| *turns <= 6) && turns.contains(&6) && turns.contains(&2), "{turns:?}");
        // 12 users, each round 3.5 s of service and 2 s of thought on average.
        let expected = 12.0 * 300.0 / 5.5;
        assert!((asked.len() as f64 / expected - 1.0).abs() < 0.1, "{} of {expected} requests", asked.len());
    }

    #[test]
    fn what_is_asked_does_not_depend_on_how_it_is_served() {
        let closed = Closed { ramp_s: 5.0, think_s: 2.0, until_s: 1e6, conversations: Some(3) };
        let told = |serve_us: u64| {
            let mut asked = played(&mut Users::new(1, chat(), &closed).unwrap(), |_| serve_us);
            asked.sort_by_key(|request| (request.session, request.input));
            asked.into_iter().map(|request| Request { at_us: 0, ..request }).collect::<Vec<_>>()
        };
        let quick = told(10);
        assert_eq!(quick, told(9_000_000));
        assert_eq!(quick.iter().map(|request| request.session).collect::<BTreeSet<_>>().len(), 36);
        let other = played(&mut Users::new(2, chat(), &closed).unwrap(), |_| 10);
        assert_ne!(quick.len(), other.len());
    }

    #[test]
    fn visitors_go_on_after_an_answer_and_are_forgotten_at_the_end() {
        let open = Open { arrivals: Arrivals::Poisson { per_s: 2.0 }, think_s: 3.0, until_s: 500.0 };
        let mut visitors = Visitors::new(1, chat(), open).unwrap();
        let asked = played(&mut visitors, |_| 1_000_000);
        let sessions: BTreeSet<u64> = asked.iter().map(|request| request.session).collect();
        assert!((900..1100).contains(&sessions.len()), "{} conversations of 1,000", sessions.len());
        let per_session = asked.len() as f64 / sessions.len() as f64;
        assert!((3.5..4.1).contains(&per_session), "{per_session} turns of 4, some cut by the end");
        assert_eq!(visitors.live(), 0);
        let request = asked[0].clone();
        assert_eq!(visitors.ended(0, &request), None, "an end that is told twice is nothing new");
    }

    #[test]
    fn a_first_question_is_cut_to_what_fits() {
        let talk = Talk { context: 500, system: 498, ..chat() };
        let closed = Closed { ramp_s: 0.0, think_s: 0.0, until_s: 10.0, conversations: Some(2) };
        let asked = played(&mut Users::new(1, talk, &closed).unwrap(), |_| 1000);
        assert_eq!(asked.len(), 24);
        assert!(asked.iter().all(|request| request.input == 499 && request.output == 1));
    }

    #[test]
    fn bad_settings_are_named() {
        let closed = Closed { ramp_s: 0.0, think_s: 0.0, until_s: 10.0, conversations: None };
        let cases = [
            (Talk { groups: 0, ..chat() }, "groups: 0 is not from 1 to 1000000"),
            (Talk { users: 400_000, ..chat() }, "users: 1200000 is not from 1 to 1000000"),
            (Talk { rounds: [3, 2], ..chat() }, "rounds: 2 is not from 3 to 1000000"),
            (Talk { system: 3999, ..chat() }, "system: 3999 is not from 0 to 3998"),
            (Talk { answer: Length::Fixed(0), ..chat() }, "answer: 0 is not from 1 to 10000000"),
        ];
        for (talk, error) in cases {
            assert_eq!(Users::new(1, talk, &closed).unwrap_err().to_string(), error);
        }
        let cases = [
            (Closed { think_s: -1.0, ..closed.clone() }, "think_s: -1 is not from 0 to 1000000000"),
            (Closed { until_s: 0.0, ..closed.clone() }, "until_s: 0 is not from 0.000001 to 1000000000"),
            (Closed { conversations: Some(0), ..closed }, "conversations: 0 is not from 1 to 4294967295"),
        ];
        for (closed, error) in cases {
            assert_eq!(Users::new(1, chat(), &closed).unwrap_err().to_string(), error);
        }
    }
}
