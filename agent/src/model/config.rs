//! `config.json`, read key by key, each with the default transformers has for it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// What is wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such file.
    #[error("{} does not exist; a model directory in Hugging Face form has one", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is not a JSON object.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A key has a value that cannot be used.
    #[error("{}: `{key}` is {found}; expected {expected}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key, with dots into nested objects.
        key: String,
        /// The value as it stands.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// Something that exists but is not implemented here.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What, by name.
        what: String,
    },
    /// An architecture without an implementation here.
    #[error("{}: the architecture {name} is not supported; supported are {supported}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        name: String,
        /// Those that are.
        supported: String,
    },
}

/// An object in `config.json`, or one nested in it.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    /// Keys that lead here, each with a dot behind it.
    prefix: String,
    object: Map<String, Value>,
}

impl Config {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`ConfigError::Json`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let reason = match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => {
                return Ok(Self { path: path.to_owned(), prefix: String::new(), object });
            }
            Ok(_) => "expected a JSON object".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(ConfigError::Json { path: path.to_owned(), reason })
    }

    /// The value of a key; absent and `null` are the same.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there, be it `null`.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// A nested object.
    ///
    /// # Errors
    /// The value is no object.
    pub fn object(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self {
                path: self.path.clone(),
                prefix: format!("{}{key}.", self.prefix),
                object: object.clone(),
            })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// Whether a key of this object is an object itself.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        self.object.values().any(Value::is_object)
    }

    /// A whole number of at least zero; `4096.0` counts.
    ///
    /// # Errors
    /// The value is something else.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(key, "a whole number, zero or more", whole)
    }

    /// A finite number.
    ///
    /// # Errors
    /// The value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A truth value.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// The value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string")),
        }
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// The value is something else.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.typed(key, "a list of whole numbers", |value| value.as_array()?.iter().map(whole).collect())
    }

    /// A list of finite numbers.
    ///
    /// # Errors
    /// The value is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ConfigError> {
        self.typed(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(|number| number.as_f64().filter(|n| n.is_finite())).collect()
        })
    }

    /// A list of strings.
    ///
    /// # Errors
    /// The value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.typed(key, "a list of strings", |value| {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        })
    }

    /// An error about a key's value.
    #[must_use]
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let found = self.object.get(key).map_or_else(|| "absent".to_owned(), brief);
        ConfigError::Key {
            path: self.path.clone(),
            key: format!("{}{key}", self.prefix),
            found,
            expected: expected.into(),
        }
    }

    /// An error about something that is not implemented.
    #[must_use]
    pub fn unsupported(&self, what: impl Into<String>) -> ConfigError {
        ConfigError::Unsupported { path: self.path.clone(), what: what.into() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.wrong(key, expected)),
        }
    }
}

fn whole(value: &Value) -> Option<usize> {
    /// The largest whole number up to which an f64 holds every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = value.as_u64() {
        return usize::try_from(number).ok();
    }
    let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=EXACT).contains(number))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Some(number as usize)
}

/// A value for a message, cut where it gets long.
fn brief(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        Config::parse(Path::new("m/config.json"), json.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_in_the_forms_that_occur() {
        let config = config(
            r#"{"a": 4096.0, "b": 1e6, "c": null, "d": -1, "e": 0.5, "f": [0, 3], "g": 1e300, "h": "8"}"#,
        );
        assert_eq!(config.count("a").unwrap(), Some(4096));
        assert_eq!(config.number("b").unwrap(), Some(1e6));
        assert_eq!(config.count("b").unwrap(), Some(1_000_000));
        assert_eq!(config.count("c").unwrap(), None);
        assert_eq!(config.count("absent").unwrap(), None);
        assert_eq!(config.counts("f").unwrap(), Some(vec![0, 3]));
        for key in ["d", "e", "g", "h"] {
            assert!(matches!(config.count(key), Err(ConfigError::Key { .. })), "{key}");
        }
    }

    #[test]
    fn an_error_names_the_file_the_key_and_the_value() {
        let outer = config(r#"{"rope_scaling": {"factor": "four"}}"#);
        let error = outer.object("rope_scaling").unwrap().unwrap().number("factor").unwrap_err();
        assert_eq!(error.to_string(), "m/config.json: `rope_scaling.factor` is \"four\"; expected a number");
        let long = config(&format!(r#"{{"a": "{}"}}"#, "é".repeat(1000)));
        assert!(long.count("a").unwrap_err().to_string().len() < 250);
    }

    #[test]
    fn not_an_object() {
        for json in ["", "[]", "3", "{", "{\"a\": NaN}", "\u{feff}{}"] {
            assert!(matches!(
                Config::parse(Path::new("config.json"), json.as_bytes()),
                Err(ConfigError::Json { .. })
            ));
        }
    }
}
