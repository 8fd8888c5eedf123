//! Bugs that can be planted, to prove that the simulator finds them. Without the feature `plant` there are none: every
//! question after one is a constant.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The token pool takes an output that it had before, or that belongs to an earlier use of its group.
    PoolForgets,
    /// A rank's marks promise one more than is true.
    MarkTooHigh,
    /// No μ-queue is released because a token waited too long.
    NeverAges,
    /// A host sends outputs home only while their rank has a landing row free.
    ReturnWaits,
    /// A rank takes the credit of a redirect and forgets its items.
    RedirectDropped,
    /// A gateway takes tokens of an attempt that was superseded.
    StaleAttempt,
    /// A worker takes frames of an epoch that is over.
    StaleEpoch,
    /// A peer is unmasked before it said hello again.
    EarlyUnmask,
    /// A landing row is lent anew while a step still reads it for an epoch that is over.
    RowReused,
    /// The token pool merges an output that came before.
    DuplicateMerged,
    /// A peer's earlier incarnation is taken after a later one was met.
    StaleIncarnation,
    /// A rank takes an older generation of the placement for a newer one.
    StaleGeneration,
    /// A rank runs an attempt that was superseded.
    StaleBind,
    /// What a silent gateway has bound is kept for ever.
    LeaseUnending,
}

impl Plant {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 14] = [
        ("pool-forgets", Self::PoolForgets),
        ("mark-too-high", Self::MarkTooHigh),
        ("never-ages", Self::NeverAges),
        ("return-waits", Self::ReturnWaits),
        ("redirect-dropped", Self::RedirectDropped),
        ("stale-attempt", Self::StaleAttempt),
        ("stale-epoch", Self::StaleEpoch),
        ("early-unmask", Self::EarlyUnmask),
        ("row-reused", Self::RowReused),
        ("duplicate-merged", Self::DuplicateMerged),
        ("stale-incarnation", Self::StaleIncarnation),
        ("stale-generation", Self::StaleGeneration),
        ("stale-bind", Self::StaleBind),
        ("lease-unending", Self::LeaseUnending),
    ];
}

#[cfg(feature = "plant")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in all cores of this thread, or none. False if this build has no bugs to plant.
pub fn set(plant: Option<Plant>) -> bool {
    #[cfg(feature = "plant")]
    PLANTED.with(|p| p.set(plant));
    plant.is_none() || cfg!(feature = "plant")
}

/// Whether a bug is planted.
#[cfg(feature = "plant")]
pub(crate) fn is(plant: Plant) -> bool {
    PLANTED.with(|p| p.get() == Some(plant))
}

/// Whether a bug is planted: never.
#[cfg(not(feature = "plant"))]
pub(crate) const fn is(_: Plant) -> bool {
    false
}
