//! Who is paid and who pays: the two documents that hold bank details, as files of JSON.
//! Invariant: neither lies on the ledger; a payout names its payee by [`Payee::digest`], which the salt keeps from being
//! guessed from a list of account numbers.

use super::bank::{Bic, Country, Iban};
use super::text::{TextError, basic_latin};
use crate::keystore::owner_only;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spillway_ledger::Digest;
use spillway_protocol::{Currency, Rate};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Names the payee document's format in its digest.
const PAYEE_DOMAIN: &str = "spillway/payee/1";
/// The longest name that banks take, in characters; SEPA's limit, which is below the schema's.
pub(super) const NAME_MAX: usize = 70;
/// The largest file with bank details, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// The most payee files in one folder.
const FILES_MAX: usize = 10_000;

/// Random bytes that make a document's digest unguessable; 64 hexadecimal digits in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Salt(Digest);

/// Whom to pay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payee {
    /// The account's owner, as the bank knows it.
    pub name: String,
    /// The account.
    pub iban: Iban,
    /// The bank, where the account number does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bic: Option<Bic>,
    /// Where the owner lives.
    pub country: Country,
    /// What is to be paid.
    pub currency: Currency,
    /// Makes the digest unguessable.
    pub salt: Salt,
}

/// Who pays, and at which rate: the issuer's own details, for its treasurer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debtor {
    /// The account's owner.
    pub name: String,
    /// The account that is debited.
    pub iban: Iban,
    /// Its bank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bic: Option<Bic>,
    /// Where the owner resides.
    pub country: Country,
    /// What is paid from it.
    pub currency: Currency,
    /// What one credit is worth in that currency, such as `"0.92"`.
    pub rate: Rate,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is too large to be what it should be.
    #[error("{0}: over 16 KiB, so it holds no bank details")]
    TooLarge(PathBuf),
    /// It is not the document.
    #[error("{path}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The field, and what is wrong with it.
        what: String,
    },
    /// More files than are read.
    #[error("{0}: more than 10,000 payee files")]
    TooMany(PathBuf),
}

impl FileError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { path: path.to_owned(), error }
    }
}

impl Payee {
    /// A document with a fresh salt.
    ///
    /// # Errors
    /// If the name cannot be written for a bank.
    pub fn new(
        name: &str,
        iban: Iban,
        bic: Option<Bic>,
        country: Country,
        currency: Currency,
        salt: [u8; 32],
    ) -> Result<Self, TextError> {
        basic_latin(name, NAME_MAX)?;
        Ok(Self { name: name.trim().into(), iban, bic, country, currency, salt: Salt(Digest::from_bytes(salt)) })
    }

    /// What a payout request on the ledger names it by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let parts: [&[u8]; 6] = [
            self.name.as_bytes(),
            self.iban.as_str().as_bytes(),
            self.bic.as_ref().map_or("", Bic::as_str).as_bytes(),
            self.country.as_str().as_bytes(),
            self.currency.code().as_bytes(),
            self.salt.0.as_bytes(),
        ];
        Digest::of(PAYEE_DOMAIN, &parts)
    }

    /// Reads the document in `path`.
    ///
    /// # Errors
    /// As [`FileError`] says; the field is named.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let payee: Self = read(path)?;
        check_name(path, &payee.name)?;
        Ok(payee)
    }
}

impl Debtor {
    /// Reads the document in `path`.
    ///
    /// # Errors
    /// As [`FileError`] says; the field is named.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let debtor: Self = read(path)?;
        check_name(path, &debtor.name)?;
        Ok(debtor)
    }
}

fn check_name(path: &Path, name: &str) -> Result<(), FileError> {
    basic_latin(name, NAME_MAX)
        .map(drop)
        .map_err(|error| FileError::Malformed { path: path.into(), what: format!("name: {error}") })
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let mut text = String::new();
    let file = File::open(path).map_err(FileError::io(path))?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(FileError::io(path))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::TooLarge(path.into()));
    }
    serde_json::from_str(&text).map_err(|error| FileError::Malformed { path: path.into(), what: error.to_string() })
}

/// A file and what is in it.
pub type PayeeFile = (PathBuf, Result<Payee, FileError>);

