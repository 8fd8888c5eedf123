//! Server-sent events out of a stream of bytes, however it is cut.

use bytes::BytesMut;

/// Collects bytes and gives the `data` of each event that is whole. Comments and other fields are skipped.
#[derive(Debug, Default)]
pub struct Events {
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event's data, without the line end; several `data` lines are joined by a line feed.
    pub fn next_event(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let mut line = self.buffer.split_to(self.searched + end + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    return Some(std::mem::take(&mut self.data));
                }
            } else if let Some(rest) = line.strip_prefix(b"data:") {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(cuts: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut out = Vec::new();
        for cut in cuts {
            events.push(cut);
            while let Some(e) = events.next_event() {
                out.push(String::from_utf8(e).unwrap());
            }
        }
        out
    }

    #[test]
    fn any_cut_gives_the_same_events() {
        let text =
            b": hello\n\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\n\n\ndata: [DONE]\n\n";
        let expected = ["{\"a\":1}", "two\nlines", "[DONE]"];
        assert_eq!(all(&[text]), expected);
        for at in 0..text.len() {
            assert_eq!(all(&[&text[..at], &text[at..]]), expected, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(all(&bytes), expected);
    }

    #[test]
    fn an_event_without_its_empty_line_is_not_whole() {
        assert!(all(&[b"data: x\n"]).is_empty());
    }
}
