//! The description of the HTTP API that `/openapi.json` serves, in OpenAPI 3.1.
//! Invariant: it has every route and every method of the router, and no other; a test compares the two.

use super::budget::PER_MINUTE_MAX;
use super::keys::OVERLAP_S_MAX;
use super::managed::CREDITS_MAX;
use super::similar::SIMILAR_MIN;
use super::terms::{CACHE_S_MAX, LABELS_MAX, MODELS_MAX, NAME_BYTES_MAX};
use crate::openai::endpoint::{Answer, Encoding, endpoint};
use serde_json::{Map, Value, json};
use spillway_protocol::Kind;

/// A route other than the endpoints for jobs.
struct Route {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    access: Access,
    query: &'static [Parameter],
    /// The JSON body's schema, if it takes one.
    body: Option<&'static str>,
    /// The status of success, and what comes with it.
    success: (u16, Content),
}

/// A query's field: name, type, and what it says.
type Parameter = (&'static str, &'static str, &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Anyone.
    Open,
    /// An API key.
    Key,
    /// An API key or the admin token.
    Either,
    /// The admin token.
    Admin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    None,
    Text,
    Bytes,
    /// JSON of this schema.
    Json(&'static str),
}

const fn read(path: &'static str, id: &'static str, summary: &'static str) -> Route {
    let success = (200, Content::Json("Object"));
    Route { method: "get", path, id, summary, access: Access::Admin, query: &[], body: None, success }
}

const ACCOUNT: Parameter = ("account", "string", "An account, 64 hexadecimal digits");
const JOB: Parameter = ("job", "string", "A job's id, 32 hexadecimal digits");

fn table() -> Vec<Route> {
    let text = (200, Content::Text);
    let bytes = (200, Content::Bytes);
    vec![
        Route { access: Access::Open, success: text, ..read("/healthz", "health", "Whether the process answers") },
        Route { access: Access::Open, ..read("/readyz", "ready", "Whether the node takes jobs") },
        Route { access: Access::Open, ..read("/openapi.json", "description", "This description") },
        Route { access: Access::Either, success: text, ..read("/metrics", "metrics", "Metrics as OpenMetrics text") },
        Route {
            access: Access::Key,
            success: (200, Content::Json("ModelList")),
            ..read("/v1/models", "listModels", "The models that can be asked for now")
        },
        Route {
            access: Access::Key,
            success: (200, Content::Json("Model")),
            ..read("/v1/models/{id}", "showModel", "One model")
        },
        Route {
            method: "post",
            access: Access::Key,
            body: Some("MessageRequest"),
            success: (200, Content::Json("TokenCount")),
            ..read("/v1/messages/count_tokens", "countTokens", "About how many tokens a message's request has")
        },
        Route {
            access: Access::Either,
            query: &[("id", "string", "A job's id, as in the header `x-spillway-job`, or the id of its answer")],
            ..read("/api/v1/generation", "showGeneration", "All that is known of one of the key's last jobs")
        },
        read("/admin/keys", "listKeys", "Every key, its terms and what it spent"),
        Route {
            method: "post",
            body: Some("Terms"),
            success: (201, Content::Json("CreatedKey")),
            ..read("/admin/keys", "createKey", "Make a key; its secret is told once")
        },
        Route {
            method: "delete",
            success: (204, Content::None),
            ..read("/admin/keys/{id}", "revokeKey", "Stop a key at once")
        },
        read("/admin/keys/{id}", "showKey", "One key, its terms and what it spent"),
        Route {
            method: "patch",
            body: Some("TermsChange"),
            ..read("/admin/keys/{id}", "updateKey", "Change a key's terms; what is not named stays")
        },
        Route {
            method: "post",
            body: Some("Rotation"),
            ..read("/admin/keys/{id}/rotate", "rotateKey", "A new secret; the old one goes on for `overlap_s`")
        },
        read("/admin/projects", "listProjects", "Every project, its terms and what its keys spent"),
        Route {
            method: "post",
            body: Some("Terms"),
            success: (201, Content::Json("Object")),
            ..read("/admin/projects", "createProject", "Make a project: terms that its keys share")
        },
        read("/admin/projects/{id}", "showProject", "One project"),
        Route {
            method: "patch",
            body: Some("TermsChange"),
            ..read("/admin/projects/{id}", "updateProject", "Change a project's terms; what is not named stays")
        },
        Route {
            query: &[
                ("from", "integer", "How many jobs to leave out"),
                ("since", "integer", "Unix milliseconds"),
                ("until", "integer", "Unix milliseconds"),
            ],
            ..read("/admin/jobs", "listJobs", "Times and sizes of the last jobs, without content")
        },
        read("/admin/jobs/{id}", "showJob", "All that is known of a job"),
        Route {
            query: &[("from", "integer", "The byte of the log to read from: what the last answer gave as `next`")],
            ..read("/admin/audit", "listActions", "The operator's actions: lines of the audit log")
        },
        read("/admin/audit/head", "showAuditHead", "The audit log's end, signed by the node"),
        read("/admin/market", "showMarket", "What is on offer: models, prices, providers"),
        read("/admin/status", "showStatus", "The node: identity, peers, height, backends"),
        Route {
            query: &[ACCOUNT],
            ..read("/admin/ledger/account", "showAccount", "An account's balance; the node's own without `account`")
        },
        Route {
            query: &[("from", "integer", "The first height")],
            success: bytes,
            ..read("/admin/ledger/blocks", "readBlocks", "Blocks, each behind its length (u32, little-endian)")
        },
        Route {
            query: &[
                ("from", "integer", "The first height"),
                ("to", "integer", "The last height"),
                ACCOUNT,
                ("kind", "string", "An entry's kind"),
                ("session", "string", "A session's id, 64 hexadecimal digits"),
                ("limit", "integer", "Most entries"),
            ],
            ..read("/admin/ledger/log", "readLog", "The ledger's entries")
        },
        Route { query: &[JOB], ..read("/admin/ledger/receipts", "listReceipts", "Receipts that both sides signed") },
        read("/admin/ledger/payouts", "listPayouts", "Payouts that wait"),
        Route {
            query: &[JOB, ("leg", "integer", "Which leg of the job"), ACCOUNT],
            success: bytes,
            ..read("/admin/ledger/proof", "proveEntry", "A proof of a receipt or of an account")
        },
        Route {
            method: "post",
            body: Some("Mint"),
            ..read("/admin/ledger/mint", "mint", "The issuer: put credits on an account")
        },
        Route {
            method: "post",
            body: Some("Entry"),
            ..read("/admin/ledger/entries", "submitEntry", "Put an entry of the node's own account on the ledger")
        },
        Route {
            method: "post",
            body: Some("GeneratedKey"),
            ..read("/key/generate", "generateKey", "LiteLLM: make a key; its secret is told once")
        },
        Route {
            method: "post",
            body: Some("GeneratedKeyChange"),
            ..read("/key/update", "updateGeneratedKey", "LiteLLM: change a key")
        },
        Route {
            access: Access::Either,
            query: &[("key", "string", "A key's secret or id; one's own without it")],
            ..read("/key/info", "showGeneratedKey", "LiteLLM: one key")
        },
        read("/key/list", "listGeneratedKeys", "LiteLLM: every key"),
        Route { method: "post", body: Some("OneKey"), ..read("/key/block", "blockKey", "LiteLLM: stop a key for now") },
        Route {
            method: "post",
            body: Some("OneKey"),
            ..read("/key/unblock", "unblockKey", "LiteLLM: let a key go on")
        },
        Route {
            method: "post",
            body: Some("SomeKeys"),
            ..read("/key/delete", "deleteKeys", "LiteLLM: stop keys for good")
        },
        Route {
            access: Access::Either,
            query: &[
                ("api_key", "string", "A key's secret or id"),
                ("start_date", "string", "A day, as 2026-07-01"),
                ("end_date", "string", "A day, as 2026-07-01"),
                ("request_id", "string", "One job"),
            ],
            ..read("/spend/logs", "listSpend", "LiteLLM: what jobs cost")
        },
        Route { access: Access::Either, ..read("/api/v1/key", "showOwnKey", "OpenRouter: the key that asks") },
        Route { access: Access::Either, ..read("/api/v1/auth/key", "showOwnKeyOld", "OpenRouter: the same") },
        Route {
            access: Access::Either,
            ..read("/api/v1/credits", "showCredits", "OpenRouter: credits bought and used")
        },
        read("/api/v1/keys", "listProvisionedKeys", "OpenRouter: every key"),
        Route {
            method: "post",
            body: Some("ProvisionedKey"),
            success: (201, Content::Json("Object")),
            ..read("/api/v1/keys", "provisionKey", "OpenRouter: make a key; its secret is told once")
        },
        read("/api/v1/keys/{hash}", "showProvisionedKey", "OpenRouter: one key"),
        Route {
            method: "patch",
            body: Some("ProvisionedKeyChange"),
            ..read("/api/v1/keys/{hash}", "updateProvisionedKey", "OpenRouter: change a key")
        },
        Route {
            method: "delete",
            ..read("/api/v1/keys/{hash}", "deleteProvisionedKey", "OpenRouter: stop a key for good")
        },
    ]
}

/// The description.
pub(super) fn description() -> Value {
    let mut paths = Map::new();
    for kind in Kind::ALL {
        let (path, operation) = job(kind);
        add(&mut paths, &path, "post", operation);
    }
    for route in table() {
        let operation = operation(&route);
        add(&mut paths, route.path, route.method, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Spillway",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A gateway to own hardware first, and to a market of inference beside it. Fields that are not \
                described here pass through to whoever serves the job.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key"},
                "keyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key"},
                "admin": {"type": "http", "scheme": "bearer", "description": "The token in the node's `admin.token`"},
            },
            "schemas": schemas(),
            "headers": headers(),
        },
    })
}

