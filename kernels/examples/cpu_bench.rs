//! How fast the CPU kernels are, beside the `gemm` crate and beside the machine's own limits.
//!
//! `cargo run --release -p sluice-kernels --example cpu_bench [-- [--least | --cpu] [--isa=NAME] [filter]]`
//!
//! Every figure is a median over rounds in which all contestants take turns, so that a change of clock or a noisy
//! neighbour meets all of them. With `--least` it is the least instead: where others keep the cores busy, a median
//! tells of them. With `--cpu` it is the process's processor time (of all its threads), which
//! leaves out the time that others had the core.
// The peak of the machine is measured with its own instructions.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sluice_kernels::cpu::{
    Attention, Cpu, Dtype, Epilogue, Expert, ExpertIo, ExpertRow, Io, Isa, KvCache, KvColumns, KvSegment,
    KvShape, Merge, Norm, PackedMatrix, Pool, Routed, Router, Rows, Score, Slab, Source,
};

const ROUNDS: usize = 21;
/// A contestant's turn lasts at least this long, in seconds.
const TURN: f64 = 200e-6;

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if cores > 1 { vec![1, cores] } else { vec![1] };
    println!("{cores} cores, set {}", isa());
    let limits: Vec<Limits> = threads.iter().map(|t| Limits::measure(*t)).collect();
    for (t, l) in threads.iter().zip(&limits) {
        println!(
            "{t} threads: {:.1} GB/s read from memory, {:.0} GFLOP/s multiply-add",
            l.bytes / 1e9,
            l.flops / 1e9
        );
    }
    if wanted("matmul") {
        println!(
            "\nmatmul: us, and beside it what it means: bf16 GB/s of weights, share of the nearer limit"
        );
        println!(
            "{:>12} {:>5} {:>3} | {:>9} {:>9} | {:>9} {:>9} | {:>7} {:>7} | {:>7} {:>6}",
            "out x in",
            "rows",
            "T",
            "bf16",
            "f32",
            "gemm f32",
            "gemm f16",
            "bf16/g",
            "f32/g",
            "GB/s",
            "limit"
        );
        for (out, inner) in [(256, 256), (2048, 768), (768, 2048), (4096, 4096), (4096, 14336)] {
            for rows in [1, 8, 32, 128, 512] {
                if rows * out * inner > 128 * 4096 * 14336 {
                    continue;
                }
                for (t, l) in threads.iter().zip(&limits) {
                    matmul(out, inner, rows, *t, l);
                }
            }
        }
    }
    if wanted("pool") {
        pool(&threads);
    }
    if wanted("experts") {
        experts(&threads);
    }
    if wanted("attention") {
        attention(&threads);
    }
    if wanted("pack") {
        pack();
    }
    if wanted("rows") {
        row_ops();
    }
}

fn isa() -> Isa {
    let name = std::env::args().find_map(|a| a.strip_prefix("--isa=").map(str::to_owned));
    name.map_or(Isa::best(), |name| name.parse().unwrap())
}

fn cpu(threads: usize) -> Cpu {
    Cpu::new(isa(), Pool::new(threads, Duration::from_millis(1)).unwrap()).unwrap()
}

