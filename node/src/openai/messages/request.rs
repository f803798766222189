//! A request for a message as a request for a chat.

use super::super::fields::{Fields, literal, object, raw};
use super::super::request::{BadRequest, UNITS_PER_TOKEN, typed};
use serde_json::value::RawValue;

/// Fields that have another place in a chat, or none; all others keep theirs.
const TRANSLATED: [&str; 16] = [
    "messages",
    "system",
    "max_tokens",
    "stop_sequences",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "service_tier",
    "container",
    "mcp_servers",
    "context_management",
    "cache_control",
    "inference_geo",
];

/// Tokens of thought up to which the effort is low, and up to which it is medium.
const LOW_MAX: u64 = 4_096;
const MEDIUM_MAX: u64 = 16_384;

/// The chat that a request for a message comes to.
///
/// # Errors
/// What does not hold, or has no place in a chat.
pub fn to_chat(json: &[u8]) -> Result<Vec<u8>, BadRequest> {
    let fields = parse(json)?;
    for name in ["container", "context_management", "mcp_servers"] {
        if fields.get(name).is_some_and(|value| value != "[]") {
            return Err(BadRequest::new(name, "the backends of this model have chats alone"));
        }
    }
    let mut chat = Fields::default();
    for (name, value) in fields.iter().filter(|(name, _)| !TRANSLATED.contains(name)) {
        chat.set(name, value.to_owned());
    }
    chat.set("messages", raw(&messages(&fields)?));
    match fields.raw("max_tokens") {
        Some(tokens) if tokens.get() != "null" => chat.set("max_tokens", tokens.to_owned()),
        Some(_) | None => return Err(BadRequest::new("max_tokens", "missing")),
    }
    if let Some(stops) = typed::<Vec<String>>(&fields, "stop_sequences", "an array of strings")?
        && !stops.is_empty()
    {
        chat.set("stop", raw(&stops));
    }
    if let Some(json) = fields.get("metadata") {
        let metadata = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("metadata", "not an object"))?;
        if let Some(user) = metadata.raw("user_id").filter(|user| user.get() != "null") {
            chat.set("user", user.to_owned());
        }
    }
    tools(&fields, &mut chat)?;
    thinking(&fields, &mut chat)?;
    output(&fields, &mut chat)?;
    Ok(chat.to_bytes())
}

/// The field of the request that a chat's field was made of.
#[must_use]
pub fn field_of(chat: &str) -> String {
    match chat {
        "stop" => "stop_sequences".into(),
        "response_format" => "output_config.format".into(),
        // The messages are made of several fields, and numbered otherwise.
        _ if chat.starts_with("messages") => "messages".into(),
        _ => chat.to_owned(),
    }
}

/// About how many tokens the prompt of a request has, by its bytes: [`UNITS_PER_TOKEN`] of them are taken for one.
///
/// # Errors
/// What does not hold, or has no place in a chat.
pub fn count_tokens(json: &[u8]) -> Result<u64, BadRequest> {
    let fields = parse(json)?;
    let mut chat = Fields::default();
    tools(&fields, &mut chat)?;
    let said: usize = messages(&fields)?.iter().map(|message| message.get().len()).sum();
    let tools = chat.get("tools").map_or(0, str::len);
    Ok(((said + tools) as u64).div_ceil(UNITS_PER_TOKEN))
}

fn parse(json: &[u8]) -> Result<Fields<'_>, BadRequest> {
    Fields::parse(json)
        .map_err(|error| BadRequest { field: None, why: format!("the body is not a JSON object: {error}") })
}

