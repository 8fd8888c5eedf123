//! Distributions of lengths in tokens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rand::Rng;

/// How lengths are drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum LengthSpec {
    /// Always the same.
    Fixed(u32),
    /// Between the two, both included.
    Uniform(u32, u32),
    /// Log-normal with this mean; sigma is that of the logarithm.
    LogNormal {
        /// The mean length (not that of the logarithm).
        mean: f64,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
    },
    /// Rows of a trace file. Input and output drawn from the same file come from the same row.
    Trace(PathBuf),
}

impl LengthSpec {
    /// Draws a length of at least 1. A trace is drawn from by [`super::workload::Workload`].
    pub(super) fn draw(&self, rng: &mut impl Rng) -> u32 {
        match *self {
            Self::Fixed(n) => n,
            Self::Uniform(a, b) => rng.random_range(a..=b),
            Self::LogNormal { mean, sigma } => {
                let mu = mean.ln() - sigma * sigma / 2.0;
                let length = (mu + sigma * standard_normal(rng)).exp();
                length.round().clamp(1.0, f64::from(u32::MAX)) as u32
            }
            Self::Trace(_) => 1,
        }
    }
}

/// Box-Muller; one of the pair is enough here.
fn standard_normal(rng: &mut impl Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

impl FromStr for LengthSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        const FORMS: &str = "write N, uniform:A,B, lognormal:MEAN,SIGMA or trace:FILE";
        let whole = |t: &str| match t.trim().parse() {
            Ok(0) => Err(format!("a length of 0 tokens; {FORMS}")),
            Ok(n) => Ok(n),
            Err(_) => Err(format!("{t:?} is not a number of tokens; {FORMS}")),
        };
        let Some((kind, rest)) = s.split_once(':') else { return whole(s).map(Self::Fixed) };
        let pair = || rest.split_once(',').ok_or_else(|| format!("{kind} takes two numbers; {FORMS}"));
        match kind {
            "uniform" => {
                let (a, b) = pair()?;
                let (a, b) = (whole(a)?, whole(b)?);
                if a > b { Err(format!("uniform:{a},{b} is empty")) } else { Ok(Self::Uniform(a, b)) }
            }
            "lognormal" => {
                let (mean, sigma) = pair()?;
                let number = |t: &str| {
                    t.trim()
                        .parse::<f64>()
                        .ok()
                        .filter(|x| x.is_finite())
                        .ok_or_else(|| format!("{t:?} is not a number"))
                };
                let (mean, sigma) = (number(mean)?, number(sigma)?);
                if mean < 1.0 || sigma < 0.0 {
                    return Err(format!(
                        "lognormal:{mean},{sigma}: the mean is at least 1, sigma at least 0"
                    ));
                }
                Ok(Self::LogNormal { mean, sigma })
            }
            "trace" if !rest.is_empty() => Ok(Self::Trace(rest.into())),
            _ => Err(format!("unknown distribution {s:?}; {FORMS}")),
        }
    }
}

impl fmt::Display for LengthSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform(a, b) => write!(f, "uniform:{a},{b}"),
            Self::LogNormal { mean, sigma } => write!(f, "lognormal:{mean},{sigma}"),
            Self::Trace(path) => write!(f, "trace:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    #[test]
    fn forms() {
        for form in ["64", "uniform:1,9", "lognormal:128,0.7", "trace:lengths.csv.gz"] {
            assert_eq!(form.parse::<LengthSpec>().unwrap().to_string(), form);
        }
        for bad in [
            "0",
            "-1",
            "uniform:9,1",
            "uniform:0,1",
            "uniform:1",
            "lognormal:0,1",
            "lognormal:9,-1",
            "lognormal:NaN,1",
            "trace:",
            "zipf:1,2",
            "",
        ] {
            assert!(bad.parse::<LengthSpec>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_log_normal_has_the_mean_it_is_given() {
        let mut rng = SmallRng::seed_from_u64(1);
        let spec = LengthSpec::LogNormal { mean: 200.0, sigma: 0.5 };
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|_| f64::from(spec.draw(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        assert!((mean - 200.0).abs() < 4.0, "{mean}");
        let log_mean = draws.iter().map(|d| d.ln()).sum::<f64>() / f64::from(n);
        let log_var = draws.iter().map(|d| (d.ln() - log_mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((log_var.sqrt() - 0.5).abs() < 0.02, "{log_var}");
    }

    #[test]
    fn a_uniform_reaches_both_ends() {
        let mut rng = SmallRng::seed_from_u64(1);
        let draws: Vec<u32> = (0..200).map(|_| LengthSpec::Uniform(3, 5).draw(&mut rng)).collect();
        assert_eq!((draws.iter().min(), draws.iter().max()), (Some(&3), Some(&5)));
    }
}
