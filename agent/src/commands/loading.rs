//! The progress of loading, as a bar on the terminal or as log lines.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_agent::runtime::Progress;

/// A bar on standard error, if that is a terminal and `quiet` is not set.
pub fn bar(quiet: bool) -> (ProgressBar, Progress) {
    let bar = ProgressBar::with_draw_target(
        Some(0),
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
    );
    let style = ProgressStyle::with_template("loading experts {bar:30} {pos}/{len}, {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let told = bar.clone();
    let progress: Progress = Arc::new(move |loaded, all| {
        told.set_length(all as u64);
        told.set_position(loaded as u64);
    });
    (bar, progress)
}
