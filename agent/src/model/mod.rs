//! A model directory in Hugging Face form, read into what the backends and the gateway need.

pub mod spec;
