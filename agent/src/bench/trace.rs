//! Trace files: lengths of real conversations, as CSV (gzip or plain).

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

/// One turn, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) input: u32,
    pub(super) output: u32,
}

/// Reads a trace. The header names the columns: `input_tokens` and `output_tokens`, or `prompt_bytes`, `output_bytes`
/// and, if it is there, `history_bytes` (what came before in the conversation, which is sent again).
pub(super) fn read(path: &Path, bytes_per_token: f64) -> Result<Vec<Row>, String> {
    let raw = std::fs::read(path).map_err(|e| format!("cannot read it: {e}"))?;
    let mut text = String::new();
    if raw.starts_with(&[0x1f, 0x8b]) {
        GzDecoder::new(raw.as_slice())
            .read_to_string(&mut text)
            .map_err(|e| format!("cannot unpack it: {e}"))?;
    } else {
        text = String::from_utf8(raw).map_err(|_| "it is not UTF-8 text".to_owned())?;
    }
    parse(&text, bytes_per_token)
}

fn parse(text: &str, bytes_per_token: f64) -> Result<Vec<Row>, String> {
    let mut lines = text.lines().enumerate();
    let header: Vec<&str> =
        lines.next().map(|(_, l)| l.split(',').map(str::trim).collect()).unwrap_or_default();
    let column = |name: &str| header.iter().position(|c| *c == name);
    let (inputs, output, unit) = match (column("input_tokens"), column("output_tokens")) {
        (Some(i), Some(o)) => (vec![i], o, 1.0),
        _ => match (column("prompt_bytes"), column("output_bytes")) {
            (Some(i), Some(o)) => {
                (std::iter::once(i).chain(column("history_bytes")).collect(), o, bytes_per_token)
            }
            _ => {
                return Err(format!(
                    "its first line {:?} names neither input_tokens,output_tokens nor prompt_bytes,output_bytes",
                    header.join(",")
                ));
            }
        },
    };
    let mut rows = Vec::new();
    for (n, line) in lines.filter(|(_, l)| !l.trim().is_empty()) {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |i: usize| -> Result<f64, String> {
            let text = cells.get(i).copied().unwrap_or("");
            text.parse::<u64>()
                .map(|x| x as f64)
                .map_err(|_| format!("line {}: {text:?} is not a length", n + 1))
        };
        let tokens = |units: f64| (units / unit).ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        let mut sum = 0.0;
        for &i in &inputs {
            sum += cell(i)?;
        }
        rows.push(Row { input: tokens(sum), output: tokens(cell(output)?) });
    }
    if rows.is_empty() {
        return Err("it has no rows".into());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_tokens_with_the_history() {
        let rows = parse(
            "conversation,turn,history_bytes,prompt_bytes,output_bytes\n0,0,0,190,1298\n0,1,1488,188,1\n",
            4.0,
        );
        assert_eq!(rows.unwrap(), [Row { input: 48, output: 325 }, Row { input: 419, output: 1 }]);
    }

    #[test]
    fn tokens_are_taken_as_they_are() {
        assert_eq!(parse("output_tokens,input_tokens\n7,3\n", 4.0).unwrap(), [Row { input: 3, output: 7 }]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(parse("a,b\n1,2\n", 4.0).unwrap_err().contains("\"a,b\""));
        assert!(parse("input_tokens,output_tokens\n1,x\n", 4.0).unwrap_err().contains("line 2"));
        assert!(parse("input_tokens,output_tokens\n1\n", 4.0).unwrap_err().contains("line 2"));
        assert!(parse("input_tokens,output_tokens\n", 4.0).is_err());
    }

    #[test]
    fn the_shipped_trace_reads() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/traces/sharegpt_lengths.csv.gz");
        assert_eq!(read(&path, 4.0).unwrap().len(), 61_101);
    }
}