/// The payee documents in `path`: of one file, or of every `.json` file of a folder, in the order of their names.
///
/// # Errors
/// If the folder cannot be listed or has more than 10,000 such files. A file that is no payee document is told in its
/// place, so that it does not keep the others from being paid.
pub fn read_payees(path: &Path) -> Result<Vec<PayeeFile>, FileError> {
    if !path.is_dir() {
        return Ok(vec![(path.into(), Payee::read(path))]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(FileError::io(path))? {
        let file = entry.map_err(FileError::io(path))?.path();
        if file.extension().is_some_and(|extension| extension == "json") {
            files.push(file);
        }
        if files.len() > FILES_MAX {
            return Err(FileError::TooMany(path.into()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|file| (file.clone(), Payee::read(&file))).collect())
}

/// Writes a new file that only its owner may read, durably. An existing one is not touched.
///
/// # Errors
/// If it exists or cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = owner_only().write(true).create_new(true).open(path).map_err(FileError::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "name": "Ada Müller", "iban": "DE89 3704 0044 0532 0130 00", "country": "DE", "currency": "EUR",
        "salt": "0707070707070707070707070707070707070707070707070707070707070707"
    }"#;

    fn in_folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("written");
        }
        folder
    }

    #[test]
    fn every_field_is_under_the_digest_and_the_digest_is_frozen() {
        let folder = in_folder(&[("a.json", FILE)]);
        let payee = Payee::read(&folder.path().join("a.json")).expect("a payee");
        assert_eq!(payee.digest().to_string(), "fae03cca5c00989cc76a92f34d48b32c2722817c50902006d7ea81fef5f5a685");
        let again: Payee = serde_json::from_str(&serde_json::to_string(&payee).expect("JSON")).expect("a payee");
        assert_eq!((again.digest(), &again), (payee.digest(), &payee));
        let changed = [
            FILE.replace("Müller", "Muller"),
            FILE.replace("DE89 3704 0044 0532 0130 00", "NL91ABNA0417164300"),
            FILE.replace("\"DE\"", "\"AT\""),
            FILE.replace("EUR", "CHF"),
            FILE.replace("\"country\"", "\"bic\": \"COBADEFF\", \"country\""),
            FILE.replace("\"07", "\"08"),
        ];
        for text in changed {
            let other: Payee = serde_json::from_str(&text).expect(&text);
            assert_ne!(other.digest(), payee.digest(), "{text}");
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        for (from, to, what) in [
            ("0130 00", "0130 01", "check digits"),
            ("\"DE\"", "\"Germany\"", "no country"),
            ("EUR", "euro", "no currency"),
            ("Ada Müller", "李雷", "name: has the character '李'"),
            ("Ada Müller", " ", "name: is empty"),
            ("\"name\"", "\"nom\"", "unknown field `nom`"),
            ("\"0707", "\"07", "64 hexadecimal digits"),
            ("\"country\"", "\"bic\": \"bank\", \"country\"", "no BIC"),
        ] {
            let folder = in_folder(&[("a.json", &FILE.replace(from, to))]);
            let error = Payee::read(&folder.path().join("a.json")).expect_err(to).to_string();
            assert!(error.contains(what) && error.contains("a.json"), "{to}: {error}");
        }
        let folder = in_folder(&[("a.json", &" ".repeat(20_000))]);
        assert!(matches!(Payee::read(&folder.path().join("a.json")), Err(FileError::TooLarge(_))));
    }

    #[test]
    fn a_folder_is_read_file_by_file() {
        let folder = in_folder(&[("b.json", "{}"), ("a.json", FILE), ("notes.txt", "x")]);
        let read = read_payees(folder.path()).expect("a folder");
        let told: Vec<(String, bool)> = read
            .iter()
            .map(|(path, payee)| (path.file_name().expect("a name").to_string_lossy().into(), payee.is_ok()))
            .collect();
        assert_eq!(told, [("a.json".into(), true), ("b.json".into(), false)]);
        assert_eq!(read_payees(&folder.path().join("a.json")).expect("a file").len(), 1);
    }

    #[test]
    fn files_with_bank_details_are_private_and_never_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = in_folder(&[]);
        let path = folder.path().join("x");
        write_private(&path, b"one").expect("new");
        assert!(write_private(&path, b"two").is_err());
        assert_eq!(fs::read(&path).expect("readable"), b"one");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
