//! Clients that keep a committee busy and remember what they were told.
//! Invariant: an entry is counted as acknowledged only when a validator said at which height it was committed, and a
//! client goes on to its next entry only then: the same signed entry is offered to one validator after the other.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use spillway_ledger::{Action, Credits, Digest, SecretKey};

use super::client::Client;
use super::{Committee, key};

/// An entry of which a client was told that it is committed.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub height: u64,
    /// The digest of the signed entry.
    pub entry: Digest,
}

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Funds `count` accounts and begins to send transfers between them to the first `of` validators.
    pub fn start(committee: &mut Committee, count: u8, of: usize) -> Load {
        let keys: Vec<SecretKey> = (0..count).map(|number| key(100 + number)).collect();
        committee.fund(&keys, 1_000_000_000);
        let ports: Vec<SocketAddr> = committee.nodes[..of].iter().map(|node| node.port).collect();
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let to = keys[0].account();
        let clients = keys.into_iter().enumerate().map(|(index, key)| {
            let (stop, acknowledged, ports) = (stop.clone(), acknowledged.clone(), ports.clone());
            let network = committee.network();
            thread::spawn(move || {
                let mut at = index;
                let mut connection = None;
                for nonce in 0_u64.. {
                    let mut business = [0; 16];
                    business[..8].copy_from_slice(&nonce.to_le_bytes());
                    // Far enough ahead for a campaign's length; the ledger allows 10,000 heights.
                    let expires_height = nonce + 9_000;
                    let action = Action::Transfer { to, amount: Credits::new(1) };
                    let account = key.account();
                    let entry = spillway_ledger::Entry { network, account, nonce, expires_height, business, action };
                    let wire = spillway_ledger::Signed::sign(entry, &key).to_wire();
                    loop {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let client = connection.take().or_else(|| Client::connect(ports[at % ports.len()]).ok());
                        let answer = client.map(|mut client| {
                            let answer = client.submit(&wire);
                            connection = answer.is_ok().then_some(client);
                            answer
                        });
                        if let Some(Ok(Ok(height))) = answer {
                            let mut all = acknowledged.lock().expect("nobody panics with it");
                            all.push(Acknowledged { height, entry: wire.digest() });
                            break;
                        }
                        // Down, behind, or busy: ask the next one.
                        connection = None;
                        at += 1;
                        thread::sleep(Duration::from_millis(10));
                    }
                }
            })
        });
        let clients = clients.collect();
        Load { stop, acknowledged, clients }
    }

    /// How many entries were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().expect("nobody panics with it").len()
    }

    /// Stops the clients and gives what they were told.
    pub fn stop(self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().expect("a client does not panic");
        }
        self.acknowledged.lock().expect("nobody panics with it").clone()
    }
}
