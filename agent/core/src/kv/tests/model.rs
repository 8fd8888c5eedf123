//! Random histories against a naive model that knows pages by their whole prefix and searches by scanning, and
//! against what the pages would hold: contents are written where a rank would write them, and must be right where a
//! table reads them.

use super::*;
use proptest::prelude::*;

/// (salt, all ids up to the page's end).
type Contents = (u64, Vec<u32>);

#[derive(Clone, Debug)]
enum Op {
    Admit {
        salt: u64,
        ids: Vec<u32>,
        watermark: u32,
    },
    /// Compute up to `by` tokens more of a sequence, appending `token` once its own are done.
    Advance {
        who: usize,
        by: u32,
        token: u32,
        commit: bool,
    },
    Release {
        who: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let admit = (0u64..2, proptest::collection::vec(0u32..2, 0..14), 0u32..4)
        .prop_map(|(salt, ids, watermark)| Op::Admit { salt, ids, watermark });
    let advance = (0usize..8, 1u32..9, 0u32..2, any::<bool>())
        .prop_map(|(who, by, token, commit)| Op::Advance { who, by, token, commit });
    let release = (0usize..8).prop_map(|who| Op::Release { who });
    proptest::collection::vec(prop_oneof![3 => admit, 5 => advance, 2 => release], 1..120)
}

struct Sequence {
    salt: u64,
    ids: Vec<u32>,
    computed: u32,
    table: Table,
    /// The model's view: for each page, its contents if it can be found by them.
    listed: Vec<Option<Contents>>,
    sealed: usize,
    promised: u32,
}

/// A page that can be found.
struct Listed {
    contents: Contents,
    refs: u32,
    let_go: u64,
}

#[derive(Default)]
struct Model {
    listed: Vec<Listed>,
    private: u32,
    clock: u64,
}

impl Model {
    fn position(&self, contents: &Contents) -> Option<usize> {
        self.listed.iter().position(|page| page.contents == *contents)
    }

    fn used(&self) -> u32 {
        self.private + self.listed.iter().filter(|page| page.refs > 0).count() as u32
    }

    fn find(&self, size: usize, salt: u64, ids: &[u32]) -> Vec<usize> {
        let full = ids.len().saturating_sub(1) / size;
        (1..=full).map_while(|n| self.position(&(salt, ids[..n * size].to_vec()))).collect()
    }

    fn take(&mut self, total: u32) {
        if self.private + self.listed.len() as u32 == total {
            let oldest = (0..self.listed.len())
                .filter(|&i| self.listed[i].refs == 0)
                .min_by_key(|&i| self.listed[i].let_go)
                .unwrap();
            self.listed.remove(oldest);
        }
        self.private += 1;
    }

    fn release(&mut self, listed: Vec<Option<Contents>>) {
        for page in listed.into_iter().rev() {
            let Some(contents) = page else {
                self.private -= 1;
                continue;
            };
            let i = self.position(&contents).unwrap();
            self.listed[i].refs -= 1;
            if self.listed[i].refs == 0 {
                self.listed[i].let_go = self.clock;
                self.clock += 1;
            }
        }
    }
}

struct Run {
    pool: KvPool,
    size: u32,
    reuse: bool,
    model: Model,
    live: Vec<Sequence>,
    /// What each page holds: the prefix up to each position written.
    memory: Vec<Vec<Option<Contents>>>,
}

impl Run {
    fn admit(&mut self, salt: u64, ids: Vec<u32>, watermark: u32) {
        let size = self.size as usize;
        let found = if self.reuse { self.model.find(size, salt, &ids) } else { Vec::new() };
        let waking = found.iter().filter(|&&i| self.model.listed[i].refs == 0).count() as i64;
        let rest = i64::from(self.pool.pages_for(ids.len() as u32)) - found.len() as i64;
        let promised: u32 = self.live.iter().map(|s| s.promised).sum();
        let free = i64::from(self.pool.total_pages() - self.model.used());
        let idle = self.model.used() == 0 && promised == 0;
        let fits = rest + if idle { 0 } else { i64::from(watermark) }
            <= (free - waking - i64::from(promised)).max(0);
        let answer = self.pool.admit(salt, &ids, watermark);
        assert_eq!(answer.is_ok(), fits, "{answer:?}");
        let Ok(table) = answer else { return };
        assert_eq!(table.cached_tokens() as usize, found.len() * size);
        let listed: Vec<_> = found.iter().map(|&i| Some(self.model.listed[i].contents.clone())).collect();
        for i in found {
            self.model.listed[i].refs += 1;
        }
        let (computed, sealed) = (table.cached_tokens(), listed.len());
        self.live.push(Sequence { salt, ids, computed, table, listed, sealed, promised: rest as u32 });
    }

