//! Several rounds of everything, one after the other, and the medians as tables.

use std::path::PathBuf;

use super::connect::{Setup, Via};
use super::flow::{Flow, Load};
use super::iperf::Iperf;
use super::processes::measure;
use super::rank::Task;
use super::stats::{median, percentile};
use crate::machine::{Ticks, describe};

/// Bytes of a large batch.
const LARGE: usize = 4 << 20;
/// Rows of a small one.
const SMALL: usize = 64;
/// Large batches that a landing ring has room for.
const RING: usize = 4;
/// Bytes of a row: 2,048 values of bf16, and tiny-moe's 256 values of f32, which is what a row travels in.
const ROWS: [(&str, usize); 2] = [("2,048 bf16 (4 KiB)", 4096), ("tiny-moe's (1 KiB)", 1024)];

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Report {
    /// iperf3 (e2e/iperf3.sh prints where it is). Without it there is nothing to compare with.
    #[arg(long)]
    iperf3: Option<PathBuf>,
    /// How often everything is measured; the medians are shown.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// For how long a stream is measured.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Small batches of a measurement.
    #[arg(long, default_value_t = 400)]
    batches: usize,
}

/// The rounds' figures of one line of the first table.
#[derive(Clone, Debug, Default)]
struct Streams {
    rates: Vec<f64>,
    /// Over iperf3's in the same round.
    of_iperf: Vec<f64>,
    costs: [Vec<f64>; 2],
}

impl Streams {
    fn add(&mut self, flow: &Flow, iperf: Option<&Flow>) {
        self.rates.push(flow.rate());
        self.of_iperf.extend(iperf.map(|i| flow.rate() / i.rate()));
        for (all, cost) in self.costs.iter_mut().zip(flow.cost()) {
            all.push(cost);
        }
    }
}

/// The rounds' figures of one line of the second table, in microseconds: p50 and p99, alone and behind.
#[derive(Clone, Debug, Default)]
struct Times([[Vec<f64>; 2]; 2]);

impl Report {
    /// Measures and prints.
    ///
    /// # Errors
    /// What could not be measured.
    pub fn print(&self) -> Result<(), String> {
        let iperf = self.iperf3.as_deref().map(Iperf::new).transpose()?;
        let dir = tempfile::tempdir().map_err(|e| format!("no directory for temporary files: {e}"))?;
        let before = Ticks::now();
        let mut peer = Streams::default();
        let mut streams: [Streams; 3] = Default::default();
        let mut times: [[Times; 3]; 2] = Default::default();
        for _ in 0..self.rounds {
            let reference = iperf.as_ref().map(|i| i.run(self.seconds)).transpose()?;
            if let Some(flow) = &reference {
                peer.add(flow, Some(flow));
            }
            for (via, streams) in Via::ALL.into_iter().zip(&mut streams) {
                let setup = setup(via, ROWS[0].1, dir.path().into());
                let (flow, _) = measure(&setup, &self.task(&setup, Load::Stream))?;
                streams.add(&flow, reference.as_ref());
            }
            for ((_, row_bytes), times) in ROWS.iter().zip(&mut times) {
                for (via, Times(times)) in Via::ALL.into_iter().zip(times) {
                    let setup = setup(via, *row_bytes, dir.path().into());
                    for (load, [p50, p99]) in [Load::Alone, Load::Behind].into_iter().zip(times) {
                        let (_, took) = measure(&setup, &self.task(&setup, load))?;
                        p50.extend(percentile(&took, 0.50).map(micros));
                        p99.extend(percentile(&took, 0.99).map(micros));
                    }
                }
            }
        }
        self.conditions(before, iperf.as_ref());
        print_streams(iperf.is_some().then_some(&peer), &streams);
        print_times(&times);
        Ok(())
    }

