//! What a worker counts. All sums since its start.

/// Events worth knowing of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Attention steps and spans.
    pub attention_steps: u64,
    /// Rows in them.
    pub attention_rows: u64,
    /// Of the attention steps, those that were spans.
    pub spans: u64,
    /// Expert steps (launches).
    pub expert_steps: u64,
    /// Units run in them.
    pub expert_units: u64,
    /// Rows in them.
    pub expert_rows: u64,
    /// Head steps.
    pub head_steps: u64,
    /// Tokens sampled.
    pub sampled: u64,
    /// Prompt tokens computed.
    pub prefilled: u64,
    /// Frames dropped because they had come before, or belong to a closed connection.
    pub duplicate_frames: u64,
    /// Outputs dropped because nobody waited for them.
    pub duplicate_returns: u64,
    /// Items sent back because the unit is not held here.
    pub redirects_sent: u64,
    /// Items that came back.
    pub redirected: u64,
    /// Items that found no landing row free.
    pub credit_stalls: u64,
    /// Peers masked: their connections broke.
    pub masked: u64,
    /// Of those, peers that owed something and gave no sign for too long.
    pub suspected: u64,
    /// Items asked of another replica because their worker was masked.
    pub redispatched: u64,
    /// Items asked of another replica too because their worker was late with them.
    pub hedged: u64,
    /// Items for an expert that nobody holds.
    pub orphaned: u64,
    /// Sequences handed back for want of KV pages, or in favour of an older one that waits.
    pub preemptions: u64,
    /// μ-queues released because a token waited too long.
    pub urgent: u64,
    /// Tokens that came below their rank's frontier.
    pub late: u64,
    /// Choices asked in more than one slice.
    pub sliced: u64,
    /// Frames that make no sense: a defect of the peer.
    pub bad_frames: u64,
}
