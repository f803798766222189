//! Load for a gateway, and an upstream that is nobody's model: `scripts/soak.sh` runs both.
//! Invariant: every answer that a gateway admitted is counted once, as done, left, failed or lost; lost are those that end neither as
//! their form says nor with an error.
//!
//! `soak_load mock` prints the base URL of an upstream and serves until its input ends. `soak_load load BASE_URL KEY RATE SECONDS`
//! sends so many requests a second, whatever becomes of them, and prints a line of JSON for each ten seconds and for the whole.

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// The model that the gateway's own backend serves, and the one that only its neighbour sells.
const MODELS: [&str; 2] = ["soak-own", "soak-far"];
/// How often figures are printed.
const FIGURES_EVERY: Duration = Duration::from_secs(10);
/// How long an answer may take from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most requests under way: a gateway that hangs must not take this program along.
const UNDER_WAY_MAX: usize = 4096;
/// Of so many clients one stalls: its answer is as much work as a hundred of the others.
const STALLS_ONE_IN: u64 = 100;
/// How long a staller reads nothing.
const STALL: Duration = Duration::from_secs(8);

/// What a client does.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// Takes the answer in one piece.
    Whole,
    /// Reads a stream to its end.
    Reads,
    /// Leaves in the middle of one.
    Leaves,
    /// Stops reading a long one; then leaves, or reads on.
    Stalls,
}

/// The text of each event.
const TEXT: &str = "soak";

/// The shape of an answer: events, the time between them in microseconds, and the bytes in each that are no text.
const fn shape(habit: Habit) -> (u64, u64, u64) {
    match habit {
        Habit::Whole => (16, 0, 0),
        Habit::Reads => (16, 5_000, 0),
        Habit::Leaves => (400, 5_000, 0),
        // More than the connection's buffers hold.
        Habit::Stalls => (2_000, 0, 2_048),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["mock"] => mock().await,
        ["load", base_url, key, rate, seconds] => {
            load(base_url, key, rate.parse().context("RATE")?, seconds.parse().context("SECONDS")?).await
        }
        _ => bail!("usage: soak_load mock | soak_load load BASE_URL KEY RATE SECONDS"),
    }
}

// ---- the load ----

/// What is counted.
#[derive(Default)]
struct Counts {
    begun: u64,
    done: u64,
    left: u64,
    stalled: u64,
    /// By status and code.
    failed: BTreeMap<String, u64>,
    lost: Vec<String>,
    lost_count: u64,
    /// Answers that had a job's id.
    jobs: u64,
    /// Microseconds to the first event of a stream, and to the end of a whole answer.
    first_us: Vec<u32>,
    whole_us: Vec<u32>,
}

impl Counts {
    fn figures(&mut self, second: u64) -> Value {
        let at = |times: &mut Vec<u32>, share: f64| {
            times.sort_unstable();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index"
            )]
            let index = (times.len() as f64 * share) as usize;
            times.get(index.min(times.len().saturating_sub(1))).map(|us| f64::from(*us) / 1e3)
        };
        json!({
            "second": second, "begun": self.begun, "done": self.done, "left": self.left, "stalled": self.stalled,
            "failed": self.failed, "lost": self.lost_count, "why_lost": self.lost, "jobs": self.jobs,
            "first_ms": {"p50": at(&mut self.first_us, 0.5), "p99": at(&mut self.first_us, 0.99)},
            "whole_ms": {"p50": at(&mut self.whole_us, 0.5), "p99": at(&mut self.whole_us, 0.99)},
        })
    }
}

struct Load {
    http: reqwest::Client,
    url: String,
    key: String,
    counts: Mutex<Counts>,
}

async fn load(base_url: &str, key: &str, rate: f64, seconds: u64) -> Result<()> {
    ensure!(rate > 0.0 && rate <= 100_000.0, "RATE: not between 0 and 100,000");
    let http = reqwest::Client::builder().no_proxy().connect_timeout(PATIENCE).pool_max_idle_per_host(64).build()?;
    let (url, key) = (format!("{base_url}/chat/completions"), key.to_owned());
    let load = Arc::new(Load { http, url, key, counts: Mutex::default() });
    let mut total = Counts::default();
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    // What was missed is made up for: a slow gateway is asked no less.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut figures = interval(FIGURES_EVERY);
    figures.tick().await;
    let mut under_way = JoinSet::new();
    let mut number = 0u64;
    while begun.elapsed() < Duration::from_secs(seconds) {
        tokio::select! {
            _ = ticks.tick() => {
                while under_way.try_join_next().is_some() {}
                ensure!(under_way.len() < UNDER_WAY_MAX, "{UNDER_WAY_MAX} requests are under way");
                number += 1;
                let habit = match (number % STALLS_ONE_IN, number % 10) {
                    (7, _) => Habit::Stalls,
                    (_, 0 | 3) => Habit::Leaves,
                    (_, 1 | 4 | 6 | 8) => Habit::Reads,
                    _ => Habit::Whole,
                };
                // Every eighth is bought.
                let model = if number % 8 == 5 && !matches!(habit, Habit::Stalls) { MODELS[1] } else { MODELS[0] };
                under_way.spawn(Arc::clone(&load).client(number, habit, model));
            }
            _ = figures.tick() => tell(&load, &mut total, begun.elapsed().as_secs(), "figures"),
        }
    }
    while under_way.join_next().await.is_some() {}
    tell(&load, &mut total, begun.elapsed().as_secs(), "figures");
    let all = total.figures(begun.elapsed().as_secs());
    println!("{}", json!({"total": all}));
    ensure!(total.lost_count == 0, "{} answers were lost", total.lost_count);
    Ok(())
}