/// A name, for the reader, and one call.
type Contestant<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// Medians of all contestants' seconds per call.
fn race(contestants: &mut [Contestant<'_>]) -> Vec<f64> {
    let mut repeats = Vec::new();
    for (_, run) in contestants.iter_mut() {
        run();
        let start = Instant::now();
        run();
        repeats.push((TURN / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 10_000.0) as usize);
    }
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..ROUNDS {
        for (i, (_, run)) in contestants.iter_mut().enumerate() {
            let start = now();
            for _ in 0..repeats[i] {
                run();
            }
            times[i].push((now() - start) / repeats[i] as f64);
        }
    }
    let least = std::env::args().any(|a| a == "--least");
    times
        .iter_mut()
        .map(|t| if least { t.iter().copied().fold(f64::INFINITY, f64::min) } else { median(t) })
        .collect()
}

fn on_cpu_time() -> bool {
    std::env::args().any(|a| a == "--cpu")
}

/// Seconds on the clock that was asked for.
fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if on_cpu_time() { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    // SAFETY: `time` is valid for the write.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Limits {
    bytes: f64,
    flops: f64,
}

impl Limits {
    fn measure(threads: usize) -> Self {
        // A slab, because it lies in large pages, as weights do.
        let memory = Slab::new(1, 64 << 20);
        // Processor time adds up over the threads.
        let shared = if on_cpu_time() { threads as f64 } else { 1.0 };
        let mut bytes = Vec::new();
        let mut flops = Vec::new();
        for _ in 0..25 {
            let start = now();
            read(memory.row(0), threads);
            bytes.push((now() - start) / shared / (4 * memory.cols()) as f64);
            let start = now();
            let rounds = 500_000;
            let per_thread = std::thread::scope(|s| {
                let all: Vec<_> = (0..threads).map(|_| s.spawn(|| multiply_adds(rounds))).collect();
                all.into_iter().map(|t| t.join().unwrap()).sum::<usize>()
            });
            flops.push((now() - start) / shared / (2 * per_thread) as f64);
        }
        let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        Self { bytes: 1.0 / least(&bytes), flops: 1.0 / least(&flops) }
    }
}

/// Reads memory once.
fn read(memory: &[f32], threads: usize) {
    let part = |part: &[f32]| {
        let mut sums = [0u32; 64];
        for line in part.chunks_exact(64) {
            for (sum, x) in sums.iter_mut().zip(line) {
                *sum ^= x.to_bits();
            }
        }
        black_box(sums);
    };
    if threads == 1 {
        return part(memory);
    }
    std::thread::scope(|s| {
        for chunk in memory.chunks(memory.len().div_ceil(threads)) {
            s.spawn(move || part(chunk));
        }
    });
}

/// Runs independent chains in registers; returns how many multiply-adds that was.
fn multiply_adds(rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn wide(rounds: usize) -> usize {
            let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
            let mut acc = [a; 16];
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = _mm512_fmadd_ps(*acc, a, b);
                }
            }
            black_box(acc);
            rounds * 16 * 16
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow(rounds: usize) -> usize {
            let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
            let mut acc = [a; 12];
            for _ in 0..rounds {
                for acc in &mut acc {
                    *acc = _mm256_fmadd_ps(*acc, a, b);
                }
            }
            black_box(acc);
            rounds * 12 * 8
        }
        if isa() == Isa::Avx512 {
            // SAFETY: the set is available.
            return unsafe { wide(rounds) };
        }
        if isa() == Isa::Avx2 {
            // SAFETY: the set is available.
            return unsafe { narrow(rounds) };
        }
    }
    let mut acc = [0.5f32; 16];
    for _ in 0..rounds {
        for acc in &mut acc {
            *acc = acc.mul_add(0.5, 0.25);
        }
    }
    black_box(acc);
    rounds * 16
}

