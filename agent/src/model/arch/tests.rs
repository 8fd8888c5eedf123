use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::spec::{FeedForward, ModelSpec, QkNorm, Score};
use super::super::testing;
use super::*;

fn read(value: &Value) -> Result<ModelSpec, ConfigError> {
    let config = Config::parse(Path::new("config.json"), value.to_string().as_bytes())?;
    of(&config)?.spec(&config, None)
}

fn spec(value: &Value) -> ModelSpec {
    read(value).unwrap()
}

fn class(name: &str) -> Value {
    json!({"architectures": [name]})
}

#[test]
fn tiny_moe() {
    let spec = testing::spec(&testing::tiny_moe());
    assert_eq!((spec.hidden, spec.vocab, spec.blocks.len(), spec.max_positions), (256, 4096, 6, 1024));
    assert!(!spec.tied_head);
    let block = &spec.blocks[5];
    assert_eq!((block.attention.heads, block.attention.kv_heads, block.attention.head_dim), (8, 2, 32));
    assert!((block.attention.scale - 0.176_776_7).abs() < 1e-7);
    assert_eq!(block.norm_eps, 1e-5);
    let moe = block.feed_forward.moe().unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.expert.inner), (8, 2, 256));
    assert_eq!(moe.router.score, Score::Softmax);
    assert!(moe.router.renormalise);
    assert_eq!(moe.shared, None);
}

/// The defaults of transformers' configuration classes.
#[test]
fn keys_that_are_absent() {
    let mixtral = spec(&class("MixtralForCausalLM"));
    assert_eq!((mixtral.vocab, mixtral.hidden, mixtral.blocks.len()), (32_000, 4096, 32));
    let attention = &mixtral.blocks[0].attention;
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (32, 8, 128));
    assert_eq!(attention.sliding_window, None);
    // theta 1e6
    assert!((attention.rope.inv_freq[63] - 1.240_937_8e-6).abs() < 1e-12);

    let qwen3 = spec(&class("Qwen3MoeForCausalLM"));
    let moe = qwen3.blocks[0].feed_forward.moe().unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.expert.inner), (128, 8, 768));
    assert!(!moe.router.renormalise);
    assert_eq!(qwen3.blocks[0].attention.qk_norm, QkNorm::PerHead { eps: 1e-6 });
    assert!(!qwen3.blocks[0].attention.qkv_bias && !qwen3.blocks[0].attention.o_bias);

    let olmoe = spec(&class("OlmoeForCausalLM"));
    assert_eq!(olmoe.blocks[0].attention.kv_heads, 16);
    assert_eq!(olmoe.blocks[0].attention.qk_norm, QkNorm::Projection { eps: 1e-5 });
    assert_eq!(olmoe.blocks[0].attention.clip_qkv, None);
    assert!(!olmoe.blocks[0].feed_forward.moe().unwrap().router.renormalise);

    let qwen2 = spec(&class("Qwen2MoeForCausalLM"));
    let moe = qwen2.blocks[0].feed_forward.moe().unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.expert.inner), (60, 4, 1408));
    let shared = moe.shared.unwrap();
    assert_eq!(shared.network.inner, 5632);
    assert!(shared.gated && !moe.router.renormalise);
    assert!(qwen2.blocks[0].attention.qkv_bias && !qwen2.blocks[0].attention.o_bias);
    assert_eq!(qwen2.blocks[0].attention.sliding_window, None);
}

#[test]
fn dense_blocks_among_the_experts() {
    let dense = |config: &Value| -> Vec<bool> {
        spec(config).blocks.iter().map(|block| matches!(block.feed_forward, FeedForward::Dense(_))).collect()
    };
    let mut config = class("Qwen3MoeForCausalLM");
    config["num_hidden_layers"] = json!(5);
    config["mlp_only_layers"] = json!([3, 40]);
    assert_eq!(dense(&config), [false, false, false, true, false]);
    config["decoder_sparse_step"] = json!(2);
    assert_eq!(dense(&config), [true, false, true, true, true]);
    config["intermediate_size"] = json!(96);
    assert!(
        matches!(spec(&config).blocks[0].feed_forward, FeedForward::Dense(network) if network.inner == 96)
    );
}

#[test]
fn sliding_windows() {
    let windows = |config: &Value| -> Vec<Option<usize>> {
        spec(config).blocks.iter().map(|block| block.attention.sliding_window).collect()
    };
    let mut mixtral = class("MixtralForCausalLM");
    mixtral["num_hidden_layers"] = json!(2);
    mixtral["sliding_window"] = json!(16);
    assert_eq!(windows(&mixtral), [Some(16); 2]);
    mixtral["sliding_window"] = json!(0);
    assert!(read(&mixtral).is_err());

    let mut qwen3 = class("Qwen3MoeForCausalLM");
    qwen3["num_hidden_layers"] = json!(2);
    qwen3["sliding_window"] = json!(16);
    assert_eq!(windows(&qwen3), [None; 2]);
    qwen3["use_sliding_window"] = json!(true);
    assert_eq!(windows(&qwen3), [Some(16); 2]);

    let mut qwen2 = class("Qwen2MoeForCausalLM");
    qwen2["num_hidden_layers"] = json!(4);
    qwen2["sliding_window"] = json!(16);
    qwen2["max_window_layers"] = json!(2);
    assert_eq!(windows(&qwen2), [None; 4]);
    qwen2["use_sliding_window"] = json!(true);
    assert_eq!(windows(&qwen2), [Some(16), None, None, None]);
    let types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"];
    qwen2["layer_types"] = json!(types);
    assert_eq!(windows(&qwen2), [None, Some(16), Some(16), None]);
    qwen2["layer_types"] = json!(types[..3]);
    assert!(read(&qwen2).unwrap_err().to_string().contains("layer_types"));
    qwen2["layer_types"] = json!(["full_attention", "full_attention", "full_attention", "linear_attention"]);
    assert!(read(&qwen2).unwrap_err().to_string().contains("linear_attention"));
}

