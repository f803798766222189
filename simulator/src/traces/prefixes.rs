//! Gives requests whose source tells no conversations the conversations that such a service has.
//! Invariant: times, clients and sizes stay as they are. What is held is at most [`OPEN_MAX`] conversations a client.
//!
//! A client's prompts begin with its system prompt. A share of its requests go on with a conversation of its own: one whose
//! last answer is there, its user having thought about it, and which is short enough to lie within the prompt. How many go on
//! is a setting; Mooncake's conversation trace, the only public one that tells, is the reference for its default.

use super::error::{SettingError, within};
use super::names::{Prompt, mix};
use super::sampling::{TOKENS_MAX, exponential, unit};
use super::{Request, Workload};
use crate::draws::Draws;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Conversations of a client that may go on. Where there are more, the one that waits longest is over.
pub const OPEN_MAX: usize = 16_384;
/// After how many times the mean thought a conversation that nobody went on with is over.
const PATIENCE: f64 = 4.0;
/// How many that may go on are looked at for one that is short enough.
const LOOKED_AT: usize = 16;
/// What a token of an answer is thought to take, in microseconds: a user cannot go on before.
const TOKEN_US: u64 = 30_000;

/// How prompts begin.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefixes {
    /// Tokens of each client's system prompt; a shorter prompt is cut out of it.
    #[serde(default)]
    pub system: u32,
    /// The chance that a request goes on with a conversation, if one is open that fits.
    #[serde(default = "again")]
    pub again: f64,
    /// How long a user thinks before going on, in seconds, exponentially distributed, on average.
    #[serde(default = "think")]
    pub think_s: f64,
}

/// In Mooncake's conversation trace, 33 % of the requests of an hour go on with a conversation of that hour.
const fn again() -> f64 {
    0.33
}

const fn think() -> f64 {
    30.0
}

/// A stream of requests with prefixes.
#[derive(Debug)]
pub struct Dressed<I> {
    bare: I,
    seed: u64,
    rules: Prefixes,
    clients: BTreeMap<u32, Client>,
    sessions: u64,
}

#[derive(Debug)]
struct Client {
    draws: Draws,
    system: Prompt,
    /// By when each may go on; the number keeps equals apart.
    open: BTreeMap<(u64, u64), Conversation>,
}

#[derive(Debug)]
struct Conversation {
    session: u64,
    turn: u64,
    /// All that was said.
    said: Prompt,
}

impl<I: Iterator<Item = Request>> Dressed<I> {
    /// Dresses what comes from `bare`.
    pub fn new(seed: u64, rules: Prefixes, bare: I) -> Result<Self, SettingError> {
        within("system", rules.system.into(), 0.0, TOKENS_MAX.into())?;
        within("again", rules.again, 0.0, 1.0)?;
        within("think_s", rules.think_s, 0.0, 1e9)?;
        Ok(Self { bare, seed, rules, clients: BTreeMap::new(), sessions: 0 })
    }

