//! Model directories with something wrong in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

const WEIGHTS: &str = "model.safetensors";
/// Bytes of the length in front of a safetensors header.
const LENGTH: usize = 8;

/// What is broken, how, and what the message has to say beside the file's name.
struct Case {
    item: &'static str,
    file: &'static str,
    spoil: fn(&Path),
    says: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        item: "no safetensors file",
        file: WEIGHTS,
        spoil: |dir| remove(dir, WEIGHTS),
        says: &["no weights", "model.safetensors.index.json", "download"],
    },
    Case {
        item: "a shard that is missing",
        file: "model-00002-of-00002.safetensors",
        spoil: |dir| {
            remove(dir, WEIGHTS);
            symlink(original().join(WEIGHTS), dir.join("model-00001-of-00002.safetensors")).unwrap();
            let map: Map<String, Value> = header()
                .keys()
                .filter(|name| *name != "__metadata__")
                .map(|name| {
                    let shard = if name.starts_with("model.layers.5.") { 2 } else { 1 };
                    (name.clone(), format!("model-0000{shard}-of-00002.safetensors").into())
                })
                .collect();
            let index = json!({ "metadata": {}, "weight_map": map });
            replace(dir, "model.safetensors.index.json", index.to_string().as_bytes());
        },
        says: &["does not exist", "tensors", "download"],
    },
    Case {
        item: "a truncated safetensors file",
        file: WEIGHTS,
        spoil: |dir| {
            let whole = fs::read(original().join(WEIGHTS)).unwrap();
            replace(dir, WEIGHTS, &whole[..whole.len() / 2]);
        },
        says: &["truncated", "download it again"],
    },
    Case {
        item: "an empty safetensors file",
        file: WEIGHTS,
        spoil: |dir| replace(dir, WEIGHTS, &[]),
        says: &["truncated", "download it again"],
    },
    Case {
        item: "a header longer than the file, by its length",
        file: WEIGHTS,
        spoil: |dir| with_length(dir, 90_000_000),
        says: &["announce a header of 90000000 bytes", "damaged", "download it again"],
    },
    Case {
        item: "a header longer than memory, by its length",
        file: WEIGHTS,
        spoil: |dir| with_length(dir, u64::MAX),
        says: &["announce a header of 18446744073709551615 bytes", "damaged", "download it again"],
    },
    Case {
        item: "a header shorter than it is, by its length",
        file: WEIGHTS,
        spoil: |dir| with_length(dir, 1000),
        says: &["the header is damaged", "download it again"],
    },
    Case {
        item: "a tensor larger than the file, by the header",
        file: WEIGHTS,
        spoil: |dir| {
            with_header(dir, |header| {
                let last = header.values_mut().filter(|t| t["data_offsets"].is_array());
                let last = last.max_by_key(|t| t["data_offsets"][1].as_u64()).unwrap();
                let rows = last["shape"][0].as_u64().unwrap();
                let (start, end) = (&last["data_offsets"][0], &last["data_offsets"][1]);
                let (start, end) = (start.as_u64().unwrap(), end.as_u64().unwrap());
                last["data_offsets"][1] = (start + (end - start) * 1000).into();
                last["shape"][0] = (rows * 1000).into();
            });
        },
        says: &["truncated", "download it again"],
    },
    Case {
        item: "a tensor with less bytes than its shape",
        file: WEIGHTS,
        spoil: |dir| with_header(dir, |header| header[NORM]["shape"][0] = 257.into()),
        says: &[NORM, "does not fit", "[257]", "download it again"],
    },
    Case {
        item: "a wrong dtype",
        file: WEIGHTS,
        spoil: |dir| with_header(dir, |header| header[NORM]["dtype"] = "I16".into()),
        says: &[NORM, "I16", "weights must be bf16, f16 or f32"],
    },
    Case {
        item: "a quantised dtype",
        file: WEIGHTS,
        spoil: |dir| {
            with_header(dir, |header| {
                header[NORM]["dtype"] = "F8_E4M3".into();
                header[NORM]["shape"][0] = 512.into();
            });
        },
        says: &[NORM, "F8_E4M3", "quantised weights are not supported", "bf16, f16 or f32"],
    },
    Case {
        item: "a missing tensor",
        file: WEIGHTS,
        spoil: |dir| {
            with_header(dir, |header| {
                let tensor = header.remove(NORM).unwrap();
                header.insert("model.layers.0.other".into(), tensor);
            });
        },
        says: &["the tensor", NORM, "missing", "download"],
    },
    Case {
        item: "an unknown architecture",
        file: "config.json",
        spoil: |dir| {
            let mut config: Value =
                serde_json::from_slice(&fs::read(original().join("config.json")).unwrap()).unwrap();
            config["architectures"] = json!(["GooseForCausalLM"]);
            config["model_type"] = json!("goose");
            replace(dir, "config.json", config.to_string().as_bytes());
        },
        says: &["GooseForCausalLM is not supported", "supported are", "MixtralForCausalLM"],
    },
    Case {
        item: "a tokenizer that breaks off",
        file: "tokenizer.json",
        spoil: |dir| {
            let whole = fs::read(original().join("tokenizer.json")).unwrap();
            replace(dir, "tokenizer.json", &whole[..whole.len() / 2]);
        },
        says: &["not a tokenizer", "line", "download it again"],
    },
    Case {
        item: "a tokenizer that is none",
        file: "tokenizer.json",
        spoil: |dir| replace(dir, "tokenizer.json", br#"{"model": {"type": "Abacus"}}"#),
        says: &["not a tokenizer", "download it again"],
    },
    Case {
        item: "no tokenizer",
        file: "tokenizer.json",
        spoil: |dir| remove(dir, "tokenizer.json"),
        says: &["does not exist", "download"],
    },
];