/// Prints what was counted since the last time, and adds it to the total.
fn tell(load: &Load, total: &mut Counts, second: u64, name: &str) {
    let mut counts = std::mem::take(&mut *load.counts.lock().expect("no panic"));
    println!("{}", json!({name: counts.figures(second)}));
    total.begun += counts.begun;
    total.done += counts.done;
    total.left += counts.left;
    total.stalled += counts.stalled;
    total.lost_count += counts.lost_count;
    total.jobs += counts.jobs;
    for (why, count) in counts.failed {
        *total.failed.entry(why).or_default() += count;
    }
    total.lost.extend(counts.lost);
    total.lost.truncate(20);
    total.first_us.extend(counts.first_us);
    total.whole_us.extend(counts.whole_us);
}

impl Load {
    async fn client(self: Arc<Self>, number: u64, habit: Habit, model: &'static str) {
        self.count(|counts| counts.begun += 1);
        let ended = timeout(PATIENCE + STALL, self.ask(number, habit, model)).await;
        let ended = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("no end in time")));
        if let Err(why) = ended {
            self.count(|counts| {
                counts.lost_count += 1;
                if counts.lost.len() < 20 {
                    counts.lost.push(format!("{habit:?} {model}: {why:#}"));
                }
            });
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().expect("no panic"));
    }

    /// One client. An error is an answer that was lost.
    async fn ask(&self, number: u64, habit: Habit, model: &str) -> Result<()> {
        let (events, gap_us, pad) = shape(habit);
        let body = json!({
            "model": model, "messages": [{"role": "user", "content": format!("question {number}")}],
            "stream": !matches!(habit, Habit::Whole), "max_tokens": events,
            "x_soak": {"events": events, "gap_us": gap_us, "pad": pad},
        });
        let begun = Instant::now();
        let since = |begun: Instant| u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
        let asked = self.http.post(&self.url).bearer_auth(&self.key).body(body.to_string()).send();
        let answer = asked.await.context("no answer")?;
        let status = answer.status();
        if answer.headers().contains_key("x-spillway-job") {
            self.count(|counts| counts.jobs += 1);
        }
        if status != 200 {
            let told: Value = serde_json::from_slice(&answer.bytes().await?).context("an error without words")?;
            let code = told.pointer("/error/code").and_then(Value::as_str).context("an error without a code")?;
            self.count(|counts| *counts.failed.entry(format!("{status} {code}")).or_default() += 1);
            return Ok(());
        }
        if matches!(habit, Habit::Whole) {
            let told: Value = serde_json::from_slice(&answer.bytes().await.context("broken off")?)?;
            let text = told.pointer("/choices/0/message/content").and_then(Value::as_str).context("no content")?;
            let want = events * TEXT.len() as u64;
            ensure!(text.len() as u64 == want, "{} bytes of {want}", text.len());
            self.count(|counts| {
                counts.done += 1;
                counts.whole_us.push(since(begun));
            });
            return Ok(());
        }
        let bytes = answer.bytes_stream().map(|bytes| bytes.map(|bytes| bytes.to_vec())).boxed();
        let mut stream = Events { bytes, open: Vec::new() };
        let (mut seen, mut first) = (0, None);
        loop {
            match stream.next().await? {
                Told::Text => {
                    seen += 1;
                    first.get_or_insert_with(|| since(begun));
                }
                Told::Done => {
                    ensure!(seen == events, "{seen} events of {events}, and [DONE]");
                    self.count(|counts| {
                        counts.done += 1;
                        if matches!(habit, Habit::Reads) {
                            counts.first_us.extend(first);
                        }
                    });
                    return Ok(());
                }
                Told::Error(code) => {
                    self.count(|counts| *counts.failed.entry(format!("200 {code}")).or_default() += 1);
                    return Ok(());
                }
            }
            if matches!(habit, Habit::Leaves) && seen > number % 20 {
                self.count(|counts| {
                    counts.left += 1;
                    counts.first_us.extend(first);
                });
                return Ok(());
            }
            if matches!(habit, Habit::Stalls) && seen == 1 {
                self.count(|counts| counts.stalled += 1);
                sleep(STALL).await;
                if (number / STALLS_ONE_IN).is_multiple_of(2) {
                    self.count(|counts| counts.left += 1);
                    return Ok(());
                }
            }
        }
    }
}

