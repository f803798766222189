//! Waiting for a condition of other processes.
//! Invariant: a wait ends, and one that ends in vain says what was last seen.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until there is something to see, at most `wait`. An error counts as not yet: it may pass, as while a node starts.
///
/// # Errors
/// If nothing was seen in time: `what`, with the last error.
pub async fn until<T>(what: &str, wait: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        let seen = look().await;
        match seen {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if begun.elapsed() >= wait => bail!("{what}: not within {} s", wait.as_secs()),
            Err(error) if begun.elapsed() >= wait => {
                return Err(error.context(format!("{what}: not within {} s", wait.as_secs())));
            }
            Ok(None) | Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
