//! What executes steps: a device whose slab and KV pages hold digests, and that notices a step that is not what the
//! contract of [`sluice_core::step`] allows.

use crate::rng::mix;
use crate::symbol::{self, Digest, Request};
use sluice_core::config::{Shape, WorkerConfig};
use sluice_core::ids::{Row, SeqHandle, Slice, Unit};
use sluice_core::slab::SlabLayout;
use sluice_core::step::{AttentionStep, Entry, ExpertStep, HeadStep, Outcome, Step};
use std::sync::Arc;

/// What a [`crate::world::World`] asks of a device.
pub trait Backend {
    /// A step starts.
    fn begin(&mut self, step: &Step) -> Result<(), String>;
    /// It ends.
    fn finish(&mut self, step: &Step) -> Result<Outcome, String>;
    /// The value of a row.
    fn read(&self, row: Row) -> Digest;
    /// Puts a value into a row.
    fn write(&mut self, row: Row, value: Digest);
    /// A sequence goes by this handle.
    fn open(&mut self, handle: SeqHandle, request: &Arc<Request>) -> Result<(), String>;
    /// The handle is free.
    fn close(&mut self, handle: SeqHandle) -> Result<(), String>;
    /// A slot holds a unit, or nothing.
    fn hold(&mut self, slot: u32, unit: Option<Unit>);
    /// Whether a slot holds a unit.
    fn holds(&self, unit: Unit) -> bool;
}

struct Sequence {
    request: Arc<Request>,
    /// First position computed here: those before it came from the prefix cache.
    first: Option<u32>,
    /// Per block: the next position.
    next: Vec<u32>,
}

/// A device of digests.
pub struct Device {
    shape: Shape,
    hot: u64,
    layout: SlabLayout,
    page_size: u32,
    slab: Vec<Digest>,
    /// Per (page, offset, block).
    keys: Vec<Digest>,
    sequences: Vec<Option<Sequence>>,
    slots: Vec<Option<Unit>>,
    /// A digest of the rows that the running step reads, as they were when it started.
    inputs: Digest,
    /// Tokens that were sampled.
    pub sampled: u64,
}

impl Device {
    /// As a worker's configuration says. `hot` of 8 first choices fall on expert 0.
    pub fn new(config: &WorkerConfig, hot: u64) -> Self {
        let (pages, page_size) = config.rank.as_ref().map_or((0, 1), |r| (r.pages, r.page_size));
        let slots = config.host.as_ref().map_or(0, |h| h.slots as usize);
        Self {
            hot,
            layout: config.slab,
            page_size,
            slab: vec![0; config.slab.rows() as usize],
            keys: vec![0; pages as usize * page_size as usize * config.shape.moe.len()],
            sequences: vec![],
            slots: vec![None; slots],
            inputs: 0,
            sampled: 0,
            shape: config.shape.clone(),
        }
    }

    fn sequence(&mut self, handle: SeqHandle) -> Result<&mut Sequence, String> {
        let known = self.sequences.get_mut(handle.0 as usize).and_then(Option::as_mut);
        known.ok_or_else(|| format!("a step names handle {}, which is not open", handle.0))
    }

    /// The output of choice `k` in a return group.
    fn returned(&self, group: u32, k: usize, slices: u8) -> Digest {
        let width = self.shape.segments / slices.max(1);
        let mut parts = [0; 8];
        for s in 0..slices.min(8) {
            let slice = Slice { lo: s * width, hi: (s + 1) * width };
            parts[s as usize] =
                self.slab[self.layout.returned(group, k as u8, slice, self.shape.segments) as usize];
        }
        symbol::join(&parts[..slices.min(8) as usize])
    }

    /// The whole residual of a row that enters, with the expert outputs of the block before merged.
    fn enter(
        &self,
        token: u32,
        entry: Entry,
        salt: u64,
        slicing: &mut std::slice::Iter<u8>,
    ) -> Result<Digest, String> {
        let residual = self.slab[self.layout.residual(token) as usize];
        match entry {
            Entry::Embed(id) => Ok(symbol::embed(salt, id)),
            Entry::Carry => Ok(residual),
            Entry::Merge(group) => {
                let input = self.slab[self.layout.input(token) as usize];
                let mut r = residual;
                for k in 0..self.shape.top_k as usize {
                    let slices = *slicing.next().ok_or("a step's slicing is too short")?;
                    if !self.shape.segments.is_multiple_of(slices) {
                        return Err(format!("choice {k} of group {group} is merged in {slices} slices"));
                    }
                    r = symbol::merge(r, input, self.returned(group, k, slices));
                }
                Ok(r)
            }
        }
    }

