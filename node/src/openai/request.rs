//! A client's request: checked where the gateway depends on it, passed through untouched everywhere else.
//! Invariant: every value of the body for the backend is the client's, byte for byte, but for `stream`,
//! `stream_options.include_usage` and shortcuts in `model`; what only the gateway needs is taken out.
//!
//! The fields that make the prompt come first, so that the bodies of a conversation begin alike whatever else is asked: prefix
//! caches are found by a body's first bytes ([`spillway_protocol::prefix`]).

use super::endpoint::{Answer, Choices, Encoding, endpoint};
use super::fields::{Fields, depth, literal, raw};
use super::form::Form;
use super::inputs;
use super::preference::{Direction, GATEWAY_FIELDS, ModelName, Routing, Shortcut, models};
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_protocol::Kind;
use spillway_protocol::job::{MODEL_BYTES_MAX, OUTPUT_UNITS_MAX};

/// How deep a request's JSON may nest.
pub const DEPTH_MAX: usize = 64;
/// Most answers to one request.
pub const CHOICES_MAX: u64 = 16;
/// Work units (bytes) that one token may come to. A token is four bytes of English and at most a few more of anything
/// else; an answer that still exceeds its tokens' worth ends with `length`.
pub const UNITS_PER_TOKEN_MAX: u64 = 8;
/// Work units (bytes) that a token is taken for where tokens are estimated: near the truth for English.
pub const UNITS_PER_TOKEN: u64 = 4;
/// What a prompt is made of, in the order in which chat templates use it.
const PROMPT_FIELDS: [&str; 4] = ["tools", "functions", "messages", "prompt"];
/// The tokens a request without a limit is reserved for, and held to.
pub const TOKENS_DEFAULT: u64 = 4096;

/// A request that cannot be taken, and which field is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{why}", field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct BadRequest {
    /// The field, as in `messages[2].role`; `None` if the body as a whole is.
    pub field: Option<String>,
    /// What is wrong with it.
    pub why: String,
}

impl BadRequest {
    pub(crate) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: Some(field.into()), why: why.into() }
    }
}