/// What an event says.
enum Told {
    Text,
    Done,
    Error(String),
}

/// A stream's events. An end without one that says so is an error.
struct Events {
    bytes: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    open: Vec<u8>,
}

impl Events {
    async fn next(&mut self) -> Result<Told> {
        loop {
            while let Some(end) = self.open.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.open.drain(..end + 2).collect();
                let Some(data) = event.strip_prefix(b"data: ") else { continue }; // A comment.
                let data = data.trim_ascii();
                if data == b"[DONE]" {
                    return Ok(Told::Done);
                }
                let told: Value = serde_json::from_slice(data).context("no event")?;
                if let Some(error) = told.get("error") {
                    let code = error.get("code").and_then(Value::as_str).context("an error without a code")?;
                    return Ok(Told::Error(code.to_owned()));
                }
                if told.pointer("/choices/0/delta/content").is_some() {
                    return Ok(Told::Text);
                }
            }
            match self.bytes.next().await {
                Some(bytes) => self.open.extend_from_slice(&bytes.context("broken off")?),
                None => bail!("a bare end"),
            }
        }
    }
}

// ---- the upstream ----

#[derive(Default)]
struct Answers {
    begun: AtomicU64,
    whole: AtomicU64,
    /// Stopped by the other side's leaving.
    stopped: AtomicU64,
}

async fn mock() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let answers = Arc::new(Answers::default());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&answers)));
        }
    });
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    Ok(())
}

/// One connection. An error is the other side's leaving.
async fn serve(stream: TcpStream, answers: Arc<Answers>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
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
        let path = first.split(' ').nth(1).unwrap_or_default();
        if path == "/counts" {
            let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
            let counts = json!({"begun": count(&answers.begun), "whole": count(&answers.whole), "stopped": count(&answers.stopped)});
            say(&mut stream, &counts).await?;
        } else if path.ends_with("/models") {
            // `/own/v1` and `/far/v1`
            let model = if path.starts_with("/far") { MODELS[1] } else { MODELS[0] };
            say(
                &mut stream,
                &json!({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "soak"}]}),
            )
            .await?;
        } else {
            answers.begun.fetch_add(1, Ordering::Relaxed);
            let ended = answer(&mut stream, &body).await;
            let count = if ended.is_ok() { &answers.whole } else { &answers.stopped };
            count.fetch_add(1, Ordering::Relaxed);
            ended?;
        }
    }
}

async fn say(stream: &mut BufReader<TcpStream>, value: &Value) -> Result<()> {
    let body = value.to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    Ok(stream.write_all((head + &body).as_bytes()).await?)
}

async fn answer(stream: &mut BufReader<TcpStream>, body: &[u8]) -> Result<()> {
    let asked: Value = serde_json::from_slice(body)?;
    let number = |field: &str| asked.pointer(&format!("/x_soak/{field}")).and_then(Value::as_u64).unwrap_or(1);
    let (events, gap_us, pad) = (number("events"), number("gap_us"), number("pad"));
    let head = json!({"id": "soak", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]});
    let event = |fields: Value| {
        let mut event = head.clone();
        for (name, value) in fields.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        let data = format!("data: {event}\n\n");
        format!("{:x}\r\n{data}\r\n", data.len())
    };
    let choice = json!({"index": 0, "delta": {"content": TEXT}, "finish_reason": null});
    let text = event(json!({"choices": [choice], "x_pad": "x".repeat(usize::try_from(pad)?)}));
    let end = event(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    let usage = event(
        json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": events, "total_tokens": 4 + events}}),
    );
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let mut byte = [0];
    for index in 0..events {
        if gap_us > 0 && index > 0 {
            // Nothing more is to come on this connection before the answer's end, so what can be read is its end.
            tokio::select! {
                () = sleep(Duration::from_micros(gap_us)) => {}
                _ = stream.read(&mut byte) => bail!("the other side left"),
            }
        }
        stream.write_all(text.as_bytes()).await?;
    }
    let last = format!("{end}{usage}e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    Ok(stream.write_all(last.as_bytes()).await?)
}
