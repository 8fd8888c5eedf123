//! Commands on a page of docs/, which tests run from there.

use anyhow::{Context, ensure};

/// The first block of a page that is marked ```` ```bash ```` and nothing else, and how many commands it has (one a line).
///
/// # Errors
/// There is no such block.
pub fn commands(page: &str) -> anyhow::Result<(String, usize)> {
    let mut lines = page.lines();
    ensure!(lines.by_ref().any(|line| line == "```bash"), "the page has no block of commands");
    let mut block = String::new();
    let mut count = 0;
    loop {
        let line = lines.next().context("the block of commands has no end")?;
        if line == "```" {
            return Ok((block, count));
        }
        if !line.trim().is_empty() && !line.starts_with('#') {
            count += 1;
        }
        block += line;
        block += "\n";
    }
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn the_first_block_that_is_to_be_run() {
        let page = "```bash no-run\nrm\n```\n```bash\n# a\nls\n\npwd\n```\n```bash\nrm\n```\n";
        assert_eq!(commands(page).unwrap(), ("# a\nls\n\npwd\n".into(), 2));
        assert!(commands("```bash\nls\n").is_err());
        assert!(commands("ls").is_err());
    }
}
