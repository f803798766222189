//! A committee of real validator processes on loopback: started, killed, asked, and its books compared at the end.
//! Invariant: it ends only the processes that it started, by their ids.

pub mod client;
pub mod links;
pub mod load;
pub mod scenarios;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spillway_ledger::{
    Action, Credits, Digest, Entry, Genesis, NetworkId, Replica, SecretKey, Signed, SignedBytes, Split, decode,
    verify_folder,
};

use client::{Client, Status};
use links::Links;

/// How long anything may take before a campaign gives up. Generous: other work may share the machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How one validator differs from the others.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// What wrong blocks it proposes, in the words of the validator's configuration.
    pub lies: Vec<&'static str>,
    /// By how much its clock is wrong, in milliseconds.
    pub clock_ms: i64,
}

/// One validator's files and process.
pub struct Node {
    config: PathBuf,
    pub folder: PathBuf,
    pub port: SocketAddr,
    child: Option<Child>,
}

/// The validators, of which the first few are in the genesis.
pub struct Committee {
    root: tempfile::TempDir,
    pub genesis: Genesis,
    pub keys: Vec<SecretKey>,
    pub nodes: Vec<Node>,
    links: Option<Links>,
    program: PathBuf,
}

/// A key that is the same in every run.
pub fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

/// Who mints in the campaigns.
pub fn issuer() -> SecretKey {
    key(200)
}

/// Now, in Unix milliseconds.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(now.as_millis()).expect("not so soon")
}

/// Waits until `done` gives something, asking every 20 ms; panics with `what` when it takes too long.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Processor time of a process, or of `self`, in seconds.
pub fn processor_seconds(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("Linux says");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    // After the name come the state and ten more; then the ticks in user and in system mode, 100 a second.
    let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("a number")).sum();
    ticks / 100.0
}

/// Distinct free ports on loopback.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port on loopback")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("it is bound")).collect()
}

fn multiaddr(address: SocketAddr) -> String {
    format!("/ip4/{}/tcp/{}", address.ip(), address.port())
}

/// The validator program, which cargo built beside this one.
fn program() -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let places = this.ancestors().skip(1).map(|folder| folder.join("examples/validator"));
    let found =
        this.ancestors().skip(1).map(|folder| folder.join("validator")).chain(places).find(|path| path.is_file());
    found.expect("`cargo build -p spillway-bft --example validator` comes first")
}

impl Committee {
    /// Prepares validators, of which the first `seats` are in the genesis; starts none. Where `proxied`, each connection
    /// between two of them goes through a proxy that can be cut.
    pub fn new(seats: usize, manners: &[Manner], proxied: bool) -> Committee {
        let root = tempfile::tempdir().expect("a temporary folder");
        let count = manners.len();
        let mut keys: Vec<SecretKey> = (0..count).map(|index| key(u8::try_from(index + 1).expect("few"))).collect();
        keys[..seats].sort_by_key(SecretKey::public);
        let genesis = Genesis {
            name: "campaign".to_owned(),
            time_ms: now_ms(),
            issuer: issuer().account(),
            committee: keys[..seats].iter().map(SecretKey::public).collect(),
            treasury: key(201).account(),
            validators: key(202).account(),
            split: Split::default(),
            grace_ms: 1_000,
            mint_max_per_epoch: Credits::MAX,
            epoch_blocks: 1_000,
            validator_bond: Credits::new(1_000),
            unbond_ms: 1_000,
            payout_min: Credits::new(1),
            bootstrap: Vec::new(),
        };
        let genesis_file = root.path().join("genesis.json");
        std::fs::write(&genesis_file, serde_json::to_vec(&genesis).expect("plain JSON")).expect("written");

        let ports = free_ports(2 * count);
        let (listen, clients) = ports.split_at(count);
        let links = proxied.then(|| Links::new(listen));
        let nodes = manners.iter().enumerate().map(|(index, manner)| {
            let folder = root.path().join(index.to_string());
            std::fs::create_dir_all(&folder).expect("made");
            let key_file = folder.join("key");
            std::fs::write(&key_file, Digest::from_bytes(*keys[index].to_bytes()).to_string()).expect("written");
            let way = |other: usize| links.as_ref().map_or(listen[other], |links| links.way(index, other));
            let peers: Vec<String> =
                (0..count).filter(|other| *other != index).map(|other| multiaddr(way(other))).collect();
            let config = serde_json::json!({
                "genesis": genesis_file, "key": key_file, "folder": folder.join("ledger"), "port": clients[index],
                "clock_ms": manner.clock_ms, "lies": manner.lies,
                "settings": {
                    "listen": multiaddr(listen[index]), "peers": peers, "folder": folder.join("log"), "idle_ms": 200,
                },
            });
            std::fs::create_dir_all(folder.join("ledger")).expect("made");
            let path = folder.join("validator.json");
            std::fs::write(&path, config.to_string()).expect("written");
            Node { config: path, folder: folder.join("ledger"), port: clients[index], child: None }
        });
        let nodes = nodes.collect();
        Committee { root, genesis, keys, nodes, links, program: program() }
    }

