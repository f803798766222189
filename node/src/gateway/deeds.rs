//! The operator's actions, each with its line in the audit log: the one way from every dialect's routes to what they change.
//! Invariant: nothing here changes anything but through [`AuditLog::act`](crate::audit::AuditLog::act), and no secret is told to it.

use super::desk::{Done as Entered, Mint, Wish};
use super::error::ApiError;
use super::holder::Holder;
use super::keys::{KeyId, View};
use super::server::CameFrom;
use super::{Gateway, Terms};
use crate::audit::{Deed, Done, Who, changes};
use axum::http::{Extensions, HeaderMap, header};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

/// Whoever showed the admin token.
pub(super) fn who(headers: &HeaderMap, extensions: &Extensions) -> Who {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).map(str::to_owned);
    let from = extensions.get::<CameFrom>().map(|from| from.0.to_string());
    Who { with: "admin".into(), from, agent }
}

/// A key or project as the log has it: its terms, not what it used.
fn terms_of(view: &View) -> Value {
    let mut told = json!(view);
    if let Value::Object(fields) = &mut told {
        fields.retain(|name, _| !name.starts_with("spent_") && !matches!(name.as_str(), "reserved_micro" | "running"));
    }
    told
}

/// Makes a key.
pub(super) async fn create_key(
    gateway: &Gateway,
    who: Who,
    terms: Terms,
) -> Result<(View, Zeroizing<String>), ApiError> {
    let keys = gateway.0.keys.clone();
    let work = async move {
        let (view, secret) = keys.create(terms).await?;
        let (what, after) = (Some(format!("key {}", view.id)), terms_of(&view));
        Ok(Done { value: (view, secret), what, before: Value::Null, after })
    };
    gateway.0.audit.act(Deed { who, action: "key.create", what: String::new() }, work).await
}

/// Makes a project.
pub(super) async fn create_project(gateway: &Gateway, who: Who, terms: Terms) -> Result<View, ApiError> {
    let keys = gateway.0.keys.clone();
    let work = async move {
        let view = keys.create_project(terms).await?;
        let (what, after) = (Some(format!("project {}", view.id)), terms_of(&view));
        Ok(Done { value: view, what, before: Value::Null, after })
    };
    gateway.0.audit.act(Deed { who, action: "project.create", what: String::new() }, work).await
}

/// Changes a key or a project.
pub(super) async fn update(
    gateway: &Gateway,
    who: Who,
    holder: Holder,
    patch: Map<String, Value>,
) -> Result<View, ApiError> {
    let keys = gateway.0.keys.clone();
    let work = async move {
        let old = terms_of(&keys.view(holder).await?);
        let view = keys.update(holder, patch).await?;
        let (before, after) = changes(&old, &terms_of(&view));
        Ok(Done { value: view, what: None, before, after })
    };
    let action = match holder {
        Holder::Key(_) => "key.update",
        Holder::Project(_) => "project.update",
    };
    gateway.0.audit.act(Deed { who, action, what: holder.to_string() }, work).await
}

/// Gives a key a new secret.
pub(super) async fn rotate(
    gateway: &Gateway,
    who: Who,
    id: KeyId,
    overlap_s: u64,
) -> Result<(View, Zeroizing<String>), ApiError> {
    let keys = gateway.0.keys.clone();
    let work = async move {
        let (view, secret) = keys.rotate(id, overlap_s).await?;
        let after = json!({"overlap_s": overlap_s, "previous_until_ms": view.previous_until_ms});
        Ok(Done { value: (view, secret), what: None, before: Value::Null, after })
    };
    let what = Holder::Key(id).to_string();
    gateway.0.audit.act(Deed { who, action: "key.rotate", what }, work).await
}

/// Voids a key.
pub(super) async fn revoke(gateway: &Gateway, who: Who, id: KeyId) -> Result<(), ApiError> {
    let keys = gateway.0.keys.clone();
    let work = async move {
        let old = terms_of(&keys.view(Holder::Key(id)).await?);
        keys.revoke(id).await?;
        let (before, after) = changes(&old, &terms_of(&keys.view(Holder::Key(id)).await?));
        Ok(Done { value: (), what: None, before, after })
    };
    let what = Holder::Key(id).to_string();
    gateway.0.audit.act(Deed { who, action: "key.revoke", what }, work).await
}

/// Puts an entry of the node's account on the ledger.
pub(super) async fn submit(gateway: &Gateway, who: Who, wish: Wish) -> Result<Entered, ApiError> {
    let desk = gateway.0.desk.clone();
    let asked = json!(wish);
    let what = asked.get("action").and_then(Value::as_str).unwrap_or_default().to_owned();
    let work = async move {
        let entered = desk.submit(wish).await?;
        let after = json!({"entry": asked, "height": entered.height, "payout": entered.payout});
        Ok(Done { value: entered, what: None, before: Value::Null, after })
    };
    gateway.0.audit.act(Deed { who, action: "ledger.entry", what }, work).await
}

/// Makes credits.
pub(super) async fn mint(gateway: &Gateway, who: Who, mint: Mint) -> Result<u64, ApiError> {
    let desk = gateway.0.desk.clone();
    let (asked, what) = (json!(mint), format!("account {}", mint.to));
    let work = async move {
        let height = desk.mint(mint).await?;
        Ok(Done { value: height, what: None, before: Value::Null, after: json!({"mint": asked, "height": height}) })
    };
    gateway.0.audit.act(Deed { who, action: "ledger.mint", what }, work).await
}