fn random(n: usize) -> Vec<f32> {
    let mut random = SmallRng::seed_from_u64(n as u64);
    (0..n).map(|_| random.random_range(-1.0f32..1.0)).collect()
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn matmul(out: usize, inner: usize, rows: usize, threads: usize, limits: &Limits) {
    let weights = random(out * inner);
    let x = random(rows * inner);
    let halves: Vec<half::f16> = weights.iter().map(|x| half::f16::from_f32(*x)).collect();
    let x_half: Vec<half::f16> = x.iter().map(|x| half::f16::from_f32(*x)).collect();
    let packed = |dtype| PackedMatrix::pack(dtype, out, inner, &bytes(dtype, &weights)).unwrap();
    let (bf16, f32) = (packed(Dtype::Bf16), packed(Dtype::F32));
    let src = Slab::from_rows(inner, &x).unwrap();
    let (mut a, mut b) = (Slab::new(rows, out), Slab::new(rows, out));
    let (mut cpu_a, mut cpu_b) = (cpu(threads), cpu(threads));
    let memory = Slab::new(1, out * inner / 2);
    let shape = (rows, out, inner);
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let all = Rows::first(rows);
    let ours = |cpu: &mut Cpu, dst: &mut Slab, w: &PackedMatrix| {
        cpu.matmul(Io::across(&src, all, dst, all), w, Epilogue::default()).unwrap();
    };
    let mut sums: Vec<Vec<f32>> = vec![vec![0.0; rows * out]; Theirs::ALL.len()];
    let mut half_sums: Vec<Vec<half::f16>> = vec![vec![half::f16::ZERO; rows * out]; Theirs::ALL.len()];
    let (one, zero) = (half::f16::ONE, half::f16::ZERO);
    let mut contestants: Vec<Contestant<'_>> = vec![
        ("bf16", Box::new(|| ours(&mut cpu_a, &mut a, &bf16))),
        ("f32", Box::new(|| ours(&mut cpu_b, &mut b, &f32))),
        ("read", Box::new(|| read(memory.row(0), threads))),
    ];
    for (how, sums) in Theirs::ALL.iter().zip(&mut sums) {
        let run = || how.multiply(sums, &x, &weights, shape, parallelism, (1.0, 0.0));
        contestants.push(("gemm f32", Box::new(run)));
    }
    for (how, sums) in Theirs::ALL.iter().zip(&mut half_sums) {
        let run = || how.multiply(sums, &x_half, &halves, shape, parallelism, (one, zero));
        contestants.push(("gemm f16", Box::new(run)));
    }
    let times = race(&mut contestants);
    let read = times[2];
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let (single, half) = times[3..].split_at(Theirs::ALL.len());
    let times = [times[0], times[1], best(single), best(half)];
    let size = (2 * out * inner) as f64;
    let work = (2 * rows * out * inner) as f64;
    let floor = read.max(work / limits.flops);
    println!(
        "{:>12} {rows:>5} {threads:>3} | {:>9.1} {:>9.1} | {:>9.1} {:>9.1} | {:>7.2} {:>7.2} | {:>7.1} {:>6.2}",
        format!("{out}x{inner}"),
        times[0] * 1e6,
        times[1] * 1e6,
        times[2] * 1e6,
        times[3] * 1e6,
        times[0] / times[2],
        times[1] / times[2],
        size / times[0] / 1e9,
        floor / times[0],
    );
}

/// A way to ask the `gemm` crate for `x w^T`. The best of all counts.
struct Theirs {
    /// Ask for the transposed product.
    transposed: bool,
    /// The weights lie `[in][out]` instead of `[out][in]`. (The numbers differ then, the work does not.)
    by_input: bool,
}

impl Theirs {
    const ALL: [Theirs; 4] = [
        Theirs { transposed: false, by_input: false },
        Theirs { transposed: true, by_input: false },
        Theirs { transposed: false, by_input: true },
        Theirs { transposed: true, by_input: true },
    ];

    fn multiply<T: 'static>(
        &self,
        dst: &mut [T],
        x: &[T],
        w: &[T],
        (rows, out, inner): (usize, usize, usize),
        parallelism: gemm::Parallelism,
        (one, zero): (T, T),
    ) {
        let (y_row, x_row) = (out as isize, inner as isize);
        let (w_out, w_in) = if self.by_input { (1, y_row) } else { (x_row, 1) };
        let (y, x, w) = (dst.as_mut_ptr(), x.as_ptr(), w.as_ptr());
        let no = false;
        // SAFETY: the slices hold the matrices of these shapes and strides.
        unsafe {
            #[rustfmt::skip]
            if self.transposed {
                gemm::gemm(
                    out, rows, inner, y, y_row, 1, no, w, w_in, w_out, x, x_row, 1,
                    zero, one, no, no, no, parallelism,
                );
            } else {
                gemm::gemm(
                    rows, out, inner, y, 1, y_row, no, x, 1, x_row, w, w_out, w_in,
                    zero, one, no, no, no, parallelism,
                );
            };
        }
    }
}

fn pool(threads: &[usize]) {
    println!("\npool: us per job in which every thread waits until all have come");
    for t in threads {
        for spin in [Duration::from_millis(1), Duration::ZERO] {
            let mut pool = Pool::new(*t, spin).unwrap();
            let times = race(&mut [(
                "all",
                Box::new(|| {
                    let here = AtomicUsize::new(0);
                    pool.each(*t, &|_| {
                        here.fetch_add(1, Ordering::Relaxed);
                        while here.load(Ordering::Relaxed) < *t {
                            std::hint::spin_loop();
                        }
                    });
                }),
            )]);
            println!("{t} threads, spin {spin:?}: {:.2}", times[0] * 1e6);
        }
    }
}

