//! `sluice-agent bench`.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use sluice_agent::bench::{BenchOptions, End, Progress, Report, run};

/// Runs the load and prints what it came to. An interrupt ends the run early and still reports.
pub fn bench(options: BenchOptions, json: Option<&Path>, quiet: bool) -> anyhow::Result<()> {
    // One thread: the client shares its cores with a server more often than not.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let progress = Arc::new(Progress::default());
        let bar = if quiet { ProgressBar::hidden() } else { bar(options.end) };
        let watch = tokio::spawn(watch(progress.clone(), bar.clone(), options.end));
        let report = run(options, progress).await;
        watch.abort();
        bar.finish_and_clear();
        report
    })?;
    let mut out = std::io::stdout().lock();
    if json == Some(Path::new("-")) {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
        if let Some(path) = json {
            write_json(&report, path)?;
        }
    }
    if report.requests.served == 0 {
        anyhow::bail!("no request was served");
    }
    Ok(())
}

fn write_json(report: &Report, path: &Path) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bar(end: End) -> ProgressBar {
    let (length, template) = match end {
        End::Requests(n) => (n, "{bar:30} {pos}/{len} requests, {elapsed}"),
        End::After(time) => (time.as_secs(), "{bar:30} {pos}/{len} s, {msg} requests"),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

async fn watch(progress: Arc<Progress>, bar: ProgressBar, end: End) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = tokio::signal::ctrl_c() => {
                if progress.stop.swap(true, Ordering::Relaxed) {
                    // The second time the user means it.
                    bar.finish_and_clear();
                    std::process::exit(130);
                }
                bar.suspend(|| {
                    let _ = writeln!(
                        std::io::stderr(),
                        "waiting for the requests in flight; interrupt again to leave at once"
                    );
                });
            }
        }
        let over = progress.over.load(Ordering::Relaxed);
        match end {
            End::Requests(_) => bar.set_position(over),
            End::After(_) => {
                bar.set_position(bar.elapsed().as_secs());
                bar.set_message(over.to_string());
            }
        }
    }
}
