use super::*;

mod books;
mod model;

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

/// Admits, grows over and commits all of `ids`.
fn whole(pool: &mut KvPool, salt: u64, ids: &[u32]) -> Table {
    let mut table = pool.admit(salt, ids, 0).unwrap();
    pool.grow(&mut table, ids.len() as u32).unwrap();
    pool.commit(&mut table, ids, ids.len() as u32);
    table
}

#[test]
fn same_ids_and_salt_share_their_full_pages() {
    let mut pool = KvPool::new(16, 4, true);
    let first = whole(&mut pool, 7, &ids(0..10));
    let second = whole(&mut pool, 7, &ids(0..12));
    assert_eq!(first.cached_tokens(), 0);
    assert_eq!(second.cached_tokens(), 8);
    assert_eq!(first.pages()[..2], second.pages()[..2]);
    assert_ne!(first.pages()[2], second.pages()[2]);
    assert_eq!(pool.used_pages(), 4);
    pool.check([&first, &second]).unwrap();
    pool.release(first);
    pool.check([&second]).unwrap();
    pool.release(second);
    pool.check([]).unwrap();
    assert_eq!((pool.used_pages(), pool.cached_pages(), pool.free_pages()), (0, 3, 16));
    assert_eq!(
        pool.stats(),
        KvStats { admitted_tokens: 22, cached_tokens: 8, evicted_pages: 0, peak_pages: 4 }
    );
}

#[test]
fn another_salt_shares_nothing() {
    let mut pool = KvPool::new(16, 4, true);
    let first = whole(&mut pool, 7, &ids(0..12));
    let second = whole(&mut pool, 8, &ids(0..12));
    assert_eq!(second.cached_tokens(), 0);
    assert_eq!(pool.used_pages(), 6);
    pool.release(first);
    pool.release(second);
}

#[test]
fn equal_pages_after_unequal_ones_are_not_shared() {
    let mut pool = KvPool::new(16, 4, true);
    let first = whole(&mut pool, 0, &[1, 1, 1, 1, 2, 2, 2, 2, 3]);
    let second = whole(&mut pool, 0, &[9, 1, 1, 1, 2, 2, 2, 2, 3]);
    assert_eq!(second.cached_tokens(), 0);
    let third = whole(&mut pool, 0, &[1, 1, 1, 1, 2, 2, 2, 9, 3]);
    assert_eq!(third.cached_tokens(), 4);
    for table in [first, second, third] {
        pool.release(table);
    }
}

#[test]
fn the_last_token_is_always_computed() {
    let mut pool = KvPool::new(16, 4, true);
    let first = whole(&mut pool, 0, &ids(0..8));
    for (len, cached) in [(9, 8), (8, 4), (7, 4), (5, 4), (4, 0), (1, 0), (0, 0)] {
        let table = pool.admit(0, &ids(0..len), 0).unwrap();
        assert_eq!(table.cached_tokens(), cached, "{len} tokens");
        pool.release(table);
    }
    pool.release(first);
}

#[test]
fn only_full_pages_that_are_computed_become_shareable() {
    let mut pool = KvPool::new(16, 4, true);
    let prompt = ids(0..12);
    let mut first = pool.admit(0, &prompt, 0).unwrap();
    pool.grow(&mut first, 12).unwrap();
    for (computed, cached) in [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (11, 8)] {
        pool.commit(&mut first, &prompt, computed);
        let second = pool.admit(0, &prompt, 0).unwrap();
        assert_eq!(second.cached_tokens(), cached, "{computed} computed");
        pool.release(second);
    }
    pool.release(first);
}

#[test]
fn a_commit_says_no_more_than_pages_and_ids_cover() {
    let mut pool = KvPool::new(16, 4, true);
    let prompt = ids(0..12);
    let mut table = pool.admit(0, &prompt, 0).unwrap();
    pool.grow(&mut table, 8).unwrap();
    pool.commit(&mut table, &prompt[..7], 1000);
    assert_eq!(pool.admit(0, &prompt, 0).unwrap().cached_tokens(), 4);
    pool.commit(&mut table, &prompt, 1000);
    assert_eq!(pool.admit(0, &prompt, 0).unwrap().cached_tokens(), 8);
}

#[test]
fn without_reuse_nothing_is_cached() {
    let mut pool = KvPool::new(8, 4, false);
    let first = whole(&mut pool, 0, &ids(0..12));
    let second = whole(&mut pool, 0, &ids(0..12));
    assert_eq!(second.cached_tokens(), 0);
    pool.release(first);
    pool.release(second);
    assert_eq!((pool.cached_pages(), pool.free_pages()), (0, 8));
    pool.check([]).unwrap();
}

#[test]
fn side_by_side_copies_stay_private_and_valid() {
    let mut pool = KvPool::new(16, 4, true);
    let prompt = ids(0..8);
    let mut first = pool.admit(0, &prompt, 0).unwrap();
    let mut second = pool.admit(0, &prompt, 0).unwrap();
    for table in [&mut first, &mut second] {
        pool.grow(table, 8).unwrap();
        pool.commit(table, &prompt, 8);
    }
    pool.check([&first, &second]).unwrap();
    assert_eq!(pool.used_pages(), 4);
    pool.release(second);
    assert_eq!(pool.cached_pages(), 0);
    pool.release(first);
    assert_eq!(pool.cached_pages(), 2);
    pool.check([]).unwrap();
}

