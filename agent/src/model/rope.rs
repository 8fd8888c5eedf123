//! From the rotary-embedding keys of `config.json` to a [`RopeSpec`].
//!
//! The formulas are those of transformers' `modeling_rope_utils.py`, with its f32 arithmetic. Two of its scalings
//! change their frequencies with the current length of the sequence (`dynamic`, `longrope`). Here they are those of
//! the longest sequence served, always: a position's rotation must not depend on what else is in the batch, and keys
//! once written stay in the cache.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::config::{Config, ConfigError};
use super::spec::RopeSpec;

/// What else the formulas take.
#[derive(Clone, Copy, Debug)]
pub struct RopeContext {
    /// Length of a head.
    pub head_dim: usize,
    /// `rope_theta` when no key gives one.
    pub default_theta: f64,
    /// `max_position_embeddings`.
    pub declared_positions: usize,
    /// The longest sequence that is served.
    pub served_positions: usize,
}

/// The rotary embedding of each block. `layer_types` holds transformers' name for each block's kind of attention;
/// blocks of one kind share one [`RopeSpec`].
///
/// # Errors
/// A scaling that is unknown or whose keys are missing or wrong.
pub fn resolve(
    config: &Config,
    context: RopeContext,
    layer_types: &[&str],
) -> Result<Vec<Arc<RopeSpec>>, ConfigError> {
    if context.head_dim == 0 || !context.head_dim.is_multiple_of(2) {
        return Err(config.wrong("head_dim", "an even number, for the rotary embedding turns pairs"));
    }
    // As transformers: the older key wins if both are there.
    let parameters = match config.object("rope_scaling")? {
        Some(scaling) => Some((scaling, "rope_scaling")),
        None => config.object("rope_parameters")?.map(|parameters| (parameters, "rope_parameters")),
    };
    let Some((parameters, key)) = parameters else {
        let spec = Arc::new(one(config, None, context)?);
        return Ok(vec![spec; layer_types.len()]);
    };
    if !parameters.has_objects() {
        let spec = Arc::new(one(config, Some(&parameters), context)?);
        return Ok(vec![spec; layer_types.len()]);
    }
    let mut specs = BTreeMap::new();
    for &layer_type in layer_types {
        if !specs.contains_key(layer_type) {
            let nested = parameters.object(layer_type)?.ok_or_else(|| {
                config.wrong(key, format!("an entry for `{layer_type}`, which some blocks are"))
            })?;
            specs.insert(layer_type, Arc::new(one(config, Some(&nested), context)?));
        }
    }
    Ok(layer_types.iter().map(|layer_type| Arc::clone(&specs[layer_type])).collect())
}

/// The base of the frequencies. Published models have 1e4 to 1e9; far beyond, frequencies would be no numbers in f32.
const THETA: RangeInclusive<f64> = 1.0..=1e18;

fn one(config: &Config, parameters: Option<&Config>, context: RopeContext) -> Result<RopeSpec, ConfigError> {
    let nested_number = |key: &str| parameters.map_or(Ok(None), |parameters| parameters.number(key));
    let theta = match nested_number("rope_theta")? {
        Some(theta) => theta,
        None => config.number("rope_theta")?.unwrap_or(context.default_theta),
    };
    if !THETA.contains(&theta) {
        return Err(parameters
            .filter(|parameters| parameters.value("rope_theta").is_some())
            .unwrap_or(config)
            .wrong("rope_theta", "a number from 1 to 1e18"));
    }
    let partial = match nested_number("partial_rotary_factor")? {
        Some(partial) => partial,
        None => config.number("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if (partial - 1.0).abs() > f64::EPSILON {
        return Err(config.unsupported(format!("partial_rotary_factor {partial}")));
    }
    let Some(parameters) = parameters else {
        return Ok(RopeSpec { inv_freq: inverse(&powers(theta, context.head_dim)), attention_factor: 1.0 });
    };
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    let scaling = Scaling { config, parameters, context, theta };
    let spec = match kind {
        "default" => RopeSpec { inv_freq: inverse(&powers(theta, context.head_dim)), attention_factor: 1.0 },
        "linear" => scaling.linear()?,
        "dynamic" => scaling.dynamic()?,
        "yarn" => scaling.yarn()?,
        "llama3" => scaling.llama3()?,
        "longrope" => scaling.longrope()?,
        other => {
            return Err(config.unsupported(format!(
                "rope_type `{other}` (known: default, linear, dynamic, yarn, llama3, longrope)"
            )));
        }
    };
    let sound = |value: &f32| value.is_finite() && *value >= 0.0;
    if !(spec.inv_freq.iter().all(sound) && sound(&spec.attention_factor)) {
        return Err(parameters.wrong(
            if parameters.value("rope_type").is_some() { "rope_type" } else { "type" },
            "a scaling whose keys give finite frequencies",
        ));
    }
    Ok(spec)
}

/// `theta ^ (2i / head_dim)` for each pair `i`.
///
/// The power is taken in f64 and rounded once: f32 powers differ between the mathematical libraries of hosts.
fn powers(theta: f64, head_dim: usize) -> Vec<f32> {
    let theta = f64::from(theta as f32);
    (0..head_dim)
        .step_by(2)
        .map(|i| {
            let exponent = i as f32 / head_dim as f32;
            theta.powf(f64::from(exponent)) as f32
        })
        .collect()
}

fn inverse(powers: &[f32]) -> Vec<f32> {
    powers.iter().map(|power| 1.0 / power).collect()
}

struct Scaling<'a> {
    config: &'a Config,
    parameters: &'a Config,
    context: RopeContext,
    theta: f64,
}

