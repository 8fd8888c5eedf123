//! Counter-based random numbers: a pure function of a key and a counter, so a replay draws what the first run drew.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// Ten rounds of Philox over four 32-bit words.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    const W0: u32 = 0x9E37_79B9;
    const W1: u32 = 0xBB67_AE85;
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (M0 * u64::from(c0), M1 * u64::from(c2));
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// What a draw is for: streams of one key never meet.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Stream {
    /// The token at an index.
    Token = 0,
    /// Routing of a position in a block.
    Routing = 1,
    /// A made-up token of a modelled device.
    Modelled = 2,
    /// Popularity of experts in a made-up routing.
    Popularity = 4,
    /// How long a modelled step takes.
    Jitter = 3,
    /// The seed of another prompt of the same request.
    Prompt = 5,
}

/// Four words for (seed, stream, a, b).
pub fn words(seed: u64, stream: Stream, a: u32, b: u32) -> [u32; 4] {
    philox4x32([a, b, stream as u32, 0], [seed as u32, (seed >> 32) as u32])
}

/// The number in `[0, 1)` that decides the token at `index` of a choice: 53 bits of Philox with the seed as key and
/// (index, choice, stream 0, 0) as counter.
pub fn unit_draw(seed: u64, choice: u16, index: u32) -> f64 {
    let [a, b, ..] = words(seed, Stream::Token, index, u32::from(choice));
    unit(a, b)
}

/// The seed of the prompt of this number of a request: that of the request for the first. So prompts that are alike are
/// not answered alike.
pub fn prompt_seed(seed: u64, number: usize) -> u64 {
    if number == 0 {
        return seed;
    }
    let [a, b, ..] = words(seed, Stream::Prompt, number as u32, 0);
    u64::from(a) << 32 | u64::from(b)
}

/// 53 bits of two words as a number in `[0, 1)`.
pub fn unit(a: u32, b: u32) -> f64 {
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 library (kat_vectors).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_are_spread_and_differ_by_each_part_of_the_key() {
        let n = 20_000u32;
        let mean = (0..n).map(|i| unit_draw(7, 0, i)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((0..n).all(|i| (0.0..1.0).contains(&unit_draw(7, 0, i))));
        let base = unit_draw(7, 0, 3);
        assert_ne!(base, unit_draw(8, 0, 3));
        assert_ne!(base, unit_draw(7 | 1 << 40, 0, 3));
        assert_ne!(base, unit_draw(7, 1, 3));
        assert_ne!(base, unit_draw(7, 0, 4));
    }
}
