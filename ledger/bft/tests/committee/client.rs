//! A client of the validator program's port.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;
use spillway_ledger::{PublicKey, SignedBytes};

#[path = "../../examples/validator/frame.rs"]
mod frame;

/// How long an answer may take before the client asks somebody else.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What a validator says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub height: u64,
    pub validators: Vec<PublicKey>,
    pub extra_rounds: u64,
    pub replayed: u64,
}

#[derive(Deserialize)]
struct AccountAnswer {
    nonce: u64,
    balance: u64,
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Client {
    pub fn connect(port: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&port, ANSWER_WAIT)?;
        stream.set_read_timeout(Some(ANSWER_WAIT))?;
        stream.set_nodelay(true)?;
        Ok(Client { reader: BufReader::new(stream.try_clone()?), stream })
    }

    pub fn status(&mut self) -> io::Result<Status> {
        frame::write(&mut self.stream, frame::STATUS, &[])?;
        let (_, body) = frame::read(&mut self.reader)?;
        Ok(serde_json::from_slice(&body)?)
    }

    pub fn account(&mut self, key: &PublicKey) -> io::Result<(u64, u64)> {
        frame::write(&mut self.stream, frame::ACCOUNT, key.as_bytes())?;
        let (_, body) = frame::read(&mut self.reader)?;
        let account: AccountAnswer = serde_json::from_slice(&body)?;
        Ok((account.nonce, account.balance))
    }

    /// Sends an entry without waiting for its answer.
    pub fn send(&mut self, entry: &SignedBytes) -> io::Result<()> {
        let body = wincode::serialize(entry).map_err(|_| odd("an entry that cannot be encoded"))?;
        let mut bytes = Vec::with_capacity(body.len() + 5);
        frame::write(&mut bytes, frame::ENTRY, &body)?;
        self.stream.write_all(&bytes)
    }

    /// Submits an entry and waits for the height it was committed at, or why it was not taken.
    pub fn submit(&mut self, entry: &SignedBytes) -> io::Result<Result<u64, String>> {
        self.send(entry)?;
        Ok(self.answer()?.1)
    }

    /// The next answer: the entry's place on this connection, and what became of it.
    pub fn answer(&mut self) -> io::Result<(u64, Result<u64, String>)> {
        let (kind, body) = frame::read(&mut self.reader)?;
        if kind != frame::ENTRY {
            return Err(odd("another kind of answer"));
        }
        let (sequence, rest) = body.split_first_chunk::<8>().ok_or_else(|| odd("too short"))?;
        let (height, reason) = rest.split_first_chunk::<8>().ok_or_else(|| odd("too short"))?;
        let outcome = match u64::from_le_bytes(*height) {
            0 => Err(String::from_utf8_lossy(reason).into_owned()),
            height => Ok(height),
        };
        Ok((u64::from_le_bytes(*sequence), outcome))
    }
}
