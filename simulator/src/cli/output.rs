//! Where reports go: a folder with a page and the same figures as JSON.
//! Invariant: the folder is made before a run begins, so that a long run does not end in vain.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// A folder for a report.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes it, if it is not there.
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("--report: cannot make {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    /// Writes `index.html` and `report.json`, and says so on standard error.
    pub(super) fn write(&self, page: &str, figures: &impl serde::Serialize) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(figures)? + "\n";
        for (name, text) in [("report.json", &*json), ("index.html", page)] {
            let path = self.0.join(name);
            std::fs::write(&path, text).with_context(|| format!("--report: cannot write {}", path.display()))?;
        }
        eprintln!("report: {}", self.0.join("index.html").display());
        Ok(())
    }
}

/// The command that this is, as a shell takes it.
pub(super) fn command() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let program =
        Path::new(&program).file_name().map_or_else(|| program.clone(), |it| it.to_string_lossy().into_owned());
    std::iter::once(program).chain(words).map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./,:=+%@".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, wanted) in [("0..10", "0..10"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(word), wanted);
        }
    }
}