    fn attention(&mut self, step: &AttentionStep) -> Result<Outcome, String> {
        let total: u32 = step.segments.iter().map(|s| s.len).sum();
        if total as usize != step.rows.len() || total == 0 {
            return Err(format!("segments of {total} rows for {} rows", step.rows.len()));
        }
        if !step.span && step.blocks.len() != 1 {
            return Err("several blocks that are no span".into());
        }
        let moe = self.shape.moe[step.blocks.start as usize] && !step.span;
        let mut routed = vec![];
        let mut spanned = vec![0u32; step.blocks.len() * self.shape.experts as usize];
        let mut slicing = step.slicing.iter();
        let last = self.shape.blocks() - 1;
        let mut rows = step.rows.iter();
        for segment in &step.segments {
            let salt = {
                let blocks = step.blocks.clone();
                let s = self.sequence(segment.seq)?;
                for b in blocks {
                    let first = *s.first.get_or_insert(segment.start);
                    let next = &mut s.next[b as usize];
                    let due = if *next == u32::MAX { first } else { *next };
                    if segment.start != due {
                        let key = s.request.key;
                        return Err(format!(
                            "{key}: block {b} gets position {}, due is {due}",
                            segment.start
                        ));
                    }
                    *next = segment.start + segment.len;
                }
                s.request.salt
            };
            let pages = step
                .pages
                .get(segment.pages.start as usize..segment.pages.end as usize)
                .ok_or("a segment's pages lie outside the step's")?;
            if pages.len() * (self.page_size as usize) < (segment.start + segment.len) as usize {
                return Err(format!("{} pages for {} positions", pages.len(), segment.start + segment.len));
            }
            for position in segment.start..segment.start + segment.len {
                let Some(row) = rows.next() else { break };
                let mut r = self.enter(row.token, row.entry, salt, &mut slicing)?;
                for b in step.blocks.clone() {
                    let at = |p: u32| {
                        let page = pages[(p / self.page_size) as usize];
                        let flat = (page * self.page_size + p % self.page_size) as usize;
                        flat * self.shape.moe.len() + b as usize
                    };
                    self.keys[at(position)] = symbol::kv(b, position, r);
                    if b == last && !row.wanted {
                        break;
                    }
                    r = symbol::attend(r, (0..=position).map(|p| self.keys[at(p)]));
                    if !self.shape.moe[b as usize] {
                        r = symbol::dense(b, r);
                        continue;
                    }
                    let x = symbol::norm(b, r);
                    let start = routed.len();
                    symbol::route(&self.shape, self.hot, x, &mut routed);
                    if step.span {
                        for e in routed.drain(start..) {
                            let whole = Slice::whole(self.shape.segments);
                            r = symbol::merge(r, x, symbol::expert(b, e, whole, x));
                            let i = usize::from(b - step.blocks.start) * self.shape.experts as usize;
                            spanned[i + e as usize] += 1;
                        }
                    } else {
                        self.slab[self.layout.input(row.token) as usize] = x;
                    }
                }
                if step.blocks.end - 1 == last && !row.wanted && moe {
                    // What is not wanted holds anything.
                    routed.extend(std::iter::repeat_n(u16::MAX, self.shape.top_k as usize));
                }
                self.slab[self.layout.residual(row.token) as usize] = r;
            }
        }
        if slicing.next().is_some() {
            return Err("a step's slicing is too long".into());
        }
        Ok(if step.span { Outcome::Spanned(spanned) } else { Outcome::Routed(routed) })
    }

    fn experts(&mut self, step: &ExpertStep) -> Result<Outcome, String> {
        let mut covered = 0;
        for batch in &step.units {
            if self.slots.get(batch.slot as usize).copied().flatten() != Some(batch.unit) {
                return Err(format!("slot {} does not hold {}", batch.slot, batch.unit));
            }
            if batch.unit.block != step.block || batch.items.start != covered {
                return Err(format!("{} in a step of block {}", batch.unit, step.block));
            }
            covered = batch.items.end;
        }
        if covered as usize != step.items.len() || covered == 0 {
            return Err(format!("units cover {covered} of {} items", step.items.len()));
        }
        for batch in &step.units {
            let Unit { block, expert, slice } = batch.unit;
            for item in &step.items[batch.items.start as usize..batch.items.end as usize] {
                let x = self.slab[item.src as usize];
                self.slab[item.dst as usize] = symbol::expert(block, expert, slice, x);
            }
        }
        Ok(Outcome::Experts)
    }

