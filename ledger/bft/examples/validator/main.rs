//! One validator in a process of its own, with a small TCP port for clients: what the campaigns start, kill and ask.
//!
//! `cargo run -p spillway-bft --example validator -- validator.json`
//!
//! The file names the genesis, the key, the folder and the port, and holds the validator's settings; see [`Config`].

mod books;
mod frame;
mod lies;

use std::io::{BufReader, BufWriter, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use serde::Deserialize;
use spillway_bft::{Settings, Validator};
use spillway_ledger::{Genesis, PublicKey, Replica, SecretKey, SignedBytes};

use books::{Books, Waiter};
use lies::{Liar, Lie};

/// The most clients at once.
const CONNECTIONS_MAX: usize = 64;
/// How many entries are verified at once, at most.
const BATCH_MAX: usize = 256;
/// How many answers wait for a slow reader.
const ANSWERS_MAX: usize = 16 * 1_024;
/// How many entries wait to be told to the other validators.
const SHARE_MAX: usize = 8 * 1_024;

/// The configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The network's constitution.
    genesis: PathBuf,
    /// A file with the validator's secret key, in hexadecimal.
    key: PathBuf,
    /// The folder for the books.
    folder: PathBuf,
    /// Where clients connect.
    port: SocketAddr,
    /// The validator's own settings.
    settings: Settings,
    /// By how much our clock is wrong, in milliseconds.
    #[serde(default)]
    clock_ms: i64,
    /// What wrong blocks to propose.
    #[serde(default)]
    lies: Vec<Lie>,
}

type Problem = Box<dyn std::error::Error>;

fn main() -> Result<(), Problem> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let path = std::env::args().nth(1).ok_or("usage: validator CONFIG.json")?;
    let config: Config = serde_json::from_slice(&std::fs::read(path)?)?;
    let genesis: Genesis = serde_json::from_slice(&std::fs::read(&config.genesis)?)?;
    let key = read_key(&std::fs::read_to_string(&config.key)?)?;

    let replica = Replica::open(&config.folder, &genesis)?;
    let liar = (!config.lies.is_empty()).then(|| Liar::new(config.lies, &config.folder)).transpose()?;
    let (share, shared) = tokio::sync::mpsc::channel(SHARE_MAX);
    let books = Arc::new(Books::new(replica, key.clone(), config.clock_ms, liar, share));

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let validator = runtime.block_on(Validator::start(config.settings, key, books.clone()))?;
    let _set_once = books.replayed.set(validator.replayed());
    let listener = TcpListener::bind(config.port)?;
    thread::spawn(move || serve(&listener, &books));
    let outcome = runtime.block_on(async {
        tokio::select! {
            () = share_entries(&validator, shared) => Ok(()),
            ended = validator.ended() => ended,
        }
    });
    outcome.map_err(|failure| failure.to_string().into())
}

fn read_key(text: &str) -> Result<SecretKey, Problem> {
    // The same digits as a digest's: 32 bytes in hexadecimal.
    let seed: spillway_ledger::Digest = text.trim().parse()?;
    Ok(SecretKey::from_bytes(seed.as_bytes()))
}

/// Tells the other validators of entries, as many at a time as have come.
async fn share_entries(validator: &Validator, mut shared: tokio::sync::mpsc::Receiver<SignedBytes>) {
    let mut entries = Vec::new();
    while shared.recv_many(&mut entries, BATCH_MAX).await > 0 {
        validator.share(&entries).await;
        entries.clear();
    }
}

fn serve(listener: &TcpListener, books: &Arc<Books>) {
    let open = Arc::new(AtomicUsize::new(0));
    for (number, stream) in (0_u64..).zip(listener.incoming()) {
        let Ok(stream) = stream else { continue };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (books, open) = (books.clone(), open.clone());
        thread::spawn(move || {
            // A client that leaves or talks nonsense ends its connection, nothing else.
            let _why = converse(&stream, &books, number);
            books.forget(number);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn converse(stream: &TcpStream, books: &Books, connection: u64) -> Result<(), Problem> {
    stream.set_nodelay(true)?;
    let (answers, rest) = mpsc::sync_channel::<(u8, Vec<u8>)>(ANSWERS_MAX);
    let writing = stream.try_clone()?;
    thread::spawn(move || write_answers(writing, &rest));
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let (mut sequence, mut batch) = (0, Vec::new());
    loop {
        let (kind, body) = frame::read(&mut reader)?;
        match kind {
            frame::ENTRY => {
                let entry: SignedBytes = wincode::deserialize_exact(&body)?;
                batch.push((Waiter { connection, sequence, answers: answers.clone() }, entry));
                sequence += 1;
            }
            frame::STATUS => answers.try_send((kind, books.status().into_bytes()))?,
            frame::ACCOUNT => {
                let key = PublicKey::from_bytes(body.as_slice().try_into()?)?;
                answers.try_send((kind, books.account(key).into_bytes()))?;
            }
            _ => return Err("an unknown kind of frame".into()),
        }
        // Verify together what came together.
        if !batch.is_empty() && (batch.len() == BATCH_MAX || reader.buffer().is_empty()) {
            books.submit(std::mem::take(&mut batch));
        }
    }
}

fn write_answers(stream: TcpStream, answers: &mpsc::Receiver<(u8, Vec<u8>)>) {
    let mut writer = BufWriter::new(stream);
    while let Ok((kind, body)) = answers.recv() {
        let mut wrote = frame::write(&mut writer, kind, &body);
        while let Ok((kind, body)) = answers.try_recv() {
            wrote = wrote.and_then(|()| frame::write(&mut writer, kind, &body));
        }
        if wrote.and_then(|()| writer.flush()).is_err() {
            return;
        }
    }
}
