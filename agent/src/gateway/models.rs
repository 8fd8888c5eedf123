//! `GET /v1/models` and `GET /v1/models/{name}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::config::ServedModel;
use super::error::ApiError;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    max_model_len: usize,
}

fn describe<'a>(model: &'a ServedModel, name: &'a str) -> Model<'a> {
    Model {
        id: name,
        object: "model",
        created: model.created,
        owned_by: "sluice",
        root: model.name(),
        max_model_len: model.context,
    }
}

/// All names.
pub(super) fn list(model: &ServedModel) -> Response {
    let data = model.names.iter().map(|name| describe(model, name)).collect();
    Json(List { object: "list", data }).into_response()
}

/// One of them.
pub(super) fn one(model: &ServedModel, name: &str) -> Result<Response, ApiError> {
    match model.names.iter().find(|known| *known == name) {
        Some(name) => Ok(Json(describe(model, name)).into_response()),
        None => Err(ApiError::model(name)),
    }
}