    fn head(&mut self, step: &HeadStep) -> Result<Outcome, String> {
        let mut slicing = step.slicing.iter();
        let mut samples = vec![];
        for row in &step.rows {
            let request = Arc::clone(&self.sequence(row.seq)?.request);
            if matches!(row.entry, Entry::Embed(_)) {
                return Err("a head step embeds".into());
            }
            let r = self.enter(row.token, row.entry, request.salt, &mut slicing)?;
            samples.push(symbol::sample(&request, row.index, r));
        }
        self.sampled += samples.len() as u64;
        Ok(Outcome::Sampled(samples))
    }

    /// A digest of all rows that a step reads from the slab.
    fn inputs(&self, step: &Step) -> Digest {
        let mut sum = 0;
        let mut take = |row: Row| sum = mix(sum, self.slab[row as usize]);
        let enters =
            |token: u32, entry: Entry, slicing: &mut std::slice::Iter<u8>, take: &mut dyn FnMut(Row)| {
                if !matches!(entry, Entry::Embed(_)) {
                    take(self.layout.residual(token));
                }
                if let Entry::Merge(group) = entry {
                    for k in 0..self.shape.top_k {
                        let slices = slicing.next().copied().unwrap_or(1).clamp(1, self.shape.segments);
                        let width = self.shape.segments / slices;
                        for s in 0..slices {
                            let slice = Slice { lo: s * width, hi: (s + 1) * width };
                            take(self.layout.returned(group, k, slice, self.shape.segments));
                        }
                    }
                }
            };
        match step {
            Step::Attention(a) => {
                let mut slicing = a.slicing.iter();
                a.rows.iter().for_each(|r| enters(r.token, r.entry, &mut slicing, &mut take));
            }
            Step::Experts(e) => e.items.iter().for_each(|i| take(i.src)),
            Step::Head(h) => {
                let mut slicing = h.slicing.iter();
                h.rows.iter().for_each(|r| enters(r.token, r.entry, &mut slicing, &mut take));
            }
        }
        sum
    }
}

impl Backend for Device {
    fn begin(&mut self, step: &Step) -> Result<(), String> {
        self.inputs = self.inputs(step);
        Ok(())
    }

    fn finish(&mut self, step: &Step) -> Result<Outcome, String> {
        if self.inputs(step) != self.inputs {
            return Err("rows were overwritten under the step that reads them".into());
        }
        match step {
            Step::Attention(s) => self.attention(s),
            Step::Experts(s) => self.experts(s),
            Step::Head(s) => self.head(s),
        }
    }

    fn read(&self, row: Row) -> Digest {
        self.slab[row as usize]
    }

    fn write(&mut self, row: Row, value: Digest) {
        self.slab[row as usize] = value;
    }

    fn open(&mut self, handle: SeqHandle, request: &Arc<Request>) -> Result<(), String> {
        let i = handle.0 as usize;
        if self.sequences.len() <= i {
            self.sequences.resize_with(i + 1, || None);
        }
        if self.sequences[i].is_some() {
            return Err(format!("handle {i} is opened twice"));
        }
        let next = vec![u32::MAX; self.shape.moe.len()];
        self.sequences[i] = Some(Sequence { request: Arc::clone(request), first: None, next });
        Ok(())
    }

    fn close(&mut self, handle: SeqHandle) -> Result<(), String> {
        let open = self.sequences.get_mut(handle.0 as usize).and_then(Option::take);
        open.map(|_| ()).ok_or_else(|| format!("handle {} is closed but was not open", handle.0))
    }

    fn hold(&mut self, slot: u32, unit: Option<Unit>) {
        if let Some(s) = self.slots.get_mut(slot as usize) {
            *s = unit;
        }
    }

    fn holds(&self, unit: Unit) -> bool {
        self.slots.contains(&Some(unit))
    }
}
