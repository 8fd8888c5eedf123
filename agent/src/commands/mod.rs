//! What each subcommand does.

mod bench;
mod generate;
mod inspect;
mod loading;
mod serve;

pub use bench::bench;
pub use generate::generate;
pub use inspect::inspect;
pub use serve::serve;
