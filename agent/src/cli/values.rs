//! How the values of flags are written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use sluice_core::config::Policy;

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Use it.
    On,
    /// Do without.
    Off,
}

impl Switch {
    /// Whether it is on.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

/// Where attention and experts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// Attention ranks and expert workers are different workers.
    Disaggregated,
    /// Every worker is an attention rank and holds experts.
    Hybrid,
}

/// The instruction set of the CPU kernels. The bits of the results are the same on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IsaChoice {
    /// The fastest this CPU has.
    Auto,
    /// x86-64 with AVX-512.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Arm NEON.
    Neon,
    /// Plain Rust.
    Portable,
}

/// One scheduler per role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedulers {
    /// Of attention ranks.
    pub attention: Policy,
    /// Of expert workers.
    pub experts: Policy,
}

impl FromStr for Schedulers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if !s.contains('=') {
            let policy = s.parse()?;
            return Ok(Self { attention: policy, experts: policy });
        }
        let (mut attention, mut experts) = (None, None);
        for part in s.split(',') {
            let (role, name) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not ROLE=NAME; write attention=NAME,experts=NAME"))?;
            let slot = match role.trim() {
                "attention" => &mut attention,
                "experts" => &mut experts,
                other => return Err(format!("unknown role {other:?}: attention or experts")),
            };
            if slot.replace(name.trim().parse()?).is_some() {
                return Err(format!("{} is given twice", role.trim()));
            }
        }
        match (attention, experts) {
            (Some(attention), Some(experts)) => Ok(Self { attention, experts }),
            (None, _) => {
                Err("the scheduler of attention is missing; write attention=NAME,experts=NAME".into())
            }
            (_, None) => Err("the scheduler of experts is missing; write attention=NAME,experts=NAME".into()),
        }
    }
}

impl fmt::Display for Schedulers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.attention == self.experts {
            f.write_str(self.attention.name())
        } else {
            write!(f, "attention={},experts={}", self.attention.name(), self.experts.name())
        }
    }
}

/// What runs the steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The CPU kernels.
    Cpu,
    /// The kernels for NVIDIA GPUs, in bf16; a build without them says so at the start.
    Cuda,
    /// Steps only take the time that a file's cost curves give them, without using the CPU.
    Modelled(PathBuf),
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "cuda" => Ok(Self::Cuda),
            Some(("modelled", file)) if !file.is_empty() => Ok(Self::Modelled(file.into())),
            _ => Err(format!("unknown backend {s:?}: cpu, cuda or modelled:FILE")),
        }
    }
}

/// A number of bytes: `512`, `64KiB`, `2GiB`, `1.5GB`.
pub fn bytes(s: &str) -> Result<u64, String> {
    s.parse::<bytesize::ByteSize>()
        .map(|b| b.as_u64())
        .map_err(|e| format!("{e}; write a size as 64KiB, 512MiB or 2GiB"))
}

/// A length of time: `500ms`, `30s`, `5m`, `1h`.
pub fn duration(s: &str) -> Result<Duration, String> {
    humantime::parse_duration(s).map_err(|e| format!("{e}; write a time as 500ms, 30s or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::routing::Routing;

    #[test]
    fn schedulers_are_one_name_or_one_per_role() {
        let both: Schedulers = "frontier".parse().unwrap();
        assert_eq!((both.attention, both.experts), (Policy::Frontier, Policy::Frontier));
        let two: Schedulers = "experts=defrag,attention=mtfs".parse().unwrap();
        assert_eq!((two.attention, two.experts), (Policy::Mtfs, Policy::Defrag));
        assert_eq!(two.to_string().parse::<Schedulers>().unwrap(), two);
        for bad in [
            "fastest",
            "attention=mtfs",
            "experts=mtfs",
            "attention=mtfs,attention=mtfs",
            "moe=mtfs",
            "attention=mtfs,mtfs",
        ] {
            assert!(bad.parse::<Schedulers>().is_err(), "{bad}");
        }
    }

    #[test]
    fn routings_have_their_bounds() {
        assert_eq!("model".parse::<Routing>().unwrap(), Routing::Model);
        assert_eq!("skew:0.4,7".parse::<Routing>().unwrap(), Routing::Skew { share: 0.4, seed: 7 });
        assert_eq!("busiest:2,1".parse::<Routing>().unwrap(), Routing::Busiest { ratio: 2.0, seed: 1 });
        for bad in [
            "skew:0,1",
            "skew:1.1,1",
            "skew:NaN,1",
            "busiest:0.9,1",
            "busiest:inf,1",
            "skew:0.4",
            "hot:1,1",
            "skew:x,1",
            "skew:0.4,-1",
        ] {
            assert!(bad.parse::<Routing>().is_err(), "{bad}");
        }
    }

    #[test]
    fn backends_sizes_and_times() {
        assert_eq!(
            "modelled:h100.json".parse::<BackendChoice>().unwrap(),
            BackendChoice::Modelled("h100.json".into())
        );
        assert_eq!("cuda".parse::<BackendChoice>().unwrap(), BackendChoice::Cuda);
        assert!("modelled:".parse::<BackendChoice>().is_err());
        assert!("gpu".parse::<BackendChoice>().is_err());
        assert_eq!(bytes("64KiB").unwrap(), 65_536);
        assert!(bytes("many").is_err());
        assert_eq!(duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert!(duration("30").is_err());
    }
}