/// What the gateway needs to know of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The endpoint.
    pub kind: Kind,
    /// The models, the first choice first; at least one, at most [`ALTERNATIVES_MAX`](spillway_protocol::job::ALTERNATIVES_MAX)
    /// more.
    pub models: Vec<ModelName>,
    /// Which providers are wished for.
    pub routing: Routing,
    /// What the client calls the conversation: `session_id` or `prompt_cache_key`.
    pub session: Option<String>,
    /// Whether the client wants a stream.
    pub stream: bool,
    /// Whether the client wants usage at a stream's end.
    pub include_usage: bool,
    /// Most output, in work units: what `max_completion_tokens` or `max_tokens` (or [`TOKENS_DEFAULT`]) come to at
    /// [`UNITS_PER_TOKEN_MAX`], for each choice, at most [`OUTPUT_UNITS_MAX`].
    pub output_max: u64,
    /// Whether another provider could go on with the answer: one choice of plain text.
    pub continuable: bool,
    /// The request as backends get it: always a stream with usage, so that there is one path through the node.
    pub body: Vec<u8>,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// The first thing that does not hold, naming the field.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, BadRequest> {
        let row = endpoint(kind);
        if row.encoding == Encoding::Multipart {
            return Self::form(kind, body);
        }
        if depth(body) > DEPTH_MAX {
            return Err(BadRequest { field: None, why: format!("the body nests deeper than {DEPTH_MAX}") });
        }
        let fields = Fields::parse(body)
            .map_err(|error| BadRequest { field: None, why: format!("the body is not a JSON object: {error}") })?;
        match row.answer {
            Answer::Choices(choices) => Self::choices(kind, choices, fields, body.len() as u64),
            Answer::Events(_) | Answer::Whole(_) => Self::other(kind, fields),
        }
    }

    /// A request for chunks with choices.
    fn choices(kind: Kind, choices: Choices, fields: Fields<'_>, bytes: u64) -> Result<Self, BadRequest> {
        let models = models(&fields)?;
        let routing = Routing::parse(&fields)?;
        typed::<String>(&fields, "route", "a string")?;
        let plain_prompt = match choices {
            Choices::Chat => messages(&fields)?,
            Choices::Completion => prompt(&fields)?,
        };
        numbers(&fields, choices)?;
        stop(&fields)?;
        let stream = typed::<bool>(&fields, "stream", "true or false")?.unwrap_or(false);
        let include_usage = stream_options(&fields)?;
        let n = integer(&fields, "n", 1, CHOICES_MAX)?.unwrap_or(1);
        let tokens = tokens(&fields, choices)?;
        let echo = typed::<bool>(&fields, "echo", "true or false")?.unwrap_or(false);
        for name in ["tools", "functions"] {
            typed::<Vec<&RawValue>>(&fields, name, "an array")?;
        }
        if let Some(format) = fields.get("response_format") {
            Fields::parse(format.as_bytes()).map_err(|_| BadRequest::new("response_format", "not an object"))?;
        }
        let mut output_max = tokens.saturating_mul(UNITS_PER_TOKEN_MAX);
        if echo {
            output_max = output_max.saturating_add(bytes);
        }
        Ok(Self {
            kind,
            routing,
            session: session(&fields),
            stream,
            include_usage,
            output_max: output_max.saturating_mul(n).clamp(1, OUTPUT_UNITS_MAX),
            continuable: plain_prompt && n == 1 && !echo && is_plain_text(&fields),
            body: for_market(with_stream(fields), &models[0].name),
            models,
        })
    }

    /// A request for events that name their type, or for an answer as a whole.
    fn other(kind: Kind, mut fields: Fields<'_>) -> Result<Self, BadRequest> {
        let models = models(&fields)?;
        let routing = Routing::parse(&fields)?;
        let stream = typed::<bool>(&fields, "stream", "true or false")?.unwrap_or(false);
        let output_max = inputs::check(kind, &fields)?;
        if let Answer::Events(_) = endpoint(kind).answer {
            fields.set("stream", literal("true"));
        }
        Ok(Self {
            kind,
            routing,
            session: session(&fields),
            stream,
            include_usage: false,
            output_max: output_max.clamp(1, OUTPUT_UNITS_MAX),
            continuable: false,
            body: for_market(fields, &models[0].name),
            models,
        })
    }

    /// A form.
    fn form(kind: Kind, body: &[u8]) -> Result<Self, BadRequest> {
        let form = Form::parse(body)?;
        let name = form.text("model")?.ok_or_else(|| BadRequest::new("model", "missing"))?;
        let models = vec![ModelName { name: checked_name("model", name.to_owned())?, field: "model".into() }];
        let stream = match form.text("stream")? {
            None | Some("false" | "False") => false,
            Some("true" | "True") => true,
            Some(_) => return Err(BadRequest::new("stream", "neither true nor false")),
        };
        let output_max = inputs::check_form(kind, &form)?;
        Ok(Self {
            kind,
            routing: Routing::default(),
            session: None,
            stream,
            include_usage: false,
            output_max: output_max.clamp(1, OUTPUT_UNITS_MAX),
            continuable: false,
            body: form.to_bytes(),
            models,
        })
    }

    /// The model of first choice.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.models[0].name
    }

    /// Takes shortcuts out of the models' names, unless a model is `known` by the whole name.
    ///
    /// # Errors
    /// If they contradict each other: preferences hold for all models of a request.
    pub fn resolve(
        &mut self,
        known: impl Fn(&str) -> bool,
        is_backend: impl Fn(&str) -> bool,
    ) -> Result<(), BadRequest> {
        let (mut bare, mut direction) = (Vec::with_capacity(self.models.len()), None);
        for (index, model) in self.models.iter().enumerate() {
            let fail = |why: String| BadRequest::new(&model.field, why);
            let found =
                if known(&model.name) { None } else { Direction::of(&model.name, &is_backend).map_err(fail)? };
            let (name, found) = found.map_or((model.name.as_str(), None), |(name, found)| (name, Some(found)));
            if index == 0 {
                direction = found;
            } else if found.is_some() && found != direction {
                return Err(fail("it says another place than the first model, and there is one for all".into()));
            }
            bare.push(ModelName { field: model.field.clone(), name: name.to_owned() });
        }
        let first = taken_apart(&bare[0], &known);
        let (provider, sort) = first.map_or((None, None), |it| (it.provider, it.sort));
        let mut names = Vec::with_capacity(self.models.len());
        for (index, model) in bare.iter().enumerate() {
            let Some(shortcut) = taken_apart(model, &known) else {
                names.push(model.name.clone());
                continue;
            };
            if index > 0 && (shortcut.provider, shortcut.sort) != (provider, sort) {
                let why = "its shortcut differs from the first model's, and preferences hold for all models";
                return Err(BadRequest::new(&model.field, why));
            }
            names.push(shortcut.model.to_owned());
        }
        match direction {
            None => {}
            Some(Direction::Backend(backend)) => self.routing.backend = Some(backend),
            Some(Direction::Best(wish)) => self.routing.wish(&wish),
        }
        let preferences = &mut self.routing.preferences;
        if let Some(provider) = provider {
            if !preferences.only.is_empty() && !preferences.only.iter().any(|name| name == provider) {
                return Err(BadRequest::new(&self.models[0].field, "its provider is not in `provider.only`"));
            }
            preferences.only = vec![provider.to_owned()];
        }
        // What is said at length is meant.
        preferences.sort = preferences.sort.or(sort);
        if names[0] != self.models[0].name {
            let body = std::mem::take(&mut self.body);
            self.body = match endpoint(self.kind).encoding {
                Encoding::Json => {
                    let mut fields = Fields::parse(&body).expect("it was made of fields");
                    fields.set("model", raw(&names[0]));
                    fields.to_bytes()
                }
                Encoding::Multipart => {
                    let mut form = Form::parse(&body).expect("it was made of parts");
                    form.set("model", &names[0]);
                    form.to_bytes()
                }
            };
        }
        let mut seen = Vec::new();
        for (model, name) in self.models.iter_mut().zip(names) {
            model.name = name;
        }
        self.models.retain(|model| {
            let again = seen.contains(&model.name);
            seen.push(model.name.clone());
            !again
        });
        Ok(())
    }
}

