//! What each subcommand does.

mod bench;

pub use bench::bench;
