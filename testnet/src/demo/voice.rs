//! What the demo says while it runs: numbered steps, with a spinner on a terminal and plain lines anywhere else.
//! Invariant: in JSON mode nothing is said on standard output.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often the spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// Says things to people.
pub struct Voice {
    spinner: Option<ProgressBar>,
    on_stderr: bool,
    step: usize,
    steps: usize,
}

impl Voice {
    /// For a run of `steps`; on standard error if `on_stderr`.
    #[must_use]
    pub fn new(steps: usize, on_stderr: bool) -> Self {
        let terminal = if on_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let spinner = terminal.then(|| {
            let target = if on_stderr { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
            let bar = ProgressBar::with_draw_target(None, target);
            bar.set_style(
                ProgressStyle::with_template("      {spinner} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(TURN);
            bar
        });
        Self { spinner, on_stderr, step: 0, steps }
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        let line = format!("\n[{}/{}] {title}", self.step, self.steps);
        self.line(&line);
    }

    /// Says a line within the step.
    pub fn say(&self, line: &str) {
        self.line(&format!("      {line}"));
    }

    /// Says a line as it is.
    pub fn line(&self, line: &str) {
        let print = || {
            // A reader that went away (`| head`) does not stop the demo from cleaning up.
            if self.on_stderr {
                writeln!(std::io::stderr(), "{line}").ok();
            } else {
                writeln!(std::io::stdout(), "{line}").ok();
            }
        };
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }

    /// Shows what is waited for, on a terminal.
    pub fn wait(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(what.to_owned());
        }
    }

    /// Takes the spinner away.
    pub fn rest(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
