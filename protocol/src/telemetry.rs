//! What an operator sets under `[telemetry]`: what is told of requests and of the operator's actions, and to whom.
//! Invariant: nothing here is on unless it is set; what a client wrote or got goes nowhere but to an access log that asks for it.

use serde::{Deserialize, Serialize};

/// A kind of what OTLP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// A span for each request.
    Traces,
    /// Counts and times of all requests.
    Metrics,
    /// A record for each request, and for each of the operator's actions.
    Logs,
}

/// `[telemetry]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// The base URL of an OTLP/HTTP collector, such as `http://127.0.0.1:4318`; absent means none.
    pub otlp_endpoint: Option<String>,
    /// The environment variable that holds the collector's headers, as `name=value` with commas between.
    pub otlp_headers_env: Option<String>,
    /// The file that holds them, with commas or line ends between, relative to the configuration's folder.
    pub otlp_headers_file: Option<String>,
    /// What is sent there.
    pub otlp_signals: Vec<Signal>,
    /// Which share of the requests that come without a decision of their own is traced, 0 to 1.
    pub sample_ratio: f64,
    /// How often metrics are sent, in seconds.
    pub metrics_every_s: u32,
    /// The name that this gateway has at the collector.
    pub service_name: String,
    /// A JSON line for each request: a file, relative to the configuration's folder, or `stderr`; absent means none.
    pub access_log: Option<String>,
    /// Whether that line has the request's body and the answer's text, up to 64 KiB each.
    pub access_log_content: bool,
    /// A JSON line for each request and each of the operator's actions, for a SIEM: a file, relative to the configuration's
    /// folder; absent means none.
    pub siem_log: Option<String>,
    /// How large a log's file grows before the next one is begun, in MiB.
    pub log_mib_max: u32,
    /// How many files of one log are kept, the one that is written included.
    pub log_files_max: u32,
}

impl Default for TelemetrySection {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_headers_env: None,
            otlp_headers_file: None,
            otlp_signals: vec![Signal::Traces, Signal::Metrics],
            sample_ratio: 1.0,
            metrics_every_s: 60,
            service_name: "spillway".into(),
            access_log: None,
            access_log_content: false,
            siem_log: None,
            log_mib_max: 64,
            log_files_max: 8,
        }
    }
}

impl TelemetrySection {
    /// The first field that does not hold, and why.
    pub(crate) fn bad(&self) -> Option<(&'static str, &'static str)> {
        match &self.otlp_endpoint {
            Some(url) => {
                let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
                    return Some(("telemetry.otlp_endpoint", "not a URL that begins with http:// or https://"));
                };
                if rest.is_empty() || rest.contains(['?', '#', '@']) {
                    let why = "no host, or has a password, a query or a fragment; secrets go into headers";
                    return Some(("telemetry.otlp_endpoint", why));
                }
            }
            None if self.otlp_headers_env.is_some() => {
                return Some(("telemetry.otlp_headers_env", "set without telemetry.otlp_endpoint"));
            }
            None if self.otlp_headers_file.is_some() => {
                return Some(("telemetry.otlp_headers_file", "set without telemetry.otlp_endpoint"));
            }
            None => {}
        }
        if self.otlp_headers_env.is_some() && self.otlp_headers_file.is_some() {
            return Some(("telemetry.otlp_headers_env", "set beside telemetry.otlp_headers_file"));
        }
        if self.otlp_signals.is_empty() {
            return Some(("telemetry.otlp_signals", "empty"));
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Some(("telemetry.sample_ratio", "not between 0 and 1"));
        }
        if !(1..=3600).contains(&self.metrics_every_s) {
            return Some(("telemetry.metrics_every_s", "not between 1 and 3600"));
        }
        if self.service_name.is_empty() || self.service_name.len() > 128 {
            return Some(("telemetry.service_name", "not 1 to 128 bytes"));
        }
        for (field, path) in [("telemetry.access_log", &self.access_log), ("telemetry.siem_log", &self.siem_log)] {
            if path.as_ref().is_some_and(String::is_empty) {
                return Some((field, "empty"));
            }
        }
        if self.access_log_content && self.access_log.is_none() {
            return Some(("telemetry.access_log_content", "set without telemetry.access_log"));
        }
        if self.siem_log.is_some() && self.siem_log == self.access_log {
            return Some(("telemetry.siem_log", "the same file as telemetry.access_log"));
        }
        if !(1..=4096).contains(&self.log_mib_max) {
            return Some(("telemetry.log_mib_max", "not between 1 and 4096"));
        }
        if !(1..=1000).contains(&self.log_files_max) {
            return Some(("telemetry.log_files_max", "not between 1 and 1000"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_named() {
        type Change = fn(&mut TelemetrySection);
        let cases: [(Change, Option<&str>); 18] = [
            (|_| {}, None),
            (|it| it.otlp_endpoint = Some("https://collector.internal:4318/otlp".into()), None),
            (|it| it.otlp_endpoint = Some("collector:4318".into()), Some("otlp_endpoint")),
            (|it| it.otlp_endpoint = Some("http://".into()), Some("otlp_endpoint")),
            (|it| it.otlp_endpoint = Some("http://me:secret@collector".into()), Some("otlp_endpoint")),
            (|it| it.otlp_endpoint = Some("http://collector?key=secret".into()), Some("otlp_endpoint")),
            (|it| it.otlp_headers_env = Some("H".into()), Some("otlp_headers_env")),
            (|it| it.otlp_headers_file = Some("h".into()), Some("otlp_headers_file")),
            (|it| it.otlp_signals.clear(), Some("otlp_signals")),
            (|it| it.sample_ratio = f64::NAN, Some("sample_ratio")),
            (|it| it.sample_ratio = 1.1, Some("sample_ratio")),
            (|it| it.metrics_every_s = 0, Some("metrics_every_s")),
            (|it| it.service_name.clear(), Some("service_name")),
            (|it| it.access_log = Some(String::new()), Some("access_log")),
            (|it| it.access_log_content = true, Some("access_log_content")),
            (|it| (it.access_log, it.siem_log) = (Some("a.jsonl".into()), Some("a.jsonl".into())), Some("siem_log")),
            (|it| it.log_mib_max = 0, Some("log_mib_max")),
            (|it| it.log_files_max = 0, Some("log_files_max")),
        ];
        for (change, at_fault) in cases {
            let mut section = TelemetrySection::default();
            change(&mut section);
            let field = section.bad().map(|(field, _)| field.trim_start_matches("telemetry."));
            assert_eq!(field, at_fault, "{section:?}");
        }
    }
}
