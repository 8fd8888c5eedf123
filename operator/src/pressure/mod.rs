//! What agents report, pulled from one gateway of each deployment once a second. It is kept in memory only.

mod client;
mod page;
mod pull;

pub use page::{Front, KvPages, Member, ModelPage, Page, TablePage, WorkerPage};
pub use pull::{Gateways, Heard, Hub};