#[test]
fn eviction_takes_the_least_recently_used_and_ends_before_beginnings() {
    let mut pool = KvPool::new(4, 4, true);
    let old = whole(&mut pool, 1, &ids(0..8));
    pool.release(old);
    let new = whole(&mut pool, 2, &ids(0..8));
    pool.release(new);
    let other = whole(&mut pool, 3, &[5; 4]);
    assert_eq!(pool.stats().evicted_pages, 1);
    let cached = |pool: &mut KvPool, salt| {
        let table = pool.admit(salt, &ids(0..9), 0).unwrap_or_else(|e| panic!("{e}"));
        let cached = table.cached_tokens();
        pool.release(table);
        cached
    };
    assert_eq!(cached(&mut pool, 2), 8);
    assert_eq!(cached(&mut pool, 1), 4, "its end went, its beginning stayed");
    // Salt 1 was used last, so salt 2 loses its end now.
    let more = whole(&mut pool, 4, &[6; 4]);
    assert_eq!(pool.stats().evicted_pages, 2);
    assert_eq!(pool.find(1, &ids(0..9)).1.len(), 1);
    assert_eq!(pool.find(2, &ids(0..9)).1.len(), 1);
    pool.check([&other, &more]).unwrap();
    pool.release(other);
    pool.release(more);
}

#[test]
fn growth_is_all_or_nothing() {
    let mut pool = KvPool::new(3, 4, true);
    let mut table = pool.admit(0, &[1], 0).unwrap();
    pool.grow(&mut table, 5).unwrap();
    assert_eq!(table.pages().len(), 2);
    assert_eq!(pool.grow(&mut table, 17), Err(NoRoom { needed: 3, free: 1 }));
    assert_eq!((table.pages().len(), pool.free_pages()), (2, 1));
    pool.grow(&mut table, 12).unwrap();
    pool.grow(&mut table, 1).unwrap();
    assert_eq!((table.pages().len(), pool.free_pages()), (3, 0));
    pool.check([&table]).unwrap();
    pool.release(table);
}

#[test]
fn admission_keeps_the_watermark_and_its_promises() {
    let mut pool = KvPool::new(8, 4, true);
    let first = pool.admit(0, &ids(0..12), 3).unwrap();
    assert_eq!((pool.used_pages(), pool.promised_pages(), pool.free_pages()), (0, 3, 8));
    // Five are neither held nor promised.
    assert_eq!(pool.admit(0, &ids(0..12), 3).unwrap_err(), NoRoom { needed: 6, free: 5 });
    let mut second = pool.admit(0, &ids(0..12), 2).unwrap();
    pool.check([&first, &second]).unwrap();
    pool.grow(&mut second, 8).unwrap();
    assert_eq!((pool.used_pages(), pool.promised_pages()), (2, 4));
    // A promise does not hold growth up.
    pool.grow(&mut second, 32).unwrap();
    assert_eq!((pool.used_pages(), pool.promised_pages(), pool.free_pages()), (8, 3, 0));
    assert_eq!(pool.admit(0, &[1], 0).unwrap_err(), NoRoom { needed: 1, free: 0 });
    pool.check([&first, &second]).unwrap();
    pool.release(second);
    pool.release(first);
    assert_eq!(pool.promised_pages(), 0);
}

#[test]
fn an_idle_pool_admits_what_fits_whatever_the_watermark() {
    let mut pool = KvPool::new(4, 4, true);
    assert_eq!(pool.capacity_tokens(), 16);
    let table = pool.admit(0, &ids(0..16), 100).unwrap();
    pool.release(table);
    assert_eq!(pool.admit(0, &ids(0..17), 0).unwrap_err(), NoRoom { needed: 5, free: 4 });
    // Not idle: a sequence that holds pages, or one that was promised some.
    let mut table = pool.admit(0, &[1], 0).unwrap();
    assert_eq!(pool.admit(0, &[1], 3).unwrap_err(), NoRoom { needed: 4, free: 3 });
    pool.grow(&mut table, 1).unwrap();
    assert_eq!(pool.admit(0, &[1], 3).unwrap_err(), NoRoom { needed: 4, free: 3 });
    pool.release(table);
}

#[test]
fn cached_pages_an_admission_wakes_are_not_free_for_it() {
    let mut pool = KvPool::new(4, 4, true);
    let first = whole(&mut pool, 0, &ids(0..12));
    pool.release(first);
    assert_eq!((pool.free_pages(), pool.cached_pages()), (4, 3));
    // Three woken, two more needed, one left.
    assert_eq!(pool.admit(0, &ids(0..20), 0).unwrap_err(), NoRoom { needed: 2, free: 1 });
    pool.check([]).unwrap();
    let second = pool.admit(0, &ids(0..16), 0).unwrap();
    assert_eq!((second.cached_tokens(), pool.used_pages(), pool.free_pages()), (12, 3, 1));
    pool.release(second);
}

