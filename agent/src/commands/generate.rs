//! `sluice-agent generate`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Instant;

use anyhow::Context as _;
use sluice_agent::cli::GenerateOptions;
use sluice_agent::node::LocalEngine;

use super::loading;

/// Answers one prompt, as it comes.
pub fn generate(options: &GenerateOptions) -> anyhow::Result<()> {
    let prompt = match &options.prompt {
        Some(prompt) => prompt.clone(),
        None => read_prompt()?,
    };
    let (bar, progress) = loading::bar(options.quiet);
    let engine = LocalEngine::start(options, progress);
    bar.finish_and_clear();
    let engine = engine?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let mut first = None;
    let mut out = std::io::stdout().lock();
    let answer = runtime.block_on(engine.answer(options, &prompt, |text| {
        first.get_or_insert_with(|| start.elapsed());
        // A reader that is gone, such as `head`, wants no more.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    }))?;
    let took = start.elapsed();
    // If it cannot be written nobody wants it.
    let _ = writeln!(out);
    if !options.quiet && std::io::stderr().is_terminal() {
        let first = first.unwrap_or(took);
        let rest = answer.tokens.saturating_sub(1) as f64 / (took - first).as_secs_f64().max(1e-9);
        let _ = writeln!(
            std::io::stderr(),
            "{} tokens after a prompt of {}; the first after {:.0} ms, then {rest:.1} a second",
            answer.tokens,
            answer.prompt_tokens,
            first.as_secs_f64() * 1e3,
        );
    }
    Ok(())
}

fn read_prompt() -> anyhow::Result<String> {
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        let _ = writeln!(std::io::stderr(), "type a prompt and end it with Ctrl-D:");
    }
    let mut prompt = String::new();
    input.read_to_string(&mut prompt).context("cannot read the prompt from standard input")?;
    Ok(prompt.trim_end_matches('\n').to_owned())
}