fn add(paths: &mut Map<String, Value>, path: &str, method: &str, mut operation: Value) {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for name in names {
        let parameter = json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
        if let Some(Value::Array(parameters)) = operation.get_mut("parameters") {
            parameters.insert(0, parameter);
        }
    }
    let entry = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    entry[method] = operation;
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn operation(route: &Route) -> Value {
    let parameter = |(name, kind, about): &Parameter| json!({"name": name, "in": "query", "required": false, "description": about, "schema": {"type": kind}});
    let security = match route.access {
        Access::Open => json!([]),
        Access::Key => json!([{"key": []}, {"keyHeader": []}]),
        Access::Either => json!([{"key": []}, {"keyHeader": []}, {"admin": []}]),
        Access::Admin => json!([{"admin": []}]),
    };
    let (status, content) = route.success;
    let content = match content {
        Content::None => json!({}),
        Content::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
        Content::Bytes => json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}),
        Content::Json(schema) => json!({"application/json": {"schema": reference(schema)}}),
    };
    let mut responses = json!({"default": error("Error")});
    responses[status.to_string()] = json!({"description": "Done", "content": content});
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "security": security,
        "parameters": route.query.iter().map(parameter).collect::<Vec<_>>(),
        "responses": responses,
    });
    if let Some(schema) = route.body {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": reference(schema)}}});
    }
    operation
}

