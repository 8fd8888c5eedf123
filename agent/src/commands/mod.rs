//! What each subcommand does.

mod bench;
mod fetch;
mod generate;
mod inspect;
mod loading;
mod plan;
mod serve;

pub use bench::bench;
pub use fetch::fetch;
pub use generate::generate;
pub use inspect::inspect;
pub use plan::plan;
pub use serve::{gateway, serve, worker};
