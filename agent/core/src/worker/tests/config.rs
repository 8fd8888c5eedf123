//! A configuration that cannot work is refused with the first reason.

use super::*;

fn both() -> WorkerConfig {
    WorkerConfig { host: Some(HostConfig { slots: 4, ring: 4, linger: 0 }), shape: moe(4, 2), ..dense() }
}

fn moe(experts: u16, top_k: u8) -> Shape {
    Shape { moe: vec![true; 2], experts, top_k, segments: 2 }
}

fn rank(config: &mut WorkerConfig) -> &mut RankConfig {
    config.rank.as_mut().unwrap()
}

#[test]
fn what_is_just_enough_works_and_one_less_does_not() {
    type Change = fn(&mut WorkerConfig, u32);
    let least: [(&str, u32, Change); 13] = [
        ("waves", 1, |c, n| c.waves = n as u8),
        ("blocks", 1, |c, n| c.shape.moe = vec![true; n as usize]),
        ("page_size", 1, |c, n| rank(c).page_size = n),
        ("prefill_chunk", 1, |c, n| rank(c).prefill_chunk = n),
        ("max_sequences", 1, |c, n| rank(c).max_sequences = n),
        ("max_step_rows", 1, |c, n| c.max_step_rows = n),
        ("slab tokens", 16, |c, n| c.slab.tokens = n),
        ("slab groups", 32, |c, n| c.slab.groups = n),
        ("slab top_k", 2, |c, n| c.slab.top_k = n),
        ("slab parts", 1, |c, n| c.slab.parts = n),
        ("ring", 1, |c, n| c.host.as_mut().unwrap().ring = n),
        ("max_expert_rows", 1, |c, n| c.max_expert_rows = n),
        ("slab outputs", 16, |c, n| c.slab.outputs = n),
    ];
    for (name, least, change) in least {
        let mut config = both();
        change(&mut config, least);
        assert_eq!(config.check(), Ok(()), "{name}");
        change(&mut config, least - 1);
        let Err(ConfigError::TooSmall { what, is, least: due, .. }) = config.check() else {
            panic!("{name}: {:?}", config.check())
        };
        assert_eq!((what, is, due), (name, least - 1, least));
    }
}

#[test]
fn what_is_beyond_the_limits_is_refused() {
    let check = |change: fn(&mut WorkerConfig)| {
        let mut config = both();
        change(&mut config);
        config.check()
    };
    assert_eq!(check(|c| (c.rank, c.host) = (None, None)), Err(ConfigError::NoRole));
    assert_eq!(check(|c| c.rank = None), Ok(()));
    assert_eq!(check(|c| c.host = None), Ok(()));
    assert_eq!(check(|c| c.waves = 8), Ok(()));
    assert_eq!(check(|c| c.waves = 9), Err(ConfigError::Waves(9)));
    for segments in [1, 2, 4, 8] {
        assert_eq!(WorkerConfig { shape: Shape { segments, ..moe(4, 2) }, ..both() }.check(), Ok(()));
    }
    assert_eq!(check(|c| c.shape.segments = 3), Err(ConfigError::Segments(3)));
    assert_eq!(check(|c| c.shape = moe(2, 2)), Ok(()));
    assert_eq!(check(|c| c.shape = moe(1, 2)), Err(ConfigError::TopK { top_k: 2, experts: 1 }));
    assert_eq!(check(|c| c.shape = moe(4, 0)), Err(ConfigError::TopK { top_k: 0, experts: 4 }));
    assert_eq!(
        check(|c| c.shape = Shape { moe: vec![false; 2], ..moe(0, 0) }),
        Ok(()),
        "a dense model has none"
    );
    assert_eq!(check(|c| c.host = Some(HostConfig { slots: 4, ring: 1 << 20, linger: 0 })), Ok(()));
    let far = |c: &mut WorkerConfig| c.host = Some(HostConfig { slots: 4, ring: (1 << 20) + 1, linger: 0 });
    assert_eq!(check(far), Err(ConfigError::Ring((1 << 20) + 1)));
    // Rows of a slab: 2 x 32 tokens, 32 x 2 x 2 returns, 16 landing, 2 x 16 outputs.
    let rest = 64 + 128 + 32;
    let landing = |landing| WorkerConfig { slab: SlabLayout { landing, ..both().slab }, ..both() };
    assert_eq!(landing(u32::MAX - rest).check(), Ok(()));
    assert_eq!(landing(u32::MAX - rest + 1).check(), Err(ConfigError::Slab { rows: 1 << 32 }));
}

#[test]
fn a_policy_goes_by_its_name() {
    for policy in Policy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
    }
    assert_eq!("sync".parse(), Ok(Policy::Sync));
    assert!("fifo".parse::<Policy>().unwrap_err().contains("fifo"));
}
