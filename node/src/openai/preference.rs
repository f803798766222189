//! What a request wishes of the market: OpenRouter's `provider` and `models`, and the shortcuts in a model's name.
//! Invariant: a value that does not hold is an error that names it; none is left out in silence.
//!
//! The fields' names and meanings are those of OpenRouter's public documentation, "Provider Routing" and "Model Fallbacks".
//! Its prices and speeds are per token; the market's are per unit, and a token is taken for [`UNITS_PER_TOKEN`].

use super::fields::Fields;
use super::request::{BadRequest, UNITS_PER_TOKEN, checked_name};
use super::unify;
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_ledger::{Credits, Price};
use spillway_protocol::Preferences;
use spillway_protocol::job::ALTERNATIVES_MAX;
use spillway_protocol::router::Sort;
use spillway_protocol::router::preference::DataCollection;

/// Fields of a request that are the gateway's alone; backends do not get them.
pub const GATEWAY_FIELDS: [&str; 3] = ["provider", "models", "route"];

/// Credits per million tokens that a limit may be, at most.
const PRICE_MAX: f64 = 1e9;
/// Tokens per second that may be wished for, at most.
const THROUGHPUT_MAX: f64 = 1e6;
/// Seconds to the first text that may be wished for, at most.
const LATENCY_MAX_S: f64 = 3600.0;
/// Fewest characters that stand for a node's id or an account.
const SHORT_MIN: usize = 8;
/// Characters of a whole one.
const ID_CHARS: usize = 64;

/// What a request wishes of the market.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Which providers, and in which order.
    pub preferences: Preferences,
    /// The most for a million units of prompt.
    pub prompt_max: Option<Credits>,
    /// The most for a million units of answer.
    pub completion_max: Option<Credits>,
    /// The own backend that is to serve it, by `model@backend` or `@backend/model`.
    pub backend: Option<String>,
}

impl Routing {
    /// The price limit: the lower of `price` and what is wished.
    #[must_use]
    pub fn lower(&self, price: Price) -> Price {
        let least = |limit: Credits, wish: Option<Credits>| wish.map_or(limit, |wish| limit.min(wish));
        Price {
            input: least(price.input, self.prompt_max),
            cached: least(price.cached, self.prompt_max),
            output: least(price.output, self.completion_max),
        }
    }

    /// The most that an own backend may cost per million tokens: the lower of `price`, per unit, and what is wished; `None` if
    /// neither sets a limit.
    #[must_use]
    pub fn token_price_max(&self, price: Price) -> Option<Price> {
        const NONE: Credits = Credits::new(u64::MAX);
        let lowest = self.lower(price);
        let token = |unit: Credits| Credits::new(unit.micro().saturating_mul(UNITS_PER_TOKEN));
        let limited = lowest.input != NONE || lowest.cached != NONE || lowest.output != NONE;
        limited.then(|| Price {
            input: token(lowest.input),
            cached: token(lowest.cached),
            output: token(lowest.output),
        })
    }

    /// Adds what a model's name wishes; what is said at length is meant.
    pub(super) fn wish(&mut self, wish: &unify::Wish) {
        let least = |a: Option<Credits>, b: Option<Credits>| a.into_iter().chain(b).min();
        let preferences = &mut self.preferences;
        preferences.sort = preferences.sort.or(wish.sort);
        preferences.preferred_max_latency_ms = preferences.preferred_max_latency_ms.or(wish.latency_ms);
        preferences.preferred_min_throughput = preferences.preferred_min_throughput.or(wish.throughput);
        self.prompt_max = least(self.prompt_max, wish.prompt_max);
        self.completion_max = least(self.completion_max, wish.completion_max);
    }

