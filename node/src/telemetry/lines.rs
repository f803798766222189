//! Files of JSON lines that are begun anew when they grow large.
//! Invariant: of one log there are at most as many files as were asked for, and none much larger than was asked for; a line is
//! written whole or not at all, as far as the disk lets it.

use crate::keystore::owner_only;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where lines go.
#[derive(Debug)]
pub struct Lines {
    to: To,
}

#[derive(Debug)]
enum To {
    Stderr,
    File { path: PathBuf, file: File, bytes: u64, bytes_max: u64, files_max: u32 },
}

impl Lines {
    /// To the process's standard error.
    #[must_use]
    pub const fn stderr() -> Self {
        Self { to: To::Stderr }
    }

    /// To the file at `path`, which only its owner may read. At `bytes_max` bytes it is renamed to `PATH.1`, that to `PATH.2`, and so
    /// on: `files_max` in all.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn file(path: &Path, bytes_max: u64, files_max: u32) -> io::Result<Self> {
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { to: To::File { path: path.to_owned(), file, bytes, bytes_max, files_max } })
    }

    /// Writes whole lines; if `durable`, they are on the disk when this returns.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&mut self, lines: &[u8], durable: bool) -> io::Result<()> {
        match &mut self.to {
            To::Stderr => io::stderr().lock().write_all(lines),
            To::File { path, file, bytes, bytes_max, files_max } => {
                if *bytes > 0 && *bytes + lines.len() as u64 > *bytes_max {
                    file.sync_data()?;
                    rotate(path, *files_max)?;
                    (*file, *bytes) = (open(path)?, 0);
                }
                file.write_all(lines)?;
                *bytes += lines.len() as u64;
                if durable { file.sync_data() } else { Ok(()) }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    owner_only().append(true).create(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Makes room at `path`: each file takes the place of the one that is older, and the oldest goes.
fn rotate(path: &Path, files_max: u32) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    if files_max <= 1 {
        return gone(fs::remove_file(path));
    }
    for number in (1..files_max - 1).rev() {
        gone(fs::rename(numbered(path, number), numbered(path, number + 1)))?;
    }
    fs::rename(path, numbered(path, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.jsonl");
        for (files_max, want) in [(3, vec!["g\n", "e\nf\n", "c\nd\n"]), (1, vec!["g\n"])] {
            for old in fs::read_dir(folder.path()).expect("a folder") {
                fs::remove_file(old.expect("a file").path()).expect("removed");
            }
            let mut lines = Lines::file(&path, 4, files_max).expect("a file");
            for line in ["a\n", "b\n", "c\n", "d\n", "e\n"] {
                lines.write(line.as_bytes(), false).expect("written");
            }
            // A new start goes on where the last one ended.
            let mut lines = Lines::file(&path, 4, files_max).expect("a file");
            lines.write(b"f\n", true).expect("written");
            lines.write(b"g\n", true).expect("written");
            let files = std::iter::once(path.clone()).chain((1..9).map(|number| numbered(&path, number)));
            let kept: Vec<String> = files.map_while(|file| fs::read_to_string(file).ok()).collect();
            assert_eq!(kept, want);
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.jsonl");
        Lines::file(&path, 4, 2).expect("a file");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
