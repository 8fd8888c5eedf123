//! The definitions, as files and as the API server reads them.

mod autoscaling;
mod bounds;
mod deployment;
mod files;
mod pods;
mod roles;
mod samples;
mod scaler;
mod structure;
mod support;
mod table;
