//! Runs one of the agent's targets, the one that `FUZZ_TARGET` names, under libFuzzer. Writes its seeds to the directory
//! `FUZZ_SEEDS` first, if there is one.

#![no_main]

use std::alloc::System;
use std::path::Path;
use std::sync::OnceLock;

use cap::Cap;
use libfuzzer_sys::fuzz_target;
use sluice_agent::fuzz::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What an input may take beside what was in use before. A compiled grammar takes some tens of megabytes, everything
/// else a few times what came.
const MEMORY: usize = 256 << 20;

static TARGET: OnceLock<Target> = OnceLock::new();

fn start() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.into_iter().find(|target| target.name == name) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("FUZZ_TARGET is {name:?}, and must be one of {names:?}");
        std::process::exit(2);
    };
    let seeds = (target.seeds)();
    if let Some(directory) = std::env::var_os("FUZZ_SEEDS") {
        for (i, seed) in seeds.iter().enumerate() {
            let path = Path::new(&directory).join(format!("seed-{i:02}"));
            std::fs::write(path, seed).expect("a directory for seeds");
        }
    }
    // What is made once, such as a model, is not the input's.
    seeds.iter().for_each(|seed| (target.run)(seed));
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + MEMORY).expect("a limit above what is in use");
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: start(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