fn taken_apart<'a>(model: &'a ModelName, known: &impl Fn(&str) -> bool) -> Option<Shortcut<'a>> {
    if known(&model.name) { None } else { Shortcut::of(&model.name) }
}

/// What the client calls the conversation.
fn session(fields: &Fields<'_>) -> Option<String> {
    fields.read("session_id").or_else(|| fields.read("prompt_cache_key"))
}

/// The body for whoever serves the job.
fn for_market(mut fields: Fields<'_>, model: &str) -> Vec<u8> {
    fields.remove_where(|name| GATEWAY_FIELDS.contains(&name));
    if fields.get("model").is_none() {
        fields.set("model", raw(model));
    }
    fields.put_first(&PROMPT_FIELDS);
    fields.to_bytes()
}

/// The body with `stream` and `stream_options.include_usage` set; the very bytes if they were.
///
/// For whoever has a backend: what a stranger sends need not have come through a gateway.
#[must_use]
pub fn for_backend(json: &[u8], fields: Fields<'_>) -> Vec<u8> {
    if has_usage(&fields) && fields.get("stream") == Some("true") {
        return json.to_vec();
    }
    with_stream(fields).to_bytes()
}

fn has_usage(fields: &Fields<'_>) -> bool {
    let options = fields.get("stream_options").map(str::as_bytes).map(Fields::parse);
    options.is_some_and(|options| options.is_ok_and(|set| set.get("include_usage") == Some("true")))
}

