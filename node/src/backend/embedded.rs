//! The embedded engine behind OpenAI's request format.
//! Invariant: what the engine cannot do is refused with the field's name, never left out in silence.

use super::chunk::{Chunks, finish_name};
use super::{Out, Work, rejected};
use crate::openai::endpoint::{Answer, Choices, endpoint};
use crate::openai::event::text;
use crate::openai::fields::Fields;
use serde_json::value::RawValue;
use spillway_engine::{ChatMessage, Engine, EngineConfig, LoadError, Piece, Prompt, Request, SubmitError};
use spillway_ledger::{Digest, Price};
use spillway_protocol::{BackendError, Capacity, Kind};
use std::fmt;
use std::path::Path;

/// A loaded model.
pub(super) struct Embedded {
    engine: Engine,
    model: String,
    slots: u32,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Loads `file`, or the guide model.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub(super) fn load(
        model: String,
        file: Option<&Path>,
        slots: u32,
        tokens_per_second: Option<f64>,
    ) -> Result<Self, LoadError> {
        let config = EngineConfig { slots: slots as usize, tokens_per_second, ..EngineConfig::default() };
        let engine = match file {
            Some(file) => Engine::load_file(file, config)?,
            None => Engine::guide(config)?,
        };
        Ok(Self { engine, model, slots })
    }

    /// What it serves.
    pub(super) fn capacity(&self) -> Capacity {
        let info = self.engine.info();
        Capacity {
            model: self.model.clone(),
            weights: Digest::from_bytes(info.weights_digest),
            quantization: info.quantization.clone(),
            engine: concat!("spillway-engine ", env!("CARGO_PKG_VERSION")).into(),
            context_max: u32::try_from(info.context_length).unwrap_or(u32::MAX),
            kinds: vec![Kind::Chat, Kind::Completion],
            slots: self.slots,
            rented: 0,
            replicas: 1,
            token_price: Price::ZERO,
            continues: true,
            healthy: true,
        }
    }

    /// Generates an answer; gives the finish reason.
    pub(super) async fn run(&self, work: Work, out: &Out) -> Result<String, BackendError> {
        let Answer::Choices(choices) = endpoint(work.kind).answer else {
            return Err(rejected("model", "the embedded engine serves chats and completions"));
        };
        let request = request(choices, &work.body, work.prefix)?;
        let mut chunks = Chunks::new(choices, work.id.0, &self.model, request.logprobs.is_some(), request.prefix.len());
        let engine = self.engine.clone();
        // Splitting a long prompt into tokens takes a while.
        let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
        let submitted = submitted.map_err(|_| BackendError::Failed("the engine gave up on the request".into()))?;
        let mut generation = submitted.map_err(|error| match error {
            SubmitError::OutOfRange { field, reason } => rejected(field, &reason),
            SubmitError::NoTemplate | SubmitError::BadTemplate(_) => rejected("messages", &error.to_string()),
            SubmitError::Tokenize(_) | SubmitError::ContextExceeded { .. } => {
                rejected(if choices == Choices::Chat { "messages" } else { "prompt" }, &error.to_string())
            }
            SubmitError::QueueFull { .. } => BackendError::Busy { retry_after_ms: None },
            SubmitError::Stopped => BackendError::Failed(error.to_string()),
        })?;
        while let Some(piece) = generation.next().await {
            match piece {
                Piece::Started { .. } => {
                    if let Some(event) = chunks.begin() {
                        out.event(event).await?;
                    }
                }
                Piece::Text { text, tokens } => out.event(chunks.text(&text, &tokens)).await?,
                Piece::Done { finish, usage } => {
                    out.event(chunks.finish(finish)).await?;
                    out.event(chunks.usage(usage)).await?;
                    return Ok(finish_name(finish).into());
                }
                Piece::Failed(why) => return Err(BackendError::Failed(why)),
            }
        }
        Err(BackendError::Failed("the engine's answer ended early".into()))
    }
}

/// Fields that would change the answer in ways this engine has not; refused unless they are off.
const UNSUPPORTED: [&str; 10] = [
    "audio",
    "best_of",
    "echo",
    "functions",
    "guided_json",
    "logit_bias",
    "modalities",
    "suffix",
    "tools",
    "frequency_penalty",
];

/// Whether a field's value asks for nothing.
fn is_off(value: &str) -> bool {
    matches!(value, "false" | "[]" | "{}" | "0" | "0.0" | "\"\"")
        || (value.starts_with('[') && serde_json::from_str::<Vec<String>>(value).is_ok_and(|list| list == ["text"]))
}

