//! `spillway init`: keys, and a `spillway.toml` with a comment on every field.
//! Invariant: nothing that exists is overwritten, and what is written passes the checks of `spillway up`.

use super::{Place, Verdict, table};
use anyhow::{Context, Result, bail};
use clap::Args;
use spillway_ledger::Genesis;
use spillway_protocol::NodeConfig;
use spillway_testnet::genesis::{ACCOUNT_KEY, GENESIS_FILE, NODE_KEY, found, key_file, read, write};
use spillway_testnet::testnet::CONFIG_FILE;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    #[command(flatten)]
    place: Place,
    /// The genesis file of the network to join; without it this node founds a network of its own and keeps its books
    #[arg(long, value_name = "GENESIS", requires = "authority")]
    network: Option<PathBuf>,
    /// To join: the peer id of the node that keeps the books
    #[arg(long, value_name = "PEER_ID", requires = "network")]
    authority: Option<String>,
    /// To join: an address with a peer id to knock at first; repeat for more
    #[arg(long, value_name = "ADDR", requires = "network")]
    bootstrap: Vec<String>,
    /// Your own inference server, such as http://127.0.0.1:8000/v1; without it, the embedded guide model
    #[arg(long, value_name = "URL")]
    backend: Option<String>,
}

/// Text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// The settings, commented. Every value but those given is the default.
fn settings(arguments: &InitArguments) -> String {
    let bootstrap: Vec<String> = arguments.bootstrap.iter().map(|address| quoted(address)).collect();
    let bootstrap = bootstrap.join(", ");
    let backend = match &arguments.backend {
        Some(url) => format!(
            r#"[[backend]]
kind = "openai"
url = {}
# name = "gpu1"               # what policies call it; "backend0" if absent
# key_file = "server.key"     # the file that holds its key, if it wants one; or key_env, the environment variable that does
# models = ["my-model"]       # only these; otherwise all that it lists
# rename = {{ "our-name" = "its-name" }}  # models that your clients know by other names
# endpoints = ["chat", "completion", "embedding"]  # what they serve; chats and completions if absent (docs/api.md)
slots = 4                     # requests at once"#,
            quoted(url)
        ),
        None => r#"[[backend]]
kind = "embedded"             # the engine in this program
model = "guide"               # its name to clients
# gguf = "my-model.gguf"      # your own model file; otherwise the small guide model that ships with Spillway
slots = 4                     # requests at once

# Any OpenAI-compatible server works as well: vLLM, SGLang, llama.cpp's server, Ollama, TGI.
# [[backend]]
# kind = "openai"
# url = "http://127.0.0.1:8000/v1"
# slots = 8

# So does a third party's API. What has a price is for your own jobs alone, and your keys' budgets pay for it.
# [[backend]]
# kind = "openai"
# name = "openai"
# url = "https://api.openai.com/v1"
# key_file = "openai.key"     # or key_env = "OPENAI_API_KEY"
# models = ["gpt-4o-mini"]
# price = { input = 0.15, cached = 0.075, output = 0.6 }   # credits per million tokens
# ca_file = "proxy-ca.pem"    # an authority to trust beside the system's, such as a proxy's
# slots = 16

# Where requests go that name a policy (header x-spillway-policy), or whose key does: docs/backends.md
# [policy.careful]
# [[policy.careful.target]]
# backends = ["backend0"]
# retries = 1
# first_s = 10.0              # seconds to the first piece of the answer
# breaker = { failures = 5, cooldown_s = 30.0 }
# [[policy.careful.target]]
# network = true              # strangers
# priority = 1                # only where those before it failed"#
            .into(),
    };
    let ledger = match &arguments.authority {
        Some(authority) => format!(
            r#"role = "follow"               # checks every block and keeps a copy
authority = {}  # the peer id of the node that keeps the books"#,
            quoted(authority)
        ),
        None => r#"role = "solo"                 # this node keeps the books; "follow" checks and keeps a copy
# authority = "12D3…"         # to follow: the peer id of the node that keeps the books"#
            .into(),
    };
    format!(
        r#"# A Spillway node. `spillway up` reads this file; `spillway doctor` checks it.

genesis = "genesis.json"      # what the network agreed on at its start

[network]
listen = ["/ip4/0.0.0.0/udp/4600/quic-v1", "/ip4/0.0.0.0/tcp/4600"]
bootstrap = [{bootstrap}]                # peers to knock at first: multiaddresses with peer ids
mdns = true                   # also look for peers on the local network
region = ""                   # where this node is, at most 32 bytes; others may choose by it
emulated_rtt_ms = 0           # for test networks: pretends to be this far away

[gateway]
listen = "127.0.0.1:8080"     # the OpenAI API; port 0 takes a free one
job_log = true                # keep times and sizes of the last 100,000 jobs, without content: `spillway jobs export`
cache_mib = 64                # memory for answers that keys with `--cache SECONDS` get again
# cache_embedding = "nomic-embed-text"      # an embedding model of an own backend: for keys with `--cache-similar`
# store = "postgres://spillway@db.internal/spillway?sslmode=verify-full"   # share keys, budgets and limits with other gateways
# store_password_file = "store.password"   # or store_password_env, the environment variable that holds it

[edge]
listen = "127.0.0.1:4601"     # QUIC, for `spillway submit` and programs that are no nodes

# Your own hardware: it is always tried first.
{backend}

# What strangers may use, and for how much. A unit is one byte of text.
[provide]
enabled = false               # true to earn
price_input = 0.05            # credits per million units of prompt
# price_cached = 0.01         # of prompt that your backend has cached; absent: as price_input
price_output = 0.2            # credits per million units of answer
sell = "always"               # or "never", daily hours in UTC ("22:00-06:00"), or "below 70%" of use by your own jobs
preempt = true                # your own jobs take strangers' slots when none is free
cache_units = 1048576         # units of prompt that your backend's prefix cache holds per model; 0 if it has none
reserved_slots = 1            # slots per model that stay idle for your own next jobs
window = 1024                 # units of answer that you want paid ahead
settle_after_s = 60.0         # seconds of rest before earnings are redeemed on the ledger

# What your own jobs may pay strangers.
[spend]
price_input_max = 2.0         # credits per million units of prompt, at most
price_output_max = 10.0       # credits per million units of answer, at most
deposit = 1.0                 # credits locked when a session with a provider opens
sessions_ahead = 3            # providers that have a session ready before a job needs it, so that it need not wait
ahead_share = 0.25            # of your balance, what may lie in sessions that no job has used yet
top_up_share = 0.5            # of your balance, what one top-up of a session in use may take
second_worth = 0.001          # credits that a second of waiting is worth: high prefers the fast, low the cheap
queue_max = 64                # own jobs that may wait for an own slot
hedge = false                 # true asks a second own backend where the first is late to speak, within a quarter of the idle slots

[ledger]
{ledger}
earn = "credits"              # what you earn pays your own jobs; "cash" asks the issuer to pay out what is above the threshold
cash_threshold = "10"         # with "cash": credits that stay for your own jobs
cash_rate = "1"               # what the issuer pays for one credit, in your payee file's currency
# payee = "payee.json"        # with "cash": where it goes; `spillway ledger payee new` makes the file
"#
    )
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Runs `spillway init`.
pub(crate) fn init(arguments: &InitArguments) -> Result<Verdict> {
    let folder = &arguments.place.folder;
    for name in [CONFIG_FILE, GENESIS_FILE] {
        let path = folder.join(name);
        if path.exists() {
            bail!("{} exists already; nothing was changed", path.display());
        }
    }
    let text = settings(arguments);
    let config: NodeConfig = toml::from_str(&text).context("the settings as TOML")?;
    config.validate()?;
    let joined: Option<Genesis> = match &arguments.network {
        Some(path) => Some(read(path)?),
        None => None,
    };
    // Every check has passed: from here on files are written.
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    key_file(&folder.join(NODE_KEY))?;
    let account = key_file(&folder.join(ACCOUNT_KEY))?.public();
    let genesis = match joined {
        Some(genesis) => genesis,
        None => found(folder, "my-network")?,
    };
    write(&genesis, &folder.join(GENESIS_FILE))?;
    write_new(&folder.join(CONFIG_FILE), &text)?;
    let place = folder.display();
    table::line(&format!("wrote {CONFIG_FILE}, {GENESIS_FILE} and keys to {place}"))?;
    table::line(&format!("account  {account}"))?;
    table::line(&format!("next     spillway up --folder {place}"))?;
    table::line(&format!("         spillway key create --folder {place}"))?;
    Ok(Verdict::Done)
}

#[cfg(test)]
mod tests {
    use super::{InitArguments, init, settings};
    use crate::cli::Place;
    use spillway_protocol::NodeConfig;
    use spillway_protocol::config::{BackendSection, LedgerRole, LedgerSection, ProvideSection, SpendSection};

    fn arguments(folder: &std::path::Path) -> InitArguments {
        InitArguments {
            place: Place { folder: folder.into() },
            network: None,
            authority: None,
            bootstrap: Vec::new(),
            backend: None,
        }
    }

    #[test]
    fn the_commented_file_says_the_defaults() {
        let config: NodeConfig = toml::from_str(&settings(&arguments("x".as_ref()))).unwrap();
        config.validate().unwrap();
        assert_eq!(config.provide, ProvideSection::default());
        assert_eq!(config.spend, SpendSection::default());
        assert_eq!(config.ledger, LedgerSection { role: LedgerRole::Solo, ..LedgerSection::default() });
    }

    #[test]
    fn what_becomes_of_earnings_is_checked() {
        let text = settings(&arguments("x".as_ref()));
        let cash = text.replace("earn = \"credits\"", "earn = \"cash\"").replace("# payee", "payee");
        // What is replaced by what in settings that hold; what the error says.
        for (from, to, error) in [
            ("", "", None),
            ("payee = \"payee.json\"", "", Some("ledger.payee: missing")),
            ("cash_threshold = \"10\"", "cash_threshold = \"-1\"", Some("ledger.cash_threshold: \"-1\" is no amount")),
            ("cash_threshold = \"10\"", "cash_threshold = \"0.0000001\"", Some("at most 6 places")),
            ("cash_rate = \"1\"", "cash_rate = \"0\"", Some("\"0\" is no rate")),
            ("earn = \"cash\"", "earn = \"gold\"", Some("unknown variant `gold`")),
        ] {
            assert!(cash.contains(from), "{from}");
            let parsed = toml::from_str::<NodeConfig>(&cash.replacen(from, to, 1));
            let checked = parsed.map_err(|error| error.to_string());
            let checked = checked.and_then(|config| config.validate().map_err(|error| error.to_string()));
            match (error, checked) {
                (None, Ok(())) => {}
                (Some(words), Err(error)) => assert!(error.contains(words), "{to}: {error}"),
                (error, checked) => panic!("{to}: {checked:?}, where {error:?} was expected"),
            }
        }
    }

    #[test]
    fn what_is_given_is_what_is_written() {
        let mut arguments = arguments("x".as_ref());
        arguments.authority = Some("12D3KooW\"quoted".into());
        arguments.bootstrap = vec!["/ip4/192.0.2.1/tcp/4600/p2p/A".into(), "/ip4/192.0.2.2/tcp/4600/p2p/B".into()];
        arguments.backend = Some("http://127.0.0.1:8000/v1".into());
        let config: NodeConfig = toml::from_str(&settings(&arguments)).unwrap();
        assert_eq!(config.ledger.role, LedgerRole::Follow);
        assert_eq!(config.ledger.authority, ["12D3KooW\"quoted"]);
        assert_eq!(config.network.bootstrap, arguments.bootstrap);
        let [BackendSection::OpenAi(server)] = config.backend.as_slice() else { panic!("{:?}", config.backend) };
        assert_eq!(server.url, "http://127.0.0.1:8000/v1");
    }

    #[test]
    fn a_second_init_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        init(&arguments(folder.path())).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let before = (read("spillway.toml"), read("genesis.json"), read("node.key"), read("account.key"));
        let error = init(&arguments(folder.path())).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(before, (read("spillway.toml"), read("genesis.json"), read("node.key"), read("account.key")));
    }
}
