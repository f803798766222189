//! A request for a response as a request for a chat.

use super::super::fields::{Fields, literal, object, raw};
use super::super::request::{BadRequest, typed};
use serde_json::value::RawValue;

/// What a response repeats of its request.
const REPEATED: [(&str, &str); 16] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("max_tool_calls", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("prompt_cache_key", "null"),
    ("reasoning", r#"{"effort":null,"summary":null}"#),
    ("safety_identifier", "null"),
    ("service_tier", "\"default\""),
    ("temperature", "1.0"),
    ("text", r#"{"format":{"type":"text"}}"#),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_logprobs", "0"),
    ("top_p", "1.0"),
    ("user", "null"),
];

/// Fields that have another place in a chat, or none; all others keep theirs.
const TRANSLATED: [&str; 19] = [
    "input",
    "instructions",
    "max_output_tokens",
    "text",
    "tools",
    "tool_choice",
    "reasoning",
    "include",
    "store",
    "truncation",
    "background",
    "conversation",
    "previous_response_id",
    "prompt",
    "max_tool_calls",
    "stream_options",
    "top_logprobs",
    "context_management",
    "moderation",
];

/// What a response repeats of its request, each value as the client wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echo(pub(super) Vec<(&'static str, String)>);

/// The chat that a request for a response comes to.
///
/// # Errors
/// What does not hold, or has no place in a chat.
pub fn to_chat(json: &[u8]) -> Result<(Vec<u8>, Echo), BadRequest> {
    let fields = Fields::parse(json)
        .map_err(|error| BadRequest { field: None, why: format!("the body is not a JSON object: {error}") })?;
    refuse_what_is_kept_elsewhere(&fields)?;
    let mut chat = Fields::default();
    for (name, value) in fields.iter().filter(|(name, _)| !TRANSLATED.contains(name)) {
        chat.set(name, value.to_owned());
    }
    let mut talk = Talk::default();
    if let Some(instructions) = typed::<String>(&fields, "instructions", "a string")? {
        talk.say("system", raw(&instructions));
    }
    input(&fields, &mut talk)?;
    chat.set("messages", raw(&talk.end()));
    if let Some(tokens) = fields.raw("max_output_tokens") {
        chat.set("max_tokens", tokens.to_owned());
    }
    tools(&fields, &mut chat)?;
    text(&fields, &mut chat)?;
    if let Some(json) = fields.get("reasoning") {
        let reasoning = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("reasoning", "not an object"))?;
        // A summary is what servers of chats send as their thoughts, wished for or not.
        if let Some(effort) = reasoning.raw("effort").filter(|effort| effort.get() != "null") {
            chat.set("reasoning_effort", effort.to_owned());
        }
    }
    include(&fields, &mut chat)?;
    let repeated = |(name, default): &(&'static str, &str)| (*name, fields.get(name).unwrap_or(default).to_owned());
    Ok((chat.to_bytes(), Echo(REPEATED.iter().map(repeated).collect())))
}

/// The field of the request that a chat's field was made of.
#[must_use]
pub fn field_of(chat: &str) -> String {
    match chat {
        "max_tokens" => "max_output_tokens".into(),
        "response_format" => "text.format".into(),
        // The messages are made of several fields, and numbered otherwise.
        _ if chat.starts_with("messages") => "input".into(),
        _ => chat.to_owned(),
    }
}

/// What would need a memory of earlier responses, or of files.
fn refuse_what_is_kept_elsewhere(fields: &Fields<'_>) -> Result<(), BadRequest> {
    const WHY: &str = "the backends of this model have chats alone, and nothing is kept of a response here";
    for name in ["previous_response_id", "conversation", "prompt"] {
        if fields.get(name).is_some() {
            return Err(BadRequest::new(name, WHY));
        }
    }
    if typed::<bool>(fields, "background", "true or false")? == Some(true) {
        return Err(BadRequest::new("background", WHY));
    }
    typed::<bool>(fields, "store", "true or false")?;
    match typed::<String>(fields, "truncation", "a string")?.as_deref() {
        None | Some("disabled") => {}
        Some(_) => return Err(BadRequest::new("truncation", "the backends of this model cut nothing off")),
    }
    for name in ["context_management", "moderation"] {
        if fields.get(name).is_some_and(|value| value != "[]") {
            return Err(BadRequest::new(name, "the backends of this model have chats alone"));
        }
    }
    Ok(())
}

/// A conversation's messages in the making.
#[derive(Default)]
struct Talk {
    messages: Vec<Box<RawValue>>,
    /// What the assistant says, as far as it came: a chat has its thoughts, words and calls in one message.
    thoughts: String,
    words: Option<Box<RawValue>>,
    calls: Vec<Box<RawValue>>,
}

impl Talk {
    fn say(&mut self, role: &str, content: Box<RawValue>) {
        self.end_turn();
        self.messages.push(object([("role", raw(role)), ("content", content)]));
    }

    fn end_turn(&mut self) {
        if self.words.is_none() && self.calls.is_empty() {
            return;
        }
        let mut message = Fields::default();
        message.set("role", raw("assistant"));
        message.set("content", self.words.take().unwrap_or_else(|| literal("null")));
        let thoughts = std::mem::take(&mut self.thoughts);
        if !thoughts.is_empty() {
            message.set("reasoning_content", raw(&thoughts));
        }
        if !self.calls.is_empty() {
            message.set("tool_calls", raw(&std::mem::take(&mut self.calls)));
        }
        self.messages.push(message.to_raw());
    }

    fn end(mut self) -> Vec<Box<RawValue>> {
        self.end_turn();
        self.messages
    }
}

fn input(fields: &Fields<'_>, talk: &mut Talk) -> Result<(), BadRequest> {
    let Some(json) = fields.get("input") else { return Err(BadRequest::new("input", "missing")) };
    if let Ok(text) = serde_json::from_str::<String>(json) {
        talk.say("user", raw(&text));
        return Ok(());
    }
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(json) else {
        return Err(BadRequest::new("input", "neither a string nor an array of items"));
    };
    if items.is_empty() {
        return Err(BadRequest::new("input", "empty"));
    }
    for (index, item) in items.iter().enumerate() {
        let path = format!("input[{index}]");
        let item = Fields::parse(item.get().as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
        add(&path, &item, talk)?;
    }
    Ok(())
}

/// A text field that must be there.
fn word(path: &str, item: &Fields<'_>, name: &str) -> Result<String, BadRequest> {
    item.read(name).ok_or_else(|| BadRequest::new(format!("{path}.{name}"), "missing, or not a string"))
}

fn add(path: &str, item: &Fields<'_>, talk: &mut Talk) -> Result<(), BadRequest> {
    match item.read::<String>("type").as_deref() {
        None | Some("message") => {
            let role = word(path, item, "role")?;
            let content = content(path, "content", item)?;
            match role.as_str() {
                "assistant" => {
                    talk.end_turn();
                    talk.words = Some(content);
                }
                // The chat templates of models know no developer.
                "system" | "developer" => talk.say("system", content),
                "user" => talk.say("user", content),
                _ => return Err(BadRequest::new(format!("{path}.role"), "none of user, assistant, system, developer")),
            }
        }
        Some("function_call") => {
            let function = object([
                ("name", raw(&word(path, item, "name")?)),
                ("arguments", raw(&word(path, item, "arguments")?)),
            ]);
            let id = raw(&word(path, item, "call_id")?);
            talk.calls.push(object([("id", id), ("type", raw("function")), ("function", function)]));
        }
        Some("function_call_output") => {
            talk.end_turn();
            let id = raw(&word(path, item, "call_id")?);
            let content = content(path, "output", item)?;
            talk.messages.push(object([("role", raw("tool")), ("tool_call_id", id), ("content", content)]));
        }
        Some("reasoning") => {
            if item.get("encrypted_content").is_some() {
                let why = "only the server that encrypted it can read it";
                return Err(BadRequest::new(format!("{path}.encrypted_content"), why));
            }
            talk.end_turn();
            for list in ["content", "summary"] {
                let parts: Vec<Fields<'_>> = item.read_borrowed(list).unwrap_or_default();
                let text: String = parts.iter().filter_map(|part| part.read::<String>("text")).collect();
                if !text.is_empty() {
                    talk.thoughts = text;
                    break;
                }
            }
        }
        Some(other) => {
            let why = format!("`{other}` has no place in a chat, and the backends of this model have chats alone");
            return Err(BadRequest::new(format!("{path}.type"), why));
        }
    }
    Ok(())
}

/// A message's content: a text, or parts; parts that are all text become one.
fn content(path: &str, name: &str, item: &Fields<'_>) -> Result<Box<RawValue>, BadRequest> {
    let path = format!("{path}.{name}");
    let Some(json) = item.get(name) else { return Err(BadRequest::new(path, "missing")) };
    if json.starts_with('"') {
        return item.raw(name).map(ToOwned::to_owned).ok_or_else(|| BadRequest::new(path, "missing"));
    }
    let parts: Vec<&RawValue> =
        serde_json::from_str(json).map_err(|_| BadRequest::new(&path, "neither a string nor an array of parts"))?;
    let (mut texts, mut made) = (Vec::new(), Vec::with_capacity(parts.len()));
    for (index, json) in parts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let part = Fields::parse(json.get().as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
        let kind = word(&path, &part, "type")?;
        made.push(match kind.as_str() {
            "input_text" | "output_text" | "text" => {
                let text = word(&path, &part, "text")?;
                let made = object([("type", raw("text")), ("text", raw(&text))]);
                texts.push(text);
                made
            }
            "refusal" => (*json).to_owned(),
            "input_image" => {
                let mut url = Fields::default();
                url.set("url", raw(&word(&path, &part, "image_url")?));
                if let Some(detail) = part.raw("detail").filter(|detail| detail.get() != "null") {
                    url.set("detail", detail.to_owned());
                }
                object([("type", raw("image_url")), ("image_url", url.to_raw())])
            }
            "input_file" => {
                if part.get("file_url").is_some() {
                    return Err(BadRequest::new(format!("{path}.file_url"), "a chat's files are sent with it"));
                }
                let mut file = part.clone();
                file.remove("type");
                object([("type", raw("file")), ("file", file.to_raw())])
            }
            "input_audio" => (*json).to_owned(),
            other => return Err(BadRequest::new(format!("{path}.type"), format!("`{other}` has no place in a chat"))),
        });
    }
    Ok(if texts.len() == made.len() { raw(&texts.concat()) } else { raw(&made) })
}

fn tools(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let tools: Vec<&RawValue> = typed(fields, "tools", "an array")?.unwrap_or_default();
    let mut made = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let path = format!("tools[{index}]");
        let mut tool = Fields::parse(tool.get().as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
        if tool.get("type") != Some("\"function\"") {
            let why = "only functions have a place in a chat, and the backends of this model have chats alone";
            return Err(BadRequest::new(format!("{path}.type"), why));
        }
        word(&path, &tool, "name")?;
        tool.remove("type");
        if tool.get("strict").is_none() {
            tool.remove("strict");
        }
        made.push(object([("type", raw("function")), ("function", tool.to_raw())]));
    }
    if !made.is_empty() {
        chat.set("tools", raw(&made));
    }
    let Some(json) = fields.get("tool_choice") else { return Ok(()) };
    if matches!(json, "\"auto\"" | "\"none\"" | "\"required\"") {
        // Servers refuse a choice where there is nothing to choose from.
        if !made.is_empty() {
            chat.set("tool_choice", literal(json));
        }
        return Ok(());
    }
    let choice = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("tool_choice", "no choice of a tool"))?;
    match choice.read::<String>("type").as_deref() {
        Some("function") => {
            let name = word("tool_choice", &choice, "name")?;
            let function = object([("name", raw(&name))]);
            chat.set("tool_choice", object([("type", raw("function")), ("function", function)]));
            Ok(())
        }
        _ => Err(BadRequest::new("tool_choice.type", "only a function can be chosen in a chat")),
    }
}

fn text(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let Some(json) = fields.get("text") else { return Ok(()) };
    let text = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("text", "not an object"))?;
    for (name, value) in text.iter().filter(|(_, value)| value.get() != "null") {
        match name {
            "verbosity" => chat.set("verbosity", value.to_owned()),
            "format" => {
                let mut format = Fields::parse(value.get().as_bytes())
                    .map_err(|_| BadRequest::new("text.format", "not an object"))?;
                match format.read::<String>("type").as_deref() {
                    Some("text") => {}
                    Some("json_object") => chat.set("response_format", value.to_owned()),
                    Some("json_schema") => {
                        format.remove("type");
                        let made = object([("type", raw("json_schema")), ("json_schema", format.to_raw())]);
                        chat.set("response_format", made);
                    }
                    _ => {
                        return Err(BadRequest::new("text.format.type", "none of text, json_object, json_schema"));
                    }
                }
            }
            _ => return Err(BadRequest::new(format!("text.{name}"), "has no place in a chat")),
        }
    }
    Ok(())
}

fn include(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let wishes: Vec<String> = typed(fields, "include", "an array of strings")?.unwrap_or_default();
    for (index, wish) in wishes.iter().enumerate() {
        match wish.as_str() {
            "message.output_text.logprobs" => {
                chat.set("logprobs", literal("true"));
                if let Some(top) = fields.raw("top_logprobs").filter(|top| top.get() != "null") {
                    chat.set("top_logprobs", top.to_owned());
                }
            }
            // There is nothing encrypted; thoughts are told in clear.
            "reasoning.encrypted_content" => {}
            _ => return Err(BadRequest::new(format!("include[{index}]"), "has no place in a chat's answer")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(json: &str) -> Result<String, BadRequest> {
        to_chat(json.as_bytes()).map(|(chat, _)| String::from_utf8(chat).expect("JSON"))
    }

    #[test]
    fn requests_become_chats() {
        let cases = [
            (
                r#"{"model":"m","input":"hi","x_mine":{"deep":1e400},"temperature":0.10,"store":true,"max_output_tokens":9}"#,
                r#"{"model":"m","x_mine":{"deep":1e400},"temperature":0.10,"messages":[{"role":"user","content":"hi"}],"max_tokens":9}"#,
            ),
            (
                r#"{"model":"m","instructions":"be brief","stream":true,"reasoning":{"effort":"low","summary":"auto"},"input":[
                    {"role":"developer","content":[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]},
                    {"type":"message","role":"user","content":[{"type":"input_text","text":"what?"},{"type":"input_image","image_url":"data:image/png;base64,AA==","detail":"low"}]},
                    {"type":"reasoning","id":"rs","summary":[{"type":"summary_text","text":"hm"}]},
                    {"type":"message","id":"msg","role":"assistant","status":"completed","content":[{"type":"output_text","text":"one moment","annotations":[]}]},
                    {"type":"function_call","call_id":"c1","name":"f","arguments":"{}"},
                    {"type":"function_call","call_id":"c2","name":"g","arguments":"{\"a\":1}"},
                    {"type":"function_call_output","call_id":"c1","output":"7"},
                    {"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"8"}]}]}"#,
                concat!(
                    r#"{"model":"m","stream":true,"messages":[{"role":"system","content":"be brief"},{"role":"system","content":"ab"},"#,
                    r#"{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA==","detail":"low"}}]},"#,
                    r#"{"role":"assistant","content":"one moment","reasoning_content":"hm","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"c2","type":"function","function":{"name":"g","arguments":"{\"a\":1}"}}]},"#,
                    r#"{"role":"tool","tool_call_id":"c1","content":"7"},{"role":"tool","tool_call_id":"c2","content":"8"}],"reasoning_effort":"low"}"#
                ),
            ),
            (
                r#"{"model":"m","input":"hi","tools":[{"type":"function","name":"f","description":"d","parameters":{"type":"object"},"strict":true}],"tool_choice":{"type":"function","name":"f"},
                    "text":{"format":{"type":"json_schema","name":"n","schema":{"a":1.0},"strict":true}},"include":["message.output_text.logprobs"],"top_logprobs":2}"#,
                concat!(
                    r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"#,
                    r#""tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"},"strict":true}}],"tool_choice":{"type":"function","function":{"name":"f"}},"#,
                    r#""response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"a":1.0},"strict":true}},"logprobs":true,"top_logprobs":2}"#
                ),
            ),
            (
                r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_file","filename":"a.pdf","file_data":"data:x"}]}],"tool_choice":"auto","tools":[]}"#,
                r#"{"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"filename":"a.pdf","file_data":"data:x"}}]}]}"#,
            ),
        ];
        for (json, want) in cases {
            assert_eq!(chat(json).as_deref(), Ok(want), "{json}");
        }
    }

    #[test]
    fn what_has_no_place_is_named() {
        let cases = [
            (r#""input":"a","previous_response_id":"r""#, "previous_response_id"),
            (r#""input":"a","conversation":{"id":"c"}"#, "conversation"),
            (r#""input":"a","background":true"#, "background"),
            (r#""input":"a","truncation":"auto""#, "truncation"),
            (r#""prompt":{"id":"p"}"#, "prompt"),
            (r#""input":[]"#, "input"),
            (r#""input":7"#, "input"),
            (r#""input":["a"]"#, "input[0]"),
            (r#""input":[{"role":"king","content":"a"}]"#, "input[0].role"),
            (r#""input":[{"role":"user"}]"#, "input[0].content"),
            (
                r#""input":[{"role":"user","content":[{"type":"input_image","file_id":"f"}]}]"#,
                "input[0].content[0].image_url",
            ),
            (r#""input":[{"role":"user","content":[{"type":"video"}]}]"#, "input[0].content[0].type"),
            (r#""input":[{"type":"item_reference","id":"x"}]"#, "input[0].type"),
            (r#""input":[{"type":"function_call","name":"f","arguments":"{}"}]"#, "input[0].call_id"),
            (r#""input":[{"type":"reasoning","encrypted_content":"x"}]"#, "input[0].encrypted_content"),
            (r#""input":"a","tools":[{"type":"web_search"}]"#, "tools[0].type"),
            (r#""input":"a","tools":[{"type":"function"}]"#, "tools[0].name"),
            (r#""input":"a","tool_choice":{"type":"file_search"}"#, "tool_choice.type"),
            (r#""input":"a","text":{"format":{"type":"grammar"}}"#, "text.format.type"),
            (r#""input":"a","text":{"font":1}"#, "text.font"),
            (r#""input":"a","include":["file_search_call.results"]"#, "include[0]"),
            (r#""input":"a","instructions":5"#, "instructions"),
        ];
        for (rest, field) in cases {
            let error = chat(&format!(r#"{{"model":"m",{rest}}}"#)).expect_err(rest);
            assert_eq!(error.field.as_deref(), Some(field), "{rest}: {error}");
        }
        assert_eq!(field_of("max_tokens"), "max_output_tokens");
        assert_eq!(field_of("messages[1].content"), "input");
    }
}
