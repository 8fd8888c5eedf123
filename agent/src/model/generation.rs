//! `generation_config.json`: where a model stops, and how its makers sample it.

use serde::Serialize;

use super::config::{Config, ConfigError};
use super::files::{FileError, ModelFiles};
use super::tokenizer::Tokenizer;

const FILE: &str = "generation_config.json";

/// Sampling of a model where a request says nothing; `None` where its makers say nothing either.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Sampling rather than the likeliest token each time.
    pub do_sample: Option<bool>,
    /// Zero or more.
    pub temperature: Option<f32>,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// The number of tokens; zero means all.
    pub top_k: Option<u32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// More than zero.
    pub repetition_penalty: Option<f32>,
}

/// What is wrong with a `generation_config.json`.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// It could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl GenerationDefaults {
    /// Reads a model's defaults. Without a file of their own, or without an end in it, `config.json` tells where the
    /// model ends, and after that the tokenizer's `eos_token`.
    ///
    /// # Errors
    /// A key has a value that cannot be used.
    pub fn open(files: &ModelFiles, config: &Config, tokenizer: &Tokenizer) -> Result<Self, GenerationError> {
        let own = match files.read(FILE)? {
            Some(bytes) => Some(Config::parse(&files.path(FILE), &bytes)?),
            None => None,
        };
        let mut defaults = own.as_ref().map_or_else(|| Ok(Self::default()), Self::read)?;
        if defaults.eos.is_empty() {
            defaults.eos = ends(config)?;
        }
        if defaults.eos.is_empty()
            && let Some(bytes) = files.read("tokenizer_config.json")?
        {
            let config = Config::parse(&files.path("tokenizer_config.json"), &bytes)?;
            let token = match config.value("eos_token") {
                Some(serde_json::Value::Object(_)) => config
                    .object("eos_token")?
                    .and_then(|token| token.text("content").ok()?.map(str::to_owned)),
                _ => config.text("eos_token")?.map(str::to_owned),
            };
            defaults.eos.extend(token.and_then(|token| tokenizer.id(&token)));
        }
        Ok(defaults)
    }

    fn read(config: &Config) -> Result<Self, ConfigError> {
        let within = |key: &str, fits: fn(f64) -> bool, expected: &str| match config.number(key)? {
            Some(number) if !fits(number) => Err(config.wrong(key, expected)),
            number => Ok(number.map(|number| number as f32)),
        };
        let top_k = match config.number("top_k")? {
            // Some write -1 for all.
            Some(number) if number < 0.0 => Some(0),
            _ => config.count("top_k")?.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        };
        Ok(Self {
            eos: ends(config)?,
            do_sample: config.flag("do_sample")?,
            temperature: within("temperature", |number| number >= 0.0, "zero or more")?,
            top_p: within("top_p", |number| number > 0.0 && number <= 1.0, "in (0, 1]")?,
            top_k,
            min_p: within("min_p", |number| (0.0..=1.0).contains(&number), "in [0, 1]")?,
            repetition_penalty: within("repetition_penalty", |number| number > 0.0, "more than zero")?,
        })
    }
}

/// `eos_token_id`: a token, several, or none; -1 is none.
fn ends(config: &Config) -> Result<Vec<u32>, ConfigError> {
    const KEY: &str = "eos_token_id";
    let ids = match config.value(KEY) {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Array(ids)) => ids.as_slice(),
        Some(id) => std::slice::from_ref(id),
    };
    let mut ends = Vec::new();
    for id in ids {
        match id.as_i64() {
            Some(-1) => {}
            Some(id) => {
                ends.push(u32::try_from(id).map_err(|_| config.wrong(KEY, "a token id or a list of them"))?);
            }
            None => return Err(config.wrong(KEY, "a token id or a list of them")),
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::testing;

    fn open(
        generation: Option<&str>,
        config: &str,
        tokenizer_config: Option<&str>,
    ) -> Result<GenerationDefaults, GenerationError> {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, content: Option<&str>| {
            if let Some(content) = content {
                fs::write(directory.path().join(file), content).unwrap();
            }
        };
        write(FILE, generation);
        write("tokenizer_config.json", tokenizer_config);
        let files = ModelFiles::Directory(directory.path().to_owned());
        let config = Config::parse(&files.path("config.json"), config.as_bytes()).unwrap();
        let tokenizer = Tokenizer::open(&ModelFiles::Directory(testing::tiny_moe())).unwrap();
        GenerationDefaults::open(&files, &config, &tokenizer)
    }

    #[test]
    fn where_a_text_ends() {
        let own = r#"{"eos_token_id": [7, 3, 7]}"#;
        let eos = |generation, config, tokenizer| open(generation, config, tokenizer).unwrap().eos;
        assert_eq!(eos(Some(own), r#"{"eos_token_id": 9}"#, None), [3, 7]);
        assert_eq!(eos(Some("{}"), r#"{"eos_token_id": 9}"#, None), [9]);
        assert_eq!(eos(None, r#"{"eos_token_id": 9}"#, None), [9]);
        assert_eq!(eos(None, r#"{"eos_token_id": -1}"#, Some(r#"{"eos_token": "</s>"}"#)), [2]);
        assert_eq!(eos(None, "{}", Some(r#"{"eos_token": {"content": "<|end|>"}}"#)), [6]);
        assert_eq!(eos(None, "{}", Some(r#"{"eos_token": null}"#)), [0u32; 0]);
        assert_eq!(eos(None, "{}", None), [0u32; 0]);
    }

    #[test]
    fn how_it_is_sampled() {
        let file = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0,
            "repetition_penalty": 1.05, "eos_token_id": [151645, 151643], "transformers_version": "4.51.0"}"#;
        let expected = GenerationDefaults {
            eos: vec![151_643, 151_645],
            do_sample: Some(true),
            temperature: Some(0.6),
            top_p: Some(0.95),
            top_k: Some(20),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
        };
        assert_eq!(open(Some(file), "{}", None).unwrap(), expected);
        assert_eq!(open(Some(r#"{"top_k": -1}"#), "{}", None).unwrap().top_k, Some(0));
        assert_eq!(
            open(Some(r#"{"temperature": null}"#), "{}", None).unwrap(),
            GenerationDefaults::default()
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (key, value) in [
            ("temperature", "-1"),
            ("temperature", "\"hot\""),
            ("top_p", "0"),
            ("top_p", "1.5"),
            ("min_p", "2"),
            ("repetition_penalty", "0"),
            ("eos_token_id", "\"</s>\""),
            ("eos_token_id", "[1, null]"),
            ("eos_token_id", "-7"),
            ("top_k", "0.5"),
        ] {
            let message = open(Some(&format!("{{\"{key}\": {value}}}")), "{}", None).unwrap_err().to_string();
            assert!(message.contains(FILE) && message.contains(key), "{message}");
        }
        assert!(open(Some("{"), "{}", None).is_err());
    }
}
