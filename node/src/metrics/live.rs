//! What is true at the moment of a scrape: own hardware, the queue for it, peers.
//! Invariant: at most [`MODELS_MAX`] models have gauges.

use crate::jobs::Jobs;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

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
