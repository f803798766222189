//! Published results, reproduced: `spillway-sim paper NAME`.
//! Invariant: a figure was measured in this run, or it is absent and the row says why; none is filled in.

pub mod command;
mod engines;
mod lab;
mod mooncake;
mod row;

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
