//! What is true at the moment of a scrape: own hardware, the queue for it, peers, kept answers.
//! Invariant: at most [`MODELS_MAX`] models have gauges.

use crate::gateway::Cache;
use crate::jobs::Jobs;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::sync::Arc;

/// Most models of own hardware that are shown.
pub const MODELS_MAX: usize = 256;

/// Reads the market's snapshot, which is at most two seconds old.
#[derive(Debug)]
pub struct Live(Jobs);

impl Live {
    pub(super) const fn new(jobs: Jobs) -> Self {
        Self(jobs)
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let load = self.0.load();
        let peers = ConstGauge::new(load.peers as u64);
        let help = "Peers of the network that are connected";
        peers.encode(encoder.encode_descriptor("peers_connected", help, None, MetricType::Gauge)?)?;
        type Read = fn(&crate::jobs::BackendLoad) -> u32;
        let families: [(&str, &str, Read); 4] = [
            ("backend_up", "Whether an own backend of the model answers", |it| u32::from(it.healthy)),
            ("backend_slots", "Requests that own backends serve at once", |it| it.slots),
            ("backend_slots_busy", "Slots of own backends that are taken", |it| it.running),
            ("queued_jobs", "Own jobs that wait for a slot", |it| it.queued),
        ];
        for (name, help, read) in families {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for backend in load.backends.iter().take(MODELS_MAX) {
                metric.encode_family(&[("model", backend.model.as_str())])?.encode_gauge(&read(backend))?;
            }
        }
        Ok(())
    }
}

/// Reads what the cache of answers counts.
#[derive(Debug)]
pub struct Kept(Arc<Cache>);

impl Kept {
    pub(super) const fn new(cache: Arc<Cache>) -> Self {
        Self(cache)
    }
}

impl Collector for Kept {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let counts = self.0.counts();
        let help = "Requests of keys whose answers are kept, by whether there was one";
        let mut lookups = encoder.encode_descriptor("cache_lookups", help, None, MetricType::Counter)?;
        for (result, count) in [("hit", counts.hits), ("similar", counts.similar), ("miss", counts.misses)] {
            lookups.encode_family(&[("result", result)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let help = "Credits that answers given again would have cost";
        let mut saved = encoder.encode_descriptor("cache_saved_credits", help, None, MetricType::Counter)?;
        #[expect(clippy::cast_precision_loss, reason = "a metric; exact up to nine thousand million credits")]
        saved.encode_counter::<NoLabelSet, _, u64>(&(counts.saved_micro as f64 / 1e6), None)?;
        for (name, help, value) in [
            ("cache_answers", "Answers that are kept", counts.answers),
            ("cache_resident_bytes", "Bytes of answers that are kept", counts.bytes),
        ] {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