fn error(schema: &str) -> Value {
    json!({
        "description": "An error: `code` is stable, and `param` names the field at fault",
        "headers": {"retry-after": {"$ref": "#/components/headers/retry-after"}},
        "content": {"application/json": {"schema": reference(schema)}},
    })
}

/// The path and the operation of an endpoint for jobs.
fn job(kind: Kind) -> (String, Value) {
    let row = endpoint(kind);
    let (id, summary) = match kind {
        Kind::Chat => ("createChatCompletion", "Answer a conversation"),
        Kind::Completion => ("createCompletion", "Go on with a text"),
        Kind::Embedding => ("createEmbedding", "Vectors of texts"),
        Kind::Response => ("createResponse", "Answer a conversation, as OpenAI's Responses"),
        Kind::Message => ("createMessage", "Answer a conversation, as Anthropic's Messages"),
        Kind::Rerank => ("rerank", "Order documents by their worth for a question"),
        Kind::Image => ("createImage", "Images of a text"),
        Kind::Transcription => ("createTranscription", "The text of a recording"),
        Kind::Speech => ("createSpeech", "A text spoken"),
        Kind::Moderation => ("createModeration", "Whether a text is harmful"),
    };
    let json_body = json!({"application/json": {"schema": {"type": "object"}}});
    let mut content = match (row.answer, kind) {
        (_, Kind::Speech) => json!({"audio/*": {"schema": {"type": "string", "format": "binary"}}}),
        (Answer::Choices(_) | Answer::Events(_) | Answer::Whole(_), _) => json_body,
    };
    if matches!(row.answer, Answer::Choices(_) | Answer::Events(_)) {
        content["text/event-stream"] = json!({"schema": {"type": "string"}});
    }
    let encoding = match row.encoding {
        Encoding::Json => "application/json",
        Encoding::Multipart => "multipart/form-data",
    };
    let shape = if kind == Kind::Message { "MessagesError" } else { "Error" };
    let names = headers();
    let told = names.as_object().into_iter().flatten().map(|(name, _)| name).filter(|name| *name != "retry-after");
    let headers: Map<String, Value> =
        told.map(|name| (name.clone(), json!({"$ref": format!("#/components/headers/{name}")}))).collect();
    let mut request = Map::new();
    request.insert(encoding.into(), json!({"schema": reference(&format!("{}Request", schema_name(kind)))}));
    let operation = json!({
        "operationId": id,
        "summary": summary,
        "security": [{"key": []}, {"keyHeader": []}],
        "parameters": [{
            "name": "x-spillway-detail", "in": "header", "required": false,
            "description": "`legs`: tell of each place the job was at, in `usage.x_spillway` or a header",
            "schema": {"type": "string", "enum": ["legs"]},
        }],
        "requestBody": {"required": true, "content": request},
        "responses": {
            "200": {"description": "The answer", "headers": headers, "content": content},
            "default": error(shape),
        },
    });
    (format!("/v1/{}", row.path), operation)
}