    /// Reads a request's `provider`.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn parse(fields: &Fields<'_>) -> Result<Self, BadRequest> {
        let Some(json) = fields.get("provider") else { return Ok(Self::default()) };
        let provider = Fields::parse(json.as_bytes())
            .map_err(|error| BadRequest::new("provider", format!("not an object of preferences: {error}")))?;
        let mut routing = Self::default();
        let wish = &mut routing.preferences;
        for (name, value) in provider.iter().filter(|(_, value)| value.get() != "null") {
            let path = format!("provider.{name}");
            match name {
                "order" => wish.order = providers(&path, value)?,
                "only" => wish.only = providers(&path, value)?,
                "ignore" => wish.ignore = providers(&path, value)?,
                "allow_fallbacks" => wish.allow_fallbacks = flag(&path, value)?,
                "sort" => wish.sort = Some(sort(&path, value)?),
                "quantizations" => wish.quantizations = names(&path, value)?,
                "data_collection" => {
                    wish.data_collection = match word(&path, value)?.as_str() {
                        "allow" => wish.data_collection,
                        "deny" => DataCollection::Deny,
                        _ => return Err(BadRequest::new(path, "neither `allow` nor `deny`")),
                    };
                }
                // To keep nothing is what an offer can promise; it is the stricter of the two.
                "zdr" if flag(&path, value)? => wish.data_collection = DataCollection::Deny,
                "preferred_min_throughput" => {
                    let tokens = speed(&path, value, THROUGHPUT_MAX, f64::max)?;
                    wish.preferred_min_throughput = Some(whole(tokens * UNITS_PER_TOKEN as f64));
                }
                "preferred_max_latency" => {
                    let seconds = speed(&path, value, LATENCY_MAX_S, f64::min)?;
                    wish.preferred_max_latency_ms = Some(whole(seconds * 1e3));
                }
                "max_price" => (routing.prompt_max, routing.completion_max) = prices(&path, value)?,
                // No parameter is lost on the way to a provider, and what its engine lacks it refuses by name.
                "require_parameters" | "zdr" => _ = flag(&path, value)?,
                "enforce_distillable_text" => {
                    if flag(&path, value)? {
                        return Err(BadRequest::new(path, "offers do not say what an answer may be used for"));
                    }
                }
                _ => return Err(BadRequest::new(path, "no such preference")),
            }
        }
        let bounds = routing.preferences.check();
        bounds.map_err(|(list, why)| BadRequest::new(format!("provider.{list}"), why))?;
        Ok(routing)
    }
}

/// A model that is asked for, and the field that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    /// `model` or `models[0]`.
    pub field: String,
    /// The name, as the client wrote it until [`Request::resolve`](super::Request::resolve).
    pub name: String,
}

/// The models that a request names, the first choice first; at least one.
///
/// # Errors
/// A name that cannot be one, or too many of them.
pub(super) fn models(fields: &Fields<'_>) -> Result<Vec<ModelName>, BadRequest> {
    let mut models: Vec<ModelName> = Vec::new();
    if let Some(json) = fields.get("model") {
        let Ok(name) = serde_json::from_str(json) else { return Err(BadRequest::new("model", "not a string")) };
        models.push(ModelName { name: checked_name("model", name)?, field: "model".into() });
    }
    if let Some(json) = fields.get("models") {
        let list: Vec<&RawValue> =
            serde_json::from_str(json).map_err(|_| BadRequest::new("models", "not an array of strings"))?;
        for (index, value) in list.into_iter().enumerate() {
            let field = format!("models[{index}]");
            let name = checked_name(&field, word(&field, value)?)?;
            if models.iter().any(|other| other.name == name) {
                continue;
            }
            if models.len() > ALTERNATIVES_MAX {
                return Err(BadRequest::new("models", format!("more than {ALTERNATIVES_MAX} to fall back to")));
            }
            models.push(ModelName { field, name });
        }
    }
    if models.is_empty() { Err(BadRequest::new("model", "missing")) } else { Ok(models) }
}