fn messages(fields: &Fields<'_>) -> Result<Vec<Box<RawValue>>, BadRequest> {
    let mut made = Vec::new();
    if let Some(json) = fields.get("system") {
        let text = match serde_json::from_str::<String>(json) {
            Ok(text) => text,
            Err(_) => texts("system", json)?.join("\n"),
        };
        if !text.is_empty() {
            made.push(object([("role", raw("system")), ("content", raw(&text))]));
        }
    }
    let Some(list) = typed::<Vec<&RawValue>>(fields, "messages", "an array of objects")? else {
        return Err(BadRequest::new("messages", "missing"));
    };
    if list.is_empty() {
        return Err(BadRequest::new("messages", "empty"));
    }
    for (index, json) in list.iter().enumerate() {
        let path = format!("messages[{index}]");
        let message = Fields::parse(json.get().as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
        match word(&path, &message, "role")?.as_str() {
            "user" => user(&path, &message, &mut made)?,
            "assistant" => made.push(assistant(&path, &message)?),
            _ => return Err(BadRequest::new(format!("{path}.role"), "neither user nor assistant")),
        }
    }
    Ok(made)
}

/// A text field that must be there.
fn word(path: &str, block: &Fields<'_>, name: &str) -> Result<String, BadRequest> {
    block.read(name).ok_or_else(|| BadRequest::new(format!("{path}.{name}"), "missing, or not a string"))
}

/// The blocks of a content that is no string, each with its path.
fn blocks<'a>(path: &str, content: &'a str) -> Result<Vec<(String, Fields<'a>)>, BadRequest> {
    let list: Vec<&RawValue> =
        serde_json::from_str(content).map_err(|_| BadRequest::new(path, "neither a string nor an array of blocks"))?;
    let block = |(index, json): (usize, &&'a RawValue)| {
        let path = format!("{path}[{index}]");
        match Fields::parse(json.get().as_bytes()) {
            Ok(block) => Ok((path, block)),
            Err(_) => Err(BadRequest::new(path, "not an object")),
        }
    };
    list.iter().enumerate().map(block).collect()
}

/// The texts of a content that may have nothing else.
fn texts(path: &str, content: &str) -> Result<Vec<String>, BadRequest> {
    let mut texts = Vec::new();
    for (path, block) in blocks(path, content)? {
        if word(&path, &block, "type")? != "text" {
            return Err(BadRequest::new(format!("{path}.type"), "only text has a place here"));
        }
        texts.push(word(&path, &block, "text")?);
    }
    Ok(texts)
}

/// Parts of a chat's content: one string if all of them are texts of one block.
fn joined(mut parts: Vec<(Option<String>, Box<RawValue>)>) -> Box<RawValue> {
    match parts.as_mut_slice() {
        [(Some(text), _)] => raw(text),
        _ => raw(&parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>()),
    }
}

/// What a user said: results of tools become messages of their own, before the rest.
fn user(path: &str, message: &Fields<'_>, made: &mut Vec<Box<RawValue>>) -> Result<(), BadRequest> {
    let path = format!("{path}.content");
    let Some(content) = message.get("content") else { return Err(BadRequest::new(path, "missing")) };
    if let Ok(text) = serde_json::from_str::<String>(content) {
        made.push(object([("role", raw("user")), ("content", raw(&text))]));
        return Ok(());
    }
    let mut parts = Vec::new();
    for (path, block) in blocks(&path, content)? {
        if block.get("type") == Some("\"tool_result\"") {
            made.push(result(&path, &block)?);
        } else {
            parts.push(part(&path, &block)?);
        }
    }
    if !parts.is_empty() {
        made.push(object([("role", raw("user")), ("content", joined(parts))]));
    }
    Ok(())
}

fn result(path: &str, block: &Fields<'_>) -> Result<Box<RawValue>, BadRequest> {
    let id = word(path, block, "tool_use_id")?;
    let content_path = format!("{path}.content");
    let mut parts = match block.get("content") {
        None => vec![text_part(String::new())],
        Some(content) => match serde_json::from_str::<String>(content) {
            Ok(text) => vec![text_part(text)],
            Err(_) => {
                let blocks = blocks(&content_path, content)?;
                blocks.iter().map(|(path, block)| part(path, block)).collect::<Result<Vec<_>, _>>()?
            }
        },
    };
    // A chat's result has no mark for failure; it is said in words.
    if block.read::<bool>("is_error").unwrap_or(false) {
        match parts.first_mut() {
            Some((Some(text), _)) => parts[0] = text_part(format!("Error: {text}")),
            Some(_) | None => parts.insert(0, text_part("Error".into())),
        }
    }
    if parts.iter().all(|(text, _)| text.is_some()) {
        let text: Vec<String> = parts.into_iter().filter_map(|(text, _)| text).collect();
        return Ok(object([("role", raw("tool")), ("tool_call_id", raw(&id)), ("content", raw(&text.join("\n")))]));
    }
    Ok(object([("role", raw("tool")), ("tool_call_id", raw(&id)), ("content", joined(parts))]))
}

