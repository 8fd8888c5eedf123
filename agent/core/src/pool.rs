//! The token pool: where a token's K expert outputs, each in one or more slices, wait until all are there.
//!
//! A *group* is the reservation of one token's return rows. It is made before the token is dispatched, so a return
//! never waits for room. What has arrived is counted as covered segments per choice k; an output that covers
//! nothing new, or belongs to an earlier use of the group, is a duplicate and is dropped.

use crate::frame::ReturnTo;
use crate::ids::Slice;
use crate::plant::{self, Plant};

/// What an arriving output meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// One part of several.
    Part,
    /// The last part: the token can be merged. Its owner is given back.
    Complete(u32),
    /// The last part of a token nobody wants any more: the group is free.
    Abandoned,
    /// Seen before, or of an earlier use, or under a slicing that was given up.
    Duplicate,
}

#[derive(Clone, Debug)]
struct Group {
    tag: u32,
    owner: u32,
    missing: u8,
    open: bool,
    abandoned: bool,
}

/// The token pool of one attention rank.
#[derive(Clone, Debug)]
pub struct TokenPool {
    top_k: usize,
    segments: u8,
    groups: Vec<Group>,
    /// Per (group, k): covered segments.
    covered: Vec<u8>,
    /// Per (group, k): in how many slices the choice was asked; 0 when it was not.
    slicing: Vec<u8>,
    free: Vec<u32>,
}

impl TokenPool {
    /// Room for `groups` tokens of `top_k` choices each, of `segments` segments.
    pub fn new(groups: u32, top_k: u8, segments: u8) -> Self {
        let k = top_k as usize;
        let empty = Group { tag: 0, owner: 0, missing: 0, open: false, abandoned: false };
        Self {
            top_k: k,
            segments,
            groups: vec![empty; groups as usize],
            covered: vec![0; groups as usize * k],
            slicing: vec![0; groups as usize * k],
            free: (0..groups).rev().collect(),
        }
    }

    /// Reserves a group for the token `owner`. None when all are taken.
    pub fn open(&mut self, owner: u32) -> Option<u32> {
        let id = self.free.pop()?;
        let g = &mut self.groups[id as usize];
        (g.owner, g.missing, g.open, g.abandoned) = (owner, 0, true, false);
        Some(id)
    }

    /// Starts waiting for all K choices of one block; what an earlier block left has been merged. Gives the tag of
    /// this use.
    pub fn begin(&mut self, group: u32) -> u32 {
        let k = self.top_k;
        let g = &mut self.groups[group as usize];
        debug_assert!(g.open && g.missing == 0, "a group is begun when nothing is missing");
        g.tag = g.tag.wrapping_add(1);
        g.missing = k as u8;
        let at = group as usize * k;
        self.covered[at..at + k].fill(0);
        self.slicing[at..at + k].fill(0);
        g.tag
    }

    /// Says in how many slices choice `k` was asked. Asking again under another slicing gives up what had come.
    pub fn ask(&mut self, group: u32, k: u8, slices: u8) {
        let at = group as usize * self.top_k + k as usize;
        if self.slicing[at] != slices {
            debug_assert!(self.covered[at] != self.full(), "a complete choice is not asked again");
            self.slicing[at] = slices;
            self.covered[at] = 0;
        }
    }

    /// Takes an output.
    #[inline]
    pub fn arrive(&mut self, back: ReturnTo, slice: Slice) -> Arrival {
        let full = self.full();
        let at = back.group as usize * self.top_k + back.k as usize;
        let Some(g) = self.groups.get_mut(back.group as usize) else { return Arrival::Duplicate };
        let forgets = plant::is(Plant::PoolForgets);
        if g.missing == 0
            || (g.tag != back.tag && !forgets)
            || back.k as usize >= self.top_k
            || slice.lo >= slice.hi
        {
            return Arrival::Duplicate;
        }
        if slice.hi > self.segments || (slice.count(self.segments) != self.slicing[at] && !forgets) {
            return Arrival::Duplicate;
        }
        let merges = forgets || plant::is(Plant::DuplicateMerged);
        if self.covered[at] & slice.mask() != 0 && !merges {
            return Arrival::Duplicate;
        }
        self.covered[at] |= slice.mask();
        if self.covered[at] != full {
            return Arrival::Part;
        }
        g.missing -= 1;
        if g.missing > 0 {
            return Arrival::Part;
        }
        if g.abandoned {
            self.close(back.group);
            return Arrival::Abandoned;
        }
        Arrival::Complete(g.owner)
    }