/// What a model's name says of who is to serve it, in the forms of Unify and Portkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// `model@backend` or `@backend/model`: this own backend.
    Backend(String),
    /// `model@lowest-ttft`: whoever is best by a metric.
    Best(unify::Wish),
}

impl Direction {
    /// Takes it off a name, if there is one; `None` if not.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn of(name: &str, is_backend: impl Fn(&str) -> bool) -> Result<Option<(&str, Self)>, String> {
        if let Some((backend, model)) = name.strip_prefix('@').and_then(|rest| rest.split_once('/'))
            && is_backend(backend)
            && !model.is_empty()
        {
            return Ok(Some((model, Self::Backend(backend.to_owned()))));
        }
        // A bound may hold no `@`, so the last one is where the model ends.
        let Some((model, tail)) = name.rsplit_once('@').filter(|(model, _)| !model.is_empty()) else { return Ok(None) };
        if is_backend(tail) {
            return Ok(Some((model, Self::Backend(tail.to_owned()))));
        }
        if unify::is_wish(tail) {
            return Ok(Some((model, Self::Best(unify::read(tail)?))));
        }
        Ok(None)
    }
}

/// What a model's name says beside the model: `NAME:floor`, `NAME:nitro`, `NAME@PROVIDER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortcut<'a> {
    /// The model itself.
    pub(super) model: &'a str,
    /// The one provider that may serve it.
    pub(super) provider: Option<&'a str>,
    /// What to sort by.
    pub(super) sort: Option<Sort>,
}

impl<'a> Shortcut<'a> {
    /// Takes a name apart, if there is anything to.
    pub(super) fn of(name: &'a str) -> Option<Self> {
        let (rest, mut sort) = suffix(name);
        let (mut model, mut provider) = (rest, None);
        if let Some((before, at)) = rest.rsplit_once('@').filter(|(_, at)| is_provider(at)) {
            (model, provider) = (before, Some(at));
            if sort.is_none() {
                (model, sort) = suffix(before);
            }
        }
        (!model.is_empty() && model.len() < name.len()).then_some(Self { model, provider, sort })
    }
}

fn suffix(name: &str) -> (&str, Option<Sort>) {
    let strip = |suffix: &str, sort| name.strip_suffix(suffix).map(|rest| (rest, Some(sort)));
    strip(":floor", Sort::Price).or_else(|| strip(":nitro", Sort::Throughput)).unwrap_or((name, None))
}

/// Whether a name can be a provider's: `own`, `region:` and a region, or the beginning of a node's id or an account.
fn is_provider(name: &str) -> bool {
    let id = (SHORT_MIN..=ID_CHARS).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    id || name == "own" || name.strip_prefix("region:").is_some_and(|region| !region.is_empty())
}

fn read<'a, T: Deserialize<'a>>(path: &str, value: &'a RawValue, want: &str) -> Result<T, BadRequest> {
    serde_json::from_str(value.get()).map_err(|_| BadRequest::new(path, format!("not {want}")))
}

fn flag(path: &str, value: &RawValue) -> Result<bool, BadRequest> {
    read(path, value, "true or false")
}

fn word(path: &str, value: &RawValue) -> Result<String, BadRequest> {
    read(path, value, "a string")
}

fn names(path: &str, value: &RawValue) -> Result<Vec<String>, BadRequest> {
    let list: Vec<&RawValue> = read(path, value, "an array of strings")?;
    let name = |(index, value): (usize, &RawValue)| {
        let field = format!("{path}[{index}]");
        let name = word(&field, value)?;
        // They are shown to operators.
        if name.chars().any(char::is_control) {
            Err(BadRequest::new(field, "has control characters"))
        } else {
            Ok(name)
        }
    };
    list.into_iter().enumerate().map(name).collect()
}

