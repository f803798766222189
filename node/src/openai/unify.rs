//! Unify's routing strings behind a model's name: `model@lowest-ttft`, `model@itl|input-cost<5`, `model@lowest-itl<0.5ic`.
//! Invariant: a metric that the market does not know is an error that names it; none is left out in silence.
//!
//! Names and forms are those of Unify's public documentation, "Routing Syntax". Costs are in credits per million tokens, times
//! in milliseconds, speeds in tokens per second.

use super::request::UNITS_PER_TOKEN;
use spillway_ledger::Credits;
use spillway_protocol::router::Sort;

/// Milliseconds to the first token that may be asked for, at most.
const TTFT_MAX_MS: f64 = 3_600_000.0;
/// Tokens per second that may be asked for, at most.
const THROUGHPUT_MAX: f64 = 1e6;
/// Credits per million tokens that a bound may be, at most.
const COST_MAX: f64 = 1e9;

/// What such a string asks of the market.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// What to sort by.
    pub sort: Option<Sort>,
    /// The time to the first text, in milliseconds.
    pub latency_ms: Option<u32>,
    /// The rate of text, in units per second.
    pub throughput: Option<u32>,
    /// The most for a million units of prompt.
    pub prompt_max: Option<Credits>,
    /// The most for a million units of answer.
    pub completion_max: Option<Credits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    Ttft,
    Itl,
    Cost,
    InputCost,
    OutputCost,
    Throughput,
    Quality,
}

impl Metric {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ttft" | "t" | "time-to-first-token" => Self::Ttft,
            "itl" | "i" | "inter-token-latency" => Self::Itl,
            "cost" | "c" => Self::Cost,
            "input-cost" | "ic" => Self::InputCost,
            "output-cost" | "oc" => Self::OutputCost,
            "tks-per-sec" | "output-tks-per-sec" | "ots" => Self::Throughput,
            "quality" | "q" => Self::Quality,
            _ => return None,
        })
    }

    /// Whether more of it is better.
    const fn is_good(self) -> bool {
        matches!(self, Self::Throughput | Self::Quality)
    }
}

/// Where the metric that is sorted by ends.
fn head(text: &str) -> &str {
    text.split(['|', '<', '>']).next().unwrap_or_default()
}

/// Whether a text behind `@` is a routing string: its first word is a metric.
#[must_use]
pub fn is_wish(text: &str) -> bool {
    let head = head(text);
    let bare = head.strip_prefix("lowest-").or_else(|| head.strip_prefix("highest-")).unwrap_or(head);
    Metric::named(bare).is_some()
}

/// Reads a routing string.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read(text: &str) -> Result<Wish, String> {
    let mut wish = Wish::default();
    let head = head(text);
    let (bare, best) = match (head.strip_prefix("lowest-"), head.strip_prefix("highest-")) {
        (Some(bare), _) => (bare, Some(false)),
        (_, Some(bare)) => (bare, Some(true)),
        (None, None) => (head, None),
    };
    let metric = Metric::named(bare).ok_or_else(|| format!("`{bare}` is no metric"))?;
    if best.is_some_and(|highest| highest != metric.is_good()) {
        return Err(format!("`{head}` asks for the worst"));
    }
    wish.sort = Some(match metric {
        Metric::Cost | Metric::InputCost | Metric::OutputCost => Sort::Price,
        Metric::Ttft => Sort::Latency,
        Metric::Itl | Metric::Throughput => Sort::Throughput,
        Metric::Quality => return Err("`quality`: the market does not measure it".into()),
    });
    let mut rest = &text[head.len()..];
    while !rest.is_empty() {
        let end = rest[1..].find(['|', '<', '>']).map_or(rest.len(), |at| at + 1);
        let (part, mut behind) = rest.split_at(end);
        if let Some(name) = part.strip_prefix('|') {
            // `|metric<number`: the bound is the next part.
            let Some(bound) = behind.chars().next().filter(|sign| matches!(sign, '<' | '>')) else {
                return Err(format!("`{name}` has no bound"));
            };
            let end = behind.find('|').unwrap_or(behind.len());
            let number = behind[1..end].trim_start_matches('=');
            bind(&mut wish, name, bound, number)?;
            behind = &behind[end..];
        } else {
            // `<0.5metric`: number and metric in one.
            let number = part[1..].trim_start_matches('=');
            let name = number.trim_start_matches(|sign: char| sign.is_ascii_digit() || sign == '.');
            let (number, name) = number.split_at(number.len() - name.len());
            // Without a name it bounds what is sorted by.
            let name = if name.is_empty() { bare } else { name };
            bind(&mut wish, name, part.chars().next().unwrap_or('<'), number)?;
        }
        rest = behind;
    }
    Ok(wish)
}

