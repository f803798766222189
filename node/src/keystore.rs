//! Keys and tokens in a node's folder: hex in files that only their owner may read.
//! Invariant: a key is never printed, logged, or written anywhere else.

use anyhow::{Context as _, bail};
use spillway_ledger::SecretKey;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use zeroize::Zeroizing;

/// Reads the key in `path`, or makes one there if the file is missing.
///
/// # Errors
/// If the file cannot be read or written, is readable by others, or holds no key.
pub fn load_or_create(path: &Path) -> anyhow::Result<SecretKey> {
    if !path.exists() {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).context("the system gives no random bytes")?;
        write_secret(path, &hex::encode(*seed))?;
    }
    load(path)
}

/// Reads the key in `path`.
///
/// # Errors
/// If the file cannot be read, is readable by others, or holds no key.
pub fn load(path: &Path) -> anyhow::Result<SecretKey> {
    let text = Zeroizing::new(read_secret(path)?);
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut *seed)
        .with_context(|| format!("{}: not a key of 64 hex digits", path.display()))?;
    Ok(SecretKey::from_bytes(&seed))
}

/// Reads a secret's text.
///
/// # Errors
/// If the file cannot be read or is readable by others.
pub fn read_secret(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("{}: others may read it; run `chmod 600` on it", path.display());
        }
    }
    Ok(text)
}

/// Opens files that only their owner may read, where it makes them.
#[must_use]
pub fn owner_only() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Writes a secret to a new file that only its owner may read.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    let mut file = owner_only()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("{}: cannot be made", path.display()))?;
    file.write_all(secret.as_bytes()).and_then(|()| file.sync_all())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        let made = load_or_create(&path).expect("made");
        assert_eq!(load_or_create(&path).expect("read").public(), made.public());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        load_or_create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(load(&path).expect_err("refused").to_string().contains("chmod 600"));
    }

    #[test]
    fn a_file_without_a_key_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        write_secret(&path, "not hex").expect("written");
        assert!(load(&path).expect_err("refused").to_string().contains("node.key"));
    }
}