fn providers(path: &str, value: &RawValue) -> Result<Vec<String>, BadRequest> {
    let names = names(path, value)?;
    if let Some(index) = names.iter().position(|name| !is_provider(name)) {
        let why = "neither `own`, nor `region:…`, nor 8 or more digits of a node's id or account";
        return Err(BadRequest::new(format!("{path}[{index}]"), why));
    }
    Ok(names)
}

fn sort(path: &str, value: &RawValue) -> Result<Sort, BadRequest> {
    let by = |path: &str, value: &RawValue| read(path, value, "`price`, `throughput` or `latency`");
    let Ok(object) = Fields::parse(value.get().as_bytes()) else { return by(path, value) };
    for (name, part) in object.iter() {
        let path = format!("{path}.{name}");
        match name {
            "by" => {}
            "partition" if matches!(part.get(), "\"model\"" | "null") => {}
            "partition" => return Err(BadRequest::new(path, "models are tried one after the other: only `model`")),
            _ => return Err(BadRequest::new(path, "no such preference")),
        }
    }
    let missing = || BadRequest::new(format!("{path}.by"), "missing");
    by(&format!("{path}.by"), object.raw("by").ok_or_else(missing)?)
}

/// A number above 0, or one for each of some percentiles: then the strictest of them.
fn speed(path: &str, value: &RawValue, max: f64, strictest: fn(f64, f64) -> f64) -> Result<f64, BadRequest> {
    let number = |path: &str, value: &RawValue| {
        let number: f64 = read(path, value, "a number")?;
        let holds = number > 0.0 && number <= max;
        if holds { Ok(number) } else { Err(BadRequest::new(path, format!("not above 0 and at most {max}"))) }
    };
    let Ok(object) = Fields::parse(value.get().as_bytes()) else { return number(path, value) };
    let mut found: Option<f64> = None;
    for (name, part) in object.iter().filter(|(_, part)| part.get() != "null") {
        let path = format!("{path}.{name}");
        if !matches!(name, "p50" | "p75" | "p90" | "p99") {
            return Err(BadRequest::new(path, "not one of p50, p75, p90, p99"));
        }
        let number = number(&path, part)?;
        found = Some(found.map_or(number, |found| strictest(found, number)));
    }
    found.ok_or_else(|| BadRequest::new(path, "neither a number nor an object of percentiles"))
}

/// The limits for prompt and completion, from credits per million tokens to micro-credits per million units.
fn prices(path: &str, value: &RawValue) -> Result<(Option<Credits>, Option<Credits>), BadRequest> {
    let object = Fields::parse(value.get().as_bytes()).map_err(|_| BadRequest::new(path, "not an object of prices"))?;
    let (mut prompt, mut completion) = (None, None);
    for (name, part) in object.iter().filter(|(_, part)| part.get() != "null") {
        let path = format!("{path}.{name}");
        // Prices are written as strings, too.
        let credits = serde_json::from_str::<f64>(part.get())
            .ok()
            .or_else(|| serde_json::from_str::<String>(part.get()).ok()?.parse().ok())
            .filter(|credits| (0.0..=PRICE_MAX).contains(credits))
            .ok_or_else(|| BadRequest::new(&path, format!("not a number from 0 to {PRICE_MAX}")))?;
        // Rounded down, but for what a decimal fraction loses in binary.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1e15")]
        let limit = Credits::new((credits * 1e6 / UNITS_PER_TOKEN as f64 + 1e-6).floor() as u64);
        match name {
            "prompt" => prompt = Some(limit),
            "completion" => completion = Some(limit),
            // Nothing is priced by these, so that any limit on them holds.
            "request" | "image" | "audio" => {}
            _ => return Err(BadRequest::new(path, "no such price")),
        }
    }
    Ok((prompt, completion))
}

