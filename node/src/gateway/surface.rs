//! Which endpoint a request is served by: its own where somebody has it, a chat where not.
//! Invariant: own hardware comes first, and a request is never translated where its own endpoint would do.

use super::Translation;
use super::error::ApiError;
use crate::jobs::MarketModel;
use crate::openai::fields::{Fields, raw};
use crate::openai::{BadRequest, Request, messages, responses};
use spillway_protocol::{Kind, Prefer};

/// Whether a request for `model` becomes a chat.
pub(super) fn is_translated(kind: Kind, model: &str, on_offer: &[MarketModel], prefer: Prefer) -> bool {
    if !matches!(kind, Kind::Response | Kind::Message) {
        return false;
    }
    let Some(model) = on_offer.iter().find(|known| known.id == model) else { return false };
    let chats = if prefer == Prefer::Own { model.own_kinds } else { model.kinds };
    let other = if prefer == Prefer::Own || model.own_kinds.has(Kind::Chat) { model.own_kinds } else { model.kinds };
    chats.has(Kind::Chat) && !other.has(kind)
}

/// The request as a chat.
pub(super) fn translated(kind: Kind, body: &[u8]) -> Result<(Request, Option<Translation>), ApiError> {
    let renamed = |name: fn(&str) -> String| {
        move |bad: BadRequest| BadRequest { field: bad.field.as_deref().map(name), why: bad.why }
    };
    match kind {
        Kind::Response => {
            let (chat, echo) = responses::to_chat(body)?;
            let request = Request::parse(Kind::Chat, &chat).map_err(renamed(responses::field_of))?;
            Ok((request, Some(Translation::Responses(echo))))
        }
        Kind::Message => {
            let chat = messages::to_chat(body)?;
            let request = Request::parse(Kind::Chat, &chat).map_err(renamed(messages::field_of))?;
            Ok((request, Some(Translation::Messages)))
        }
        Kind::Chat
        | Kind::Completion
        | Kind::Embedding
        | Kind::Rerank
        | Kind::Image
        | Kind::Transcription
        | Kind::Speech
        | Kind::Moderation => Ok((Request::parse(kind, body)?, None)),
    }
}

/// The body with a model, for endpoints where clients name none: the first that the key may have.
pub(super) fn with_model(
    kind: Kind,
    body: &[u8],
    on_offer: &[MarketModel],
    allowed: impl Fn(&str) -> bool,
) -> Option<Vec<u8>> {
    if kind != Kind::Moderation {
        return None;
    }
    let mut fields = Fields::parse(body).ok()?;
    if fields.get("model").is_some() || fields.get("models").is_some() {
        return None;
    }
    let model = on_offer.iter().find(|model| model.kinds.has(kind) && allowed(&model.id))?;
    fields.set("model", raw(&model.id));
    Some(fields.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_hardware_comes_first() {
        let chat = [Kind::Chat];
        let both = [Kind::Chat, Kind::Response];
        let alone = [Kind::Response];
        // What own backends have, what anyone has, for whom; whether it becomes a chat.
        let cases: [(&[Kind], &[Kind], Prefer, bool); 8] = [
            (&chat, &chat, Prefer::OwnFirst, true),
            (&both, &both, Prefer::OwnFirst, false),
            (&chat, &both, Prefer::OwnFirst, true),
            (&[], &both, Prefer::OwnFirst, false),
            (&[], &chat, Prefer::OwnFirst, true),
            (&[], &alone, Prefer::OwnFirst, false),
            (&alone, &both, Prefer::Own, false),
            (&[], &chat, Prefer::Own, false),
        ];
        for (own, all, prefer, want) in cases {
            let model = MarketModel {
                id: "m".into(),
                own: !own.is_empty(),
                providers: 1,
                own_kinds: own.iter().copied().collect(),
                kinds: all.iter().copied().collect(),
                price_min: None,
                token_price: spillway_ledger::Price::ZERO,
            };
            assert_eq!(
                is_translated(Kind::Response, "m", std::slice::from_ref(&model), prefer),
                want,
                "{own:?} {all:?} {prefer:?}"
            );
            assert!(!is_translated(Kind::Embedding, "m", std::slice::from_ref(&model), prefer));
            assert!(!is_translated(Kind::Response, "n", &[model], prefer));
        }
    }
}