/// The fields with `stream` and `stream_options.include_usage` set.
#[must_use]
pub fn with_stream(mut fields: Fields<'_>) -> Fields<'_> {
    fields.set("stream", literal("true"));
    if !has_usage(&fields) {
        let options = fields.get("stream_options").unwrap_or("{}").to_owned();
        let mut options = Fields::parse(options.as_bytes()).unwrap_or_default();
        options.set("include_usage", literal("true"));
        fields.set("stream_options", options.to_raw());
    }
    fields
}

pub(super) fn typed<'a, T: Deserialize<'a>>(
    fields: &'a Fields<'_>,
    name: &str,
    want: &str,
) -> Result<Option<T>, BadRequest> {
    let Some(json) = fields.get(name) else { return Ok(None) };
    serde_json::from_str(json).map(Some).map_err(|_| BadRequest::new(name, format!("not {want}")))
}

pub(super) fn integer(fields: &Fields<'_>, name: &str, min: u64, max: u64) -> Result<Option<u64>, BadRequest> {
    let Some(json) = fields.get(name) else { return Ok(None) };
    match json.parse::<u64>() {
        Ok(value) if (min..=max).contains(&value) => Ok(Some(value)),
        Ok(_) | Err(_) if max == u64::MAX => Err(BadRequest::new(name, format!("not an integer of at least {min}"))),
        Ok(_) | Err(_) => Err(BadRequest::new(name, format!("not an integer from {min} to {max}"))),
    }
}

/// A model's name, if it can be one.
pub(super) fn checked_name(field: &str, model: String) -> Result<String, BadRequest> {
    if model.is_empty() || model.len() > MODEL_BYTES_MAX || model.chars().any(char::is_control) {
        return Err(BadRequest::new(field, format!("empty, over {MODEL_BYTES_MAX} bytes, or with control characters")));
    }
    Ok(model)
}

/// Checks the messages; whether an answer to them is a new message, so that a prefix of it can be told apart.
fn messages(fields: &Fields<'_>) -> Result<bool, BadRequest> {
    let Some(messages) = typed::<Vec<&RawValue>>(fields, "messages", "an array of objects")? else {
        return Err(BadRequest::new("messages", "missing"));
    };
    if messages.is_empty() {
        return Err(BadRequest::new("messages", "empty"));
    }
    let mut last_role = String::new();
    for (index, message) in messages.iter().enumerate() {
        let fault = |part: &str, why: &str| BadRequest::new(format!("messages[{index}]{part}"), why);
        let message = Fields::parse(message.get().as_bytes()).map_err(|_| fault("", "not an object"))?;
        match message.read::<String>("role") {
            Some(role) if !role.is_empty() => last_role = role,
            Some(_) | None => return Err(fault(".role", "missing, or not a string")),
        }
        if let Some(content) = message.get("content")
            && !content.starts_with(['"', '['])
        {
            return Err(fault(".content", "neither a string nor an array of parts"));
        }
    }
    Ok(last_role != "assistant")
}

/// Checks the prompt; whether it is one text.
fn prompt(fields: &Fields<'_>) -> Result<bool, BadRequest> {
    let Some(json) = fields.get("prompt") else { return Err(BadRequest::new("prompt", "missing")) };
    if serde_json::from_str::<String>(json).is_ok() {
        return Ok(true);
    }
    // One prompt of tokens, or several prompts of either form.
    let prompts = match (serde_json::from_str::<Vec<u64>>(json), serde_json::from_str::<Vec<String>>(json)) {
        (Ok(tokens), _) => tokens.len().min(1),
        (_, Ok(texts)) => texts.len(),
        (Err(_), Err(_)) => serde_json::from_str::<Vec<Vec<u64>>>(json)
            .map_err(|_| BadRequest::new("prompt", "neither a string nor an array of strings or of tokens"))?
            .len(),
    };
    match prompts as u64 {
        0 => Err(BadRequest::new("prompt", "empty")),
        1..=CHOICES_MAX => Ok(false),
        _ => Err(BadRequest::new("prompt", format!("more than {CHOICES_MAX} prompts"))),
    }
}

/// The tokens asked for, for all prompts of one choice each.
fn tokens(fields: &Fields<'_>, choices: Choices) -> Result<u64, BadRequest> {
    // Completions with 0 tokens and `echo` score a text; a chat of 0 tokens is a mistake.
    let min = match choices {
        Choices::Chat => 1,
        Choices::Completion => 0,
    };
    let newer = integer(fields, "max_completion_tokens", min, u64::MAX)?;
    let older = integer(fields, "max_tokens", min, u64::MAX)?;
    let prompts = fields.read::<Vec<Box<RawValue>>>("prompt").map_or(1, |list| {
        // An array of numbers is one prompt of tokens.
        if list.first().is_some_and(|first| first.get().starts_with(['"', '['])) { list.len() as u64 } else { 1 }
    });
    Ok(newer.or(older).unwrap_or(TOKENS_DEFAULT).saturating_mul(prompts))
}

fn numbers(fields: &Fields<'_>, choices: Choices) -> Result<(), BadRequest> {
    for (name, min, max) in [
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ] {
        let value = typed::<f64>(fields, name, "a number")?;
        if value.is_some_and(|value| !(min..=max).contains(&value)) {
            return Err(BadRequest::new(name, format!("not between {min} and {max}")));
        }
    }
    typed::<i64>(fields, "seed", "an integer")?;
    integer(fields, "top_logprobs", 0, 20)?;
    match choices {
        Choices::Chat => typed::<bool>(fields, "logprobs", "true or false").map(|_| ()),
        Choices::Completion => {
            integer(fields, "best_of", 1, CHOICES_MAX)?;
            integer(fields, "logprobs", 0, 20).map(|_| ())
        }
    }
}

fn stop(fields: &Fields<'_>) -> Result<(), BadRequest> {
    const STOPS_MAX: usize = 16;
    let Some(json) = fields.get("stop") else { return Ok(()) };
    let count = match serde_json::from_str::<Vec<String>>(json) {
        Ok(list) => list.len(),
        Err(_) => serde_json::from_str::<String>(json)
            .map(|_| 1)
            .map_err(|_| BadRequest::new("stop", "neither a string nor an array of strings"))?,
    };
    if count > STOPS_MAX { Err(BadRequest::new("stop", format!("more than {STOPS_MAX} strings"))) } else { Ok(()) }
}

fn stream_options(fields: &Fields<'_>) -> Result<bool, BadRequest> {
    let Some(json) = fields.get("stream_options") else { return Ok(false) };
    let options = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("stream_options", "not an object"))?;
    match options.get("include_usage") {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(BadRequest::new("stream_options.include_usage", "not true or false")),
    }
}

