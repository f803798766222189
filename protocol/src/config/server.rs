//! `[[backend]]` with `kind = "openai"`: a server by URL, beside this node or a third party's.
//! Invariant: a section that passed [`ServerSection::validate`] holds no secret, and its numbers are within their bounds.

use super::{ConfigError, credits, default_endpoints, default_slots};
use crate::job::{Kind, MODEL_BYTES_MAX};
use serde::{Deserialize, Serialize};
use spillway_ledger::Price;
use std::collections::BTreeMap;

/// Most models of one section, listed or renamed.
const MODELS_MAX: usize = 256;
/// The longest that any of its waits may be, in seconds.
const WAIT_MAX_S: f64 = 3600.0;

/// Any OpenAI-compatible server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSection {
    /// What policies and people call it; absent means `backend` and its place in the file, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its base URL, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The environment variable that holds its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// The file that holds its key, relative to the configuration's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// The models to use, as the server names them; empty means all that `/models` lists.
    #[serde(default)]
    pub models: Vec<String>,
    /// Models by the names that clients know, and the server's names for them. What is not named here keeps its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// Requests at once.
    #[serde(default = "default_slots")]
    pub slots: u32,
    /// What its models serve; no list of models tells. Absent means chats and completions.
    #[serde(default = "default_endpoints")]
    pub endpoints: Vec<Kind>,
    /// Whether its chats go on behind an answer that was begun elsewhere, given as the last message (`continue_final_message`).
    /// Absent means: if it says to be one that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<bool>,
    /// What it costs, for servers of others. A server with a price is never lent to strangers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceSection>,
    /// A file with certificates (PEM) of authorities that are trusted beside the system's, relative to the configuration's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Whether it speaks HTTP/2 without TLS. With TLS that is agreed on at each connection.
    #[serde(default)]
    pub http2: bool,
    /// Seconds that connecting may take.
    #[serde(default = "default_connect_s")]
    pub connect_s: f64,
    /// Seconds that it may say nothing: a long prompt on slow hardware takes minutes until the first token.
    #[serde(default = "default_silence_s")]
    pub silence_s: f64,
    /// Seconds that an answer with choices may take that is asked for in one piece: its server says nothing until it is whole.
    #[serde(default = "default_whole_s")]
    pub whole_s: f64,
    /// Seconds between two looks at whether it answers and what it has.
    #[serde(default = "default_check_s")]
    pub check_s: f64,
}

/// What a server costs, in credits per million tokens as it counts them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSection {
    /// Of prompts.
    pub input: f64,
    /// Of prompts that its cache held; as `input` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<f64>,
    /// Of answers, thoughts counted.
    pub output: f64,
}

const fn default_connect_s() -> f64 {
    5.0
}

const fn default_silence_s() -> f64 {
    300.0
}

const fn default_whole_s() -> f64 {
    WAIT_MAX_S
}

const fn default_check_s() -> f64 {
    10.0
}

impl ServerSection {
    /// A server at `url`, all else as by default.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            name: None,
            url: url.to_owned(),
            key_env: None,
            key_file: None,
            models: Vec::new(),
            rename: BTreeMap::new(),
            slots: default_slots(),
            endpoints: default_endpoints(),
            continues: None,
            price: None,
            ca_file: None,
            http2: false,
            connect_s: default_connect_s(),
            silence_s: default_silence_s(),
            whole_s: default_whole_s(),
            check_s: default_check_s(),
        }
    }

    /// What a million tokens cost; nothing without a price. `at` is the section's place.
    ///
    /// # Errors
    /// The part that does not hold.
    pub fn token_price(&self, at: &str) -> Result<Price, ConfigError> {
        let Some(price) = &self.price else { return Ok(Price::ZERO) };
        let input = credits(&format!("{at}.price.input"), price.input)?;
        let cached = price.cached.map_or(Ok(input), |cached| credits(&format!("{at}.price.cached"), cached))?;
        if cached > input {
            return Err(ConfigError { field: format!("{at}.price.cached"), why: "above the price of input".into() });
        }
        Ok(Price { input, cached, output: credits(&format!("{at}.price.output"), price.output)? })
    }

    /// Checks every field; `at` is the section's place, such as `backend[0]`.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn validate(&self, at: &str) -> Result<(), ConfigError> {
        let fail = |field: &str, why: &str| Err(ConfigError { field: format!("{at}.{field}"), why: why.into() });
        if self.url.is_empty() {
            return fail("url", "empty");
        }
        if self.key_env.is_some() && self.key_file.is_some() {
            return fail("key_env", "set beside key_file");
        }
        if self.endpoints.is_empty() {
            return fail("endpoints", "empty");
        }
        let is_model =
            |name: &String| !name.is_empty() && name.len() <= MODEL_BYTES_MAX && !name.chars().any(char::is_control);
        if self.models.len() > MODELS_MAX || !self.models.iter().all(is_model) {
            return fail("models", "more than 256, or one that is no model's name");
        }
        if self.rename.len() > MODELS_MAX
            || !self.rename.iter().all(|(ours, theirs)| is_model(ours) && is_model(theirs))
        {
            return fail("rename", "more than 256, or one that is no model's name");
        }
        for (field, seconds) in [
            ("connect_s", self.connect_s),
            ("silence_s", self.silence_s),
            ("whole_s", self.whole_s),
            ("check_s", self.check_s),
        ] {
            if !(seconds > 0.0 && seconds <= WAIT_MAX_S) {
                return fail(field, "not above 0 and at most 3600 seconds");
            }
        }
        self.token_price(at).map(|_| ())
    }
}