type Part = (Option<String>, Box<RawValue>);

fn text_part(text: String) -> Part {
    let part = object([("type", raw("text")), ("text", raw(&text))]);
    (Some(text), part)
}

/// A text, an image or a document.
fn part(path: &str, block: &Fields<'_>) -> Result<Part, BadRequest> {
    let kind = word(path, block, "type")?;
    if kind == "text" {
        return Ok(text_part(word(path, block, "text")?));
    }
    if !matches!(kind.as_str(), "image" | "document") {
        return Err(BadRequest::new(format!("{path}.type"), format!("`{kind}` has no place in a chat")));
    }
    let path = format!("{path}.source");
    let Some(json) = block.get("source") else { return Err(BadRequest::new(path, "missing")) };
    let source = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
    let data = |source: &Fields<'_>| -> Result<String, BadRequest> {
        Ok(format!("data:{};base64,{}", word(&path, source, "media_type")?, word(&path, source, "data")?))
    };
    match (kind.as_str(), word(&path, &source, "type")?.as_str()) {
        ("image", "base64") => Ok((None, image(&data(&source)?))),
        ("image", "url") => Ok((None, image(&word(&path, &source, "url")?))),
        ("document", "text") => Ok(text_part(word(&path, &source, "data")?)),
        ("document", "base64") => {
            let name = block.read::<String>("title").unwrap_or_else(|| "document".into());
            let file = object([("filename", raw(&name)), ("file_data", raw(&data(&source)?))]);
            Ok((None, object([("type", raw("file")), ("file", file)])))
        }
        (_, other) => Err(BadRequest::new(format!("{path}.type"), format!("`{other}` has no place in a chat"))),
    }
}

fn image(url: &str) -> Box<RawValue> {
    object([("type", raw("image_url")), ("image_url", object([("url", raw(url))]))])
}

fn assistant(path: &str, message: &Fields<'_>) -> Result<Box<RawValue>, BadRequest> {
    let path = format!("{path}.content");
    let Some(content) = message.get("content") else { return Err(BadRequest::new(path, "missing")) };
    let mut made = Fields::default();
    made.set("role", raw("assistant"));
    if let Ok(text) = serde_json::from_str::<String>(content) {
        made.set("content", raw(&text));
        return Ok(made.to_raw());
    }
    let (mut texts, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
    for (path, block) in blocks(&path, content)? {
        match word(&path, &block, "type")?.as_str() {
            "text" => texts.push_str(&word(&path, &block, "text")?),
            "thinking" => thoughts.push_str(&word(&path, &block, "thinking")?),
            "tool_use" => {
                let input = block.get("input").unwrap_or("{}");
                let function = object([("name", raw(&word(&path, &block, "name")?)), ("arguments", raw(input))]);
                let id = raw(&word(&path, &block, "id")?);
                calls.push(object([("id", id), ("type", raw("function")), ("function", function)]));
            }
            other => {
                return Err(BadRequest::new(format!("{path}.type"), format!("`{other}` has no place in a chat")));
            }
        }
    }
    made.set("content", if texts.is_empty() && !calls.is_empty() { literal("null") } else { raw(&texts) });
    if !thoughts.is_empty() {
        made.set("reasoning_content", raw(&thoughts));
    }
    if !calls.is_empty() {
        made.set("tool_calls", raw(&calls));
    }
    Ok(made.to_raw())
}

fn tools(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let tools: Vec<&RawValue> = typed(fields, "tools", "an array")?.unwrap_or_default();
    let mut made = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let path = format!("tools[{index}]");
        let tool = Fields::parse(tool.get().as_bytes()).map_err(|_| BadRequest::new(&path, "not an object"))?;
        if tool.get("type").is_some_and(|kind| kind != "\"custom\"") {
            let why = "only the client's own tools have a place in a chat";
            return Err(BadRequest::new(format!("{path}.type"), why));
        }
        let mut function = Fields::default();
        function.set("name", raw(&word(&path, &tool, "name")?));
        for (name, place) in [("description", "description"), ("input_schema", "parameters"), ("strict", "strict")] {
            if let Some(value) = tool.raw(name).filter(|value| value.get() != "null") {
                function.set(place, value.to_owned());
            }
        }
        made.push(object([("type", raw("function")), ("function", function.to_raw())]));
    }
    if made.is_empty() {
        return Ok(());
    }
    chat.set("tools", raw(&made));
    let Some(json) = fields.get("tool_choice") else { return Ok(()) };
    let choice = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("tool_choice", "not an object"))?;
    match choice.read::<String>("type").as_deref() {
        Some("auto") => chat.set("tool_choice", raw("auto")),
        Some("any") => chat.set("tool_choice", raw("required")),
        Some("none") => chat.set("tool_choice", raw("none")),
        Some("tool") => {
            let function = object([("name", raw(&word("tool_choice", &choice, "name")?))]);
            chat.set("tool_choice", object([("type", raw("function")), ("function", function)]));
        }
        _ => return Err(BadRequest::new("tool_choice.type", "none of auto, any, none, tool")),
    }
    if choice.read::<bool>("disable_parallel_tool_use") == Some(true) {
        chat.set("parallel_tool_calls", literal("false"));
    }
    Ok(())
}