#[test]
fn either_name_for_the_number_of_experts() {
    for name in ["MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "Qwen2MoeForCausalLM"] {
        for key in ["num_experts", "num_local_experts"] {
            let mut config = class(name);
            config[key] = json!(24);
            assert_eq!(spec(&config).blocks[0].feed_forward.moe().unwrap().experts, 24);
        }
    }
}

#[test]
fn the_architecture_by_class_or_by_type() {
    assert_eq!(spec(&json!({"model_type": "olmoe"})), spec(&class("OlmoeForCausalLM")));
    let error = read(&class("DeepseekV3ForCausalLM")).unwrap_err().to_string();
    assert!(error.contains("DeepseekV3ForCausalLM") && error.contains("MixtralForCausalLM"), "{error}");
    // The class decides: model_type alone would load a classifier as a language model.
    let other = json!({"architectures": ["MixtralForSequenceClassification"], "model_type": "mixtral"});
    assert!(matches!(read(&other), Err(ConfigError::Architecture { .. })));
    assert!(matches!(read(&json!({})), Err(ConfigError::Key { .. })));
}

#[test]
fn quantised_checkpoints_are_refused_by_name() {
    let mut config = class("MixtralForCausalLM");
    config["quantization_config"] = json!({"quant_method": "fp8", "fmt": "e4m3"});
    let error = read(&config).unwrap_err();
    assert!(matches!(error, ConfigError::Unsupported { .. }) && error.to_string().contains("fp8"), "{error}");
    for dtype in ["float8_e4m3fn", "int4", "mxfp4"] {
        let mut config = class("MixtralForCausalLM");
        config["dtype"] = json!(dtype);
        assert!(read(&config).unwrap_err().to_string().contains(dtype));
    }
}

#[test]
fn nonsense_is_refused_by_key() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!("4096")),
        ("hidden_size", json!(1u64 << 40)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_key_value_heads", json!(3)),
        ("num_experts_per_tok", json!(9)),
        ("num_local_experts", json!(-1)),
        ("rms_norm_eps", json!(-1e-5)),
        ("vocab_size", json!([1])),
        ("head_dim", json!(31)),
        ("tie_word_embeddings", json!("yes")),
    ] {
        let mut config = class("MixtralForCausalLM");
        config[key] = value.clone();
        let error = read(&config).unwrap_err();
        assert!(
            matches!(error, ConfigError::Key { .. }) && error.to_string().contains(key),
            "{value}: {error}"
        );
    }
    let mut gelu = class("MixtralForCausalLM");
    gelu["hidden_act"] = json!("gelu");
    assert!(read(&gelu).unwrap_err().to_string().contains("gelu"));
    let mut clip = class("OlmoeForCausalLM");
    clip["clip_qkv"] = json!(-1.0);
    assert!(read(&clip).is_err());
}

#[test]
fn a_longest_sequence_of_ones_own() {
    let value = class("OlmoeForCausalLM");
    let config = Config::parse(Path::new("config.json"), value.to_string().as_bytes()).unwrap();
    let architecture = of(&config).unwrap();
    assert_eq!(architecture.spec(&config, None).unwrap().max_positions, 4096);
    assert_eq!(architecture.spec(&config, Some(512)).unwrap().max_positions, 512);
}

const KEYS: &[&str] = &[
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "vocab_size",
    "num_hidden_layers",
    "tie_word_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "mlp_only_layers",
    "decoder_sparse_step",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_bias",
    "qkv_bias",
    "clip_qkv",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "dtype",
    "quantization_config",
    "model_type",
    "architectures",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..70).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "linear",
            "dynamic",
            "yarn",
            "llama3",
            "longrope",
            "silu",
            "sliding_attention",
            "x"
        ])
        .prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "rope_type",
        "factor",
        "rope_theta",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "long_factor",
        "short_factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "full_attention",
        "sliding_attention",
        "quant_method",
    ]);
    leaf.prop_recursive(2, 12, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|entries| {
                entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// Whatever stands in a configuration: an error that says where, or a model whose numbers hold together.
    #[test]
    fn no_configuration_panics(
        class_name in prop::sample::select(ALL.iter().map(|a| a.class()).collect::<Vec<_>>()),
        changes in prop::collection::vec((prop::sample::select(KEYS), any_value()), 0..6),
    ) {
        let mut config = class(class_name);
        for (key, value) in changes {
            config[key] = value;
        }
        match read(&config) {
            Err(error) => prop_assert!(error.to_string().starts_with("config.json: ")),
            Ok(spec) => {
                prop_assert!(!spec.blocks.is_empty() && spec.hidden > 0 && spec.vocab > 0 && spec.max_positions > 0);
                for block in &spec.blocks {
                    let attention = &block.attention;
                    prop_assert_eq!(attention.rope.inv_freq.len() * 2, attention.head_dim);
                    prop_assert!(attention.rope.inv_freq.iter().all(|frequency| frequency.is_finite()));
                    prop_assert!(attention.heads.is_multiple_of(attention.kv_heads));
                    prop_assert!(attention.sliding_window != Some(0));
                    if let Some(moe) = block.feed_forward.moe() {
                        prop_assert!((1..=moe.experts).contains(&moe.top_k));
                    }
                }
            }
        }
    }
}
