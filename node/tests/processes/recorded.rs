//! Recorded answers of real servers (`tests/recorded`), played back byte for byte by a server on loopback, through one node as its own
//! backend and through two over the network: what the client gets, what it costs, and how a stream ends that breaks off.
//! The request says what becomes of its answer (`x_replay`), so that many play at once.

use crate::common::{WAIT, binary, ready_client};
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use serde_json::{Map, Value, json};
use spillway_ledger::{Credits, Price, Usage};
use spillway_protocol::Kind;
use spillway_testnet::{Plan, Testnet, Topology, until};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// The one model of the server, whatever the recordings call theirs.
const MODEL: &str = "recorded";
/// The provider's prices, in credits per million units.
const PRICES: (f64, f64) = (1.0, 4.0);
const PRICE: Price =
    Price { input: Credits::new(1_000_000), cached: Credits::new(1_000_000), output: Credits::new(4_000_000) };
/// Ways in which each answer is cut into pieces of the connection.
const CUTS: u64 = 8;
/// Answers played at once.
const AT_ONCE: usize = 4;

/// A server's answer.
struct Recording {
    path: String,
    request: Map<String, Value>,
    /// The body of its stream.
    stream: Vec<u8>,
    /// What it answers where no stream was asked for, if that was recorded, too.
    whole: Option<Value>,
}

impl Recording {
    /// The data of the stream's events, by the standard's rules for `data` lines of one line each.
    fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.stream).expect("recordings are text");
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("an event")).collect()
    }

    /// The usage that the server told.
    fn usage(&self) -> Value {
        self.events()
            .iter()
            .rev()
            .find_map(|event| event.get("usage").filter(|usage| usage.is_object()).cloned())
            .unwrap_or(json!({}))
    }

    fn kind(&self) -> Kind {
        if self.path == "completions" { Kind::Completion } else { Kind::Chat }
    }
}

fn recordings() -> Result<BTreeMap<String, Recording>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != "sse") {
            continue;
        }
        let name = file.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let asked: Value = serde_json::from_slice(&std::fs::read(file.with_extension("json"))?)?;
        let path = asked["path"].as_str().context("a path")?.to_owned();
        let request = asked["request"].as_object().context("a request")?.clone();
        let whole = asked.get("whole").cloned();
        all.insert(name, Recording { path, request, stream: std::fs::read(&file)?, whole });
    }
    ensure!(all.len() >= 5, "recordings are missing in {}", folder.display());
    Ok(all)
}

/// What becomes of an answer. Its text in the request always has the same length, so that it costs the same.
#[derive(Clone, Copy)]
struct Replay {
    /// How the answer is cut into pieces.
    seed: u64,
    /// Whether it comes in chunks of HTTP or ends with the connection.
    chunked: bool,
    /// After so many bytes of what follows the head it is cut off, or it stops and waits until the other side closes.
    until: Option<(End, usize)>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Closes,
    Hangs,
}

const PLAIN: Replay = Replay { seed: 0, chunked: true, until: None };

impl Replay {
    fn text(self, name: &str) -> String {
        let (end, at) = match self.until {
            None => ('-', 0),
            Some((End::Closes, at)) => ('c', at),
            Some((End::Hangs, at)) => ('h', at),
        };
        format!("{name} {:020} {} {end} {at:08}", self.seed, u8::from(self.chunked))
    }

    fn parse(text: &str) -> Option<(&str, Self)> {
        let mut words = text.split(' ');
        let name = words.next()?;
        let seed = words.next()?.parse().ok()?;
        let chunked = words.next()? == "1";
        let end = words.next()?;
        let at = words.next()?.parse().ok()?;
        let until = match end {
            "c" => Some((End::Closes, at)),
            "h" => Some((End::Hangs, at)),
            _ => None,
        };
        Some((name, Self { seed, chunked, until }))
    }
}

/// A source of numbers, the same everywhere (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below as u64).expect("below a usize")
    }

    /// Pieces of 1 byte to `max`, together all of `bytes`.
    fn cut<'a>(&mut self, bytes: &'a [u8], max: usize) -> Vec<&'a [u8]> {
        let (mut pieces, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + self.next(max)).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }
}

