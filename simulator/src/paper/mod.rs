//! Published results, reproduced: `spillway-sim paper NAME`.
//! Invariant: a figure was measured in this run, or it is absent and the row says why; none is filled in.

pub mod command;
mod engines;
mod gorgo;
mod lab;
mod llm_d;
mod market;
mod mooncake;
mod prequal;
mod row;
mod skywalker;

pub use lab::{Lab, PaperError};
pub use row::{Page, Row};

/// A published result.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it shows, in a sentence.
    pub about: &'static str,
    /// Where it was published.
    pub source: &'static str,
    run: fn(&Lab<'_>) -> Result<Vec<Row>, PaperError>,
}

/// All of them. [`named`] is the only place where a name is looked up.
pub const TABLE: &[Entry] = &[
    Entry {
        name: "mooncake-fig5",
        about: "Mean time to first token of the conversation trace under four ways to choose a prefill node.",
        source: mooncake::SOURCE,
        run: mooncake::fig5,
    },
    Entry {
        name: "mooncake-fig9",
        about: "How much of the highest possible hit rate a node's own cache of 3 million tokens reaches.",
        source: mooncake::SOURCE,
        run: mooncake::fig9,
    },
    Entry {
        name: "llm-d",
        about: "Eight pods, many long shared prompts: an index of what is cached against choosing at random.",
        source: llm_d::SOURCE,
        run: llm_d::run,
    },
    Entry {
        name: "skywalker",
        about: "Pushing only where nothing waits, in one region; and three regions as one against each by itself.",
        source: skywalker::SOURCE,
        run: skywalker::run,
    },
    Entry {
        name: "gorgo",
        about: "Three regions: round trip, cache and queue in one sum against keeping sessions where they hash to.",
        source: gorgo::SOURCE,
        run: gorgo::run,
    },
    Entry {
        name: "prequal",
        about: "Load beyond what an own fleet can do, up to 1.74 times: no collapse, and the strangers' own clients protected.",
        source: prequal::SOURCE,
        run: prequal::run,
    },
    Entry {
        name: "price",
        about: "Cost and timeliness against OpenRouter's 1/price² and the cheapest that is in time.",
        source: market::PRICE_SOURCE,
        run: market::price,
    },
    Entry {
        name: "oracle",
        about: "Timeliness against a policy that sees all.",
        source: market::ORACLE_SOURCE,
        run: market::oracle,
    },
];

/// The result of that name.
///
/// # Errors
/// There is none; says which there are.
pub fn named(name: &str) -> Result<&'static Entry, PaperError> {
    TABLE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known: Vec<_> = TABLE.iter().map(|entry| entry.name).collect();
        PaperError::Unknown { name: name.to_owned(), known: known.join(", ") }
    })
}

impl Entry {
    /// Runs it.
    ///
    /// # Errors
    /// [`PaperError::Missing`] or [`PaperError::Trace`] if it needs a trace that is not there or does not read.
    pub fn run(&self, lab: &Lab<'_>) -> Result<Page, PaperError> {
        Ok(Page { name: self.name, source: self.source, rows: (self.run)(lab)? })
    }
}
