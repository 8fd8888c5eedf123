//! The number of a start. A peer that has met one refuses a lower one, so it must rise whatever the clock does.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::NodeOptions;

/// The number of this start: the clock's, or the next after the last if the clock was set back since. The last is kept
/// beside the table or its copy, where that can be written; else the clock alone counts.
pub(super) fn incarnation(node: &NodeOptions) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    node.placement.file().map_or(clock, |table| next(&file(table, &node.name), clock))
}

/// Processes of one host may share a table, and each has a file of its own.
fn file(table: &Path, name: &str) -> PathBuf {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    table.with_file_name(format!(".{name}.incarnation"))
}

fn next(file: &Path, clock: u64) -> u64 {
    let last = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let next = last.map_or(clock, |last| clock.max(last.saturating_add(1)));
    if let Err(e) = keep(file, next) {
        tracing::debug!("the number of this start cannot be kept in {}: {e}", file.display());
    }
    next
}

/// In one step: after a crash there is the last one or this one.
fn keep(file: &Path, number: u64) -> std::io::Result<()> {
    let new = file.with_extension("incarnation.new");
    std::fs::write(&new, format!("{number}\n"))?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_when_the_clock_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir.path().join("table.yaml"), "e0");
        assert_eq!([next(&file, 900), next(&file, 100), next(&file, 100)], [900, 901, 902]);
        assert_eq!(next(&file, 5000), 5000);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "5000\n");
        std::fs::write(&file, "garbage").unwrap();
        assert_eq!([next(&file, 100), next(&file, 50)], [100, 101]);
    }

    #[test]
    fn each_process_has_its_own_and_needs_none() {
        let table = Path::new("/nowhere/table.yaml");
        assert_eq!(file(table, "e0"), Path::new("/nowhere/.e0.incarnation"));
        assert_eq!(file(table, "../e/0\n"), Path::new("/nowhere/..._e_0_.incarnation"));
        assert_eq!(next(&file(table, "e0"), 100), 100);
    }
}