/// The stream's body on the wire.
fn wire(stream: &[u8], replay: Replay) -> Vec<u8> {
    if !replay.chunked {
        return stream.to_vec();
    }
    let mut wire = Vec::new();
    for piece in Numbers(replay.seed).cut(stream, 600) {
        wire.extend(format!("{:x}\r\n", piece.len()).bytes());
        wire.extend(piece);
        wire.extend(b"\r\n");
    }
    wire.extend(b"0\r\n\r\n");
    wire
}

/// What the server saw, in order.
enum Saw {
    /// A request, of so many bytes; what was to be sent of its answer has been.
    Request(usize),
    /// The other side closed a connection whose answer hung.
    Closed,
}

struct Server {
    url: String,
    saw: mpsc::UnboundedReceiver<Saw>,
}

impl Server {
    async fn start(recordings: Arc<BTreeMap<String, Recording>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/v1", listener.local_addr()?);
        let (tell, saw) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&recordings), tell.clone()));
            }
        });
        Ok(Self { url, saw })
    }
}

/// One connection, one request. An error is the other side's leaving.
async fn serve(
    stream: TcpStream,
    recordings: Arc<BTreeMap<String, Recording>>,
    saw: mpsc::UnboundedSender<Saw>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            break;
        }
        if first.is_empty() {
            first = line;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if first.starts_with("GET ") {
        let models =
            json!({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "them"}]}).to_string();
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{models}", models.len());
        return stream.write_all(answer.as_bytes()).await;
    }
    let request: Map<String, Value> = serde_json::from_slice(&body).expect("a request");
    let (name, replay) = request["x_replay"].as_str().and_then(Replay::parse).expect("what to play");
    let recording = &recordings[name];
    // A whole answer where none of its stream was asked for, with the stream's usage, as that differs from call to call.
    let whole = recording.whole.clone().filter(|_| !request.contains_key("stream"));
    let (kind, sent) = match whole {
        Some(mut answer) => {
            answer["usage"] = recording.usage();
            ("application/json", answer.to_string().into_bytes())
        }
        None => ("text/event-stream; charset=utf-8", recording.stream.clone()),
    };
    let mut wire = wire(&sent, replay);
    if let Some((_, at)) = replay.until {
        wire.truncate(at);
    }
    let framing = if replay.chunked { "transfer-encoding: chunked\r\n" } else { "" };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framing}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    for piece in Numbers(!replay.seed).cut(&wire, if replay.seed == 0 { wire.len().max(1) } else { 700 }) {
        stream.write_all(piece).await?;
        stream.flush().await?;
        tokio::task::yield_now().await;
    }
    let hangs = replay.until.is_some_and(|(end, _)| end == End::Hangs);
    let _ = saw.send(Saw::Request(length));
    if hangs {
        // The other side closing is an end or a reset.
        let _ = stream.read(&mut [0]).await;
        let _ = saw.send(Saw::Closed);
    }
    Ok(())
}

/// Text that counts as output, by the rule of docs/api.md.
fn output(kind: Kind, events: &[Value]) -> u64 {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, str::len) as u64;
    let function = |function: &Value| text(function.get("name")) + text(function.get("arguments"));
    let choices = events.iter().filter_map(|event| event.get("choices")?.as_array()).flatten();
    choices
        .map(|choice| {
            if kind == Kind::Completion {
                return text(choice.get("text"));
            }
            let Some(delta) = choice.get("delta") else { return 0 };
            let calls = delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
            let calls: u64 = calls.filter_map(|call| call.get("function")).map(function).sum();
            text(delta.get("reasoning_content")) + text(delta.get("content")) + text(delta.get("refusal")) + calls
        })
        .sum()
}

/// A client of one node.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    base_url: String,
    key: String,
    route: &'static str,
}

impl Client {
    fn new(network: &Testnet, node: &str, key: String, route: &'static str) -> Result<Self> {
        let base_url = network.node(node)?.ready().base_url.clone().context("no base URL")?;
        Ok(Self { http: reqwest::Client::builder().no_proxy().build()?, base_url, key, route })
    }

    async fn send(&self, name: &str, recording: &Recording, replay: Replay, stream: bool) -> Result<reqwest::Response> {
        let mut body = recording.request.clone();
        body.insert("model".into(), json!(MODEL));
        body.insert("x_replay".into(), json!(replay.text(name)));
        if stream {
            body.insert("stream".into(), json!(true));
            body.insert("stream_options".into(), json!({"include_usage": true}));
        }
        let post = self.http.post(format!("{}/{}", self.base_url, recording.path)).bearer_auth(&self.key);
        Ok(post.header("content-type", "application/json").body(Value::Object(body).to_string()).send().await?)
    }