fn experts(threads: &[usize]) {
    println!("\nexperts: one block, bf16, us");
    println!(
        "{:>28} {:>6} {:>3} | {:>9} {:>9} {:>8}",
        "d, f, experts, top-k", "rows", "T", "G=1", "G=8", "GFLOP/s"
    );
    for (d, f, count, k) in [(256, 256, 8, 2), (2048, 768, 16, 8), (4096, 14336, 2, 2)] {
        let (gate, up, down) = (random(f * d), random(f * d + 1), random(d * f + 2));
        let source = |rows, cols, values: &[f32]| (rows, cols, bytes(Dtype::Bf16, &values[..rows * cols]));
        let matrices = [source(f, d, &gate), source(f, d, &up), source(d, f, &down)];
        let pack = |g: usize| -> Vec<Expert> {
            let [gate, up, down] = [0, 1, 2]
                .map(|i| Source::new(Dtype::Bf16, matrices[i].0, matrices[i].1, &matrices[i].2).unwrap());
            (0..count).map(|_| Expert::pack(&gate, &up, &down, g, 0..g).unwrap()).collect()
        };
        let (one, eight) = (pack(1), pack(8));
        for tokens in [1, 4, 32, 128] {
            if tokens * d * f > 32 * 4096 * 14336 {
                continue;
            }
            let x = Slab::from_rows(d, &random(tokens * d)).unwrap();
            let mut random = SmallRng::seed_from_u64(1);
            let mut rows = Vec::new();
            for token in 0..tokens {
                let first = random.random_range(0..count);
                for j in 0..k {
                    let unit = ((first + j) % count) as u32;
                    rows.push(ExpertRow { unit, src: token as u32, dst: rows.len() as u32 });
                }
            }
            for t in threads {
                let (mut cpu_a, mut cpu_b) = (cpu(*t), cpu(*t));
                let (mut a, mut b) = (Slab::new(rows.len(), d), Slab::new(rows.len(), d));
                let times = race(&mut [
                    (
                        "one",
                        Box::new(|| {
                            let units: Vec<&Expert> = one.iter().collect();
                            cpu_a
                                .expert_ffn(&units, &rows, ExpertIo::Across { src: &x, dst: &mut a })
                                .unwrap();
                        }),
                    ),
                    (
                        "eight",
                        Box::new(|| {
                            let units: Vec<&Expert> = eight.iter().collect();
                            cpu_b
                                .expert_ffn(&units, &rows, ExpertIo::Across { src: &x, dst: &mut b })
                                .unwrap();
                        }),
                    ),
                ]);
                println!(
                    "{:>28} {tokens:>6} {t:>3} | {:>9.1} {:>9.1} {:>8.0}",
                    format!("{d}, {f}, {count}, {k}"),
                    times[0] * 1e6,
                    times[1] * 1e6,
                    (6 * d * f * rows.len()) as f64 / times[0] / 1e9
                );
            }
        }
    }
}

fn attention(threads: &[usize]) {
    println!("\nattention: us");
    for (heads, kv_heads, head_dim) in [(8, 2, 32), (32, 4, 128), (32, 8, 128)] {
        for (batch, len, step) in [(1, 512usize, 1), (32, 256, 1), (1, 4096, 1), (1, 512, 256)] {
            let pages = batch * len.div_ceil(16);
            let shape = KvShape { blocks: 1, pages, heads: kv_heads, head_dim };
            let mut cache = KvCache::new(shape).unwrap();
            let width = (heads + 2 * kv_heads) * head_dim;
            let key = heads * head_dim;
            let columns = KvColumns { key, value: key + kv_heads * head_dim };
            let all = Slab::from_rows(width, &random(len * width)).unwrap();
            let lists: Vec<Vec<u32>> =
                (0..batch).map(|b| (0..pages / batch).map(|p| (p * batch + b) as u32).collect()).collect();
            let mut one = cpu(1);
            for pages in &lists {
                let segment = [KvSegment { len, first_position: 0, pages }];
                one.kv_append(&mut cache, 0, &all, Rows::first(len), columns, &segment).unwrap();
            }
            let segments: Vec<KvSegment<'_>> = lists
                .iter()
                .map(|pages| KvSegment { len: step, first_position: (len - step) as u32, pages })
                .collect();
            let rows = batch * step;
            let src = Slab::from_rows(width, &random(rows * width)).unwrap();
            let mut dst = Slab::new(rows, heads * head_dim);
            let attention = Attention { block: 0, heads, query_column: 0, scale: 0.1, window: None };
            for t in threads {
                let mut cpu = cpu(*t);
                let times = race(&mut [(
                    "attention",
                    Box::new(|| {
                        let io = Io::across(&src, Rows::first(rows), &mut dst, Rows::first(rows));
                        cpu.paged_attention(&cache, io, &segments, attention).unwrap();
                    }),
                )]);
                let seen: usize = (0..step).map(|i| len - i).sum::<usize>() * batch;
                println!(
                    "{heads}/{kv_heads} heads of {head_dim}, batch {batch}, {len} tokens, {step} new, {t} threads: \
                     {:.1} ({:.0} GFLOP/s)",
                    times[0] * 1e6,
                    (4 * seen * heads * head_dim) as f64 / times[0] / 1e9
                );
            }
        }
    }
}