const fn schema_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat => "Chat",
        Kind::Completion => "Completion",
        Kind::Embedding => "Embedding",
        Kind::Response => "Response",
        Kind::Message => "Message",
        Kind::Rerank => "Rerank",
        Kind::Image => "Image",
        Kind::Transcription => "Transcription",
        Kind::Speech => "Speech",
        Kind::Moderation => "Moderation",
    }
}

fn headers() -> Value {
    let header = |about: &str| json!({"description": about, "schema": {"type": "string"}});
    json!({
        "x-spillway-job": header("The job's id, for `/api/v1/generation` and `spillway explain`"),
        "x-spillway-route": header("`own` or `network`: where the job began"),
        "x-spillway-reason": header("Why there"),
        "x-spillway-provider": header("The provider's node id, if it began at a stranger's"),
        "x-spillway-cost": header("The cost in credits; where the answer is not streamed"),
        "x-spillway-detail": header("Each place the job was at, as JSON; on request, where the answer has no `usage`"),
        "retry-after": header("Seconds after which it is worth trying again"),
    })
}

/// An object with these required fields, and room for all others.
fn shape(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

/// An object with these fields and no other.
fn closed(required: &[&str], properties: Value) -> Value {
    let mut schema = shape(required, properties);
    schema["additionalProperties"] = Value::Bool(false);
    schema
}

/// The fields of a key as OpenRouter's clients write them.
fn provisioned_key() -> Value {
    json!({
        "name": terms()["name"],
        "limit": {"type": ["number", "null"], "minimum": 0, "maximum": CREDITS_MAX},
        "limit_reset": {"enum": ["daily", "weekly", "monthly", null]},
        "disabled": {"type": "boolean"},
        "include_byok_in_limit": {"type": "boolean"},
    })
}

/// The fields of a key as LiteLLM's clients write them, and whether the key itself is one.
fn generated_key(names_key: bool) -> Value {
    let ours = terms();
    let mut fields = json!({
        "key_alias": ours["name"],
        "max_budget": {"type": ["number", "null"], "minimum": 0, "maximum": CREDITS_MAX},
        "budget_duration": {"enum": ["1d", "24h", "daily", "7d", "1w", "weekly", "30d", "1mo", "monthly", null]},
        "duration": {"type": ["string", "null"], "pattern": "^[0-9]{1,9}[smhdw]$"},
        "rpm_limit": ours["requests_per_minute"], "tpm_limit": ours["tokens_per_minute"],
        "max_parallel_requests": ours["concurrency"],
        "models": {
            "type": "array", "maxItems": MODELS_MAX, "items": ours["models"]["items"], "description": "None: all",
        },
        "blocked": ours["blocked"],
        "team_id": {"type": ["string", "null"], "description": "A project's id"},
        "metadata": {"type": ["object", "null"], "maxProperties": LABELS_MAX, "description": "Labels"},
        "user_id": {"type": ["string", "null"], "description": "Not kept"},
    });
    if names_key {
        fields["key"] = named_key();
    }
    fields
}

fn named_key() -> Value {
    json!({"type": "string", "description": "A key's secret or id"})
}

/// An account, or a digest.
fn hex_id() -> Value {
    json!({"type": "string", "pattern": "^[0-9a-f]{64}$"})
}

/// What may be put on the ledger, as [`super::desk::Wish`] reads it.
fn entry() -> Value {
    let id = hex_id();
    let amount = json!({"type": "integer", "minimum": 0});
    let once = json!({"type": ["string", "null"], "description": "A name under which it is done once"});
    let action = |name: &str, required: &[&str], mut fields: Value| {
        fields["action"] = json!({"const": name});
        closed(&[&["action"], required].concat(), fields)
    };
    json!({"oneOf": [
        action("payout_request", &["amount_micro", "payee"], json!({"amount_micro": amount, "payee": id, "once": once})),
        action("burn", &["payout", "reference"], json!({"payout": id, "reference": {"type": "string"}})),
        action("payout_reject", &["payout", "reason"], json!({
            "payout": id, "reason": {"enum": ["unknown_payee", "returned", "compliance", "withdrawn"]},
        })),
        action("bond", &["amount_micro"], json!({"amount_micro": amount, "once": once})),
        action("unbond", &["amount_micro"], json!({"amount_micro": amount, "once": once})),
        action("transfer", &["to", "amount_micro"], json!({"to": id, "amount_micro": amount, "once": once})),
    ]})
}

/// The fields of a key's or a project's terms, as [`super::terms::Terms`] reads them.
fn terms() -> Value {
    let limit = json!({"type": ["integer", "null"], "minimum": 0});
    let rate = json!({"type": ["integer", "null"], "minimum": 1, "maximum": PER_MINUTE_MAX});
    let count = json!({"type": "integer", "minimum": 0});
    let names = json!({"type": "array", "items": {"type": "string"}});
    json!({
        "name": {"type": "string", "minLength": 1, "maxLength": NAME_BYTES_MAX},
        "budget_micro": limit, "budget_day_micro": limit, "budget_week_micro": limit, "budget_month_micro": limit,
        "requests_per_minute": rate, "tokens_per_minute": rate,
        "concurrency": {"type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX},
        "expires_ms": limit,
        "blocked": {"type": ["boolean", "null"]},
        "project": {"type": ["string", "null"]},
        "prefer": {"enum": ["own_first", "own", "any"]},
        "models": {
            "type": ["array", "null"], "minItems": 1, "maxItems": MODELS_MAX,
            "items": {"type": "string", "minLength": 1, "maxLength": 256},
        },
        "providers_only": names, "providers_order": names,
        "price_max": {"type": ["object", "null"], "properties": {"input": count, "cached": count, "output": count}},
        "target_ms": {"type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX},
        "cache_s": {"type": ["integer", "null"], "minimum": 1, "maximum": CACHE_S_MAX},
        "cache_similar": {"type": ["number", "null"], "minimum": SIMILAR_MIN, "maximum": 1},
        "policy": {"type": ["string", "null"], "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9._-]+$"},
        "labels": {"type": "object", "maxProperties": LABELS_MAX, "additionalProperties": {"type": "string"}},
    })
}

fn schemas() -> Value {
    let text = json!({"type": "string"});
    let model = json!({"type": "string", "minLength": 1, "maxLength": 256});
    let count = json!({"type": "integer", "minimum": 0});
    let texts = json!({"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1}]});
    let messages = json!({"type": "array", "minItems": 1, "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string"},
            "content": {"type": ["string", "array", "null"], "items": {"type": "object"}},
        },
    }});
    let tokens = json!({"type": ["integer", "null"], "minimum": 1});
    let stream = json!({"type": ["boolean", "null"]});
    json!({
        "Object": {"type": "object"},
        "Error": shape(&["error"], json!({"error": shape(&["message", "type", "param", "code"], json!({
            "message": text, "type": text, "param": {"type": ["string", "null"]}, "code": text,
        }))})),
        "MessagesError": shape(&["type", "error"], json!({"type": {"const": "error"}, "error": shape(
            &["type", "message"],
            json!({"type": text, "message": text, "code": text, "param": {"type": ["string", "null"]}}),
        )})),
        "Model": shape(&["id", "object"], json!({"id": text, "object": {"const": "model"}})),
        "ModelList": shape(&["object", "data"], json!({
            "object": {"const": "list"}, "data": {"type": "array", "items": reference("Model")},
        })),
        "TokenCount": shape(&["input_tokens"], json!({"input_tokens": count})),
        "Terms": closed(&["name"], terms()),
        "TermsChange": closed(&[], terms()),
        "Rotation": closed(&[], json!({"overlap_s": {"type": "integer", "minimum": 0, "maximum": OVERLAP_S_MAX}})),
        "ProvisionedKey": closed(&["name"], provisioned_key()),
        "ProvisionedKeyChange": closed(&[], provisioned_key()),
        "GeneratedKey": closed(&[], generated_key(false)),
        "GeneratedKeyChange": closed(&["key"], generated_key(true)),
        "OneKey": shape(&["key"], json!({"key": named_key()})),
        "SomeKeys": shape(&["keys"], json!({"keys": {"type": "array", "items": named_key()}})),
        "CreatedKey": shape(&["id", "secret"], json!({"id": text, "secret": text})),
        "Mint": closed(&["to", "amount_micro", "reference"], json!({
            "to": hex_id(), "amount_micro": count,
            "reference": {"type": "string", "pattern": "^[!-~]{1,64}$"},
        })),
        "Entry": entry(),
        "ChatRequest": shape(&["model", "messages"], json!({
            "model": model, "messages": messages, "stream": stream, "max_tokens": tokens,
            "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        })),
        "CompletionRequest": shape(&["model", "prompt"], json!({"model": model, "prompt": texts, "stream": stream})),
        "EmbeddingRequest": shape(&["model", "input"], json!({"model": model, "input": texts})),
        "ResponseRequest": shape(&["model", "input"], json!({
            "model": model, "input": texts, "stream": stream, "max_output_tokens": tokens,
        })),
        "MessageRequest": shape(&["model", "messages"], json!({
            "model": model, "messages": messages, "stream": stream, "max_tokens": {"type": "integer", "minimum": 1},
        })),
        "RerankRequest": shape(&["model", "query", "documents"], json!({
            "model": model, "query": {"type": "string", "minLength": 1}, "documents": {"type": "array", "minItems": 1},
        })),
        "ImageRequest": shape(&["model", "prompt"], json!({
            "model": model, "prompt": {"type": "string", "minLength": 1},
            "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 10},
        })),
        "TranscriptionRequest": shape(&["model", "file"], json!({
            "model": model, "file": {"type": "string", "format": "binary"},
        })),
        "SpeechRequest": shape(&["model", "input"], json!({"model": model, "input": {"type": "string", "minLength": 1}})),
        "ModerationRequest": shape(&["input"], json!({"model": model, "input": texts})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::terms::Terms;
    use std::collections::BTreeSet;

    /// Every `$ref` in a value.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "$ref" {
                        found.extend(value.as_str().map(str::to_owned));
                    }
                    references(value, found);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn the_terms_described_are_the_terms_read() {
        let fields = terms();
        let described: BTreeSet<_> = fields.as_object().expect("fields").keys().map(String::as_str).collect();
        // The refusal of a field that is none lists those that are.
        let refusal = Terms::read(json!({"name": "a", "nothing": 1})).expect_err("an unknown field");
        let read: BTreeSet<_> = refusal.message.split('`').skip(3).step_by(2).collect();
        assert_eq!(described, read);
    }

    #[test]
    fn the_description_refers_to_itself_and_names_each_operation_once() {
        let description = description();
        let mut found = BTreeSet::new();
        references(&description, &mut found);
        for path in &found {
            let pointer = path.strip_prefix('#').expect("within");
            assert!(description.pointer(pointer).is_some(), "{path}");
        }
        let paths = description["paths"].as_object().expect("paths");
        let operations = paths.values().flat_map(|path| path.as_object().expect("methods").values());
        let ids: Vec<_> = operations.map(|operation| operation["operationId"].as_str().expect("an id")).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