    /// Spent and reserved, in micro-credits, and jobs under way.
    async fn tally(&self, network: &Testnet, node: &str) -> Result<(u64, u64, u64)> {
        let keys = network.admin(node)?.get("/admin/keys").await?;
        let keys = keys.get("keys").and_then(Value::as_array).context("no keys")?;
        let id = self.key.strip_prefix("sk-spillway-").and_then(|rest| rest.split('_').next()).context("an id")?;
        let key = keys.iter().find(|key| key["id"] == id).context("the key")?;
        let number = |field: &str| key.get(field).and_then(Value::as_u64).context("no such field");
        Ok((number("spent_micro")?, number("reserved_micro")?, number("running")?))
    }
}

/// Books, a consumer without hardware, and a provider whose server plays recordings.
async fn start(folder: &Path, server: &Server) -> Result<(Testnet, Client, Client)> {
    let provider = Plan::new("provider").with_server(&server.url, 8).provides(PRICES.0, PRICES.1);
    let topology = Topology { plans: vec![Plan::books(), Plan::new("consumer"), provider] };
    let network = Testnet::start(binary(), &folder.canonicalize()?, &topology).await?;
    let (_, key) = ready_client(&network, "consumer", MODEL).await?;
    let consumer = Client::new(&network, "consumer", key, "network")?;
    let made = network.admin("provider")?.post("/admin/keys", &json!({"name": "own"})).await?;
    let key = made.get("secret").and_then(Value::as_str).context("no secret")?.to_owned();
    let provider = Client::new(&network, "provider", key, "own")?;
    Ok((network, provider, consumer))
}

/// A stream's data lines; whether it ended as one should: by `[DONE]` (true) or an error's event (false).
fn read_stream(text: &str) -> Result<(Vec<&str>, bool)> {
    let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    ensure!(text.ends_with("\n\n"), "the last event is open: {text:?}");
    let Some(last) = data.pop() else { bail!("an empty stream") };
    if last == "[DONE]" {
        return Ok((data, true));
    }
    let event: Value = serde_json::from_str(last).with_context(|| format!("the last event is {last}"))?;
    ensure!(event.get("error").is_some(), "a bare end behind {last}");
    Ok((data, false))
}

/// An event without its usage, which the gateway tells at the end.
fn without_usage(mut event: Value) -> Value {
    event.as_object_mut().map(|event| event.remove("usage"));
    event
}

/// Cost and usage of an answer that must be as recorded.
async fn check(client: &Client, name: &str, recording: &Recording, replay: Replay, stream: bool) -> Result<u64> {
    let response = client.send(name, recording, replay, stream).await?;
    ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
    // On a busy machine a stream's headers may go before the job has its place.
    let route = response.headers().get("x-spillway-route");
    ensure!(route.map_or(stream, |route| route == client.route), "{:?}", response.headers());
    let header = response.headers().get("x-spillway-cost").map(|cost| cost.to_str().map(str::to_owned)).transpose()?;
    let text = response.text().await?;
    let events = recording.events();
    let usage = if stream {
        let (mut data, done) = read_stream(&text)?;
        ensure!(done, "an error at the end of {text}");
        let last = data.pop().context("no usage")?;
        let told: Vec<&[u8]> = data.iter().map(|event| event.as_bytes()).collect();
        // Byte for byte, but for events that had usage in them.
        let text = std::str::from_utf8(&recording.stream)?;
        let lines =
            text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).filter(|line| *line != "[DONE]");
        let mut want = Vec::new();
        for (line, event) in lines.zip(&events) {
            let has_usage = event.get("usage").is_some_and(Value::is_object);
            if has_usage && event["choices"].as_array().is_some_and(Vec::is_empty) {
                continue;
            }
            want.push((line, has_usage));
        }
        ensure!(told.len() == want.len(), "{} events of {}", told.len(), want.len());
        for (told, (line, has_usage)) in told.iter().zip(want) {
            if has_usage {
                let (told, line): (Value, Value) = (serde_json::from_slice(told)?, serde_json::from_str(line)?);
                ensure!(told == without_usage(line.clone()), "{told} where {line} was sent");
            } else {
                ensure!(*told == line.as_bytes(), "{} where {line} was sent", String::from_utf8_lossy(told));
            }
        }
        serde_json::from_str::<Value>(last)?["usage"].clone()
    } else {
        let whole: Value = serde_json::from_str(&text)?;
        if let Some(want) = &recording.whole {
            if client.route == "own" {
                let stays = |answer: &Value| without_usage(answer.clone());
                ensure!(stays(&whole) == stays(want), "{whole} where the server said {want}");
            }
            ensure!(same_answer(&whole, want), "{whole} where the server said {want}");
        }
        whole["usage"].clone()
    };
    let mut told = usage.as_object().context("no usage")?.clone();
    let cost = told.remove("cost").context("no cost")?;
    ensure!(Value::Object(told.clone()) == recording.usage(), "usage {told:?}");
    let micro = |text: &str| text.replacen('.', "", 1).parse::<u64>();
    let cost = micro(&format!("{:.6}", cost.as_f64().context("a number")?))?;
    if let Some(header) = header {
        ensure!(micro(&header)? == cost, "{header} in the header, {cost} in usage");
    }
    Ok(cost)
}

