//! Compiles the CUDA kernels to cubins and writes the table that embeds them.
//!
//! Only with the feature `cuda`, and only where nvcc is found (`$NVCC`, `PATH`, or a Python installation's
//! `nvidia-cuda-nvcc`): without it the table is empty, the crate builds, and `cuda::available_cubins()` says so. A
//! compiler that is found but fails is an error.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, exit};

/// Source files and the architectures that each is compiled for.
const SOURCES: [(&str, &[&str]); 14] = [
    ("attention", &["90a"]),
    ("attention_plan", EVERYWHERE),
    ("dense", &["90a"]),
    ("dense_many", &["90a"]),
    ("fill", EVERYWHERE),
    ("lists", EVERYWHERE),
    ("logits", EVERYWHERE),
    ("merge", EVERYWHERE),
    ("relayout", EVERYWHERE),
    ("rope", EVERYWHERE),
    ("router", EVERYWHERE),
    ("rows", EVERYWHERE),
    ("expert_ffn", &["90a"]),
    ("expert_ffn_paired", &["90a"]),
];
const EVERYWHERE: &[&str] = &["80", "90a", "100a"];

/// Values of N that wgmma instructions are written for; the kernels with matrix products use these.
const PRODUCT_WIDTHS: [usize; 15] = [8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256];
/// And those with their left operand in registers.
const REGISTER_PRODUCT_WIDTHS: [usize; 2] = [64, 128];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=PATH");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wanted = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let cubins = match wanted.then(find_nvcc).flatten() {
        Some(nvcc) => compile(&nvcc, &out),
        None => Vec::new(),
    };
    write(&out.join("cubins.rs"), &table(&cubins));
}

struct Cubin {
    name: &'static str,
    arch: &'static str,
    path: PathBuf,
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(PathBuf::from(nvcc));
    }
    let in_path =
        env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join("nvcc")).find(|nvcc| nvcc.is_file());
    in_path.or_else(|| {
        let packages = Command::new("python3")
            .args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            .output()
            .ok()?;
        let packages = String::from_utf8(packages.stdout).ok()?;
        Some(Path::new(packages.trim()).join("nvidia/cu13/bin/nvcc")).filter(|nvcc| nvcc.is_file())
    })
}

fn compile(nvcc: &Path, out: &Path) -> Vec<Cubin> {
    write(&out.join("wgmma.cuh"), &wgmma_header());
    write(&out.join("wgmma_registers.cuh"), &wgmma_registers_header());
    let mut running: Vec<(Cubin, Child)> = Vec::new();
    for (name, archs) in SOURCES {
        for &arch in archs {
            let path = out.join(format!("{name}.sm_{arch}.cubin"));
            let child = Command::new(nvcc)
                .args(["-std=c++17", "-O3", "-lineinfo", "-cubin"])
                .arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"))
                .arg("-I")
                .arg(out)
                .arg("-o")
                .arg(&path)
                .arg(format!("cuda/{name}.cu"))
                .spawn();
            match child {
                Ok(child) => running.push((Cubin { name, arch, path }, child)),
                Err(error) => {
                    fail(&format!("cannot run {}: {error}; set NVCC to a CUDA 13 compiler", nvcc.display()))
                }
            }
        }
    }
    running
        .into_iter()
        .map(|(cubin, mut child)| match child.wait() {
            Ok(status) if status.success() => cubin,
            Ok(status) => {
                fail(&format!("{} on cuda/{}.cu for sm_{}: {status}", nvcc.display(), cubin.name, cubin.arch))
            }
            Err(error) => fail(&format!("{}: {error}", nvcc.display())),
        })
        .collect()
}

/// `wgmma.mma_async` for each N: an operand list that no C++ template can write.
fn wgmma_header() -> String {
    let mut text =
        String::from("#pragma once\n#include <stdint.h>\n\ntemplate <int kTokens>\nstruct Wgmma;\n");
    for n in PRODUCT_WIDTHS {
        let registers = n / 2;
        let list = |item: &dyn Fn(usize) -> String| (0..registers).map(item).collect::<Vec<_>>().join(", ");
        let _ = write!(
            text,
            r#"
template <>
struct Wgmma<{n}> {{
  static __device__ __forceinline__ void accumulate(float (&d)[{registers}], uint64_t a, uint64_t b) {{
    asm volatile(
        "{{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{operands}}}, %{registers}, %{next}, p, 1, 1, 0, 0;\n}}\n"
        : {outputs}
        : "l"(a), "l"(b));
  }}
}};
"#,
            operands = list(&|i| format!("%{i}")),
            next = registers + 1,
            outputs = list(&|i| format!("\"+f\"(d[{i}])")),
        );
    }
    text
}

/// The same with the left operand in registers.
fn wgmma_registers_header() -> String {
    let mut text = String::from(
        "#pragma once\n#include <stdint.h>\n\ntemplate <int kColumns>\nstruct WgmmaRegisters;\n",
    );
    for n in REGISTER_PRODUCT_WIDTHS {
        let registers = n / 2;
        let list = |item: &dyn Fn(usize) -> String| (0..registers).map(item).collect::<Vec<_>>().join(", ");
        let _ = write!(
            text,
            r#"
template <>
struct WgmmaRegisters<{n}> {{
  static __device__ __forceinline__ void accumulate(float (&d)[{registers}], const uint32_t (&a)[4], uint64_t b) {{
    asm volatile(
        "{{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{operands}}}, {{%{a0}, %{a1}, %{a2}, %{a3}}}, %{b}, p, 1, 1, 0;\n}}\n"
        : {outputs}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }}
}};
"#,
            operands = list(&|i| format!("%{i}")),
            a0 = registers,
            a1 = registers + 1,
            a2 = registers + 2,
            a3 = registers + 3,
            b = registers + 4,
            outputs = list(&|i| format!("\"+f\"(d[{i}])")),
        );
    }
    text
}

fn table(cubins: &[Cubin]) -> String {
    let mut text = String::from("&[\n");
    for Cubin { name, arch, path } in cubins {
        let _ = writeln!(
            text,
            "    Cubin {{ name: {name:?}, arch: {arch:?}, image: include_bytes!({path:?}) }},"
        );
    }
    text + "]\n"
}

fn write(path: &Path, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        fail(&format!("cannot write {}: {error}", path.display()));
    }
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    exit(1)
}
