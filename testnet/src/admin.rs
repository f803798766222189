//! Talks to a running node's admin API, with the token in its folder.
//! Invariant: only who can read the folder can ask.

use crate::client::{checked, decoded, http};
use crate::process::Ready;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use spillway_ledger::CertifiedBlock;
use std::path::{Path, PathBuf};

/// The file that a running node keeps its ready line in.
pub const RUN_FILE: &str = "run.json";
/// The file with the admin API's token.
pub const TOKEN_FILE: &str = "admin.token";

/// A client of the admin API of one node.
#[derive(Clone, Debug)]
pub struct Admin {
    http: reqwest::Client,
    ready: Ready,
    origin: String,
    token: String,
}

impl Admin {
    /// Of the node that runs in `folder`.
    ///
    /// # Errors
    /// If none runs there, or it has no gateway and so no admin API.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let ready = running(folder)?;
        let base_url = ready.base_url.clone().with_context(|| {
            format!(
                "the node in {} has no [gateway], and so no admin API; add one to its spillway.toml",
                folder.display()
            )
        })?;
        let path = folder.join(TOKEN_FILE);
        let token = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let origin = base_url.trim_end_matches('/').trim_end_matches("/v1").into();
        Ok(Self { http: http()?, ready, origin, token: token.trim().into() })
    }

    /// What the node said when it was ready.
    #[must_use]
    pub const fn ready(&self) -> &Ready {
        &self.ready
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Result<reqwest::Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.origin)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.with_context(|| format!("the node at {} does not answer", self.origin))?;
        checked(response).await.with_context(|| format!("{path} at {}", self.origin))
    }

    /// Reads `path`, such as `/admin/status`.
    ///
    /// # Errors
    /// If the node does not answer or refuses.
    pub async fn get(&self, path: &str) -> Result<Value> {
        decoded(self.call(reqwest::Method::GET, path, None).await?).await
    }

    /// Posts `body` to `path`.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        decoded(self.call(reqwest::Method::POST, path, Some(body)).await?).await
    }

    /// Changes what `path` names by the fields of `body`.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value> {
        decoded(self.call(reqwest::Method::PATCH, path, Some(body)).await?).await
    }

    /// Deletes what `path` names.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.call(reqwest::Method::DELETE, path, None).await.map(drop)
    }

    /// Reads `path`, where it gives bytes that are no JSON.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub async fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        let response = self.call(reqwest::Method::GET, path, None).await?;
        Ok(response.bytes().await.context("the answer broke off")?.to_vec())
    }

    /// Every block of the node's books, in order.
    ///
    /// # Errors
    /// As [`Admin::get`], and bytes that are no blocks.
    pub async fn blocks(&self) -> Result<Vec<CertifiedBlock>> {
        let mut blocks: Vec<CertifiedBlock> = Vec::new();
        loop {
            let from = blocks.last().map_or(0, |block| block.block.header.height + 1);
            let response = self.call(reqwest::Method::GET, &format!("/admin/ledger/blocks?from={from}"), None).await?;
            let bytes = response.bytes().await.context("the blocks broke off")?;
            let mut rest: &[u8] = &bytes;
            if rest.is_empty() {
                return Ok(blocks);
            }
            while let Some((length, after)) = rest.split_first_chunk::<4>() {
                let length = u32::from_le_bytes(*length) as usize;
                let Some((block, after)) = after.split_at_checked(length) else { bail!("a block is cut short") };
                let block = CertifiedBlock::from_bytes(block).context("not a block")?;
                if blocks.last().is_some_and(|last| block.block.header.height <= last.block.header.height) {
                    bail!("the node sent the block of height {} twice", block.block.header.height);
                }
                blocks.push(block);
                rest = after;
            }
            if !rest.is_empty() {
                bail!("a block is cut short");
            }
        }
    }
}

/// What the node that runs in `folder` said when it was ready.
///
/// # Errors
/// If none runs there.
pub fn running(folder: &Path) -> Result<Ready> {
    let path: PathBuf = folder.join(RUN_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "no node runs in {}; start one there with `spillway up`, or name its folder with --folder",
                folder.display()
            )
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}
