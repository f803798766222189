//! The endpoints in one table: where a server has each, the form of its answer, and what of it is work.
//! Invariant: whoever treats endpoints differently asks this table; a new endpoint is a [`Kind`], a row here, and the check of
//! its request.

use spillway_protocol::Kind;

/// One endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path below the base URL, and below `/v1/` at the gateway.
    pub path: &'static str,
    /// The form of its answers.
    pub answer: Answer,
    /// The form of its requests.
    pub encoding: Encoding,
}

/// The form of an endpoint's answers as they travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A stream of chunks with `choices`, ended by `[DONE]`. Asked for as a stream, but for an answer of own hardware that its
    /// client wants [in one piece](super::one_piece).
    Choices(Choices),
    /// A stream of events that name their `type`. Always asked for as a stream.
    Events(Events),
    /// What the server answers, byte for byte: [parts](super::parts).
    Whole(Measure),
}

/// The endpoints whose answers are chunks with `choices`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choices {
    /// A conversation.
    Chat,
    /// A text to go on with.
    Completion,
}

/// The endpoints whose answers are events with a `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
}

/// What of a whole answer counts as output, in work units. That an answer begins always counts one, as the first unit pays the
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// No more than that: the request's bytes are what the work depends on.
    Request,
    /// One for each [`BYTES_PER_UNIT`] bytes of the answer.
    Bytes,
}

/// The form of an endpoint's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JSON object.
    Json,
    /// `multipart/form-data`: [`Form`](super::form::Form).
    Multipart,
}

/// Bytes of an answer that is no text and count as one work unit: 2 MiB of image are 32,768 units, as much as 8,000 tokens.
pub const BYTES_PER_UNIT: usize = 64;

/// The row of `kind`.
#[must_use]
pub const fn endpoint(kind: Kind) -> Endpoint {
    let (path, answer) = match kind {
        Kind::Chat => ("chat/completions", Answer::Choices(Choices::Chat)),
        Kind::Completion => ("completions", Answer::Choices(Choices::Completion)),
        Kind::Embedding => ("embeddings", Answer::Whole(Measure::Request)),
        Kind::Response => ("responses", Answer::Events(Events::Responses)),
        Kind::Message => ("messages", Answer::Events(Events::Messages)),
        Kind::Rerank => ("rerank", Answer::Whole(Measure::Request)),
        Kind::Image => ("images/generations", Answer::Whole(Measure::Bytes)),
        Kind::Transcription => ("audio/transcriptions", Answer::Whole(Measure::Request)),
        Kind::Speech => ("audio/speech", Answer::Whole(Measure::Request)),
        Kind::Moderation => ("moderations", Answer::Whole(Measure::Request)),
    };
    let encoding = match kind {
        Kind::Transcription => Encoding::Multipart,
        Kind::Chat
        | Kind::Completion
        | Kind::Embedding
        | Kind::Response
        | Kind::Message
        | Kind::Rerank
        | Kind::Image
        | Kind::Speech
        | Kind::Moderation => Encoding::Json,
    };
    Endpoint { path, answer, encoding }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_path_and_name() {
        for kind in Kind::ALL {
            let twins = Kind::ALL.iter().filter(|other| endpoint(**other).path == endpoint(kind).path).count();
            assert_eq!(twins, 1, "{kind:?}");
            assert_eq!(Kind::named(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).expect("a name"), kind.as_str());
        }
        assert_eq!(Kind::named("chats"), None);
    }
}