fn pack() {
    println!("\npack: GB/s of a checkpoint's bytes on one thread");
    for dtype in [Dtype::Bf16, Dtype::F32] {
        for (out, inner) in [(256, 256), (4096, 4096)] {
            let bytes = bytes(dtype, &random(out * inner));
            let times = race(&mut [(
                "pack",
                Box::new(|| {
                    black_box(PackedMatrix::pack(dtype, out, inner, &bytes).unwrap());
                }),
            )]);
            println!("{dtype} {out}x{inner}: {:.2}", bytes.len() as f64 / times[0] / 1e9);
        }
    }
}

fn row_ops() {
    println!("\nrows: us on one thread");
    let mut cpu = cpu(1);
    for (rows, cols) in [(1, 256), (32, 256), (1, 4096), (32, 4096)] {
        let x = Slab::from_rows(cols, &random(rows * cols)).unwrap();
        let weight = random(cols);
        let mut y = Slab::new(rows, cols);
        let norm = Norm { weight: Some(&weight), eps: 1e-5 };
        let all = Rows::first(rows);
        let times =
            race(&mut [("norm", Box::new(|| cpu.rmsnorm(Io::across(&x, all, &mut y, all), norm).unwrap()))]);
        println!("rmsnorm {rows} x {cols}: {:.2}", times[0] * 1e6);
    }
    for (experts, top_k) in [(8, 2), (128, 8)] {
        let logits = Slab::from_rows(experts, &random(32 * experts)).unwrap();
        let router =
            Router { score: Score::Softmax, selection_bias: None, top_k, renormalise: true, scale: 1.0 };
        let mut routed = Routed::default();
        let times = race(&mut [(
            "route",
            Box::new(|| cpu.route(&logits, Rows::first(32), router, &mut routed).unwrap()),
        )]);
        println!("router 32 rows, {experts} experts, top {top_k}: {:.2}", times[0] * 1e6);
    }
    for (cols, top_k) in [(256, 2), (2048, 8)] {
        let outputs = Slab::from_rows(cols, &random(32 * top_k * cols)).unwrap();
        let mut residual = Slab::new(32, cols);
        let parts: Vec<u32> = (0..(32 * top_k) as u32).collect();
        let weights = random(top_k);
        let tokens: Vec<Merge<'_>> = (0..32)
            .map(|t| Merge { row: t as u32, weights: &weights, parts: &parts[t * top_k..][..top_k] })
            .collect();
        let times =
            race(&mut [("merge", Box::new(|| cpu.merge_topk(&outputs, &mut residual, 1, &tokens).unwrap()))]);
        println!("merge 32 tokens x {top_k} outputs of {cols}: {:.2}", times[0] * 1e6);
    }
    let mut cache = KvCache::new(KvShape { blocks: 1, pages: 16, heads: 8, head_dim: 128 }).unwrap();
    let src = Slab::from_rows(2048, &random(256 * 2048)).unwrap();
    let pages: Vec<u32> = (0..16).collect();
    let segment = [KvSegment { len: 256, first_position: 0, pages: &pages }];
    let columns = KvColumns { key: 0, value: 1024 };
    let times = race(&mut [(
        "append",
        Box::new(|| cpu.kv_append(&mut cache, 0, &src, Rows::first(256), columns, &segment).unwrap()),
    )]);
    println!("kv append of 256 tokens, 8 heads of 128: {:.1}", times[0] * 1e6);
}