/// Whether nothing asks for an answer of a shape that a second provider could not go on with: tool calls, grammars
/// (which would begin anew in the middle), other media, texts to fill in, and positions counted from the start.
fn is_plain_text(fields: &Fields<'_>) -> bool {
    let is_empty_array = |name: &str| {
        fields.get(name).is_none() || fields.read::<Vec<Box<RawValue>>>(name).is_some_and(|list| list.is_empty())
    };
    let text_format = fields.get("response_format").is_none_or(|format| {
        Fields::parse(format.as_bytes()).is_ok_and(|format| format.get("type") == Some("\"text\""))
    });
    let absent = [
        "audio",
        "best_of",
        "continue_final_message",
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "json_schema",
        "logprobs",
        "modalities",
        "structured_outputs",
        "suffix",
    ];
    is_empty_array("tools")
        && is_empty_array("functions")
        && text_format
        && absent.iter().all(|name| fields.get(name).is_none_or(|value| value == "false"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_protocol::router::Sort;

    const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]"#;

    fn chat(rest: &str) -> Result<Request, BadRequest> {
        Request::parse(Kind::Chat, format!("{CHAT}{rest}}}").as_bytes())
    }

    fn completion(json: &str) -> Result<Request, BadRequest> {
        Request::parse(Kind::Completion, json.as_bytes())
    }

    #[test]
    fn bad_fields_are_named() {
        let chats = [
            (r#"[1]"#, None),
            (r#"{"model":"#, None),
            (r#"{"model":"a","model":"b","messages":[]}"#, None),
            (r#"{"messages":[{"role":"user"}]}"#, Some("model")),
            (r#"{"model":7,"messages":[{"role":"user"}]}"#, Some("model")),
            (r#"{"model":"","messages":[{"role":"user"}]}"#, Some("model")),
            (r#"{"model":"m"}"#, Some("messages")),
            (r#"{"model":"m","messages":{}}"#, Some("messages")),
            (r#"{"model":"m","messages":[]}"#, Some("messages")),
            (r#"{"model":"m","messages":["hi"]}"#, Some("messages[0]")),
            (r#"{"model":"m","messages":[{"role":"user"},{"content":"x"}]}"#, Some("messages[1].role")),
            (r#"{"model":"m","messages":[{"role":"user","content":5}]}"#, Some("messages[0].content")),
        ];
        for (json, field) in chats {
            let error = Request::parse(Kind::Chat, json.as_bytes()).expect_err(json);
            assert_eq!(error.field.as_deref(), field, "{json}: {error}");
        }
        let rest = [
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":1.5"#, "max_tokens"),
            (r#","max_tokens":-1"#, "max_tokens"),
            (r#","max_completion_tokens":"9""#, "max_completion_tokens"),
            (r#","n":0"#, "n"),
            (r#","n":17"#, "n"),
            (r#","temperature":"hot""#, "temperature"),
            (r#","temperature":2.5"#, "temperature"),
            (r#","top_p":-0.1"#, "top_p"),
            (r#","presence_penalty":3"#, "presence_penalty"),
            (r#","frequency_penalty":-2.1"#, "frequency_penalty"),
            (r#","stop":5"#, "stop"),
            (r#","stop":["a",1]"#, "stop"),
            (r#","stream":"yes""#, "stream"),
            (r#","stream_options":true"#, "stream_options"),
            (r#","stream_options":{"include_usage":1}"#, "stream_options.include_usage"),
            (r#","seed":1.5"#, "seed"),
            (r#","logprobs":2"#, "logprobs"),
            (r#","top_logprobs":21"#, "top_logprobs"),
            (r#","tools":{}"#, "tools"),
            (r#","response_format":"json""#, "response_format"),
        ];
        for (rest, field) in rest {
            assert_eq!(chat(rest).expect_err(rest).field.as_deref(), Some(field), "{rest}");
        }
        let completions = [
            (r#"{"model":"m"}"#, "prompt"),
            (r#"{"model":"m","prompt":{}}"#, "prompt"),
            (r#"{"model":"m","prompt":[]}"#, "prompt"),
            (r#"{"model":"m","prompt":"a","logprobs":true}"#, "logprobs"),
            (r#"{"model":"m","prompt":"a","best_of":0}"#, "best_of"),
        ];
        for (json, field) in completions {
            assert_eq!(completion(json).expect_err(json).field.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn depth_is_limited() {
        let nested = |depth: usize| format!(r#","metadata":{}{}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(chat(&nested(DEPTH_MAX - 1)).is_ok());
        assert_eq!(chat(&nested(DEPTH_MAX)).expect_err("too deep").field, None);
    }

    #[test]
    fn the_backend_gets_the_clients_bytes() {
        // What the client sent behind CHAT, and what the backend gets behind the messages and the model.
        let cases = [
            (
                r#","temperature":1.10,"x_mine":{"deep":[1e400, null]},"top_k":40"#,
                r#","temperature":1.10,"x_mine":{"deep":[1e400, null]},"top_k":40,"stream":true,"stream_options":{"include_usage":true}"#,
            ),
            (r#","stream":false,"user":"u""#, r#","stream":true,"user":"u","stream_options":{"include_usage":true}"#),
            (
                r#","stream":true,"stream_options":{"chunk":2.0,"include_usage":false}"#,
                r#","stream":true,"stream_options":{"chunk":2.0,"include_usage":true}"#,
            ),
            (
                r#", "stream" : true, "stream_options": { "include_usage": true }"#,
                r#","stream":true,"stream_options":{ "include_usage": true }"#,
            ),
            (r#","stream":true,"stream_options":null"#, r#","stream":true,"stream_options":{"include_usage":true}"#),
            (
                r#","provider":{"sort":"price"},"models":["n"],"route":"fallback","user":"u""#,
                r#","user":"u","stream":true,"stream_options":{"include_usage":true}"#,
            ),
        ];
        const BODY: &str = r#"{"messages":[{"role":"user","content":"hi"}],"model":"m""#;
        for (sent, got) in cases {
            let request = chat(sent).expect(sent);
            assert_eq!(String::from_utf8_lossy(&request.body), format!("{BODY}{got}}}"));
        }
    }

    #[test]
    fn the_turns_of_a_conversation_begin_alike() {
        let turn = |fields: &str, said: usize| {
            let messages = vec![format!(r#"{{"role":"user","content":"{}"}}"#, "word ".repeat(400)); said].join(", ");
            let json = format!(r#"{{{fields}"tools" : [],"messages" :  [{messages}], "stop": null}}"#);
            let request = Request::parse(Kind::Chat, json.as_bytes()).expect(&json);
            spillway_protocol::prefix::names(request.model(), &request.body)
        };
        let first = turn(r#""model":"m","stream":false,"#, 3);
        for fields in [
            r#""model":"m","#,
            r#""stream":true,"model": "m","max_tokens":77,"#,
            r#""provider":{"sort":"price"},"models":["m"],"temperature":0.5,"#,
        ] {
            let next = turn(fields, 4);
            // Three messages are a bit over 6,000 bytes: two whole blocks of 2,048, and what comes behind them is in the third.
            assert_eq!(next[..2], first[..2], "{fields}");
            assert_ne!(next[2], first[2], "{fields}");
        }
    }

    #[test]
    fn shortcuts_become_preferences() {
        let resolved = |json: &str| {
            let mut request = Request::parse(Kind::Completion, json.as_bytes()).expect(json);
            request.resolve(|name| ["a", "b", "b:floor"].contains(&name), |name| name == "gpu1").map(|()| request)
        };
        // The request; its models, sort and only.
        let cases = [
            (r#"{"prompt":"","model":"a"}"#, "a", None, ""),
            (r#"{"prompt":"","model":"a:nitro"}"#, "a", Some(Sort::Throughput), ""),
            (r#"{"prompt":"","model":"b:floor"}"#, "b:floor", None, ""),
            (r#"{"prompt":"","model":"a:nitro","provider":{"sort":"latency"}}"#, "a", Some(Sort::Latency), ""),
            (r#"{"prompt":"","model":"a@aabbccdd"}"#, "a", None, "aabbccdd"),
            (r#"{"prompt":"","model":"a@own","provider":{"only":["own","aabbccdd"]}}"#, "a", None, "own"),
            (r#"{"prompt":"","models":["a:floor","b:floor","c:floor"]}"#, "a,b:floor,c", Some(Sort::Price), ""),
            (r#"{"prompt":"","model":"a:floor","models":["a","b"]}"#, "a,b", Some(Sort::Price), ""),
            (r#"{"prompt":"","model":"a@lowest-ttft"}"#, "a", Some(Sort::Latency), ""),
            (r#"{"prompt":"","models":["a@itl","b"]}"#, "a,b", Some(Sort::Throughput), ""),
            (r#"{"prompt":"","model":"a:floor@gpu1"}"#, "a", Some(Sort::Price), ""),
        ];
        for (json, models, sort, only) in cases {
            let request = resolved(json).expect(json);
            let names: Vec<_> = request.models.iter().map(|model| model.name.as_str()).collect();
            let preferences = &request.routing.preferences;
            let got = (names.join(","), preferences.sort, preferences.only.join(","));
            assert_eq!(got, (models.to_owned(), sort, only.to_owned()), "{json}");
            let body = Fields::parse(&request.body).expect("JSON").read::<String>("model");
            assert_eq!(body.as_deref(), Some(names[0]), "{json}");
        }
        for (name, backend) in [("a@gpu1", Some("gpu1")), ("@gpu1/a", Some("gpu1")), ("a", None), ("@gpu2/a", None)] {
            let request = resolved(&format!(r#"{{"prompt":"","model":"{name}"}}"#)).expect(name);
            assert_eq!(request.routing.backend.as_deref(), backend, "{name}");
            assert_eq!(request.model(), if backend.is_some() { "a" } else { name });
        }
        for (json, field) in [
            (r#"{"prompt":"","model":"a@own","provider":{"only":["aabbccdd"]}}"#, "model"),
            (r#"{"prompt":"","models":["a@own"],"provider":{"only":["aabbccdd"]}}"#, "models[0]"),
            (r#"{"prompt":"","model":"a","models":["x","c:nitro"]}"#, "models[1]"),
            (r#"{"prompt":"","models":["a","b@gpu1"]}"#, "models[1]"),
            (r#"{"prompt":"","model":"a@highest-ttft"}"#, "model"),
        ] {
            assert_eq!(resolved(json).expect_err(json).field.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn output_is_bounded_by_tokens_and_choices() {
        let default = TOKENS_DEFAULT * UNITS_PER_TOKEN_MAX;
        let chats = [
            ("", default),
            (r#","max_tokens":null"#, default),
            (r#","max_tokens":10"#, 80),
            (r#","max_tokens":10,"max_completion_tokens":20"#, 160),
            (r#","max_tokens":10,"n":3"#, 240),
            (r#","max_tokens":18446744073709551615,"n":16"#, OUTPUT_UNITS_MAX),
        ];
        for (rest, want) in chats {
            assert_eq!(chat(rest).expect(rest).output_max, want, "{rest}");
        }
        let scoring = r#"{"model":"m","prompt":"abc","max_tokens":0,"echo":true}"#;
        let completions = [
            (r#"{"model":"m","prompt":["a","b"],"max_tokens":10}"#, 160),
            (r#"{"model":"m","prompt":[1,2,3],"max_tokens":10}"#, 80),
            (r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":10}"#, 160),
            (r#"{"model":"m","prompt":"a","max_tokens":0}"#, 1),
            (scoring, scoring.len() as u64),
        ];
        for (json, want) in completions {
            assert_eq!(completion(json).expect(json).output_max, want, "{json}");
        }
    }

    #[test]
    fn only_one_plain_text_can_be_continued() {
        let chats = [
            ("", true),
            (r#","tools":[]"#, true),
            (r#","response_format":{"type":"text"}"#, true),
            (r#","logprobs":false"#, true),
            (r#","n":2"#, false),
            (r#","tools":[{"type":"function"}]"#, false),
            (r#","response_format":{"type":"json_object"}"#, false),
            (r#","logprobs":true"#, false),
            (r#","guided_json":{}"#, false),
            (r#","modalities":["audio"]"#, false),
        ];
        for (rest, want) in chats {
            assert_eq!(chat(rest).expect(rest).continuable, want, "{rest}");
        }
        let begun = r#"{"model":"m","messages":[{"role":"user"},{"role":"assistant","content":"Once"}]}"#;
        assert!(!Request::parse(Kind::Chat, begun.as_bytes()).expect(begun).continuable);
        let completions = [
            (r#"{"model":"m","prompt":"a"}"#, true),
            (r#"{"model":"m","prompt":["a"]}"#, false),
            (r#"{"model":"m","prompt":"a","echo":true}"#, false),
            (r#"{"model":"m","prompt":"a","suffix":"b"}"#, false),
            (r#"{"model":"m","prompt":"a","logprobs":1}"#, false),
        ];
        for (json, want) in completions {
            assert_eq!(completion(json).expect(json).continuable, want, "{json}");
        }
    }
}