fn bind(wish: &mut Wish, name: &str, sign: char, number: &str) -> Result<(), String> {
    let metric = Metric::named(name).ok_or_else(|| format!("`{name}` is no metric"))?;
    let value: f64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
    if (sign == '>') != metric.is_good() {
        return Err(format!("`{name}{sign}{number}` asks for the worse"));
    }
    let within = |max: f64| {
        let holds = value > 0.0 && value <= max;
        if holds { Ok(value) } else { Err(format!("`{name}`: {number} is not above 0 and at most {max}")) }
    };
    let units = |per_million: f64| {
        // Rounded down, but for what a decimal fraction loses in binary.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1e15")]
        Credits::new((per_million * 1e6 / UNITS_PER_TOKEN as f64 + 1e-6).floor() as u64)
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by `within`")]
    let whole = |value: f64| value.round().max(1.0) as u32;
    match metric {
        Metric::Ttft => wish.latency_ms = Some(whole(within(TTFT_MAX_MS)?)),
        Metric::Itl => {
            let tokens = 1000.0 / within(TTFT_MAX_MS)?;
            wish.throughput = Some(whole(tokens.min(THROUGHPUT_MAX) * UNITS_PER_TOKEN as f64));
        }
        Metric::Throughput => wish.throughput = Some(whole(within(THROUGHPUT_MAX)? * UNITS_PER_TOKEN as f64)),
        Metric::InputCost => wish.prompt_max = Some(units(within(COST_MAX)?)),
        Metric::OutputCost => wish.completion_max = Some(units(within(COST_MAX)?)),
        // A mean of both: what holds for each holds for it.
        Metric::Cost => {
            let bound = units(within(COST_MAX)?);
            (wish.prompt_max, wish.completion_max) = (Some(bound), Some(bound));
        }
        Metric::Quality => return Err("`quality`: the market does not measure it".into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_strings_are_read() {
        let by = |sort| Wish { sort: Some(sort), ..Wish::default() };
        for (text, want) in [
            ("lowest-ttft", by(Sort::Latency)),
            ("ttft", by(Sort::Latency)),
            ("lowest-input-cost", by(Sort::Price)),
            ("oc", by(Sort::Price)),
            ("lowest-itl", by(Sort::Throughput)),
            ("highest-tks-per-sec", by(Sort::Throughput)),
            ("lowest-itl<0.5input-cost", Wish { prompt_max: Some(Credits::new(125_000)), ..by(Sort::Throughput) }),
            (
                "itl|c<=2",
                Wish {
                    prompt_max: Some(Credits::new(500_000)),
                    completion_max: Some(Credits::new(500_000)),
                    ..by(Sort::Throughput)
                },
            ),
            ("cost|ttft<800|tks-per-sec>50", Wish { latency_ms: Some(800), throughput: Some(200), ..by(Sort::Price) }),
            ("ic<1t<2oc", Wish { latency_ms: Some(1), completion_max: Some(Credits::new(500_000)), ..by(Sort::Price) }),
            ("ttft<500", Wish { latency_ms: Some(500), ..by(Sort::Latency) }),
            ("ttft|itl<20", Wish { throughput: Some(200), ..by(Sort::Latency) }),
        ] {
            assert!(is_wish(text), "{text}");
            assert_eq!(read(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        for text in [
            "quality",
            "highest-ttft",
            "lowest-tks-per-sec",
            "ttft|q>0.5",
            "ttft|itl",
            "ttft|itl<",
            "ttft|itl<x",
            "ttft|itl>5",
            "ttft|itl<0",
            "ttft|what<1",
            "ttft<",
            "ttft<1what",
            "ttft|tks-per-sec<5",
            "ttft|",
            "ttft|itl<1e999",
        ] {
            assert!(is_wish(text), "{text}");
            assert!(read(text).is_err(), "{text}: {:?}", read(text));
        }
        for text in ["own", "aabbccdd", "region:mars", "openai", "", "lowest-", "latest"] {
            assert!(!is_wish(text), "{text}");
        }
    }
}
