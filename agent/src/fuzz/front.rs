//! What clients send to a gateway, and anybody to a port that speaks HTTP.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::engine::Echo;
use super::{is_let_go, run};
use crate::gateway::{Gateway, GenerationDefaults, ServedModel, Silent, Timeouts, router, serve_stream};
use crate::model::{Model, ModelOptions};
use crate::node::ModelText;
use crate::sampling::{GrammarCompiler, GrammarLimits};
use crate::table::FileSource;
use crate::transport::Pages;

/// Paths that take a body; the first byte of an input chooses.
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

static MODEL: LazyLock<Model> =
    LazyLock::new(|| Model::open(None, ModelOptions::default()).expect("the bundled model"));

/// The bundled model's own tokenizer, template and grammars.
static FRONT: LazyLock<Router> = LazyLock::new(|| {
    let model = &*MODEL;
    let served = ServedModel {
        names: vec!["tiny".into()],
        context: model.spec.max_positions,
        vocab: model.spec.vocab,
        eos: model.generation.eos.clone(),
        defaults: GenerationDefaults::default(),
        created: 17,
    };
    let engine = Arc::new(Echo { vocab: model.spec.vocab });
    let file = model.files.read("tokenizer.json").ok().flatten().expect("a tokenizer");
    let tokenizer: Value = serde_json::from_slice(&file).expect("JSON");
    let (vocab, eos) = (model.spec.vocab, &model.generation.eos);
    let grammars = GrammarCompiler::from_tokenizer_json(&tokenizer, vocab, eos, GrammarLimits::default());
    let grammars = Some(Arc::new(grammars.expect("a tokenizer that grammars can use")));
    let text = Arc::new(ModelText::new(model));
    router(Arc::new(Gateway::new(engine, text, served, grammars, Arc::new(Silent))))
});

/// A compiler for a model whose tokens are bytes.
pub(super) fn bytes_compiler() -> Arc<GrammarCompiler> {
    let words = (0..=255u8).map(|byte| vec![byte]).chain([b"\xff<end>".to_vec()]).collect();
    let compiler = GrammarCompiler::new(words, 257, &[256], GrammarLimits::default());
    Arc::new(compiler.expect("a vocabulary of bytes"))
}

/// Every body gets an answer that a client can read, and none is our fault.
pub(super) fn requests(data: &[u8]) {
    let Some((path, body)) = data.split_first() else { return };
    let request = Request::post(PATHS[usize::from(*path) % PATHS.len()])
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_vec()))
        .expect("a request");
    run(async {
        let response = FRONT.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = response.status();
        let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
        let text = std::str::from_utf8(&body).expect("an answer in UTF-8");
        assert!(!status.is_server_error(), "{status} {text}");
        if status != StatusCode::OK {
            let error: Value = serde_json::from_str(text).expect("an error in JSON");
            assert!(error["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{text}");
        } else if !text.starts_with("data:") {
            let answer: Value = serde_json::from_str(text).expect("an answer in JSON");
            assert!(answer.is_object());
        }
    });
}

/// The first byte says which port it is, and whether the connection is closed behind the rest.
pub(super) fn http(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let closes = how & 2 == 0;
    run(is_let_go(bytes, closes, async |stream| {
        if how & 1 == 0 {
            serve_stream(FRONT.clone(), Timeouts::default(), bytes, stream).await;
        } else {
            crate::transport::fuzz::serve_pages(pages().await, stream).await;
        }
    }));
}

/// The pages of a worker whose table nobody else writes.
async fn pages() -> Arc<Pages> {
    static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = std::env::temp_dir().join(format!("sluice-fuzz-{}.yaml", std::process::id()));
        std::fs::write(&path, super::seeds::TABLE).expect("a file");
        path
    });
    let source = FileSource::open(&FILE).await.expect("a table");
    Arc::new(Pages { source: Arc::new(source), pressure: Arc::new(|| serde_json::json!({})) })
}
