//! Renders a conversation with the model's own chat template (Jinja).
//! Invariant: a template is compiled once, at load, and rendering is bounded in time and memory by its fuel.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, context,
    syntax::SyntaxConfig,
    value::{ValueKind, from_args},
};

use crate::{
    error::{LoadError, SubmitError},
    request::ChatMessage,
};

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat";
/// Steps of rendering plus output at 64 bytes each: enough for 4 MiB of messages, ten times over.
const FUEL: u64 = 1_000_000;

/// A compiled chat template and the special tokens it may name.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the tokens that start and end a document.
    pub(crate) fn new(source: &str, bos: &str, eos: &str) -> Result<Self, LoadError> {
        let wrong = |e: Error| LoadError::bad_key(KEY, e.to_string());
        let mut environment = Environment::new();
        // As the templates' authors had it: transformers sets both.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_unknown_method_callback(python_method);
        environment.add_template_owned(NAME, source.to_string()).map_err(wrong)?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// The prompt for the next answer to `messages`.
    pub(crate) fn render(&self, messages: &[ChatMessage]) -> Result<String, SubmitError> {
        let messages: Vec<Value> =
            messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() }).collect();
        self.environment
            .get_template(NAME)
            .and_then(|t| t.render(context! { messages, add_generation_prompt => true, bos_token => self.bos.as_str(), eos_token => self.eos.as_str() }))
            .map_err(|e| SubmitError::BadTemplate(e.to_string()))
    }
}

/// The few methods of Python's strings and dictionaries that chat templates call.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    if value.kind() == ValueKind::Map {
        return match method {
            "items" => state.apply_filter("items", std::slice::from_ref(value)),
            "get" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                let found = value.get_item(&key)?;
                Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
            }
            _ => Err(unknown()),
        };
    }
    let Some(text) = value.as_str() else { return Err(unknown()) };
    let set = |args: &[Value]| -> Result<Vec<char>, Error> {
        let (characters,): (Option<String>,) = from_args(args)?;
        Ok(characters.unwrap_or_else(|| " \t\r\n\x0b\x0c".into()).chars().collect())
    };
    Ok(match method {
        "strip" => text.trim_matches(&set(args)?[..]).into(),
        "lstrip" => text.trim_start_matches(&set(args)?[..]).into(),
        "rstrip" => text.trim_end_matches(&set(args)?[..]).into(),
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "startswith" => text.starts_with(&from_args::<(String,)>(args)?.0).into(),
        "endswith" => text.ends_with(&from_args::<(String,)>(args)?.0).into(),
        "split" => {
            let (separator,): (String,) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "split: empty separator"));
            }
            text.split(&separator).map(Value::from).collect()
        }
        "replace" => {
            let (from, to): (String, String) = from_args(args)?;
            text.replace(&from, &to).into()
        }
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn says(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into() }
    }

    #[test]
    fn templates_render_as_their_authors_meant() {
        let cases = [
            (CHATML, "<|im_start|>user\nhi {{ 1 }} & <b>  <|im_end|>\n<|im_start|>assistant\n"),
            (
                "{{ bos_token }}{% for message in messages %}\n  {% if loop.first %}\n{{ message.content | trim }}\n  {% endif %}\n{% endfor %}",
                "<s>hi {{ 1 }} & <b>\n",
            ),
            ("{{ messages[0].content.strip().upper() }}{{ messages[0].get('tools', 'none') }}", "HI {{ 1 }} & <B>none"),
            (
                "{% if messages[0]['content'].startswith('hi') %}{{ messages[0].content.split(' ')[0] }}{% endif %}",
                "hi",
            ),
        ];
        for (source, want) in cases {
            let template = ChatTemplate::new(source, "<s>", "</s>").expect(source);
            assert_eq!(template.render(&[says("user", "hi {{ 1 }} & <b>  ")]).expect(source), want);
        }
    }

    #[test]
    fn a_template_cannot_run_away_and_its_own_refusal_is_passed_on() {
        let cases = [
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{{ messages[0].content.format() }}", "unknown method"),
        ];
        for (source, want) in cases {
            let template = ChatTemplate::new(source, "", "").expect(source);
            let message = template.render(&[says("user", "hi")]).expect_err(source).to_string();
            assert!(message.contains(want), "{source}: {message}");
        }
        assert!(ChatTemplate::new("{% for %}", "", "").is_err_and(|e| e.to_string().contains(KEY)));
    }
}
