//! OTLP over HTTP: sends traces, metrics and records of logs to a collector, as protobuf.
//! Invariants: this node connects to the configured collector and nowhere else; a request never waits for it; what it does not
//! take is dropped and counted, but for the audit log's records, which are sent again until it does.
//! Source: OpenTelemetry Protocol 1.9, "OTLP/HTTP".

pub mod encode;

use super::access::Access;
use super::spool::Spool;
use crate::backend::in_words;
use crate::metrics::{Metrics, Sink};
use encode::Origin;
use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// How long the collector may take to answer.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// How long records wait for others to go with.
const GATHER_WAIT: Duration = Duration::from_secs(1);
/// Most records in one request.
const BATCH_MAX: usize = 512;
/// How often a batch is tried before it is dropped.
const TRIES_MAX: u32 = 4;
/// How long to wait before the second try; twice as long before each further one.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait that a collector may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Most headers that may be configured.
const HEADERS_MAX: usize = 16;

/// Why the collector cannot be spoken to: the setting, and what is wrong with it.
pub type BadSetting = (&'static str, String);

/// A collector.
#[derive(Clone, Debug)]
pub struct Collector {
    client: Client,
    base: Url,
    /// What this node says of itself.
    pub origin: Arc<Origin>,
    metrics: Arc<Metrics>,
}

/// A request that the collector did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// Whether it may take it another time.
    pub again: bool,
    /// When it asked to be tried again.
    pub after: Option<Duration>,
    /// Why, in words.
    pub why: String,
}

/// The headers of a text such as `name=value,name=value`, with commas or line ends between.
fn headers(field: &'static str, text: &str) -> Result<HeaderMap, BadSetting> {
    let mut headers = HeaderMap::new();
    let pairs = text.split([',', '\n']).map(str::trim).filter(|pair| !pair.is_empty());
    for (index, pair) in pairs.enumerate() {
        // What is wrong is told without the value, which is a secret.
        let bad = |why: &str| (field, format!("header {}: {why}", index + 1));
        if index >= HEADERS_MAX {
            return Err(bad("there are more than 16"));
        }
        let (name, value) = pair.split_once('=').ok_or_else(|| bad("not name=value"))?;
        let name: HeaderName = name.trim().parse().map_err(|_| bad("its name is none of a header"))?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| bad("its value cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

impl Collector {
    /// The collector at `url`, spoken to with the headers that `secrets` are: the setting they are from, and its text.
    ///
    /// # Errors
    /// The setting that does not hold.
    pub fn new(
        url: &str,
        secrets: Option<(&'static str, Zeroizing<String>)>,
        origin: Origin,
        metrics: Arc<Metrics>,
    ) -> Result<Self, BadSetting> {
        let endpoint = |why: String| ("telemetry.otlp_endpoint", why);
        let base: Url = url.parse().map_err(|error| endpoint(format!("{url}: {error}")))?;
        let mut headers = match secrets {
            Some((field, text)) => headers(field, &text)?,
            None => HeaderMap::new(),
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let mut client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .default_headers(headers)
            .timeout(SEND_WAIT)
            .pool_max_idle_per_host(1);
        if base.scheme() == "http" {
            // A machine without certificates can still reach a collector beside it.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|error| endpoint(error.to_string()))?;
        Ok(Self { client, base, origin: Arc::new(origin), metrics })
    }

    /// Sends one request to `path`, such as `v1/traces`, once.
    ///
    /// # Errors
    /// If the collector does not take it.
    pub async fn send(&self, path: &str, message: &impl Message) -> Result<(), NotTaken> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        let sent = self.client.post(url).body(message.encode_to_vec()).send().await;
        let response = sent.map_err(|error| NotTaken { again: true, after: None, why: in_words(&error) })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let after = after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let again = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        Err(NotTaken { again, after, why: format!("it answered {status}") })
    }

    /// Sends a request, several times if need be; counts its records as told or as lost.
    async fn deliver(&self, sink: Sink, path: &str, message: &impl Message, count: usize) {
        let mut wait = BACKOFF;
        for tried in 1.. {
            let Err(error) = self.send(path, message).await else { return self.metrics.told(sink, count) };
            self.metrics.failed(sink);
            if !error.again || tried == TRIES_MAX {
                tracing::debug!(sink = sink.as_str(), why = error.why, count, "the collector did not take records");
                return self.metrics.lost(sink, count);
            }
            tokio::time::sleep(error.after.unwrap_or(wait)).await;
            wait *= 2;
        }
    }

    /// Sends what comes through `spool`, until `stopped` and it is empty.
    pub async fn forward(self, sink: Sink, spool: Spool<Arc<Access>>, mut stopped: watch::Receiver<bool>) {
        loop {
            let records = tokio::select! {
                records = spool.take(GATHER_WAIT) => records,
                _ = stopped.wait_for(|stopped| *stopped) => spool.take_now(),
            };
            for batch in records.chunks(BATCH_MAX) {
                match sink {
                    Sink::Traces => {
                        let message = encode::traces(&self.origin, batch);
                        self.deliver(sink, "v1/traces", &message, batch.len()).await;
                    }
                    _ => {
                        let message = encode::access_logs(&self.origin, batch);
                        self.deliver(sink, "v1/logs", &message, batch.len()).await;
                    }
                }
            }
            if *stopped.borrow() {
                return;
            }
        }
    }

    /// Sends all counts every so often, and once more at the end.
    pub async fn report(self, every: Duration, mut stopped: watch::Receiver<bool>) {
        loop {
            let over = tokio::select! {
                () = tokio::time::sleep(every) => false,
                _ = stopped.wait_for(|stopped| *stopped) => true,
            };
            let message = encode::metrics(&self.origin, &self.metrics);
            self.deliver(Sink::Metrics, "v1/metrics", &message, 1).await;
            if over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_never_told() {
        let read =
            headers("telemetry.otlp_headers_env", "authorization=Bearer a=b, x-team = core\nx-empty=\n").expect("good");
        let pairs: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        assert_eq!(pairs, [("authorization", "Bearer a=b"), ("x-team", "core"), ("x-empty", "")]);
        assert!(!format!("{read:?}").contains("Bearer"));
        for (text, says) in [
            ("SECRET", "header 1: not name=value"),
            ("a=b,sec ret=SECRET", "header 2: its name"),
            ("a=SECRET\u{1}", "header 1: its value"),
            (&"a=SECRET,".repeat(17), "header 17: there are more"),
        ] {
            let (field, why) = headers("telemetry.otlp_headers_file", text).expect_err(text);
            assert_eq!(field, "telemetry.otlp_headers_file");
            assert!(why.starts_with(says) && !why.contains("SECRET"), "{why}");
        }
    }
}
