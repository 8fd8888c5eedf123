//! As much of llguidance's dialect of Lark as bounds what compiling a grammar takes.

use serde_json::{Deserializer, Value};

/// The outline of a grammar.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Outline {
    /// Its definitions and opening brackets. A compiler enters each once at most before it returns, so it stands in no
    /// more than these at one time, however they refer to each other.
    pub(super) levels: usize,
    /// The JSON schemas in it.
    pub(super) schemas: Vec<Value>,
}

/// Text that is no grammar: where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} in line {line}")]
pub(super) struct NoLark {
    why: &'static str,
    line: usize,
}

impl Outline {
    /// Reads a grammar. What is no part of the outline is not checked.
    pub(super) fn read(text: &str) -> Result<Self, NoLark> {
        let mut outline = Self::default();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = match first {
                ':' | '(' | '[' | '{' => {
                    outline.levels += 1;
                    Ok(1)
                }
                '#' => Ok(line(rest)),
                '/' if rest[1..].starts_with('/') => Ok(line(rest)),
                '/' => closed(rest, '/').ok_or("a regular expression that does not end"),
                '"' => closed(rest, '"').ok_or("a text that does not end"),
                // A special token may hold any of the above.
                '<' => rest.find('>').map(|end| end + 1).ok_or("a special token that does not end"),
                '%' => outline.directive(rest),
                other => Ok(other.len_utf8()),
            };
            let at = text.len() - rest.len();
            let length = length.map_err(|why| NoLark { why, line: text[..at].lines().count().max(1) })?;
            rest = &rest[length..];
        }
        Ok(outline)
    }

    /// Those that are followed by JSON, whose strings and brackets are none of the grammar's.
    fn directive(&mut self, rest: &str) -> Result<usize, &'static str> {
        let words = ["%json", "%regex", "%llguidance"];
        let Some(word) = words.into_iter().find(|word| rest.starts_with(word)) else { return Ok(1) };
        let mut values = Deserializer::from_str(&rest[word.len()..]).into_iter();
        let Some(Ok(value)) = values.next() else { return Err("%json, %regex or %llguidance without JSON") };
        if word == "%json" {
            self.schemas.push(value);
        }
        Ok(word.len() + values.byte_offset())
    }
}

fn line(rest: &str) -> usize {
    rest.find('\n').unwrap_or(rest.len())
}

/// The length of what is enclosed in `mark`, a backslash escaping the next character.
fn closed(rest: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    rest.char_indices().skip(1).find_map(|(at, c)| {
        let end = c == mark && !escaped;
        escaped = c == '\\' && !escaped;
        end.then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn levels(text: &str) -> usize {
        Outline::read(text).unwrap().levels
    }

    #[test]
    fn definitions_and_brackets_are_levels_and_what_is_quoted_is_not() {
        assert_eq!(levels("start: (a | [B])*\na: \"x\"\nB: /y/"), 5);
        assert_eq!(levels("start: \"(:\\\"(\" /(:\\/[/ <|(:|> // (:\n"), 1);
        assert_eq!(levels("start: \"a\" # (:\"\nb: \"#\" (\"c\")"), 3);
        assert_eq!(levels("start: \"\\\\\" (a) \"\" (b) //\n"), 3);
        assert_eq!(levels("start: %llguidance {\"a\": [{\":\": 1}]} a{b}"), 2);
    }

    #[test]
    fn schemas_are_found_with_their_ends() {
        let grammar =
            "start: a %json {\n\"a}\\\"\": [1]} (b)\na: %json true %regex {\"substring_chars\": \"%json [\"}";
        let outline = Outline::read(grammar).unwrap();
        assert_eq!(outline, Outline { levels: 3, schemas: vec![json!({"a}\"": [1]}), json!(true)] });
        // Neither in a text nor in a comment is it a directive: nothing can be hidden behind one.
        assert_eq!(levels("start: \"%json {\" x -> y z: w \":1}\""), 2);
        assert_eq!(levels("start: // %json [\n( a ) // ]"), 2);
    }

    #[test]
    fn what_does_not_end_is_named() {
        for (text, said) in [
            ("start: a\nb: \"c", "a text that does not end in line 2"),
            ("start: /a\\/", "a regular expression that does not end in line 1"),
            ("start: <a", "a special token that does not end in line 1"),
            ("\n\nstart: %json {", "%json, %regex or %llguidance without JSON in line 3"),
        ] {
            assert_eq!(Outline::read(text).unwrap_err().to_string(), said);
        }
    }
}
