//! Waiting for what has to become true.

use anyhow::bail;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Asks again and again until there is a value. `None` is not yet; so is an error, until time is up.
///
/// # Errors
/// Time is up: with what was waited for, and the last error.
pub async fn until<T, F>(what: &str, limit: Duration, mut ask: F) -> anyhow::Result<T>
where
    F: AsyncFnMut() -> anyhow::Result<Option<T>>,
{
    let end = Instant::now() + limit;
    loop {
        let last = match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            match last {
                Some(error) => return Err(error.context(format!("not within {limit:?}: {what}"))),
                None => bail!("not within {limit:?}: {what}"),
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
}