impl Scaling<'_> {
    fn required(&self, key: &str) -> Result<f64, ConfigError> {
        self.positive(key)?.ok_or_else(|| self.parameters.wrong(key, "a positive number"))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.parameters.number(key)? {
            Some(number) if number <= 0.0 => Err(self.parameters.wrong(key, "a positive number")),
            number => Ok(number),
        }
    }

    /// The context length of pre-training; a key outside the scaling's object wins, as in transformers.
    fn original_positions(&self) -> Result<f64, ConfigError> {
        const KEY: &str = "original_max_position_embeddings";
        let (holder, value) = match self.config.number(KEY)? {
            Some(value) => (self.config, value),
            None => match self.parameters.number(KEY)? {
                Some(value) => (self.parameters, value),
                None => return Ok(self.context.declared_positions as f64),
            },
        };
        if value < 1.0 { Err(holder.wrong(KEY, "one or more")) } else { Ok(value) }
    }

    fn linear(&self) -> Result<RopeSpec, ConfigError> {
        let factor = self.required("factor")? as f32;
        let mut inv_freq = inverse(&powers(self.theta, self.context.head_dim));
        for frequency in &mut inv_freq {
            *frequency /= factor;
        }
        Ok(RopeSpec { inv_freq, attention_factor: 1.0 })
    }

    fn dynamic(&self) -> Result<RopeSpec, ConfigError> {
        let factor = self.required("factor")?;
        let (dim, declared) = (self.context.head_dim as f64, self.context.declared_positions as f64);
        if self.context.head_dim <= 2 {
            return Err(self.config.wrong("head_dim", "more than 2 for dynamic scaling"));
        }
        let longest = declared.max(self.context.served_positions as f64);
        let stretch = (factor * longest / declared) - (factor - 1.0);
        let theta = self.theta * stretch.powf(dim / (dim - 2.0));
        Ok(RopeSpec { inv_freq: inverse(&powers(theta, self.context.head_dim)), attention_factor: 1.0 })
    }

    fn yarn(&self) -> Result<RopeSpec, ConfigError> {
        let original = self.original_positions()?;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => self.context.declared_positions as f64 / original,
        };
        let attention_factor = match self.parameters.number("attention_factor")? {
            Some(given) => given,
            None => {
                let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let given = |key| {
                    self.parameters.number(key).map(|value: Option<f64>| value.filter(|value| *value != 0.0))
                };
                match (given("mscale")?, given("mscale_all_dim")?) {
                    (Some(mscale), Some(all)) => scale(mscale) / scale(all),
                    _ => scale(1.0),
                }
            }
        };
        let fast = self.positive("beta_fast")?.unwrap_or(32.0);
        let slow = self.positive("beta_slow")?.unwrap_or(1.0);
        let truncate = self.parameters.flag("truncate")?.unwrap_or(true);

        let dim = self.context.head_dim as f64;
        let correction =
            |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (correction(fast), correction(slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let (low, span) = (low as f32, (high - low) as f32);
        let factor = factor as f32;
        let inv_freq = powers(self.theta, self.context.head_dim)
            .iter()
            .enumerate()
            .map(|(pair, power)| {
                let ramp = ((pair as f32 - low) / span).clamp(0.0, 1.0);
                let (extrapolation, interpolation) = (1.0 / power, 1.0 / (factor * power));
                let keep = 1.0 - ramp;
                interpolation * (1.0 - keep) + extrapolation * keep
            })
            .collect();
        Ok(RopeSpec { inv_freq, attention_factor: attention_factor as f32 })
    }

    fn llama3(&self) -> Result<RopeSpec, ConfigError> {
        let factor = self.required("factor")? as f32;
        let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
        let original = self.original_positions()?;
        let (low_wavelength, high_wavelength) = ((original / low) as f32, (original / high) as f32);
        let inv_freq = inverse(&powers(self.theta, self.context.head_dim))
            .into_iter()
            .map(|frequency| {
                let wavelength = (2.0 * PI) as f32 / frequency;
                if wavelength > low_wavelength {
                    frequency / factor
                } else if wavelength < high_wavelength {
                    frequency
                } else {
                    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect();
        Ok(RopeSpec { inv_freq, attention_factor: 1.0 })
    }

    fn longrope(&self) -> Result<RopeSpec, ConfigError> {
        let original = self.original_positions()?;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => self.context.declared_positions as f64 / original,
        };
        let attention_factor = match self.parameters.number("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let key =
            if self.context.served_positions as f64 > original { "long_factor" } else { "short_factor" };
        let pairs = self.context.head_dim / 2;
        let factors = self
            .parameters
            .numbers(key)?
            .filter(|factors| factors.len() == pairs)
            .ok_or_else(|| self.parameters.wrong(key, format!("a list of {pairs} numbers")))?;
        let inv_freq = powers(self.theta, self.context.head_dim)
            .iter()
            .zip(factors)
            .map(|(power, factor)| 1.0 / (factor as f32 * power))
            .collect();
        Ok(RopeSpec { inv_freq, attention_factor: attention_factor as f32 })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn context(declared: usize, served: usize) -> RopeContext {
        RopeContext {
            head_dim: 64,
            default_theta: 1e4,
            declared_positions: declared,
            served_positions: served,
        }
    }

    fn config(value: &Value) -> Config {
        Config::parse(Path::new("config.json"), value.to_string().as_bytes()).unwrap()
    }

    /// rope.json was written by transformers, see `testdata/make.py`.
    #[test]
    fn every_scaling_is_what_transformers_computes() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("testdata/rope.json")).unwrap();
        assert!(cases.len() > 10);
        for case in &cases {
            let name = &case["name"];
            let count = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
            let context =
                context(count(&case["config"]["max_position_embeddings"]), count(&case["served_positions"]));
            let specs = resolve(&config(&case["config"]), context, &["full_attention"; 3]).unwrap();
            let factor = case["attention_factor"].as_f64().unwrap();
            assert!((f64::from(specs[2].attention_factor) - factor).abs() < 1e-7, "{name}");
            let expected: Vec<f64> =
                case["inv_freq"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            assert_eq!(specs[2].inv_freq.len(), expected.len());
            for (pair, (&ours, theirs)) in specs[2].inv_freq.iter().zip(expected).enumerate() {
                // Two units in the last place of an f32: their f32 power is not correctly rounded.
                let relative = (f64::from(ours) / theirs - 1.0).abs();
                assert!(relative < 2.4e-7, "{name}: pair {pair} is {ours}, not {theirs}");
            }
        }
    }

    #[test]
    fn the_forms_of_transformers_4_and_5_mean_the_same() {
        let scaling = json!({"factor": 4.0, "rope_theta": 5e6});
        let with = |key: &str, kind: &str| {
            let mut scaling = scaling.clone();
            scaling[kind] = json!("linear");
            resolve(&config(&json!({key: scaling})), context(64, 64), &["full_attention"]).unwrap()
        };
        let expected = with("rope_parameters", "rope_type");
        assert_eq!(with("rope_scaling", "type"), expected);
        let old = json!({"rope_theta": 5e6, "rope_scaling": {"type": "linear", "factor": 4}});
        assert_eq!(resolve(&config(&old), context(64, 64), &["full_attention"]).unwrap(), expected);
    }

    #[test]
    fn parameters_nested_by_layer_type() {
        let nested = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        }});
        let types = ["sliding_attention", "full_attention", "sliding_attention"];
        let specs = resolve(&config(&nested), context(64, 64), &types).unwrap();
        assert!(Arc::ptr_eq(&specs[0], &specs[2]));
        assert_eq!(specs[0].inv_freq[0], 1.0);
        assert_eq!(specs[1].inv_freq[0], 0.5);
        let lacking = json!({"rope_parameters": {"sliding_attention": {"rope_type": "default"}}});
        let error = resolve(&config(&lacking), context(64, 64), &types).unwrap_err();
        assert!(error.to_string().contains("full_attention"), "{error}");
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        for (parameters, expected) in [
            (json!({"rope_type": "mrope"}), "mrope"),
            (json!({"rope_type": "linear"}), "factor"),
            (json!({"rope_type": "linear", "factor": 0}), "factor"),
            (json!({"rope_type": "linear", "factor": "4"}), "factor"),
            (json!({"rope_type": "dynamic", "factor": null}), "factor"),
            (json!({"rope_type": "llama3", "factor": 8}), "low_freq_factor"),
            (json!({"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}), "short_factor"),
            (json!({"rope_type": "default", "rope_theta": -1}), "rope_theta"),
            (json!({"rope_type": "default", "rope_theta": 2.569e-194}), "rope_theta"),
            (json!({"rope_type": "default", "rope_theta": 1e200}), "rope_theta"),
            (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (json!({"rope_type": "linear", "factor": 1e-300}), "finite"),
        ] {
            let error =
                resolve(&config(&json!({"rope_scaling": parameters})), context(64, 64), &["full_attention"])
                    .unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let odd = RopeContext { head_dim: 7, ..context(64, 64) };
        assert!(resolve(&config(&json!({})), odd, &["full_attention"]).is_err());
    }
}