    fn advance(&mut self, who: usize, by: u32, token: u32, commit: bool) {
        let Some(who) = who.checked_rem(self.live.len()) else { return };
        let total = self.pool.total_pages();
        let sequence = &mut self.live[who];
        if sequence.computed as usize == sequence.ids.len() {
            sequence.ids.push(token);
        }
        let target = (sequence.computed + by).min(sequence.ids.len() as u32);
        let needed = self.pool.pages_for(target).saturating_sub(sequence.listed.len() as u32);
        let fits = needed <= total - self.model.used();
        assert_eq!(self.pool.grow(&mut sequence.table, target).is_ok(), fits);
        if !fits {
            return;
        }
        for _ in 0..needed {
            self.model.take(total);
            sequence.listed.push(None);
        }
        sequence.promised -= needed.min(sequence.promised);
        for at in sequence.computed..target {
            let page = sequence.table.pages()[(at / self.size) as usize] as usize;
            let prefix = sequence.ids[..=at as usize].to_vec();
            self.memory[page][(at % self.size) as usize] = Some((sequence.salt, prefix));
        }
        sequence.computed = target;
        if commit {
            self.pool.commit(&mut sequence.table, &sequence.ids, target);
            let full = if self.reuse { (target / self.size) as usize } else { 0 };
            for n in sequence.sealed..full {
                let contents = (sequence.salt, sequence.ids[..(n + 1) * self.size as usize].to_vec());
                if self.model.position(&contents).is_none() {
                    self.model.private -= 1;
                    self.model.listed.push(Listed { contents: contents.clone(), refs: 1, let_go: 0 });
                    sequence.listed[n] = Some(contents);
                }
            }
            sequence.sealed = full.max(sequence.sealed);
        }
    }

    fn release(&mut self, who: usize) {
        let Some(who) = who.checked_rem(self.live.len()) else { return };
        let sequence = self.live.swap_remove(who);
        self.pool.release(sequence.table);
        self.model.release(sequence.listed);
    }

    fn check(&self) {
        self.pool.check(self.live.iter().map(|s| &s.table)).unwrap();
        assert_eq!(self.pool.used_pages(), self.model.used());
        let cached = self.model.listed.iter().filter(|page| page.refs == 0).count() as u32;
        assert_eq!(self.pool.cached_pages(), cached);
        for sequence in &self.live {
            for at in 0..sequence.computed as usize {
                let page = sequence.table.pages()[at / self.size as usize] as usize;
                let held = self.memory[page][at % self.size as usize].as_ref();
                assert_eq!(held, Some(&(sequence.salt, sequence.ids[..=at].to_vec())));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_naive_model(ops in ops(), pages in 0u32..14, size in 1u32..5, reuse in prop::bool::weighted(0.9)) {
        let memory = vec![vec![None; size as usize]; pages as usize];
        let pool = KvPool::new(pages, size, reuse);
        let mut run = Run { pool, size, reuse, model: Model::default(), live: Vec::new(), memory };
        for op in ops {
            match op {
                Op::Admit { salt, ids, watermark } => run.admit(salt, ids, watermark),
                Op::Advance { who, by, token, commit } => run.advance(who, by, token, commit),
                Op::Release { who } => run.release(who),
            }
            run.check();
        }
        while !run.live.is_empty() {
            run.release(0);
        }
        run.check();
        prop_assert_eq!(run.pool.free_pages(), pages);
    }
}
