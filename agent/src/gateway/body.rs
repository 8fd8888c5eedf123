//! Bodies: read within a limit and a time, then parsed.

use std::sync::Arc;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::error::ApiError;
use super::generate::Gateway;

/// A body, and the room it takes among all bodies.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Reads a whole body.
pub(super) async fn read(gateway: &Gateway, body: Body) -> Result<Read, ApiError> {
    let limit = gateway.limits.body_bytes;
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::body_too_large(limit));
    }
    let within = gateway.timeouts.body;
    timeout(within, collect(gateway, body, limit)).await.unwrap_or_else(|_| Err(ApiError::slow_body(within)))
}

async fn collect(gateway: &Gateway, mut body: Body, limit: usize) -> Result<Read, ApiError> {
    let take = |kib: usize| {
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        Arc::clone(&gateway.bodies).try_acquire_many_owned(kib).map_err(|_| {
            ApiError::busy("too many large requests at one time", std::time::Duration::from_secs(1))
        })
    };
    let mut room = take(0)?;
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::json(format!("the request's body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::body_too_large(limit));
        }
        bytes.extend_from_slice(&data);
        room.merge(take(bytes.len().div_ceil(1024).saturating_sub(room.num_permits()))?);
    }
    Ok(Read { bytes: bytes.freeze(), _room: room })
}

/// Parses a body; the field that is wrong is named.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() && path != "." {
            ApiError::invalid(path.clone(), format!("{path}: {inner}"))
        } else if inner.is_data() {
            ApiError::invalid("", inner.to_string())
        } else {
            ApiError::json(format!("the request's body is not JSON: {inner}"))
        }
    })?;
    deserializer.end().map_err(|error| ApiError::json(format!("the request's body is not JSON: {error}")))?;
    Ok(value)
}
