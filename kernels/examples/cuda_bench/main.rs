//! How fast the kernels are on a GPU, beside the floor of its memory and its tensor cores.
//!
//! `cargo run --release -p sluice-kernels --features cuda --example cuda_bench [-- [--skewed] [--all] [--counts=FILE]
//! [--tokens=1,2,..] [--segments=G] [filter]...]`
//!
//! Every figure is of replays of a graph of calls, the median of 7. The floor is the larger of the bytes at what the device
//! copies (3.0 TB/s on an H100, 4.3 on an H200) and the arithmetic at 800 TFLOP/s.
//!
//! - **experts** of a block: `experts` is the grouped product alone, from listed rows to scattered outputs; `chain` is the
//!   router's ids to merged rows: lists, experts, merge. Calls rotate over sets of weights. `--all` prints every variant and
//!   split; `--counts` writes how many rows each expert had, for `grouped_mm.py`.
//! - **decode** and **prefill**: attention of one block. `--all` prints decode for several cuts of the work.
//! - **dense** products: the projections around attention, and the logits. `--all` prints every kind of tiles.
//! - **logits**: the best logit of each row, and the sum of its exponentials.
//! - **ops**: the small kernels around them.
#![allow(clippy::unwrap_used)]

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod dense;
mod experts;
mod ops;

use sluice_kernels::cuda::{Device, Error, Graph};

const FLOPS_PER_SECOND: f64 = 8e14;
const CALLS: usize = 30;
const REPLAYS: usize = 7;

/// Of a large copy on the device, bytes read and bytes written.
fn bytes_per_second(device: &Device) -> f64 {
    if device.name().contains("H200") { 4.3e12 } else { 3.0e12 }
}

/// Of the command line.
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|a| a.strip_prefix("--") == Some(name))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|a| a.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether a row of this name is asked for: by a part of it, or by nothing.
    fn wants(&self, name: &str) -> bool {
        let mut filters = self.0.iter().filter(|a| !a.starts_with("--")).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter.as_str()))
    }
}

fn main() {
    if let Err(error) = bench(&Arguments(std::env::args().skip(1).collect())) {
        eprintln!("cuda_bench: {error}");
        std::process::exit(1);
    }
}

fn bench(arguments: &Arguments) -> Result<(), Error> {
    let device = Device::open(0)?;
    println!("{}", device.name());
    if arguments.wants("decode") {
        attention::decode(&device, arguments.flag("all"))?;
    }
    if arguments.wants("prefill") {
        attention::prefill(&device)?;
    }
    if arguments.wants("ops") {
        ops::bench(&device)?;
    }
    dense::bench(&device, arguments)?;
    if arguments.wants("logits") {
        dense::logits(&device)?;
    }
    experts::bench(&device, arguments)
}

/// Microseconds per call, of so many in a graph.
fn time(
    device: &Device,
    calls: usize,
    mut call: impl FnMut(usize) -> Result<(), Error>,
) -> Result<f64, Error> {
    call(0)?;
    device.synchronize()?;
    let graph = Graph::record(device, || (0..calls).try_for_each(&mut call))?;
    graph.launch()?;
    let mut times = Vec::new();
    for _ in 0..REPLAYS {
        times.push(device.timed(|| graph.launch())?.as_secs_f64() * 1e6 / calls as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[REPLAYS / 2])
}