/// OpenAI's request as the engine's.
fn request(choices: Choices, body: &[u8], prefix: Vec<u8>) -> Result<Request, BackendError> {
    let fields = Fields::parse(body).map_err(|error| rejected("body", &error.to_string()))?;
    for name in UNSUPPORTED.into_iter().chain(["presence_penalty"]) {
        let is_one = name == "best_of" && fields.get(name) == Some("1");
        if fields.get(name).is_some_and(|value| !is_off(value) && !is_one) {
            return Err(rejected(name, "the embedded engine does not have it"));
        }
    }
    if fields.get("n").is_some_and(|n| n != "1") {
        return Err(rejected("n", "the embedded engine gives one answer"));
    }
    if let Some(format) = fields.get("response_format")
        && Fields::parse(format.as_bytes()).is_ok_and(|format| format.get("type") != Some("\"text\""))
    {
        return Err(rejected("response_format", "the embedded engine gives plain text only"));
    }
    let prompt = match choices {
        Choices::Chat => Prompt::Chat(messages(&fields)?),
        Choices::Completion => Prompt::Text(
            fields.read("prompt").ok_or_else(|| rejected("prompt", "the embedded engine takes one string"))?,
        ),
    };
    let mut request = Request::new(prompt);
    request.prefix =
        String::from_utf8(prefix).map_err(|_| BackendError::Failed("the delivered text is not UTF-8".into()))?;
    request.max_tokens = fields.read("max_completion_tokens").or_else(|| fields.read("max_tokens"));
    // Without a temperature the likeliest token is taken: small models are at their best so, and another provider that goes
    // on with the answer does so in the very same words.
    request.temperature = fields.read("temperature").unwrap_or(0.0);
    request.top_p = fields.read("top_p").unwrap_or(1.0);
    request.seed = match fields.read::<i64>("seed") {
        Some(seed) => seed.cast_unsigned(),
        None => random()?,
    };
    request.stop = fields.read("stop").or_else(|| fields.read("stop").map(|one: String| vec![one])).unwrap_or_default();
    request.logprobs = match choices {
        Choices::Chat => {
            fields.read::<bool>("logprobs").unwrap_or(false).then(|| fields.read::<usize>("top_logprobs").unwrap_or(0))
        }
        Choices::Completion => fields.read::<usize>("logprobs"),
    };
    Ok(request)
}

fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, BackendError> {
    let list: Vec<Box<RawValue>> = fields.read("messages").ok_or_else(|| rejected("messages", "not an array"))?;
    let mut messages = Vec::with_capacity(list.len());
    for (index, message) in list.iter().enumerate() {
        let fault = |part: &str, why: &str| rejected(&format!("messages[{index}]{part}"), why);
        let message = Fields::parse(message.get().as_bytes()).map_err(|_| fault("", "not an object"))?;
        let role = message.read::<String>("role").ok_or_else(|| fault(".role", "not a string"))?;
        if message.get("tool_calls").is_some_and(|calls| calls != "[]") {
            return Err(fault(".tool_calls", "the embedded engine has no tools"));
        }
        if let Some(parts) = message.read::<Vec<Box<RawValue>>>("content") {
            let is_text = |part: &RawValue| {
                Fields::parse(part.get().as_bytes()).is_ok_and(|part| part.get("type") == Some("\"text\""))
            };
            if let Some(other) = parts.iter().position(|part| !is_text(part)) {
                return Err(fault(&format!(".content[{other}]"), "the embedded engine takes text only"));
            }
        }
        messages.push(ChatMessage { role, content: text(message.raw("content")) });
    }
    Ok(messages)
}

/// A seed for a request that names none.
fn random() -> Result<u64, BackendError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| BackendError::Failed("the system gives no random bytes".into()))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let chat = r#"{"model":"m","messages":[{"role":"system","content":null},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "max_tokens":7,"temperature":0,"seed":-1,"stop":"x","logprobs":true,"top_logprobs":3,"n":1,"tools":[],"stream":true}"#;
        let got = request(Choices::Chat, chat.as_bytes(), b"so far".to_vec()).expect("good");
        let say = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
        let want = Request {
            prefix: "so far".into(),
            max_tokens: Some(7),
            temperature: 0.0,
            seed: u64::MAX,
            stop: vec!["x".into()],
            logprobs: Some(3),
            ..Request::new(Prompt::Chat(vec![say("system", ""), say("user", "ab")]))
        };
        assert_eq!(got, want);
        let completion =
            r#"{"prompt":"a","stop":["x","y"],"max_completion_tokens":2,"max_tokens":9,"seed":4,"logprobs":0}"#;
        let want = Request {
            max_tokens: Some(2),
            temperature: 0.0,
            seed: 4,
            stop: vec!["x".into(), "y".into()],
            logprobs: Some(0),
            ..Request::new(Prompt::Text("a".into()))
        };
        assert_eq!(request(Choices::Completion, completion.as_bytes(), Vec::new()).expect("good"), want);
    }

    #[test]
    fn what_the_engine_has_not_is_named() {
        let cases = [
            (r#""tools":[{"type":"function"}]"#, "tools"),
            (r#""n":2"#, "n"),
            (r#""presence_penalty":0.5"#, "presence_penalty"),
            (r#""logit_bias":{"5":1}"#, "logit_bias"),
            (r#""response_format":{"type":"json_object"}"#, "response_format"),
            (r#""modalities":["text","audio"]"#, "modalities"),
            (r#""messages":[{"role":"user","content":[{"type":"image_url"}]}]"#, "messages[0].content[0]"),
            (r#""messages":[{"role":"assistant","tool_calls":[{}]}]"#, "messages[0].tool_calls"),
            (r#""messages":[{}]"#, "messages[0].role"),
        ];
        for (field, name) in cases {
            let messages = if field.starts_with("\"messages") { "" } else { r#","messages":[]"# };
            let error =
                request(Choices::Chat, format!("{{{field}{messages}}}").as_bytes(), Vec::new()).expect_err(field);
            let BackendError::Rejected { status: 400, message } = error else { panic!("{field}: {error:?}") };
            assert!(message.contains(&format!("\"param\":\"{name}\"")), "{field}: {message}");
        }
        for off in
            [r#""modalities":["text"]"#, r#""presence_penalty":0"#, r#""logit_bias":{}"#, r#""best_of":1"#, r#""n":1"#]
        {
            assert!(
                request(Choices::Chat, format!(r#"{{{off},"messages":[]}}"#).as_bytes(), Vec::new()).is_ok(),
                "{off}"
            );
        }
    }
}
