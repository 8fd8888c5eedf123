//! `sluice-agent`: the command line of the node agent.

mod commands;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use sluice_agent::cli::{CliError, Command, parse};
use sluice_core::hello::Role;

/// Token batches are made with each step on one thread and freed on another, which it does faster than the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What clap itself exits with when flags are wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(CliError::Usage(e)) => e.exit(),
        Err(e) => return fail(&e, USAGE),
    };
    let result = match cli.command {
        Command::Bench(args) => match args.check() {
            Ok(options) => commands::bench(options, args.json.as_deref(), args.quiet),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Serve(args) => match args.check() {
            Ok(options) => commands::serve(options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Gateway(args) => match args.check() {
            Ok(options) => commands::gateway(options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Attention(args) => match args.check(Role::Attention) {
            Ok(options) => commands::worker(options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Experts(args) => match args.check(Role::Experts) {
            Ok(options) => commands::worker(options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Hybrid(args) => match args.check(Role::Hybrid) {
            Ok(options) => commands::worker(options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Plan(args) => match args.check() {
            Ok(options) => commands::plan(&options),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Fetch(args) => match args.check() {
            Ok(options) => commands::fetch(&options, cli.log_format),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Generate(args) => match args.check() {
            Ok(options) => commands::generate(&options),
            Err(e) => return fail(&e, USAGE),
        },
        Command::Inspect(args) => commands::inspect(&args.options()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&format!("{e:#}"), 1),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    // A closed standard error is no reason to panic on the way out.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    ExitCode::from(code)
}