    /// Four honest validators, running.
    pub fn four() -> Committee {
        let mut committee = Committee::new(4, &vec![Manner::default(); 4], false);
        (0..4).for_each(|index| committee.start(index));
        committee
    }

    pub fn network(&self) -> NetworkId {
        self.genesis.network_id()
    }

    pub fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert!(node.child.is_none(), "validator {index} runs already");
        let errors = File::options().create(true).append(true).open(node.config.with_extension("log"));
        let child = Command::new(&self.program)
            .arg(&node.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.expect("opened"))
            .spawn();
        node.child = Some(child.expect("the validator program starts"));
    }

    /// Starts another process with this validator's key: a folder of its own, and connections of its own.
    pub fn twin(&mut self, of: usize) -> usize {
        let ports = free_ports(2);
        let index = self.nodes.len();
        let folder = self.root.path().join(index.to_string());
        std::fs::create_dir_all(folder.join("ledger")).expect("made");
        let text = std::fs::read_to_string(&self.nodes[of].config).expect("written before");
        let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        config["folder"] = serde_json::json!(folder.join("ledger"));
        config["port"] = serde_json::json!(ports[1]);
        config["settings"]["listen"] = serde_json::json!(multiaddr(ports[0]));
        config["settings"]["folder"] = serde_json::json!(folder.join("log"));
        let path = folder.join("validator.json");
        std::fs::write(&path, config.to_string()).expect("written");
        self.nodes.push(Node { config: path, folder: folder.join("ledger"), port: ports[1], child: None });
        index
    }

    /// Kills a validator as a power cut does: no signal it could handle.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.nodes[index].child.take().expect("it runs");
        child.kill().expect("it is ours to kill");
        child.wait().expect("it was started here");
    }

    /// Processor time that a validator has had since its start, in seconds; other work on the machine does not change it.
    pub fn processor_seconds(&self, index: usize) -> f64 {
        processor_seconds(&self.nodes[index].child.as_ref().expect("it runs").id().to_string())
    }

    pub fn running(&self, index: usize) -> bool {
        self.nodes[index].child.is_some()
    }

    /// Fails if a validator that should run has ended.
    pub fn check_alive(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if let Some(child) = &mut node.child {
                let ended = child.try_wait().expect("it was started here");
                let log = std::fs::read_to_string(node.config.with_extension("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                assert!(ended.is_none(), "validator {index} ended by itself: {last:?}");
            }
        }
    }

    /// What a validator says of itself; `None` while it cannot be asked.
    pub fn status(&self, index: usize) -> Option<Status> {
        Client::connect(self.nodes[index].port).ok()?.status().ok()
    }

    /// Heights of those that can be asked.
    pub fn heights(&self, of: &[usize]) -> Vec<u64> {
        of.iter().filter_map(|index| self.status(*index)).map(|status| status.height).collect()
    }

    /// Waits until each of these has come to `height`.
    pub fn wait_height(&mut self, of: &[usize], height: u64) {
        wait_for(&format!("height {height} at {of:?}"), || {
            self.check_alive();
            let heights = self.heights(of);
            (heights.len() == of.len() && heights.iter().all(|have| *have >= height)).then_some(())
        });
    }

    /// The greatest height among these.
    pub fn top(&self, of: &[usize]) -> u64 {
        self.heights(of).into_iter().max().unwrap_or(0)
    }

    /// Cuts or mends every link between the two groups.
    pub fn cut(&self, one: &[usize], other: &[usize], cut: bool) {
        self.links.as_ref().expect("made with proxies").cut(one, other, cut);
    }

    /// An entry whose business id is its nonce.
    pub fn entry(&self, by: &SecretKey, nonce: u64, height: u64, action: Action) -> SignedBytes {
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        let (network, account) = (self.network(), by.account());
        Signed::sign(Entry { network, account, nonce, expires_height: height + 9_000, business, action }, by).to_wire()
    }

    /// Gives credits to each of these, and waits until it is done.
    pub fn fund(&mut self, accounts: &[SecretKey], micro: u64) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|index| self.running(*index)).collect();
        self.wait_height(&running, 1);
        let nonce = wait_for("an answer", || self.account(running[0], &issuer())).0;
        for (number, account) in (nonce..).zip(accounts) {
            let (to, amount) = (account.account(), Credits::new(micro));
            let mint = Action::Mint { to, amount, reference: format!("campaign {number}") };
            let mint = self.entry(&issuer(), number, 1, mint);
            self.submit(running[0], &mint).expect("the issuer may mint");
        }
    }

    /// An account's next nonce and balance, as this validator knows it.
    pub fn account(&self, index: usize, key: &SecretKey) -> Option<(u64, u64)> {
        Client::connect(self.nodes[index].port).ok()?.account(&key.public()).ok()
    }

    /// Submits one entry and waits for its height.
    pub fn submit(&self, index: usize, entry: &SignedBytes) -> Result<u64, String> {
        let mut client = Client::connect(self.nodes[index].port).map_err(|error| error.to_string())?;
        client.submit(entry).map_err(|error| error.to_string())?
    }

    /// Ends every process.
    pub fn stop(&mut self) {
        for index in 0..self.nodes.len() {
            if self.running(index) {
                self.kill(index);
            }
        }
    }

    /// Ends every process, verifies these folders from the genesis on, and compares them block by block.
    pub fn compare(&mut self, of: &[usize], acknowledged: &[load::Acknowledged]) -> Comparison {
        self.stop();
        let chains: Vec<Chain> =
            of.iter().map(|index| Chain::read(&self.nodes[*index].folder, &self.genesis)).collect();
        let shortest = chains.iter().map(|chain| chain.blocks.len()).min().unwrap_or(0);
        let conflicts = (0..shortest)
            .filter(|place| chains.iter().any(|chain| chain.blocks[*place] != chains[0].blocks[*place]))
            .count();
        let lost = acknowledged
            .iter()
            .filter(|entry| !chains.iter().all(|chain| chain.entries.contains(&(entry.height, entry.entry))))
            .count();
        let heights = chains.iter().map(|chain| chain.blocks.len()).collect();
        let Chain { blocks, evidence, .. } = chains.into_iter().next().expect("at least one folder is compared");
        Comparison { heights, evidence, conflicts, lost, acknowledged: acknowledged.len(), blocks }
    }
}

