//! Whether the CUDA kernels compute what they must, on a GPU.
//!
//! `cargo run --release -p sluice-kernels --features cuda --example cuda_check [-- [--quick] [--seconds=N] [--only=SHAPE] [experts]
//! [attention] [rows] [dense] [logits]]`
//!
//! Every op against its f64 twin; poisoned outputs all written; and the same bits for a row whatever the rows beside it and
//! however the work is cut. Then, for `--seconds` per shape, random launches against the first one's bits. `--quick` takes
//! small shapes and few kinds of launches only, for compute-sanitizer; `--only` takes dense shapes whose name contains it. Without a name, all. Exits with an error at the first
//! deviation.
#![allow(clippy::unwrap_used)]

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod dense;
mod experts;
mod logits;
mod rows;

use std::time::Duration;

use sluice_kernels::cuda::{Device, Error};

/// A byte that makes a NaN of every bf16 and f32.
const POISON: u8 = 0xFF;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let seconds = arguments.iter().find_map(|a| a.strip_prefix("--seconds=")?.parse().ok()).unwrap_or(0.0);
    let only = arguments.iter().find_map(|a| a.strip_prefix("--only=")).unwrap_or("");
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    if let Err(error) = check(&named, only, quick, Duration::from_secs_f64(seconds)) {
        eprintln!("cuda_check: {error}");
        std::process::exit(1);
    }
}

fn check(named: &[&str], only: &str, quick: bool, stress: Duration) -> Result<(), Error> {
    let device = Device::open(0)?;
    println!("{}: {} multiprocessors", device.name(), device.multiprocessors());
    let wanted = |name| named.is_empty() || named.contains(&name);
    if wanted("rows") {
        rows::check(&device, quick)?;
    }
    if wanted("dense") {
        dense::check(&device, only, quick, stress)?;
    }
    if wanted("logits") {
        logits::check(&device, quick)?;
    }
    if wanted("attention") {
        attention::check(&device, quick, stress)?;
    }
    if wanted("experts") {
        experts::check(&device, quick, stress)?;
    }
    println!("all as it must be");
    Ok(())
}

/// The error of a row over its norm, and its largest error over the root mean square.
fn row_error(found: &[f32], twin: &[f64]) -> (f64, f64) {
    let norm = twin.iter().map(|v| v * v).sum::<f64>().sqrt();
    let errors = || found.iter().zip(twin).map(|(f, t)| f64::from(*f) - t);
    let error = errors().map(|e| e * e).sum::<f64>().sqrt();
    let largest = errors().fold(0.0f64, |a, e| a.max(e.abs()));
    (error / norm, largest / (norm / (twin.len() as f64).sqrt()))
}