    fn dress(&mut self, mut request: Request) -> Request {
        let (seed, rules) = (self.seed, self.rules);
        let client = self.clients.entry(request.client).or_insert_with(|| {
            let mut system = Prompt::default();
            system.push(mix(mix(seed, 3), request.client.into()), rules.system);
            let draws = Draws::new(seed, &format!("prefixes of client {}", request.client));
            Client { draws, system, open: BTreeMap::new() }
        });
        let over = request.at_us.saturating_sub((rules.think_s * PATIENCE * 1e6) as u64);
        while client.open.first_key_value().is_some_and(|((ready, _), _)| *ready < over) {
            client.open.pop_first();
        }
        let goes_on = unit(&mut client.draws) < rules.again;
        let fits = |conversation: &Conversation| conversation.said.tokens() < u64::from(request.input);
        let ready = client.open.range(..(request.at_us, 0)).rev().take(LOOKED_AT);
        let found = ready.filter(|(_, conversation)| goes_on && fits(conversation)).map(|(key, _)| *key).next();
        let mut conversation = found.and_then(|key| client.open.remove(&key)).unwrap_or_else(|| {
            self.sessions += 1;
            let whole = client.system.tokens() <= u64::from(request.input);
            let said = if whole {
                client.system.clone()
            } else {
                let mut cut = Prompt::default();
                cut.push(mix(mix(seed, 3), request.client.into()), request.input);
                cut
            };
            Conversation { session: self.sessions - 1, turn: 0, said }
        });
        let Conversation { session, turn, said } = &mut conversation;
        let content = mix(mix(seed, 4), *session);
        let question = u64::from(request.input) - said.tokens();
        said.push(mix(content, *turn * 2), u32::try_from(question).expect("at most the input"));
        request.session = *session;
        request.prefix = said.names();
        said.push(mix(content, *turn * 2 + 1), request.output);
        *turn += 1;
        let thought = (rules.think_s * exponential(&mut client.draws) * 1e6) as u64;
        let ready = request.at_us.saturating_add(u64::from(request.output) * TOKEN_US).saturating_add(thought);
        let key = (ready, conversation.session);
        if rules.again > 0.0 {
            client.open.insert(key, conversation);
            if client.open.len() > OPEN_MAX {
                client.open.pop_first();
            }
        }
        request
    }
}

impl<I: Iterator<Item = Request>> Iterator for Dressed<I> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        let request = self.bare.next()?;
        Some(self.dress(request))
    }
}

impl<I: Iterator<Item = Request>> Workload for Dressed<I> {
    fn next(&mut self) -> Option<Request> {
        Iterator::next(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::servegen::{Clients, Sample};
    use super::*;
    use std::collections::BTreeSet;

    fn bare() -> Vec<Request> {
        Clients::day().stream(&Sample { scale: 0.1, to_s: 3600, ..Sample::default() }).unwrap().take(20_000).collect()
    }

    fn dressed(rules: Prefixes) -> Vec<Request> {
        Dressed::new(1, rules, bare().into_iter()).unwrap().collect()
    }

    /// How many requests go on with a conversation.
    fn going_on(requests: &[Request]) -> f64 {
        let sessions: BTreeSet<u64> = requests.iter().map(|request| request.session).collect();
        1.0 - sessions.len() as f64 / requests.len() as f64
    }

    #[test]
    fn only_sessions_and_prefixes_change() {
        let requests = dressed(Prefixes { system: 200, again: 0.5, think_s: 20.0 });
        for (bare, dressed) in bare().iter().zip(&requests) {
            assert_eq!(
                (bare.at_us, bare.client, bare.input, bare.output),
                (dressed.at_us, dressed.client, dressed.input, dressed.output)
            );
            assert_eq!(dressed.prefix.len() as u32, dressed.input / super::super::PREFIX_BLOCK);
        }
        // Some that would go on find none that fits.
        let going_on = going_on(&requests);
        assert!((0.2..0.5).contains(&going_on), "{going_on}");
    }

    #[test]
    fn a_conversation_grows_within_its_client_once_the_answer_is_there() {
        let mut last: BTreeMap<u64, Request> = BTreeMap::new();
        for request in dressed(Prefixes { system: 0, again: 0.7, think_s: 5.0 }) {
            if let Some(before) = last.insert(request.session, request.clone()) {
                assert_eq!(before.client, request.client);
                assert!(request.at_us >= before.at_us + u64::from(before.output) * TOKEN_US);
                assert!(request.input > before.input + before.output);
                assert_eq!(request.prefix[..before.prefix.len()], before.prefix[..]);
            }
        }
    }

    #[test]
    fn clients_share_nothing_and_each_its_system_prompt() {
        let requests = dressed(Prefixes { system: 1024, again: 0.0, think_s: 5.0 });
        assert!(going_on(&requests) == 0.0);
        let mut first: BTreeMap<u32, u64> = BTreeMap::new();
        for request in requests.iter().filter(|request| request.input >= 1024) {
            assert_eq!(*first.entry(request.client).or_insert(request.prefix[1]), request.prefix[1]);
        }
        assert_eq!(first.values().collect::<BTreeSet<_>>().len(), first.len());
        assert!(first.len() > 20);
    }
}