impl Drop for Committee {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() || std::env::var_os("SPILLWAY_KEEP").is_some() {
            // Keep what shows why.
            let kept = std::env::temp_dir().join(format!("spillway-campaign-{}", std::process::id()));
            let _moved = std::fs::rename(self.root.path(), &kept);
            eprintln!("the validators' files are in {}", kept.display());
        }
    }
}

/// The blocks of one folder.
struct Chain {
    blocks: Vec<Digest>,
    /// The digest of each entry, with its height.
    entries: BTreeSet<(u64, Digest)>,
    evidence: usize,
}

impl Chain {
    fn read(folder: &Path, genesis: &Genesis) -> Chain {
        let verified = verify_folder(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let replica = Replica::open(folder, genesis).expect("it was verified just now");
        let mut chain = Chain { blocks: Vec::new(), entries: BTreeSet::new(), evidence: 0 };
        loop {
            let next = chain.blocks.len() as u64 + 1;
            let blocks = replica.blocks(next, 64).expect("it was verified just now");
            if blocks.is_empty() {
                assert_eq!(chain.blocks.len() as u64, verified.height);
                return chain;
            }
            for block in blocks {
                let height = block.block.header.height;
                chain.blocks.push(block.block.header.digest());
                let entries = block.block.entries.iter().filter_map(|entry| decode::<Entry>(&entry.document).ok());
                chain.evidence += entries.filter(|entry| matches!(entry.action, Action::Evidence { .. })).count();
                chain.entries.extend(block.block.entries.iter().map(|entry| (height, entry.digest())));
            }
        }
    }
}

/// What comparing the folders showed.
#[derive(Debug)]
pub struct Comparison {
    pub heights: Vec<usize>,
    /// Entries with evidence in the first folder.
    pub evidence: usize,
    /// Heights at which two folders hold different blocks.
    pub conflicts: usize,
    /// Entries that a client was told are committed, and that are not in every folder.
    pub lost: usize,
    pub acknowledged: usize,
    /// The first folder's blocks.
    pub blocks: Vec<Digest>,
}

impl Comparison {
    /// Fails unless nothing conflicts and nothing is lost.
    pub fn check(&self) {
        assert_eq!((self.conflicts, self.lost), (0, 0), "{self:?}");
    }
}