#[test]
fn odd_sizes_do_no_harm() {
    let mut pool = KvPool::new(0, 0, true);
    assert_eq!((pool.page_size(), pool.capacity_tokens(), pool.free_pages()), (1, 0, 0));
    assert_eq!(pool.admit(0, &[1], 0).unwrap_err(), NoRoom { needed: 1, free: 0 });
    let empty = pool.admit(0, &[], u32::MAX).unwrap();
    pool.release(empty);
    let mut pool = KvPool::new(2, u32::MAX, true);
    assert_eq!(pool.capacity_tokens(), u32::MAX);
    let mut table = pool.admit(0, &[1], 0).unwrap();
    pool.grow(&mut table, u32::MAX).unwrap();
    pool.commit(&mut table, &[1], u32::MAX);
    assert_eq!(table.pages().len(), 1);
    pool.check([&table]).unwrap();
    pool.release(table);
}

#[test]
fn the_chain_is_the_documented_one() {
    let key = blake3::derive_key("sluice.dev 2026 KV prefix page", &5u64.to_le_bytes());
    let mut page = vec![0; 32];
    page.extend([1, 0, 0, 0, 2, 1, 0, 0]);
    let first = *blake3::keyed_hash(&key, &page).as_bytes();
    let chain = Chain::new(5).next(&[1, 258]);
    assert_eq!(chain.hash(), first);
    let mut page = first.to_vec();
    page.extend([3, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(chain.next(&[3, 4]).hash(), *blake3::keyed_hash(&key, &page).as_bytes());
}

#[test]
fn sizes_are_what_was_asked_for() {
    let pool = KvPool::new(6, 4, true);
    assert_eq!((pool.total_pages(), pool.page_size(), pool.capacity_tokens()), (6, 4, 24));
    for (tokens, pages) in [(0, 0), (1, 1), (4, 1), (5, 2), (24, 6), (25, 7)] {
        assert_eq!(pool.pages_for(tokens), pages, "{tokens} tokens");
    }
}

/// A referenced table of two full pages and one open one, a cached page, four free ones.
fn busy() -> (KvPool, Table) {
    let mut pool = KvPool::new(8, 4, true);
    let cached = whole(&mut pool, 1, &ids(0..4));
    let table = whole(&mut pool, 2, &ids(0..9));
    pool.release(cached);
    pool.check([&table]).unwrap();
    (pool, table)
}

#[test]
fn check_finds_what_is_wrong() {
    type Spoil = fn(&mut KvPool, &mut Table);
    let cases: [(&str, Spoil); 14] = [
        ("a leaked free page", |pool, _| pool.free.truncate(3)),
        ("a page free twice", |pool, _| pool.free.push(pool.free[0])),
        ("a referenced page free", |pool, table| pool.free.push(table.pages[0])),
        ("a referenced page cached", |pool, table| {
            let page = table.pages[0];
            pool.pages[page as usize].let_go = 77;
            pool.lru.insert(77, page);
        }),
        ("a cached page lost", |pool, _| pool.lru.clear()),
        ("a cached page free as well", |pool, _| pool.free.extend(pool.lru.values())),
        ("a cached page under a wrong time", |pool, _| {
            let (_, page) = pool.lru.pop_first().unwrap();
            pool.lru.insert(78, page);
        }),
        ("a reference too many", |pool, table| pool.pages[table.pages[0] as usize].refs += 1),
        ("a reference too few", |pool, table| pool.pages[table.pages[2] as usize].refs -= 1),
        ("a hash that leads nowhere", |pool, table| {
            pool.by_hash.remove(&pool.pages[table.pages[0] as usize].hash.unwrap());
        }),
        ("a hash that leads elsewhere", |pool, table| {
            let hash = pool.pages[table.pages[0] as usize].hash.unwrap();
            pool.by_hash.insert(hash, table.pages[1]);
        }),
        ("a hash nobody has", |pool, _| pool.by_hash.extend([([9; 32], 0)])),
        ("a cached page without contents", |pool, _| {
            let page = *pool.lru.values().next().unwrap();
            pool.by_hash.remove(&pool.pages[page as usize].hash.take().unwrap());
        }),
        ("a free page with contents", |pool, _| {
            pool.pages[pool.free[0] as usize].hash = Some([9; 32]);
            pool.by_hash.insert([9; 32], pool.free[0]);
        }),
    ];
    for (what, spoil) in cases {
        let (mut pool, mut table) = busy();
        spoil(&mut pool, &mut table);
        assert!(pool.check([&table]).is_err(), "{what}");
    }
    let (mut pool, table) = busy();
    assert!(pool.check([]).is_err(), "a table forgotten");
    assert!(pool.check([&table, &table]).is_err(), "a table twice");
    pool.promised += 1;
    assert!(pool.check([&table]).is_err(), "a promise too many");
}