/// Whether two whole answers are the same but for what differs from call to call: id and time, and usage, which is compared
/// elsewhere. Servers leave out what is null.
fn same_answer(got: &Value, want: &Value) -> bool {
    fn without_nulls(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.iter().filter(|(_, value)| !value.is_null());
                Value::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
            }
            Value::Array(values) => Value::Array(values.iter().map(without_nulls).collect()),
            other => other.clone(),
        }
    }
    let strip = |value: &Value| {
        let mut value = without_nulls(value);
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|name, _| !matches!(name.as_str(), "id" | "created" | "usage"));
        }
        value
    };
    strip(got) == strip(want)
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_answers_pass_untouched_and_cost_the_same_however_they_are_cut() -> Result<()> {
    let _alone = crate::common::alone().await;
    let recordings = Arc::new(recordings()?);
    let mut server = Server::start(Arc::clone(&recordings)).await?;
    let folder = tempfile::tempdir()?;
    let (network, own, bought) = start(folder.path(), &server).await?;
    let mut expected = 0;
    for (name, recording) in recordings.iter() {
        until("a first answer over the network", WAIT, async || {
            let answer = bought.send(name, recording, PLAIN, false).await?;
            Ok((answer.status() == 200).then_some(()))
        })
        .await?;
        while server.saw.try_recv().is_ok() {}
        let tally = until("the budget's settlement", WAIT, async || {
            let (spent, reserved, running) = bought.tally(&network, "consumer").await?;
            Ok((reserved == 0 && running == 0).then_some(spent))
        })
        .await?;
        let ways = (0..CUTS).flat_map(|seed| {
            let replay = |chunked| Replay { seed, chunked, until: None };
            [(replay(true), true), (replay(true), false), (replay(false), true), (replay(false), false)]
        });
        let ways: Vec<_> = ways.collect();
        let mut total = 0;
        for client in [&own, &bought] {
            let asked = ways.iter().map(|&(replay, stream)| async move {
                let what = format!("{name}, {}, seed {}, stream {stream}", client.route, replay.seed);
                check(client, name, recording, replay, stream).await.context(what)
            });
            let costs: Vec<_> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
            let costs: Vec<u64> = costs.into_iter().collect::<Result<_>>()?;
            let mut lengths = std::collections::BTreeSet::new();
            for _ in &ways {
                let Some(Saw::Request(length)) = server.saw.recv().await else { bail!("no request") };
                lengths.insert(length as u64);
            }
            // Own hardware is asked for a stream, or for one piece.
            let forms = if client.route == "own" { 2 } else { 1 };
            ensure!(lengths.len() == forms, "{name}: the server was sent {lengths:?} bytes");
            let input = *lengths.last().context("a request")?;
            let output = output(recording.kind(), &recording.events());
            ensure!(output > 0, "{name}: a recording without text shows nothing");
            let usage = Usage { input, cached: 0, output };
            let want = if client.route == "own" { 0 } else { PRICE.cost(usage).context("a price")?.micro() };
            ensure!(
                costs.iter().all(|cost| *cost == want),
                "{name}, {}: {costs:?} where {want} is right",
                client.route
            );
            total += costs.iter().sum::<u64>();
        }
        // And that is what the key is charged.
        until("the charge", WAIT, async || {
            let now = bought.tally(&network, "consumer").await?;
            ensure!(now == (tally + total, 0, 0), "{now:?} where {} was expected", tally + total);
            Ok(Some(()))
        })
        .await?;
        expected += total;
    }
    ensure!(expected > 0);
    network.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_off_anywhere_never_ends_silently() -> Result<()> {
    let _alone = crate::common::alone().await;
    let recordings = Arc::new(recordings()?);
    let server = Server::start(Arc::clone(&recordings)).await?;
    let folder = tempfile::tempdir()?;
    let (network, own, bought) = start(folder.path(), &server).await?;
    // Every byte of one answer, in both framings, and every 29th of the others.
    for (name, recording) in recordings.iter() {
        for chunked in [false, true] {
            let length = wire(&recording.stream, Replay { chunked, ..PLAIN }).len();
            let step = if name == "crlf-chat" { 1 } else { 29 };
            let asked = (0..length).step_by(step).chain([length]).map(|at| {
                let replay = Replay { chunked, until: Some((End::Closes, at)), ..PLAIN };
                let own = own.clone();
                async move {
                    let what = || format!("{name} cut at {at} of {length}, chunked {chunked}");
                    let response = own.send(name, recording, replay, true).await?;
                    let status = response.status();
                    let text = response.text().await.with_context(what)?;
                    if status != 200 {
                        // It failed before anything was delivered, and has a status of its own.
                        let told: Value = serde_json::from_str(&text).with_context(what)?;
                        ensure!(told.pointer("/error/code").is_some() && status.as_u16() >= 400, "{}: {text}", what());
                        return Ok(false);
                    }
                    let (data, done) = read_stream(&text).with_context(what)?;
                    // Nothing but whole events of the recording, in its order.
                    let sent = recording.events();
                    for (told, sent) in data.iter().zip(&sent) {
                        let told: Value = serde_json::from_str(told).with_context(what)?;
                        let is_usage = told["choices"].as_array().is_some_and(Vec::is_empty);
                        ensure!(
                            is_usage || without_usage(told.clone()) == without_usage(sent.clone()),
                            "{}: {told}",
                            what()
                        );
                    }
                    if done {
                        let finished = data.iter().any(|event| {
                            let event: Value = serde_json::from_str(event).unwrap_or_default();
                            event.pointer("/choices/0/finish_reason").is_some_and(Value::is_string)
                        });
                        ensure!(finished, "{}: it looks complete", what());
                    }
                    // Unstreamed, an answer is complete or an error.
                    if at % 7 == 0 {
                        let response = own.send(name, recording, replay, false).await?;
                        let status = response.status();
                        let told: Value = serde_json::from_str(&response.text().await?).with_context(what)?;
                        ensure!((status == 200) == told.get("error").is_none(), "{}: {status} {told}", what());
                        ensure!(status == 200 || !done, "{}: complete as a stream, {status} as a whole", what());
                    }
                    Ok(done)
                }
            });
            let ended: Vec<Result<bool>> = futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
            let ended: Vec<bool> = ended.into_iter().collect::<Result<_>>()?;
            ensure!(ended.contains(&true) && ended.contains(&false), "{name}: all ended alike");
        }
    }
    // Over the network the same, where a provider that breaks off is soon left alone.
    let mut delivered = 0;
    let recording = &recordings["vllm-chat"];
    for at in (0..recording.stream.len()).step_by(331) {
        until("an answer over the network", WAIT, async || {
            let whole = bought.send("vllm-chat", recording, PLAIN, false).await?;
            Ok((whole.status() == 200).then_some(()))
        })
        .await?;
        let replay = Replay { chunked: false, until: Some((End::Closes, at)), ..PLAIN };
        let response = bought.send("vllm-chat", recording, replay, true).await?;
        let (status, text) = (response.status(), response.text().await?);
        if status == 200 {
            let (data, done) = read_stream(&text).with_context(|| format!("cut at {at}"))?;
            delivered += usize::from(!data.is_empty());
            ensure!(!done || text.contains("\"finish_reason\":\"stop\""), "cut at {at}: it looks complete: {text}");
        }
    }
    ensure!(delivered > 0, "nothing came over the network");
    // Whatever broke off, nothing stays set aside or under way.
    for (client, node) in [(&own, "provider"), (&bought, "consumer")] {
        until("the end of all jobs", WAIT, async || {
            let (_, reserved, running) = client.tally(&network, node).await?;
            ensure!((reserved, running) == (0, 0), "{node}: {reserved} reserved, {running} running");
            Ok(Some(()))
        })
        .await?;
    }
    network.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_the_server_and_pays_for_what_it_got() -> Result<()> {
    let _alone = crate::common::alone().await;
    let recordings = Arc::new(recordings()?);
    let mut server = Server::start(Arc::clone(&recordings)).await?;
    let folder = tempfile::tempdir()?;
    let (network, own, bought) = start(folder.path(), &server).await?;
    let (name, recording) = ("vllm-chat", &recordings["vllm-chat"]);
    // Where each event ends in the recording.
    let ends: Vec<usize> =
        recording.stream.windows(2).enumerate().filter(|(_, pair)| pair == b"\n\n").map(|(at, _)| at + 2).collect();
    let events = recording.events();
    until("a first answer over the network", WAIT, async || {
        Ok((bought.send(name, recording, PLAIN, false).await?.status() == 200).then_some(()))
    })
    .await?;
    for (client, node) in [(&own, "provider"), (&bought, "consumer")] {
        for (sent, stream) in [(2, true), (6, true), (9, true), (3, false)] {
            let what = format!("{node}, {sent} events, stream {stream}");
            let before = until("the end of all jobs", WAIT, async || {
                let (spent, reserved, running) = client.tally(&network, node).await?;
                Ok(((reserved, running) == (0, 0)).then_some(spent))
            })
            .await?;
            while server.saw.try_recv().is_ok() {}
            let replay = Replay { chunked: false, until: Some((End::Hangs, ends[sent - 1])), ..PLAIN };
            let asked = client.send(name, recording, replay, stream);
            let length;
            if stream {
                let response = asked.await?;
                ensure!(response.status() == 200, "{what}");
                let mut bytes = response.bytes_stream();
                let mut got = Vec::new();
                while got.windows(2).filter(|pair| pair == b"\n\n").count() < sent {
                    got.extend(bytes.next().await.context("an early end")??);
                }
                length = requested(&mut server).await.context(what.clone())?;
                drop(bytes);
            } else {
                let asked = tokio::spawn({
                    let (client, replay) = (client.clone(), replay);
                    let (path, request) = (recording.path.clone(), recording.request.clone());
                    async move {
                        let recording = Recording { path, request, stream: Vec::new(), whole: None };
                        client.send(name, &recording, replay, false).await.map(drop)
                    }
                });
                length = requested(&mut server).await.context(what.clone())?;
                // What the server sent has been delivered once the job's account says so; the client has nothing of it yet.
                asked.abort();
                ensure!(
                    asked.await.is_err_and(|error| error.is_cancelled()),
                    "{what}: it hung, and yet there was an answer"
                );
            }
            let closed =
                tokio::time::timeout(WAIT, server.saw.recv()).await.with_context(|| format!("{what}: not stopped"))?;
            ensure!(matches!(closed, Some(Saw::Closed)), "{what}");
            let usage = |events| Usage { input: length, cached: 0, output: output(Kind::Chat, events) };
            let most =
                if node == "provider" { 0 } else { PRICE.cost(usage(&events[..sent])).context("a price")?.micro() };
            let cost = until("the charge", WAIT, async || {
                let (spent, reserved, running) = client.tally(&network, node).await?;
                Ok(((reserved, running) == (0, 0)).then_some(spent - before))
            })
            .await?;
            if stream {
                ensure!(cost == most, "{what}: {cost} charged where {most} is right");
            } else {
                // An answer in one piece is not there before its end, but the work for it is: no more than what was sent is paid.
                ensure!(cost <= most, "{what}: {cost} charged of {most}");
            }
        }
    }
    network.stop().await
}

/// The length of the request that the server answers next.
async fn requested(server: &mut Server) -> Result<u64> {
    match tokio::time::timeout(WAIT, server.saw.recv()).await? {
        Some(Saw::Request(length)) => Ok(length as u64),
        Some(Saw::Closed) | None => bail!("no request"),
    }
}