    /// What an open group still waits for, as it was asked.
    pub fn missing(&self, group: u32) -> impl Iterator<Item = (ReturnTo, Slice)> + '_ {
        let g = &self.groups[group as usize];
        let choices = if g.open && g.missing > 0 { self.top_k } else { 0 };
        (0..choices).flat_map(move |k| {
            let at = group as usize * self.top_k + k;
            let (slices, covered) = (self.slicing[at], self.covered[at]);
            let width = self.segments.checked_div(slices).unwrap_or(0);
            let back = ReturnTo { group, tag: g.tag, k: k as u8 };
            (0..slices)
                .map(move |i| Slice { lo: i * width, hi: (i + 1) * width })
                .filter(move |s| covered & s.mask() == 0)
                .map(move |s| (back, s))
        })
    }

    /// Whether choice `k` of this use of a group still waits for `slice`.
    pub fn waits_for(&self, back: ReturnTo, slice: Slice) -> bool {
        let at = back.group as usize * self.top_k + back.k as usize;
        let Some(g) = self.groups.get(back.group as usize) else { return false };
        let sound = slice.lo < slice.hi && slice.hi <= self.segments && (back.k as usize) < self.top_k;
        sound && g.open && g.missing > 0 && g.tag == back.tag && self.covered[at] & slice.mask() == 0
    }

    /// Whether an output would be taken: as [`Self::waits_for`], under the slicing that was asked last.
    pub fn takes(&self, back: ReturnTo, slice: Slice) -> bool {
        let at = back.group as usize * self.top_k + back.k as usize;
        self.waits_for(back, slice) && self.slicing[at] == slice.count(self.segments)
    }

    /// The slicing of each choice of a group.
    pub fn slicing(&self, group: u32) -> &[u8] {
        let at = group as usize * self.top_k;
        &self.slicing[at..at + self.top_k]
    }

    /// The owner of an open group.
    pub fn owner(&self, group: u32) -> u32 {
        self.groups[group as usize].owner
    }

    /// The token is not wanted any more. True if the group is free now; else it becomes free with its last return,
    /// since until then somebody may still write to its rows.
    pub fn abandon(&mut self, group: u32) -> bool {
        let g = &mut self.groups[group as usize];
        if g.missing > 0 {
            g.abandoned = true;
            return false;
        }
        self.close(group);
        true
    }

    /// Whether the token of an open group was given up.
    pub fn is_abandoned(&self, group: u32) -> bool {
        self.groups[group as usize].abandoned
    }

    /// The group's rows have been merged: it is free.
    pub fn close(&mut self, group: u32) {
        let g = &mut self.groups[group as usize];
        debug_assert!(g.missing == 0, "what is closed waits for nothing");
        if std::mem::replace(&mut g.open, false) {
            self.free.push(group);
        }
    }

    /// Groups in use.
    pub fn used(&self) -> usize {
        self.groups.len() - self.free.len()
    }

    fn full(&self) -> u8 {
        Slice::whole(self.segments).mask()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(group: u32, tag: u32, k: u8) -> ReturnTo {
        ReturnTo { group, tag, k }
    }

    #[test]
    fn all_choices_and_slices_make_a_token_in_any_order() {
        let mut p = TokenPool::new(2, 2, 4);
        let g = p.open(7).unwrap();
        let t = p.begin(g);
        p.ask(g, 0, 1);
        p.ask(g, 1, 2);
        assert!(p.takes(back(g, t, 1), Slice { lo: 2, hi: 4 }) && !p.takes(back(g, t, 1), Slice::whole(4)));
        assert_eq!(p.arrive(back(g, t, 1), Slice { lo: 2, hi: 4 }), Arrival::Part);
        assert!(!p.waits_for(back(g, t, 1), Slice { lo: 2, hi: 4 }));
        assert_eq!(p.arrive(back(g, t, 1), Slice { lo: 2, hi: 4 }), Arrival::Duplicate);
        assert_eq!(p.arrive(back(g, t, 0), Slice::whole(4)), Arrival::Part);
        assert_eq!(p.arrive(back(g, t, 1), Slice { lo: 0, hi: 2 }), Arrival::Complete(7));
        assert_eq!(p.arrive(back(g, t, 1), Slice { lo: 0, hi: 2 }), Arrival::Duplicate);
        p.close(g);
        let h = p.open(8).unwrap();
        let u = p.begin(h);
        assert_eq!(h, g);
        p.ask(h, 0, 1);
        assert_eq!(p.arrive(back(h, t, 0), Slice::whole(4)), Arrival::Duplicate, "an earlier use");
        assert_eq!(p.arrive(back(h, u, 0), Slice::whole(4)), Arrival::Part);
    }

    #[test]
    fn another_slicing_starts_the_choice_anew() {
        let mut p = TokenPool::new(1, 1, 4);
        let g = p.open(0).unwrap();
        let t = p.begin(g);
        p.ask(g, 0, 2);
        assert_eq!(p.arrive(back(g, t, 0), Slice { lo: 0, hi: 2 }), Arrival::Part);
        assert!(p.takes(back(g, t, 0), Slice { lo: 2, hi: 4 }));
        p.ask(g, 0, 4);
        assert!(
            !p.takes(back(g, t, 0), Slice { lo: 2, hi: 4 }) && p.takes(back(g, t, 0), Slice { lo: 2, hi: 3 })
        );
        assert_eq!(p.arrive(back(g, t, 0), Slice { lo: 2, hi: 4 }), Arrival::Duplicate, "the old slicing");
        for lo in [3, 1, 0] {
            assert_eq!(p.arrive(back(g, t, 0), Slice { lo, hi: lo + 1 }), Arrival::Part);
        }
        assert!(p.waits_for(back(g, t, 0), Slice { lo: 2, hi: 3 }));
        assert_eq!(p.arrive(back(g, t, 0), Slice { lo: 2, hi: 3 }), Arrival::Complete(0));
    }

    #[test]
    fn an_abandoned_group_is_free_only_after_its_last_return() {
        let mut p = TokenPool::new(1, 2, 1);
        let g = p.open(0).unwrap();
        let t = p.begin(g);
        p.ask(g, 0, 1);
        p.ask(g, 1, 1);
        assert_eq!(p.arrive(back(g, t, 0), Slice::whole(1)), Arrival::Part);
        assert!(!p.abandon(g));
        assert!(p.open(1).is_none());
        assert_eq!(p.arrive(back(g, t, 1), Slice::whole(1)), Arrival::Abandoned);
        assert_eq!(p.used(), 0);
        assert!(p.open(1).is_some());
    }

    #[test]
    fn a_group_that_was_not_begun_waits_for_nothing() {
        let mut p = TokenPool::new(1, 1, 1);
        let g = p.open(0).unwrap();
        assert!(!p.waits_for(back(g, 0, 0), Slice::whole(1)));
        let t = p.begin(g);
        assert!(p.waits_for(back(g, t, 0), Slice::whole(1)));
    }

    #[test]
    fn nonsense_is_a_duplicate() {
        let mut p = TokenPool::new(1, 1, 2);
        let g = p.open(0).unwrap();
        let t = p.begin(g);
        p.ask(g, 0, 2);
        for (b, s) in [
            (back(9, t, 0), Slice { lo: 0, hi: 1 }),
            (back(g, t + 1, 0), Slice { lo: 0, hi: 1 }),
            (back(g, t, 5), Slice { lo: 0, hi: 1 }),
            (back(g, t, 1), Slice { lo: 0, hi: 1 }),
            (back(g, t, 0), Slice { lo: 1, hi: 1 }),
            (back(g, t, 0), Slice { lo: 0, hi: 2 }),
            (back(g, t, 0), Slice { lo: 2, hi: 3 }),
        ] {
            assert_eq!(p.arrive(b, s), Arrival::Duplicate, "{b:?} {s:?}");
            assert!(s.lo == s.hi || s.hi > 2 || !p.takes(b, s), "{b:?} {s:?}");
        }
    }
}
