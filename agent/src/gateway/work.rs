//! What a request takes before it runs: away from the threads that serve sockets, within its deadline.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::body::Read;
use super::error::ApiError;
use super::generate::Gateway;
use super::text::TextModel;

/// A request that is being prepared. Work cannot be broken off, so what a client that left had in use stays in use
/// until its work is over: work has a clone of this.
#[derive(Clone, Debug)]
pub(super) struct Preparation {
    /// The request's place among all requests.
    _place: Arc<OwnedSemaphorePermit>,
    _read: Arc<Read>,
    deadline: Instant,
}

impl Preparation {
    pub(super) fn new(place: Arc<OwnedSemaphorePermit>, read: Read, deadline: Instant) -> Self {
        Self { _place: place, _read: Arc::new(read), deadline }
    }
}

impl Gateway {
    /// Runs what takes a processor; there are only so many at one time.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        preparation: &Preparation,
        job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let held = preparation.clone();
        let done = async {
            let permit = Arc::clone(&self.work)
                .acquire_owned()
                .await
                .map_err(|_| ApiError::internal("the gateway is gone"))?;
            tokio::task::spawn_blocking(move || {
                let _in_use = (permit, held);
                job()
            })
            .await
            .map_err(|error| ApiError::internal(format!("the request could not be prepared: {error}")))?
        };
        timeout_at(preparation.deadline, done).await.unwrap_or_else(|_| Err(ApiError::deadline()))
    }

    /// Renders, encodes or decodes everything of one request; if that is short, on the thread that asks. `size` is its
    /// bytes or tokens.
    pub(super) async fn with_text<T: Send + 'static>(
        &self,
        preparation: &Preparation,
        size: usize,
        job: impl FnOnce(&dyn TextModel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        const SHORT: usize = 4096;
        if size <= SHORT {
            return job(&*self.text);
        }
        let model = self.text.clone();
        self.work(preparation, move || job(&*model)).await
    }
}
