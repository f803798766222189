//! Credits paid out as money: whom to pay, how much, and the files that a treasurer gives to a bank.
//! Invariant: bank details are checked before they are written anywhere, and never lie on the ledger: a payout carries
//! the digest of a payee document, and only a document with that digest is paid.

mod bank;
mod batch;
pub mod cash;
mod csv;
mod date;
mod pain001;
mod party;
mod text;

pub use bank::{Bic, Country, Iban};
pub use batch::{Batch, BatchError, LINES_MAX, Left, Line, Unpaid, Waiting};
pub use csv::to_csv;
pub use date::{Date, now_ms};
pub use pain001::to_pain001;
pub use party::{Debtor, FileError, Payee, read_payees, write_private};
pub use text::{TextError, basic_latin};
