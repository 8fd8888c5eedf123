//! Stop strings, found across token boundaries: text that may be the start of one is held back.

/// The end of a text that is the start of a pattern: its length in bytes.
pub(super) fn held_back(text: &str, pattern: &str) -> usize {
    let longest = pattern.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&len| pattern.is_char_boundary(len) && text.as_bytes().ends_with(&pattern.as_bytes()[..len]))
        .unwrap_or(0)
}

/// Looks for stop strings in a text that comes in pieces. What it lets through does not depend on the pieces.
#[derive(Debug, Default)]
pub(super) struct Stops {
    strings: Vec<String>,
    /// The stop string itself is let through.
    include: bool,
    held: String,
    found: Option<usize>,
}

impl Stops {
    pub(super) fn new(strings: Vec<String>, include: bool) -> Self {
        Self { strings, include, held: String::new(), found: None }
    }

    /// The text that may be shown now. After a stop string nothing comes any more.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        // The one that ends first; of those the longest.
        let first = self
            .strings
            .iter()
            .enumerate()
            .filter_map(|(i, stop)| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at, i)))
            .min();
        if let Some((end, start, which)) = first {
            self.found = Some(which);
            self.held.truncate(if self.include { end } else { start });
            return std::mem::take(&mut self.held);
        }
        let keep = self.strings.iter().map(|stop| held_back(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Text in which no stop string counts.
    pub(super) fn pass(&mut self, text: &str) -> String {
        std::mem::take(&mut self.held) + text
    }

    /// What was held back, at the end.
    pub(super) fn finish(&mut self) -> String {
        if self.found.is_some() { String::new() } else { std::mem::take(&mut self.held) }
    }

    /// The stop string that was found.
    pub(super) fn found(&self) -> Option<&str> {
        self.found.and_then(|which| self.strings.get(which)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<String>) {
        let mut stops = Stops::new(stops.iter().map(|&stop| stop.to_owned()).collect(), include);
        let mut text: String = pieces.iter().map(|piece| stops.push(piece)).collect();
        text += &stops.finish();
        (text, stops.found().map(str::to_owned))
    }

    #[test]
    fn a_stop_string_over_pieces_is_cut() {
        assert_eq!(run(&["END"], false, &["ab E", "N", "Dc"]), ("ab ".into(), Some("END".into())));
        assert_eq!(run(&["END"], true, &["ab E", "N", "Dc"]), ("ab END".into(), Some("END".into())));
        assert_eq!(run(&["END"], false, &["ab E", "N"]), ("ab EN".into(), None));
        assert_eq!(run(&["aab"], false, &["aa", "ab"]), ("a".into(), Some("aab".into())));
        assert_eq!(run(&["é!"], false, &["caf", "é", "?é", "!"]), ("café?".into(), Some("é!".into())));
    }

    #[test]
    fn the_first_to_end_wins_and_of_those_the_longest() {
        assert_eq!(run(&["bcd", "c"], false, &["abcd"]), ("ab".into(), Some("c".into())));
        assert_eq!(run(&["c", "bc"], false, &["abcd"]), ("a".into(), Some("bc".into())));
    }

    #[test]
    fn nothing_is_held_that_cannot_be_a_stop() {
        let mut stops = Stops::new(vec!["xyz".into()], false);
        assert_eq!(stops.push("abc x"), "abc ");
        assert_eq!(stops.push("w"), "xw");
        assert_eq!(stops.push("x"), "");
        assert_eq!(stops.pass("y"), "xy");
        assert_eq!(stops.push("z"), "z");
        assert_eq!(stops.found(), None);
    }

    #[test]
    fn the_result_does_not_depend_on_the_pieces() {
        let text = "aabaabxaababcabaabab cab";
        let strings = ["abab", "abc", "babx"];
        let whole = run(&strings, false, &[text]);
        for cuts in 0u32..1 << 12 {
            let mut pieces = Vec::new();
            let mut from = 0;
            for at in 1..text.len() {
                if cuts >> (at % 12) & 1 == 1 {
                    pieces.push(&text[from..at]);
                    from = at;
                }
            }
            pieces.push(&text[from..]);
            assert_eq!(run(&strings, false, &pieces), whole, "{pieces:?}");
        }
    }
}