/// At least 1.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the limits above")]
fn whole(value: f64) -> u32 {
    value.round().max(1.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(provider: &str) -> Result<Routing, BadRequest> {
        let json = format!(r#"{{"provider":{provider}}}"#);
        Routing::parse(&Fields::parse(json.as_bytes()).expect(provider))
    }

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_field_is_read() {
        let any = Preferences::default;
        let only = |preferences| Routing { preferences, ..Routing::default() };
        let price = |prompt, completion| Routing {
            prompt_max: Option::map(prompt, Credits::new),
            completion_max: Option::map(completion, Credits::new),
            ..Routing::default()
        };
        let cases = [
            ("null", Routing::default()),
            ("{}", Routing::default()),
            (r#"{"order":null,"allow_fallbacks":true,"data_collection":"allow","zdr":false}"#, Routing::default()),
            (r#"{"require_parameters":true,"enforce_distillable_text":false}"#, Routing::default()),
            (
                r#"{"order":["own","AABBCCDD"],"allow_fallbacks":false}"#,
                only(Preferences { order: list(&["own", "AABBCCDD"]), allow_fallbacks: false, ..any() }),
            ),
            (
                r#"{"only":["region:france"],"ignore":["0011223344"]}"#,
                only(Preferences { only: list(&["region:france"]), ignore: list(&["0011223344"]), ..any() }),
            ),
            (r#"{"sort":"price"}"#, only(Preferences { sort: Some(Sort::Price), ..any() })),
            (
                r#"{"sort":{"by":"latency","partition":"model"}}"#,
                only(Preferences { sort: Some(Sort::Latency), ..any() }),
            ),
            (r#"{"quantizations":["Q8_0"]}"#, only(Preferences { quantizations: list(&["Q8_0"]), ..any() })),
            (r#"{"data_collection":"deny"}"#, only(Preferences { data_collection: DataCollection::Deny, ..any() })),
            (
                r#"{"zdr":true,"data_collection":"allow"}"#,
                only(Preferences { data_collection: DataCollection::Deny, ..any() }),
            ),
            (
                r#"{"preferred_min_throughput":50,"preferred_max_latency":0.25}"#,
                only(Preferences { preferred_min_throughput: Some(200), preferred_max_latency_ms: Some(250), ..any() }),
            ),
            (
                r#"{"preferred_min_throughput":{"p50":100,"p90":50},"preferred_max_latency":{"p50":2,"p99":5}}"#,
                only(Preferences {
                    preferred_min_throughput: Some(400),
                    preferred_max_latency_ms: Some(2000),
                    ..any()
                }),
            ),
            (r#"{"max_price":{"prompt":1,"completion":"2.5"}}"#, price(Some(250_000), Some(625_000))),
            (r#"{"max_price":{"completion":0.29,"request":0}}"#, price(None, Some(72_500))),
            (r#"{"max_price":{"prompt":0}}"#, price(Some(0), None)),
        ];
        for (json, want) in cases {
            assert_eq!(routing(json), Ok(want), "{json}");
        }
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let many = format!(r#"{{"only":[{}"own"]}}"#, r#""own","#.repeat(32));
        let cases = [
            ("[]", "provider"),
            (r#""own""#, "provider"),
            (r#"{"ingore":[]}"#, "provider.ingore"),
            (r#"{"order":"own"}"#, "provider.order"),
            (r#"{"order":["own",7]}"#, "provider.order[1]"),
            (r#"{"only":["anthropic"]}"#, "provider.only[0]"),
            (r#"{"ignore":["region:"]}"#, "provider.ignore[0]"),
            (r#"{"ignore":["region:\u001b[2J"]}"#, "provider.ignore[0]"),
            (r#"{"ignore":["aabbccd"]}"#, "provider.ignore[0]"),
            (&many, "provider.only"),
            (r#"{"quantizations":[""]}"#, "provider.quantizations"),
            (r#"{"allow_fallbacks":"no"}"#, "provider.allow_fallbacks"),
            (r#"{"sort":"cheapest"}"#, "provider.sort"),
            (r#"{"sort":{}}"#, "provider.sort.by"),
            (r#"{"sort":{"by":"price","partition":"none"}}"#, "provider.sort.partition"),
            (r#"{"data_collection":true}"#, "provider.data_collection"),
            (r#"{"data_collection":"never"}"#, "provider.data_collection"),
            (r#"{"zdr":1}"#, "provider.zdr"),
            (r#"{"enforce_distillable_text":true}"#, "provider.enforce_distillable_text"),
            (r#"{"preferred_min_throughput":0}"#, "provider.preferred_min_throughput"),
            (r#"{"preferred_max_latency":{"p60":1}}"#, "provider.preferred_max_latency.p60"),
            (r#"{"preferred_max_latency":{}}"#, "provider.preferred_max_latency"),
            (r#"{"max_price":1}"#, "provider.max_price"),
            (r#"{"max_price":{"prompt":-1}}"#, "provider.max_price.prompt"),
            (r#"{"max_price":{"prompt":"NaN"}}"#, "provider.max_price.prompt"),
            (r#"{"max_price":{"input":1}}"#, "provider.max_price.input"),
        ];
        for (json, field) in cases {
            assert_eq!(routing(json).expect_err(json).field.as_deref(), Some(field), "{json}");
        }
    }

    #[test]
    fn a_limit_only_lowers() {
        let price = |input, cached, output| Price {
            input: Credits::new(input),
            cached: Credits::new(cached),
            output: Credits::new(output),
        };
        let wish = routing(r#"{"max_price":{"prompt":0.00002,"completion":4}}"#).expect("good");
        assert_eq!(wish.lower(price(10, 2, 10)), price(5, 2, 10));
        assert_eq!(Routing::default().lower(price(10, 2, 10)), price(10, 2, 10));
    }

    #[test]
    fn shortcuts_are_taken_apart() {
        let cases = [
            ("m", None),
            ("llama3:8b", None),
            (":floor", None),
            ("@own", None),
            ("org/m@main", None),
            ("m:floor", Some(("m", None, Some(Sort::Price)))),
            ("llama3:8b:nitro", Some(("llama3:8b", None, Some(Sort::Throughput)))),
            ("m@own", Some(("m", Some("own"), None))),
            ("m@region:france:floor", Some(("m", Some("region:france"), Some(Sort::Price)))),
            ("m:nitro@aabbccdd", Some(("m", Some("aabbccdd"), Some(Sort::Throughput)))),
        ];
        for (name, want) in cases {
            let want = want.map(|(model, provider, sort)| Shortcut { model, provider, sort });
            assert_eq!(Shortcut::of(name), want, "{name}");
        }
    }

    #[test]
    fn models_are_listed_once_the_first_choice_first() {
        let read = |json: &str| {
            let fields = Fields::parse(json.as_bytes()).expect(json);
            models(&fields).map(|models| models.into_iter().map(|it| (it.field, it.name)).collect::<Vec<_>>())
        };
        let at = |field: &str, name: &str| (field.to_owned(), name.to_owned());
        let (a, b) = (at("model", "a"), at("models[1]", "b"));
        assert_eq!(read(r#"{"model":"a","models":["a","b","b"]}"#), Ok(vec![a.clone(), b.clone()]));
        assert_eq!(read(r#"{"models":["a","b"]}"#), Ok(vec![at("models[0]", "a"), b]));
        assert_eq!(read(r#"{"model":"a","models":[]}"#), Ok(vec![a]));
        for (json, field) in [
            (r#"{"models":[]}"#, "model"),
            (r#"{"model":"a","models":"b"}"#, "models"),
            (r#"{"model":"a","models":["b",""]}"#, "models[1]"),
            (r#"{"model":"a","models":["b",{}]}"#, "models[1]"),
            (r#"{"model":"a","models":["b","c","d","e","f"]}"#, "models"),
        ] {
            assert_eq!(read(json).expect_err(json).field.as_deref(), Some(field), "{json}");
        }
    }
}
