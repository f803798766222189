//! `spillway submit`: one job over QUIC, from a program that is no node.
//! Invariant: the answer's text goes to standard output as it comes; everything else goes to standard error.

use super::{Verdict, table};
use anyhow::{Context, Result, bail};
use clap::Args;
use futures::StreamExt;
use serde_json::{Value, json};
use spillway_ledger::Credits;
use spillway_node::edge::{Client, EdgeFrame, EdgeJob};
use spillway_protocol::Kind;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long the node may be silent, keep-alives included.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct SubmitArguments {
    /// The node's edge: /ip4/…/udp/…/quic-v1/p2p/…
    #[arg(long, value_name = "ADDR")]
    via: String,
    /// An API key of that node
    #[arg(long, env = "SPILLWAY_KEY", hide_env_values = true)]
    key: String,
    /// The model to ask
    #[arg(long)]
    model: String,
    /// The most tokens to answer with
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 for the likeliest answer
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Print one JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
    /// What to ask
    prompt: String,
}

/// Runs `spillway submit`.
pub(crate) async fn submit(arguments: SubmitArguments) -> Result<Verdict> {
    let mut body = json!({
        "model": arguments.model,
        "messages": [{"role": "user", "content": arguments.prompt}],
        "temperature": arguments.temperature,
        "stream": true,
    });
    if let Some(most) = arguments.max_tokens {
        body["max_tokens"] = most.into();
    }
    let begun = Instant::now();
    let client = Client::connect(&arguments.via).await.with_context(|| format!("--via {}", arguments.via))?;
    let job = EdgeJob { key: arguments.key, kind: Kind::Chat, body: body.to_string().into_bytes() };
    let mut frames = client.submit(job).await.context("the node did not take the job")?;
    let mut text = String::new();
    let mut legs = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, frames.next())
            .await
            .with_context(|| format!("the node was silent for {} s", SILENCE_MAX.as_secs()))?;
        match frame.context("the node closed the stream before the job's end")?? {
            EdgeFrame::Placed { route, reason, provider } => {
                legs.push(json!({"route": route, "reason": reason, "provider": provider}));
            }
            EdgeFrame::Chunk(bytes) => {
                let event: Value = serde_json::from_slice(&bytes).context("a chunk is no JSON")?;
                let Some(more) = event.pointer("/choices/0/delta/content").and_then(Value::as_str) else { continue };
                text.push_str(more);
                if !arguments.json {
                    let mut out = std::io::stdout();
                    out.write_all(more.as_bytes()).and_then(|()| out.flush()).context("cannot print")?;
                }
            }
            EdgeFrame::Alive => {}
            EdgeFrame::Done { finish, cost_micro, job } => {
                if arguments.json {
                    let done = json!({
                        "job": job, "text": text, "finish": finish, "cost_micro": cost_micro, "legs": legs,
                        "seconds": begun.elapsed().as_secs_f64(),
                    });
                    table::line(&done.to_string())?;
                } else {
                    table::line("")?;
                    eprintln!("job {job}, {}, {:.1} s", Credits::new(cost_micro), begun.elapsed().as_secs_f64());
                }
                return Ok(Verdict::Done);
            }
            EdgeFrame::Failed { status, code, message } => bail!("{message} ({code}, {status})"),
        }
    }
}
