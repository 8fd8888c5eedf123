//! Agreement with transformers: tokens, logits and experts of `reference.json`.
//!
//! `cargo test -p sluice-agent --test parity -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, reason = "a test's own files")]

mod driver;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use driver::{Driver, Job, Options};
use serde::Deserialize;
use sluice_agent::backend::{Probe, RoutedToken};
use sluice_core::ids::SeqHandle;

/// A continuation is compared up to the first step whose best two logits are closer than this.
const MARGIN: f32 = 1e-3;
/// Logits may differ by this much.
const LOGITS: f32 = 1e-3;
/// Experts are compared where the last chosen is ahead of the first left out by more than this.
const GAP: f32 = 1e-4;

#[derive(Deserialize)]
struct References {
    tokens: usize,
    references: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    id: u32,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    top5: Vec<Vec<(u32, f32)>>,
    /// `[block][token][k]`; empty for a dense block.
    prompt_experts: Vec<Vec<Vec<u16>>>,
}

/// The experts and the gap of each (sequence, block, position).
type Routes = HashMap<(u32, u16, u32), (Vec<u16>, f32)>;

#[derive(Default)]
struct Seen {
    routes: Routes,
    logits: HashMap<(u32, u32), Vec<f32>>,
}

struct Recorder(Arc<Mutex<Seen>>);

impl Probe for Recorder {
    fn routed(&mut self, token: RoutedToken<'_>) {
        let key = (token.seq.0, token.block, token.position);
        self.0.lock().unwrap().routes.insert(key, (token.experts.to_vec(), token.gap));
    }

    fn logits(&mut self, seq: SeqHandle, index: u32, logits: &[f32]) {
        self.0.lock().unwrap().logits.insert((seq.0, index), logits.to_vec());
    }
}

/// What one model's comparison found.
#[derive(Default)]
struct Figures {
    tokens: usize,
    cut_short: usize,
    worst_logit: f32,
    experts: usize,
    exempted: Vec<String>,
}

fn compare(model: &Path, require_all: bool) -> Figures {
    let references: References =
        serde_json::from_slice(&std::fs::read(model.join("reference.json")).unwrap()).unwrap();
    let mut driver =
        Driver::new(driver::open(model), Options { threads: 2, everything: true, ..Options::default() });
    let seen = Arc::new(Mutex::new(Seen::default()));
    driver.set_probe(Box::new(Recorder(Arc::clone(&seen))));
    let jobs = references.references.iter().map(|r| Job::greedy(&r.prompt_ids, references.tokens)).collect();
    let produced = driver.run(jobs);
    let seen = seen.lock().unwrap();
    let mut figures = Figures::default();
    let name = model.file_name().unwrap().to_string_lossy();
    for (seq, (reference, produced)) in references.references.iter().zip(&produced).enumerate() {
        for (step, (&expected, top5)) in reference.greedy_ids.iter().zip(&reference.top5).enumerate() {
            if !require_all && top5[0].1 - top5[1].1 < MARGIN {
                figures.cut_short += 1;
                break;
            }
            let at = || format!("{name}: prompt {}, step {step}", reference.id);
            let logits = &seen.logits[&(seq as u32, step as u32)];
            for &(id, logit) in top5 {
                let difference = (logits[id as usize] - logit).abs();
                assert!(difference <= LOGITS, "{}: logit {id} is off by {difference:e}", at());
                figures.worst_logit = figures.worst_logit.max(difference);
            }
            assert_eq!(produced.ids[step], expected, "{}", at());
            figures.tokens += 1;
        }
        for (block, tokens) in reference.prompt_experts.iter().enumerate() {
            for (position, expected) in tokens.iter().enumerate() {
                let (experts, gap) = &seen.routes[&(seq as u32, block as u16, position as u32)];
                let at = format!("{name}: prompt {}, block {block}, position {position}", reference.id);
                if *gap > GAP {
                    assert_eq!(experts, expected, "{at}: gap {gap:e}");
                    figures.experts += 1;
                } else {
                    figures.exempted.push(format!("{at}: gap {gap:.2e}, equal: {}", experts == expected));
                }
            }
        }
    }
    println!(
        "{name}: {} tokens equal ({} continuations compared in part), logits within {:.1e}, \
         experts of {} (token, block) equal, {} exempted",
        figures.tokens,
        figures.cut_short,
        figures.worst_logit,
        figures.experts,
        figures.exempted.len()
    );
    figures.exempted.iter().for_each(|line| println!("  exempted: {line}"));
    figures
}

#[test]
fn tiny_moe_is_transformers() {
    let figures = compare(&driver::tiny_moe(), true);
    assert_eq!(figures.tokens, 26 * 64);
    assert!(figures.experts > 0);
}

#[test]
fn every_architecture_is_transformers() {
    let models = driver::fixtures();
    assert!(models.len() >= 9, "the fixtures are in the repository");
    for model in models {
        let figures = compare(&model, false);
        assert!(figures.tokens > 0 && figures.experts > 0);
    }
}
