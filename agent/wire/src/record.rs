//! The fixed parts of messages, as they lie in memory on the wire.

use zerocopy::little_endian::{F32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Before everything else.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Head {
    pub kind: u8,
    pub zero: [u8; 3],
    pub epoch: U32,
    pub number: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Times {
    pub has_echo: u8,
    pub zero: [u8; 7],
    pub sent: U64,
    pub echo: U64,
    pub held: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Tokens {
    pub class: u8,
    pub has_mark: u8,
    pub block: U16,
    pub rows: U32,
    pub items: U32,
    pub step_rows: U32,
    pub generation: U64,
    pub frames: U64,
    pub progress: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Back {
    pub group: U32,
    pub tag: U32,
    pub k: u8,
    pub lo: u8,
    pub hi: u8,
    pub zero: u8,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Item {
    pub row: U32,
    pub expert: U16,
    pub zero: U16,
    pub back: Back,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Returns {
    pub items: U32,
    pub freed: U32,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Mark {
    pub class: u8,
    pub blocked: u8,
    pub zero: U16,
    pub tokens: U32,
    pub order: U64,
    pub progress: U64,
    pub frames: U64,
    pub cycle: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Redirect {
    pub items: U32,
    pub freed: U32,
    pub has_slice: u8,
    pub zero: [u8; 7],
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Slice {
    pub first: U16,
    pub end: U16,
    pub replicas: U32,
    pub generation: U64,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Replica {
    pub worker: U32,
    pub block: U16,
    pub expert: U16,
    pub lo: u8,
    pub hi: u8,
    pub state: u8,
    pub zero: u8,
    pub fraction: F32,
}

#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct StepEnd {
    pub step: U64,
    pub frames: U64,
    pub busy: u8,
    pub zero: [u8; 7],
}