fn thinking(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let Some(json) = fields.get("thinking") else { return Ok(()) };
    let thinking = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("thinking", "not an object"))?;
    match thinking.read::<String>("type").as_deref() {
        // How much a model of chats thinks by itself is its own way.
        Some("disabled" | "adaptive") => Ok(()),
        Some("enabled") => {
            let Some(budget) = thinking.read::<u64>("budget_tokens") else {
                return Err(BadRequest::new("thinking.budget_tokens", "missing, or not an integer"));
            };
            let effort = match budget {
                budget if budget <= LOW_MAX => "low",
                budget if budget <= MEDIUM_MAX => "medium",
                _ => "high",
            };
            chat.set("reasoning_effort", raw(effort));
            Ok(())
        }
        _ => Err(BadRequest::new("thinking.type", "none of enabled, disabled, adaptive")),
    }
}

/// `output_config.format`, or its older name, and `output_config.effort`.
fn output(fields: &Fields<'_>, chat: &mut Fields<'_>) -> Result<(), BadRequest> {
    let mut format = fields.get("output_format").map(|json| ("output_format", json.to_owned()));
    if let Some(json) = fields.get("output_config") {
        let config = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new("output_config", "not an object"))?;
        for (name, value) in config.iter().filter(|(_, value)| value.get() != "null") {
            match name {
                "effort" => chat.set("reasoning_effort", value.to_owned()),
                "format" => format = Some(("output_config.format", value.get().to_owned())),
                _ => return Err(BadRequest::new(format!("output_config.{name}"), "has no place in a chat")),
            }
        }
    }
    let Some((path, json)) = format else { return Ok(()) };
    let format = Fields::parse(json.as_bytes()).map_err(|_| BadRequest::new(path, "not an object"))?;
    let (Some("\"json_schema\""), Some(schema)) = (format.get("type"), format.raw("schema")) else {
        return Err(BadRequest::new(path, "not a JSON schema"));
    };
    let schema = object([("name", raw("answer")), ("schema", schema.to_owned()), ("strict", literal("true"))]);
    chat.set("response_format", object([("type", raw("json_schema")), ("json_schema", schema)]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(json: &str) -> Result<String, BadRequest> {
        to_chat(json.as_bytes()).map(|chat| String::from_utf8(chat).expect("JSON"))
    }

    #[test]
    fn requests_become_chats() {
        let cases = [
            (
                r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"top_k":4,"temperature":0.10,"stop_sequences":["x"],"metadata":{"user_id":"u"},"stream":true}"#,
                r#"{"model":"m","top_k":4,"temperature":0.10,"stream":true,"messages":[{"role":"user","content":"hi"}],"max_tokens":9,"stop":["x"],"user":"u"}"#,
            ),
            (
                r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}},{"type":"text","text":"b"}],"messages":[
                    {"role":"user","content":[{"type":"text","text":"what?"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AA=="}}]},
                    {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"text","text":"wait"},{"type":"tool_use","id":"t1","name":"f","input":{"a": 1.0}}]},
                    {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"7"}],"is_error":true},{"type":"text","text":"go on"}]}],
                    "tools":[{"name":"f","description":"d","input_schema":{"type":"object"}}],"tool_choice":{"type":"any","disable_parallel_tool_use":true},
                    "thinking":{"type":"enabled","budget_tokens":10000}}"#,
                concat!(
                    r#"{"model":"m","messages":[{"role":"system","content":"a\nb"},"#,
                    r#"{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]},"#,
                    r#"{"role":"assistant","content":"wait","reasoning_content":"hm","tool_calls":[{"id":"t1","type":"function","function":{"name":"f","arguments":"{\"a\": 1.0}"}}]},"#,
                    r#"{"role":"tool","tool_call_id":"t1","content":"Error: 7"},{"role":"user","content":"go on"}],"max_tokens":9,"#,
                    r#""tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}],"tool_choice":"required","parallel_tool_calls":false,"reasoning_effort":"medium"}"#
                ),
            ),
            (
                r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}],"output_config":{"format":{"type":"json_schema","schema":{"a":1.0}},"effort":"low"}}"#,
                r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":9,"reasoning_effort":"low","response_format":{"type":"json_schema","json_schema":{"name":"answer","schema":{"a":1.0},"strict":true}}}"#,
            ),
        ];
        for (json, want) in cases {
            assert_eq!(chat(json).as_deref(), Ok(want), "{json}");
        }
    }

    #[test]
    fn what_has_no_place_is_named() {
        let hi = r#""messages":[{"role":"user","content":"hi"}]"#;
        let with = |rest: &str| format!("{hi},{rest}");
        let cases = [
            (r#""messages":[]"#.into(), "messages"),
            (r#""messages":["a"]"#.into(), "messages[0]"),
            (r#""messages":[{"role":"system","content":"a"}]"#.into(), "messages[0].role"),
            (r#""messages":[{"role":"user"}]"#.into(), "messages[0].content"),
            (r#""messages":[{"role":"user","content":[{"type":"video"}]}]"#.into(), "messages[0].content[0].type"),
            (
                r#""messages":[{"role":"user","content":[{"type":"image","source":{"type":"file","file_id":"f"}}]}]"#
                    .into(),
                "messages[0].content[0].source.type",
            ),
            (
                r#""messages":[{"role":"assistant","content":[{"type":"redacted_thinking","data":"x"}]}]"#.into(),
                "messages[0].content[0].type",
            ),
            (
                r#""messages":[{"role":"user","content":[{"type":"tool_result","content":"x"}]}]"#.into(),
                "messages[0].content[0].tool_use_id",
            ),
            (with(r#""system":[{"type":"image"}]"#), "system[0].type"),
            (with(r#""tools":[{"type":"web_search_20250305","name":"web_search"}]"#), "tools[0].type"),
            (with(r#""tools":[{"name":"f"}],"tool_choice":{"type":"some"}"#), "tool_choice.type"),
            (with(r#""mcp_servers":[{"url":"x"}]"#), "mcp_servers"),
            (with(r#""container":"c""#), "container"),
            (with(r#""thinking":{"type":"enabled"}"#), "thinking.budget_tokens"),
            (with(r#""output_config":{"font":1}"#), "output_config.font"),
            (with(r#""output_format":{"type":"xml"}"#), "output_format"),
            (with(r#""stop_sequences":"x""#), "stop_sequences"),
        ];
        for (rest, field) in cases {
            let error = chat(&format!(r#"{{"model":"m","max_tokens":5,{rest}}}"#)).expect_err(&rest);
            assert_eq!(error.field.as_deref(), Some(field), "{rest}: {error}");
        }
        let error = chat(&format!(r#"{{"model":"m",{hi}}}"#)).expect_err("no limit");
        assert_eq!(error.field.as_deref(), Some("max_tokens"));
    }

    #[test]
    fn tokens_are_counted_by_bytes() {
        let count = |text: &str| {
            let json = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
            count_tokens(json.as_bytes()).expect("a count")
        };
        assert_eq!(count(&"a".repeat(400)) - count(""), 100);
        assert!(count_tokens(br#"{"messages":[]}"#).is_err());
    }
}
