//! Report pages: one HTML file that shows what a run or a comparison gave, with charts in it.
//! Invariant: a page stands alone (no script, nothing from elsewhere), and follows from what it shows, so that the same run
//! makes the same page.
//!
//! The charts are our own because those of crates put colours into the picture, which then fits one colour scheme only, or
//! need a script in the page. What escapes text is `quick-xml`.

mod chart;
mod compare;
mod html;
mod run;
mod scale;
mod scatter;
#[cfg(test)]
mod tests;
mod time;

pub use compare::{Day, Earned, comparison, replay};
pub use run::report;

use html::Markup;

/// Where a page's figures come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The command that made them.
    pub command: String,
    /// The setting or scenario, as TOML.
    pub setting: String,
}

impl Origin {
    /// The end of every page: how to make it again.
    fn write(&self, markup: &mut Markup, seeds: &str) {
        markup.leaf("h2", &[], "How to make it again").open("dl", &[]);
        for (name, what) in [
            ("Command", &*self.command),
            ("Seeds", seeds),
            ("Version", concat!("spillway-simulator ", env!("CARGO_PKG_VERSION"))),
        ] {
            markup.leaf("dt", &[], name).open("dd", &[]).leaf("code", &[], what).close();
        }
        markup.close().leaf("h2", &[], "Setting").leaf("pre", &[], &self.setting);
    }
}

/// A large figure with what it is.
fn tile(markup: &mut Markup, figure: &str, what: &str) {
    markup.open("div", &[("class", "tile")]).leaf("b", &[], figure).leaf("span", &[], what).close();
}
