//! A network of supervised processes in one folder.
//! Invariant: a node that is started again keeps its keys, its books and the addresses it was first given.

use crate::admin::Admin;
use crate::genesis::{self, ACCOUNT_KEY, GENESIS_FILE, NODE_KEY};
use crate::process::{Node, Ready, start_detached};
use crate::topology::{BOOKS, Plan, Topology};
use anyhow::{Context, Result, bail};
use spillway_ledger::Genesis;
use spillway_protocol::NodeConfig;
use spillway_protocol::config::{LedgerRole, ValidatorSection};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// The settings' file name.
pub const CONFIG_FILE: &str = "spillway.toml";

/// A network whose processes end with this value.
#[derive(Debug)]
pub struct Testnet {
    binary: PathBuf,
    folder: PathBuf,
    genesis: Genesis,
    /// In the order of the topology.
    names: Vec<String>,
    nodes: BTreeMap<String, Node>,
}

/// The files of a network, before and between its runs.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) folder: &'a Path,
}

impl Layout<'_> {
    /// Writes keys and genesis for every plan, unless they are there from an earlier run; the settings follow once the
    /// books' address is known.
    pub(crate) fn prepare(&self, topology: &Topology) -> Result<Genesis> {
        let Some(books) = topology.plans.first() else { bail!("a network needs at least one node") };
        let keepers = topology.keepers();
        match (books.config.ledger.role, keepers) {
            (LedgerRole::Solo, [_]) => {}
            (LedgerRole::Validate, all) if all.iter().all(|plan| plan.config.ledger.role == LedgerRole::Validate) => {}
            _ => bail!("the first node, {}, must keep the books alone, or the first nodes all validate", books.name),
        }
        let folder = self.folder.join(&books.name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(GENESIS_FILE);
        let genesis = if path.exists() {
            genesis::read(&path)?
        } else {
            let founded = genesis::found(&folder, "local-testnet")?;
            match books.config.ledger.role {
                LedgerRole::Validate => {
                    let folders: Vec<PathBuf> = keepers.iter().map(|plan| self.folder.join(&plan.name)).collect();
                    for folder in &folders {
                        std::fs::create_dir_all(folder)
                            .with_context(|| format!("cannot create {}", folder.display()))?;
                    }
                    genesis::with_committee(founded, &folders)?
                }
                LedgerRole::Solo | LedgerRole::Follow => founded,
            }
        };
        for plan in &topology.plans {
            let folder = self.folder.join(&plan.name);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            genesis::key_file(&folder.join(NODE_KEY))?;
            genesis::key_file(&folder.join(ACCOUNT_KEY))?;
            genesis::write(&genesis, &folder.join(GENESIS_FILE))?;
        }
        Ok(genesis)
    }

    /// Gives each validator without settings a free port of loopback for the others to reach it at, and tells it theirs.
    pub(crate) fn connect_validators(&self, topology: &mut Topology) -> Result<()> {
        let validators = topology.plans.iter_mut().filter(|plan| plan.config.ledger.role == LedgerRole::Validate);
        let mut validators: Vec<&mut Plan> = validators.collect();
        // Held until all are known, so that no two are the same.
        let mut held = Vec::new();
        let mut addresses = Vec::new();
        for plan in &validators {
            let folder = self.folder.join(&plan.name);
            let known = folder.join(CONFIG_FILE).exists().then(|| read_config(&folder)).transpose()?;
            let address = match known.and_then(|config| config.ledger.validator) {
                Some(section) => section.listen,
                None => {
                    let listener = TcpListener::bind("127.0.0.1:0").context("a port for a validator")?;
                    let port = listener.local_addr().context("a port for a validator")?.port();
                    held.push(listener);
                    format!("/ip4/127.0.0.1/tcp/{port}")
                }
            };
            addresses.push(address);
        }
        for (at, plan) in validators.iter_mut().enumerate() {
            let mut peers = addresses.clone();
            let listen = peers.remove(at);
            plan.config.ledger.validator = Some(ValidatorSection { listen, peers });
        }
        Ok(())
    }

    /// Writes a plan's settings, pointed at those who keep the books and are up.
    pub(crate) fn settle(&self, plan: &Plan, books: &[Ready]) -> Result<()> {
        let mut config = plan.config.clone();
        config.network.bootstrap = books.iter().flat_map(|ready| ready.addresses.clone()).collect();
        if !plan.keeps_books() {
            config.ledger.authority = books.iter().map(|ready| ready.peer_id.clone()).collect();
        }
        config.validate().with_context(|| format!("settings of node {}", plan.name))?;
        write_config(&self.folder.join(&plan.name), &config)
    }

    /// Keeps the ports that a node was given, so that it comes back where others look for it.
    pub(crate) fn pin(&self, name: &str, ready: &Ready) -> Result<()> {
        let folder = self.folder.join(name);
        let mut config = read_config(&folder)?;
        let without_peer = |address: &String| match address.split_once("/p2p/") {
            Some((place, _)) => place.to_owned(),
            None => address.clone(),
        };
        config.network.listen = ready.addresses.iter().map(without_peer).collect();
        if let (Some(gateway), Some(url)) = (&mut config.gateway, &ready.base_url) {
            let place = url.trim_start_matches("http://");
            gateway.listen = place.split('/').next().unwrap_or(place).into();
        }
        if let (Some(edge), Some(address)) = (&mut config.edge, &ready.edge) {
            // `/ip4/127.0.0.1/udp/4601/quic-v1/p2p/…`
            let mut parts = address.split('/').skip(2);
            if let (Some(ip), Some("udp"), Some(port)) = (parts.next(), parts.next(), parts.next()) {
                edge.listen = format!("{ip}:{port}");
            }
        }
        write_config(&folder, &config)
    }

    /// Starts a node that outlives this process.
    pub(crate) async fn start_detached(&self, name: &str) -> Result<Ready> {
        start_detached(self.binary, name, &self.folder.join(name)).await
    }
}

