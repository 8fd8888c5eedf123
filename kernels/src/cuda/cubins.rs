//! The compiled kernels.

/// A compiled source file of kernels, for one architecture.
#[derive(Clone, Copy)]
pub(crate) struct Cubin {
    pub name: &'static str,
    pub arch: &'static str,
    pub image: &'static [u8],
}

const CUBINS: &[Cubin] = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// The kernels in this build, as `name.sm_arch`. Empty where no nvcc was found when it was made: then no device opens.
pub fn available_cubins() -> Vec<String> {
    CUBINS.iter().map(|cubin| format!("{}.sm_{}", cubin.name, cubin.arch)).collect()
}

/// The cubins that run on a device of this compute capability: of its own architecture, or else of an older minor one.
pub(crate) fn for_capability(major: i32, minor: i32) -> impl Iterator<Item = Cubin> {
    CUBINS.iter().copied().filter(move |cubin| runs_on(cubin.arch, major, minor))
}

/// An `a` ties code to exactly its architecture; otherwise later minor versions run it too.
fn runs_on(arch: &str, major: i32, minor: i32) -> bool {
    let exact = arch.ends_with('a');
    let Ok(number) = arch.trim_end_matches('a').parse::<i32>() else { return false };
    number / 10 == major && if exact { number % 10 == minor } else { number % 10 <= minor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_its_own_architecture_and_on_later_minor_ones() {
        assert!(runs_on("90a", 9, 0));
        assert!(!runs_on("90a", 9, 1));
        assert!(runs_on("80", 8, 0));
        assert!(runs_on("80", 8, 9));
        assert!(!runs_on("80", 9, 0));
        assert!(runs_on("100a", 10, 0));
        assert!(!runs_on("100a", 10, 3));
    }

    #[test]
    fn a_build_has_all_kernels_or_none() {
        let names = available_cubins();
        for name in [
            "fill",
            "lists",
            "logits",
            "merge",
            "relayout",
            "expert_ffn",
            "attention",
            "attention_plan",
            "dense",
            "rope",
            "router",
            "rows",
        ] {
            assert_eq!(names.is_empty(), !names.contains(&format!("{name}.sm_90a")), "{name} in {names:?}");
        }
    }
}
