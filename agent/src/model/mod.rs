//! A model directory in Hugging Face form, read into what the backends and the gateway need.

pub mod arch;
pub mod bundled;
pub mod checkpoint;
pub mod config;
pub mod files;
pub mod rope;
pub mod spec;
pub mod tensor;
#[cfg(test)]
mod testing;
pub mod weights;