const NORM: &str = "model.layers.3.input_layernorm.weight";

fn original() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-moe").canonicalize().unwrap()
}

fn remove(dir: &Path, file: &str) {
    fs::remove_file(dir.join(file)).unwrap();
}

fn replace(dir: &Path, file: &str, bytes: &[u8]) {
    // What is there is a link to the original.
    let _ = fs::remove_file(dir.join(file));
    fs::write(dir.join(file), bytes).unwrap();
}

fn header() -> Map<String, Value> {
    let whole = fs::read(original().join(WEIGHTS)).unwrap();
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    serde_json::from_slice(&whole[LENGTH..LENGTH + length]).unwrap()
}

/// Another length in front of the header.
fn with_length(dir: &Path, length: u64) {
    let mut whole = fs::read(original().join(WEIGHTS)).unwrap();
    whole[..LENGTH].copy_from_slice(&length.to_le_bytes());
    replace(dir, WEIGHTS, &whole);
}

/// Another header before as much data as there was.
fn with_header(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let whole = fs::read(original().join(WEIGHTS)).unwrap();
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let mut header = header();
    edit(&mut header);
    let text = Value::Object(header).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.extend(&whole[LENGTH + length..]);
    replace(dir, WEIGHTS, &bytes);
}

/// The exit code, and all that was written.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice-agent"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the program can be run");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_broken_model_directory_is_refused_with_its_reason() {
    for Case { item, file, spoil, says } in CASES {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(original()).unwrap() {
            let path = entry.unwrap().path();
            symlink(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        spoil(dir.path());
        let path = dir.path().to_str().unwrap();
        let named = dir.path().join(file);
        let serve = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--model", path];
        let generate = ["generate", "--model", path, "hello"];
        for args in [&serve[..], &generate[..], &["inspect", path][..]] {
            let (code, text) = run(args);
            assert_eq!(code, Some(1), "{item}: {}: {text}", args[0]);
            for word in says.iter().chain([&named.to_str().unwrap()]) {
                assert!(text.contains(word), "{item}: {} does not say {word:?}: {text}", args[0]);
            }
            assert!(!text.contains("panicked"), "{item}: {}: {text}", args[0]);
            if let Some((_, error)) = text.split_once("error: ").filter(|_| args[0] == "serve") {
                println!("{item}: exit code 1: {}", error.trim().replace(path, "DIR"));
            }
        }
    }
}

#[test]
fn a_directory_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere");
    let (code, text) = run(&["serve", "--listen", "127.0.0.1:0", "--model", path.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nowhere: no such directory") && text.contains("hf download"), "{text}");
}
