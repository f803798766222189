//! What hosts ask for open models, July 2026.
//! Source: models.dev (MIT) and LiteLLM's table of prices (MIT); see `NOTICE`. `scripts/cut_data.py` makes the cut: hosts that
//! run the model, not those that resell, none that is free; a host counts once for a model, with its cheapest.
//! Invariant: a model's hosts ascend by name.

use spillway_ledger::{Credits, Price};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What one host asks for one model, in micro-dollars per million tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPrice {
    /// The host.
    pub host: &'static str,
    /// For fresh input.
    pub input_micro: u64,
    /// For input that its cache holds, if it asks less for it.
    pub cached_micro: Option<u64>,
    /// For output.
    pub output_micro: u64,
    /// The longest prompt and answer together, in tokens, if it is known.
    pub context_tokens: Option<u32>,
}

impl HostPrice {
    /// As an offer's price, a credit standing for a dollar.
    #[must_use]
    pub fn price(&self) -> Price {
        Price {
            input: Credits::new(self.input_micro),
            cached: Credits::new(self.cached_micro.unwrap_or(self.input_micro)),
            output: Credits::new(self.output_micro),
        }
    }
}

type Prices = BTreeMap<&'static str, Vec<HostPrice>>;

static PRICES: LazyLock<Prices> = LazyLock::new(|| parse(include_str!("../../data/prices.csv")));

/// The models of the table.
pub fn models() -> impl Iterator<Item = &'static str> {
    PRICES.keys().copied()
}

/// What hosts ask for a model; empty if the table does not have it.
#[must_use]
pub fn prices(model: &str) -> &'static [HostPrice] {
    PRICES.get(model).map_or(&[], Vec::as_slice)
}

fn parse(table: &'static str) -> Prices {
    let mut prices = Prices::new();
    for row in table.lines().skip(1) {
        let fields: Vec<&str> = row.split(',').collect();
        let [model, host, input, cached, output, context] = fields[..] else { panic!("{row}: not six fields") };
        let money = |field| micro(field).unwrap_or_else(|| panic!("{row}: {field:?} is no price"));
        let (input_micro, output_micro) = (money(input), money(output));
        let cached_micro = (!cached.is_empty()).then(|| money(cached));
        let context_tokens = context.parse().ok();
        prices.entry(model).or_default().push(HostPrice {
            host,
            input_micro,
            cached_micro,
            output_micro,
            context_tokens,
        });
    }
    prices
}

/// Millionths of a decimal number, exactly; `None` if it has more than six places.
fn micro(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let scale = 10_u64.checked_pow(6_u32.checked_sub(u32::try_from(part.len()).ok()?)?)?;
    let part = if part.is_empty() { 0 } else { part.parse::<u64>().ok()? };
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_the_tables() {
        assert_eq!(
            models().collect::<Vec<_>>(),
            ["deepseek-v3.1", "gpt-oss-120b", "llama-3.1-8b", "llama-3.3-70b", "qwen3-32b", "qwen3-8b"]
        );
        let hosts = prices("llama-3.3-70b");
        let nebius = hosts.iter().find(|host| host.host == "nebius").unwrap();
        assert_eq!(
            (nebius.input_micro, nebius.cached_micro, nebius.output_micro, nebius.context_tokens),
            (130_000, Some(13_000), 400_000, Some(128_000))
        );
        let groq = hosts.iter().find(|host| host.host == "groq").unwrap();
        assert_eq!(
            groq.price().cached,
            groq.price().input,
            "without a price of its own, cached input costs what fresh does"
        );
        for model in models() {
            let hosts = prices(model);
            assert!(hosts.len() >= 5, "{model} has {}", hosts.len());
            assert!(hosts.windows(2).all(|pair| pair[0].host < pair[1].host), "{model}: each host once, by name");
            for host in hosts {
                assert!(host.input_micro > 0 && host.input_micro <= 20_000_000, "{model} {}", host.host);
                assert!(host.output_micro > 0 && host.output_micro <= 20_000_000, "{model} {}", host.host);
                assert!(host.cached_micro.is_none_or(|cached| cached <= host.input_micro), "{model} {}", host.host);
            }
        }
        assert_eq!(prices("no such model"), []);
    }

    #[test]
    fn decimals_are_exact() {
        let cases = [
            ("0.02", Some(20_000)),
            ("3", Some(3_000_000)),
            ("0.50001", Some(500_010)),
            ("0.0000001", None),
            ("", None),
            ("-1", None),
            ("1.x", None),
        ];
        for (text, expected) in cases {
            assert_eq!(micro(text), expected, "{text}");
        }
    }
}
