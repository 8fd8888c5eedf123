//! The check of the pool's books finds what is wrong with them.

use super::*;

/// A pool of six pages: two held, of which one can be found; one cached; three free.
fn pool() -> (KvPool, Table) {
    let mut pool = KvPool::new(6, 4, true);
    let cached = whole(&mut pool, 1, &ids(0..4));
    let held = whole(&mut pool, 2, &ids(0..6));
    pool.release(cached);
    pool.check([&held]).unwrap();
    assert_eq!((pool.used_pages(), pool.cached_pages(), pool.free_pages()), (2, 1, 4));
    (pool, held)
}

#[test]
fn books_that_do_not_agree_are_found() {
    const OTHER: PageHash = [9; 32];
    let cached = |p: &KvPool| *p.lru.first_key_value().unwrap().1;
    type Break = fn(&mut KvPool, cached: u32, held: u32);
    let broken: [(&str, Break); 13] = [
        ("promised", |p, _, _| p.promised += 1),
        ("references", |p, _, held| p.pages[held as usize].refs += 1),
        ("references", |p, cached, _| p.pages[cached as usize].refs += 1),
        ("free 1x, cached 1x", |p, cached, _| p.free.push(cached)),
        ("free 1x, cached 0x, 1 ref", |p, _, held| p.free.push(held)),
        ("free 2x", |p, _, _| p.free.push(p.free[0])),
        ("free 0x, cached 0x, 0 ref", |p, _, _| p.lru.clear()),
        ("free 0x, cached 0x, 0 ref", |p, _, _| p.free.clear()),
        ("its hash leads to", |p, cached, held| {
            let hash = p.pages[cached as usize].hash.unwrap();
            p.by_hash.insert(hash, held);
        }),
        ("its hash leads to None", |p, _, _| p.by_hash.clear()),
        ("cached without", |p, cached, _| p.pages[cached as usize].hash = None),
        ("free with contents", |p, _, _| {
            let free = p.free[0];
            p.pages[free as usize].hash = Some(OTHER);
            p.by_hash.insert(OTHER, free);
        }),
        ("3 hashes for 2 pages", |p, _, held| assert!(p.by_hash.insert(OTHER, held).is_none())),
    ];
    for (due, breaks) in broken {
        let (mut pool, held) = pool();
        let found = cached(&pool);
        breaks(&mut pool, found, held.pages()[0]);
        let said = pool.check([&held]).unwrap_err();
        assert!(said.contains(due), "{due}: {said}");
    }
    let (pool, _) = pool();
    assert!(pool.check([]).unwrap_err().contains("references"), "a table that was lost");
}

#[test]
fn a_page_that_is_cached_twice_is_found() {
    let (mut pool, held) = pool();
    pool.release(held);
    pool.check([]).unwrap();
    let (_, page) = pool.lru.first_key_value().unwrap();
    pool.lru.insert(99, *page);
    assert!(pool.check([]).is_err());
}
