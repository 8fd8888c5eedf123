//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sluice_core::front::{Ending, Refused};
use sluice_core::sequence::Abort;

use super::text::TextError;
use crate::sampling::{CompileError, ParamError};

/// A request that cannot be served.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What was wrong and what to do.
    pub message: String,
    /// OpenAI's class.
    pub kind: &'static str,
    /// The field of the request.
    pub param: Option<Cow<'static, str>>,
    /// What a program may match on.
    pub code: Option<&'static str>,
    /// When to come again.
    pub retry_after: Option<Duration>,
}

/// What a client is told, under `error`.
#[derive(Serialize)]
struct Told<'a> {
    error: ToldInner<'a>,
}

#[derive(Serialize)]
struct ToldInner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, message: message.into(), kind, param: None, code, retry_after: None }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let param = Some(param.into()).filter(|param| !param.is_empty());
        Self {
            param,
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message)
        }
    }

    /// 400: the body is not what it should be.
    pub fn json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_json"), message)
    }

    /// 400: what the client wants of the output leaves no token.
    pub fn unsatisfiable(param: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some("constraint_unsatisfiable"), ..Self::invalid(param, message) }
    }

    /// 400: more tokens than the model's context.
    pub fn context(param: &'static str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 401.
    pub fn key(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    /// 404: no such model.
    pub fn model(name: &str) -> Self {
        let message = format!("the model `{name}` does not exist; GET /v1/models lists those there are");
        Self {
            param: Some("model".into()),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message)
        }
    }

    /// 404: no such page.
    pub fn route(method: &str, path: &str) -> Self {
        let message = format!("there is no {method} {path}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    /// 405.
    pub fn method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            Some("method_not_allowed"),
            message,
        )
    }

    /// 408: the body did not come in time.
    pub fn slow_body(limit: Duration) -> Self {
        let message = format!("the request's body did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", Some("request_timeout"), message)
    }

    /// 408: the answer was not taken in time.
    pub fn slow_client() -> Self {
        let message = "the request was given up: its client reads more slowly than tokens come, and too many of them waited";
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", Some("client_too_slow"), message)
    }

    /// 413.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the request's body is over {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 429.
    pub fn busy(message: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            Some("rate_limit_exceeded"),
            message,
        );
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        let error =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("service_unavailable"), message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 504.
    pub fn deadline() -> Self {
        let message = "the request's deadline passed before it was complete";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("deadline_exceeded"), message)
    }

    /// 500: ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), message)
    }

    /// The error of a sequence that did not complete.
    pub fn ending(ending: Ending) -> Self {
        let after = Duration::from_nanos;
        match ending {
            Ending::Refused(refused @ Refused::Busy { retry_after }) => {
                Self::busy(refused.to_string(), after(retry_after))
            }
            Ending::Refused(refused @ Refused::Draining { retry_after }) => {
                Self::unavailable(refused.to_string(), after(retry_after))
            }
            Ending::Refused(refused @ Refused::TooLarge { .. }) => {
                Self::context("max_tokens", refused.to_string())
            }
            Ending::Refused(refused @ Refused::Empty) => Self::invalid("prompt", refused.to_string()),
            Ending::Refused(Refused::Aborted(Abort::Constraint)) => Self::unsatisfiable(
                "",
                "the output could not go on: its grammar, allowed_token_ids and min_tokens together allow no further \
                 token, or the grammar takes too much work to tell",
            ),
            Ending::Refused(refused @ (Refused::Aborted(Abort::Fault) | Refused::Duplicate)) => {
                Self::internal(refused.to_string())
            }
            Ending::Deadline => Self::deadline(),
            Ending::Cut => Self::unavailable(
                "the gateway went down before the request was complete",
                after(1_000_000_000),
            ),
            Ending::Cancelled => Self::internal("the request was cancelled"),
            Ending::Complete(_) => Self::internal("a complete sequence was taken for an error"),
        }
    }

    /// The JSON a client is told.
    pub fn to_json(&self) -> String {
        let error = ToldInner {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        serde_json::to_string(&Told { error }).unwrap_or_default()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ParamError> for ApiError {
    fn from(error: ParamError) -> Self {
        Self::invalid(error.name, error.to_string())
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let param = if matches!(error, TextError::Tokenizer(_)) { "prompt" } else { "messages" };
        Self::invalid(param, error.to_string())
    }
}

impl From<CompileError> for ApiError {
    fn from(error: CompileError) -> Self {
        Self { code: Some("invalid_grammar"), ..Self::invalid("response_format", error.to_string()) }
    }
}