/// Reads a node's settings.
///
/// # Errors
/// A missing or malformed file.
pub fn read_config(folder: &Path) -> Result<NodeConfig> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{}", path.display()))
}

fn write_config(folder: &Path, config: &NodeConfig) -> Result<()> {
    let path = folder.join(CONFIG_FILE);
    let text = toml::to_string_pretty(config).context("settings as TOML")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

impl Testnet {
    /// Founds a network in `folder` and starts its nodes: the books first, then all others at once.
    ///
    /// # Errors
    /// If a file cannot be written or a node does not start; the nodes already started are stopped.
    pub async fn start(binary: &Path, folder: &Path, topology: &Topology) -> Result<Self> {
        let layout = Layout { binary, folder };
        let mut topology = topology.clone();
        let genesis = layout.prepare(&topology)?;
        layout.connect_validators(&mut topology)?;
        let mut nodes = BTreeMap::new();
        let mut books = Vec::new();
        for plan in topology.keepers() {
            layout.settle(plan, &books)?;
            let node = Node::start(binary, &plan.name, &folder.join(&plan.name)).await?;
            layout.pin(&plan.name, node.ready())?;
            books.push(node.ready().clone());
            nodes.insert(plan.name.clone(), node);
        }
        let others = &topology.plans[books.len()..];
        for plan in others {
            layout.settle(plan, &books)?;
        }
        let starting = others.iter().map(|plan| {
            let folder = folder.join(&plan.name);
            async move { Node::start(binary, &plan.name, &folder).await }
        });
        for node in futures::future::try_join_all(starting).await? {
            layout.pin(node.name(), node.ready())?;
            nodes.insert(node.name().into(), node);
        }
        Ok(Self {
            binary: binary.into(),
            folder: folder.into(),
            genesis,
            names: topology.plans.iter().map(|plan| plan.name.clone()).collect(),
            nodes,
        })
    }

    /// What the network was founded on.
    #[must_use]
    pub const fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Where its files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The binary its nodes run.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Its nodes' names, the books' first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A running node.
    ///
    /// # Errors
    /// If there is none of that name, or it does not run.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("node {name} does not run"))
    }

    /// The running node with this key as a peer, in hex.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.ready().node.to_string() == key)
    }

    /// The admin API of a running node.
    ///
    /// # Errors
    /// If it does not run or has none.
    pub fn admin(&self, name: &str) -> Result<Admin> {
        Admin::in_folder(self.node(name)?.folder())
    }

    /// The admin API of the node that keeps the books.
    ///
    /// # Errors
    /// As [`Testnet::admin`].
    pub fn books(&self) -> Result<Admin> {
        self.admin(self.names.first().map_or(BOOKS, String::as_str))
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        let Some(node) = self.nodes.remove(name) else { bail!("node {name} does not run") };
        node.kill().await
    }

    /// Starts a node that was killed, in its old folder.
    ///
    /// # Errors
    /// If it runs already, is not of this network, or does not start.
    pub async fn restart(&mut self, name: &str) -> Result<()> {
        if self.nodes.contains_key(name) {
            bail!("node {name} runs already");
        }
        if !self.names.iter().any(|known| known == name) {
            bail!("no node {name} in {}", self.folder.display());
        }
        let node = Node::start(&self.binary, name, &self.folder.join(name)).await?;
        self.nodes.insert(name.into(), node);
        Ok(())
    }

    /// Stops every node cleanly, the books last: the others' settlements still reach them.
    ///
    /// # Errors
    /// Every node that did not stop cleanly, after all have ended.
    pub async fn stop(mut self) -> Result<()> {
        let books = self.names.first().and_then(|name| self.nodes.remove(name));
        let others = std::mem::take(&mut self.nodes);
        let mut failures: Vec<String> = futures::future::join_all(others.into_values().map(Node::stop))
            .await
            .into_iter()
            .filter_map(|stopped| stopped.err().map(|error| error.to_string()))
            .collect();
        if let Some(books) = books {
            failures.extend(books.stop().await.err().map(|error| error.to_string()));
        }
        if failures.is_empty() { Ok(()) } else { bail!(failures.join("\n")) }
    }
}
