//! End-to-end suites against real processes, the scheduler table in the real run time beside the simulator's, the
//! transport beside iperf3, and the throughput of several expert workers over one's.

pub mod beside;
mod certificates;
pub mod engine;
pub mod host;
mod machine;
pub mod scale;
pub mod wire;