    fn task(&self, setup: &Setup, load: Load) -> Task {
        let (seconds, batches, large) = (self.seconds, self.batches, LARGE / setup.row_bytes);
        Task { load, seconds, batches, small: SMALL, large, host: 0 }
    }

    fn conditions(&self, before: Option<Ticks>, iperf: Option<&Iperf>) {
        println!("{}.", describe());
        println!(
            "Medians of {} rounds, {} s a stream, {} small batches.",
            self.rounds, self.seconds, self.batches
        );
        if let (Some(before), Some(after)) = (before, Ticks::now()) {
            let (others, stolen) = after.others(before);
            println!(
                "Meanwhile other processes had {:.0}% of the machine, and the hypervisor kept {:.0}% back.",
                others * 100.0,
                stolen * 100.0
            );
        }
        match iperf {
            Some(i) => println!("The peer is {}.", i.version),
            None => println!("No iperf3 was given, so there is nothing to compare with: see e2e/iperf3.sh."),
        }
    }
}

fn setup(via: Via, row_bytes: usize, dir: PathBuf) -> Setup {
    Setup { via, dir, row_bytes, ring: (RING * LARGE / row_bytes) as u32 }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn name(via: Via) -> &'static str {
    match via {
        Via::Tcp => "Sluice, TCP",
        Via::Tls => "Sluice, mutual TLS",
        Via::Unix => "Sluice, Unix socket",
    }
}

fn figure(values: &[f64], digits: usize) -> String {
    median(values).map_or("?".into(), |m| format!("{m:.digits$}"))
}

fn print_streams(peer: Option<&Streams>, streams: &[Streams; 3]) {
    println!("\nBatches of 4 MiB, rows of 4 KiB, as many as a ring of {RING} has room for:\n");
    println!(
        "| | GB/s | least to most | of iperf3 | of TCP | CPU s/GB, sender | CPU s/GB, receiver | CPU s/GB, both, of TCP |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let both = |s: &Streams| -> Vec<f64> { s.costs[0].iter().zip(&s.costs[1]).map(|(a, b)| a + b).collect() };
    let tcp = &streams[0];
    let line = |name: &str, s: &Streams| {
        let over = |of: &[f64], to: &[f64]| -> Vec<f64> { of.iter().zip(to).map(|(a, b)| a / b).collect() };
        let least = s.rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = s.rates.iter().copied().fold(0.0, f64::max);
        println!(
            "| {name} | {} | {least:.2} to {most:.2} | {} | {} | {} | {} | {} |",
            figure(&s.rates, 2),
            figure(&s.of_iperf, 2),
            figure(&over(&s.rates, &tcp.rates), 2),
            figure(&s.costs[0], 3),
            figure(&s.costs[1], 3),
            figure(&over(&both(s), &both(tcp)), 2),
        );
    };
    if let Some(peer) = peer {
        line("iperf3", peer);
    }
    for (via, streams) in Via::ALL.into_iter().zip(streams) {
        line(name(via), streams);
    }
}

fn print_times(times: &[[Times; 3]; 2]) {
    println!(
        "\nOne way of a batch of {SMALL} tokens, from before it is handed to the transport until its rows have landed, in us:\n"
    );
    println!("| row | | alone, p50 / p99 | 4 MiB of prefill ahead, p50 / p99 | alone p50, of TCP |");
    println!("| --- | --- | --- | --- | --- |");
    for ((row, _), times) in ROWS.iter().zip(times) {
        let tcp = median(&times[0].0[0][0]);
        for (via, Times(t)) in Via::ALL.into_iter().zip(times) {
            let pair = |t: &[Vec<f64>; 2]| format!("{} / {}", figure(&t[0], 0), figure(&t[1], 0));
            let of_tcp = median(&t[0][0]).zip(tcp).map_or("?".into(), |(a, b)| format!("{:.2}", a / b));
            println!("| {row} | {} | {} | {} | {of_tcp} |", name(via), pair(&t[0]), pair(&t[1]));
        }
    }
}
