//! What a deployment should consist of: pure, from its manifest and nothing else. Which pods there are, and who holds
//! which expert, is decided elsewhere (`pods`, `placing`).

pub mod access;
pub mod agent;
pub mod gateway;
pub mod guard;
pub mod pod;

/// An object built. It fails only where a manifest has what Kubernetes' own types cannot hold.
pub type Built<K> = Result<K, serde_json::Error>;

#[cfg(test)]
mod tests;
