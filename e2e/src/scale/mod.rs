//! One, two, four and eight expert workers on modelled devices, as processes over real TCP: what the throughput is over
//! as many times one worker's, and what the schedulers do there when experts are not equally popular.

mod cell;
mod deployment;
mod gauges;
mod load;
mod report;
mod setup;

pub use report::Report;
