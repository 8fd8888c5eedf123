//! Python's `json.dumps`, to the character: models were trained on what it writes.

use std::fmt::Write as _;

use serde_json::{Number, Value};

/// The options of `dumps`, with transformers' defaults.
pub struct Style {
    /// Escape all that is not ASCII.
    pub ascii: bool,
    /// Keys in order.
    pub sort: bool,
    /// Line breaks, and this for each level.
    pub indent: Option<String>,
    /// Between items.
    pub item: String,
    /// Behind a key.
    pub key: String,
}

impl Default for Style {
    fn default() -> Self {
        Self { ascii: false, sort: false, indent: None, item: ", ".to_owned(), key: ": ".to_owned() }
    }
}

impl Style {
    /// A value as text.
    pub fn dumps(&self, value: &Value) -> String {
        let mut text = String::new();
        self.write(value, 0, &mut text);
        text
    }

    fn write(&self, value: &Value, depth: usize, text: &mut String) {
        match value {
            Value::Null => text.push_str("null"),
            Value::Bool(true) => text.push_str("true"),
            Value::Bool(false) => text.push_str("false"),
            Value::Number(number) => text.push_str(&python_number(number)),
            Value::String(string) => self.string(string, text),
            Value::Array(items) => {
                self.list(['[', ']'], items, depth, text, |item, text| self.write(item, depth + 1, text));
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.list(['{', '}'], &entries, depth, text, |(key, value), text| {
                    self.string(key, text);
                    text.push_str(&self.key);
                    self.write(value, depth + 1, text);
                });
            }
        }
    }

    fn list<T>(
        &self,
        [open, close]: [char; 2],
        items: &[T],
        depth: usize,
        text: &mut String,
        write: impl Fn(&T, &mut String),
    ) {
        let line = |depth: usize, text: &mut String| {
            if let Some(indent) = &self.indent {
                text.push('\n');
                text.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        text.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                text.push_str(&self.item);
            }
            line(depth + 1, text);
            write(item, text);
        }
        if !items.is_empty() {
            line(depth, text);
        }
        text.push(close);
    }

    fn string(&self, string: &str, text: &mut String) {
        text.push('"');
        for character in string.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                character if character < ' ' || (self.ascii && !(' '..='~').contains(&character)) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        // Writing to a String does not fail.
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
                character => text.push(character),
            }
        }
        text.push('"');
    }
}

/// Python's `repr` of a number: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16.
fn python_number(number: &Number) -> String {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_as_python_writes_them() {
        for (number, expected) in [
            (json!(1), "1"),
            (json!(-7), "-7"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(1.0), "1.0"),
            (json!(-0.0), "-0.0"),
            (json!(0.1), "0.1"),
            (json!(1e-4), "0.0001"),
            (json!(1e-5), "1e-05"),
            (json!(1.5e-7), "1.5e-07"),
            (json!(123_456_789.125), "123456789.125"),
            (json!(1e15), "1000000000000000.0"),
            (json!(1e16), "1e+16"),
            (json!(1.25e100), "1.25e+100"),
            (json!(1e22), "1e+22"),
        ] {
            assert_eq!(Style::default().dumps(&number), expected);
        }
    }

    #[test]
    fn texts_lists_and_options() {
        let value = json!({"b": ["<é>", "\u{1}\n\"\\/", "🙂"], "a": {}, "c": []});
        assert_eq!(
            Style::default().dumps(&value),
            r#"{"b": ["<é>", "\u0001\n\"\\/", "🙂"], "a": {}, "c": []}"#
        );
        let ascii = Style { ascii: true, sort: true, item: ",".into(), key: ":".into(), indent: None };
        assert_eq!(ascii.dumps(&value), r#"{"a":{},"b":["<\u00e9>","\u0001\n\"\\/","\ud83d\ude42"],"c":[]}"#);
        let indented = Style { indent: Some("  ".into()), item: ",".into(), ..Style::default() };
        assert_eq!(
            indented.dumps(&json!({"a": [1, {"b": null}]})),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": null\n    }\n  ]\n}"
        );
    }
}
