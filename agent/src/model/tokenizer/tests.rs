use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::testing;

fn tiny() -> Tokenizer {
    Tokenizer::open(&ModelFiles::Directory(testing::tiny_moe())).unwrap()
}

/// In the manner of Llama 2: blanks are `▁`, bytes without a character are tokens.
fn llama_like(decoder: &Value) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.entry(token).or_insert(json!(id));
    };
    for token in ["<unk>", "<s>", "</s>"] {
        add(token);
    }
    for byte in 0..=255 {
        add(&format!("<0x{byte:02X}>"));
    }
    for token in
        ["▁", "▁▁", "▁▁▁", "H", "e", "l", "o", "é", "你", "▁H", "▁Hello", "a▁b", " ", "<0xZZ>", "\u{fffd}"]
    {
        add(token);
    }
    let special = |id, content| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []},
    });
    Tokenizer::parse(Path::new("tokenizer.json"), json.to_string().as_bytes()).unwrap()
}

fn mixtral_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
}

fn metaspace() -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})
}

fn stream(tokenizer: &Tokenizer, mut detokenizer: Detokenizer, ids: &[u32]) -> Vec<String> {
    let mut pieces = Vec::new();
    for &id in ids {
        let mut piece = String::new();
        detokenizer.push(tokenizer, id, &mut piece);
        pieces.push(piece);
    }
    let mut last = String::new();
    detokenizer.finish(tokenizer, &mut last);
    pieces.push(last);
    pieces
}

#[test]
fn encodes_and_decodes() {
    let tokenizer = tiny();
    assert_eq!(tokenizer.size(), 4096);
    for text in ["Once upon a time", "naïve — “quoted” 你好 🙂🙂\n\n  tabs\t", "", " ", "</s> in a text"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
        let marked = tokenizer.encode(text, true).unwrap();
        assert_eq!(marked[0], tokenizer.id("<s>").unwrap());
        assert_eq!(marked[1..], ids);
    }
    let ids = tokenizer.encode("</s>a<|end|>", false).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (2, 6));
    assert_eq!(tokenizer.decode(&ids, true), "a");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(100));
    assert_eq!(tokenizer.special().count(), 8);
    assert_eq!(tokenizer.bytes(4096), None);
    assert_eq!(tokenizer.decode(&[4096, u32::MAX], false), "");
}

#[test]
fn a_character_in_several_tokens_appears_at_once() {
    let tokenizer = tiny();
    let ids = tokenizer.encode("🙂", false).unwrap();
    assert!(ids.len() > 1, "the vocabulary has the whole character; take another");
    let pieces = stream(&tokenizer, Detokenizer::new(true), &ids);
    let (whole, waiting) = pieces[..ids.len()].split_last().unwrap();
    assert!(waiting.iter().all(String::is_empty), "{pieces:?}");
    assert_eq!(whole, "🙂");
    let cut = stream(&tokenizer, Detokenizer::new(true), &ids[..ids.len() - 1]);
    assert_eq!(cut.last().unwrap(), "\u{fffd}");
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).unwrap()).collect();
    assert_eq!(bytes, "🙂".as_bytes());
    assert_eq!(tokenizer.text(ids[0]).unwrap(), "\u{fffd}");
}

#[test]
fn blanks_at_the_beginning() {
    for decoder in [mixtral_decoder(), metaspace()] {
        let tokenizer = llama_like(&decoder);
        let hello = tokenizer.id("▁Hello").unwrap();
        let text = |detokenizer| stream(&tokenizer, detokenizer, &[1, hello, hello]).concat();
        assert_eq!(text(Detokenizer::new(true)), "Hello Hello");
        assert_eq!(text(Detokenizer::continuing(true)), " Hello Hello");
        assert_eq!(tokenizer.text(hello).unwrap(), " Hello");
    }
}

#[test]
fn bytes_that_are_tokens() {
    let tokenizer = llama_like(&mixtral_decoder());
    let ids = tokenizer.encode("e 🙂é", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "e 🙂é");
    let smile: Vec<u32> =
        "🙂".bytes().map(|byte| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap()).collect();
    assert_eq!(stream(&tokenizer, Detokenizer::new(true), &smile), ["", "", "", "🙂", ""]);
    assert_eq!(tokenizer.bytes(smile[0]).unwrap(), [0xf0]);
    // Three bytes of four, then a letter: a mark for each.
    let broken = [&smile[..3], &[tokenizer.id("e").unwrap()]].concat();
    assert_eq!(tokenizer.decode(&broken, true), "\u{fffd}\u{fffd}\u{fffd}e");
    assert_eq!(tokenizer.text(tokenizer.id("<0xZZ>").unwrap()).unwrap(), "<0xZZ>");
}

#[test]
fn decoders_that_are_not_known() {
    for (decoder, name) in [
        (json!({"type": "WordPiece", "prefix": "##"}), "WordPiece"),
        (json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}), "regular expression"),
        (json!({"type": "Strip", "content": " ", "start": 1, "stop": 1}), "Strip"),
        (json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "CTC"}]}), "CTC"),
        (json!({"kind": 3}), "type"),
    ] {
        assert!(TokenDecoder::parse(&decoder).unwrap_err().contains(name));
    }
    assert_eq!(TokenDecoder::parse(&Value::Null), Ok(TokenDecoder::Words));
}

#[test]
fn a_broken_or_missing_file() {
    let model = testing::copy(&testing::fixture("mixtral-f32"));
    let files = ModelFiles::Directory(model.path().to_owned());
    let path = model.path().join(FILE);
    let whole = fs::read_to_string(&path).unwrap();
    for broken in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        whole[..whole.len() / 2].to_owned(),
        whole.replace("\"BPE\"", "\"Telepathy\""),
        whole.replace("ByteLevel", "BiteLevel"),
    ] {
        fs::write(&path, broken).unwrap();
        let message = Tokenizer::open(&files).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
    fs::remove_file(&path).unwrap();
    let missing = Tokenizer::open(&files).unwrap_err();
    assert!(matches!(missing, TokenizerError::Missing { .. }) && missing.to_string().contains("download it"));
    fs::write(model.path().join("tokenizer.model"), b"sentencepiece").unwrap();
    assert!(Tokenizer::open(&files).unwrap_err().to_string().contains("AutoTokenizer"));
}

/// What a regular expression with look-ahead does with what people paste: no error, no loss, no quadratic time.
#[test]
fn long_runs_of_one_character() {
    let tokenizer = tiny();
    for unit in [" ", "a", "\n", "é", "\u{a0}", "'", "1", " \n", "a "] {
        let text = unit.repeat(50_000);
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text, "{unit:?}");
    }
}

fn same_as_the_crate(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) {
    let expected = tokenizer.inner.decode(ids, skip_special).unwrap();
    let pieces = stream(tokenizer, Detokenizer::new(skip_special), ids);
    assert_eq!(pieces.concat(), expected, "{ids:?}");
    assert_eq!(tokenizer.decode(ids, skip_special), expected);
}

proptest! {
    #[test]
    fn a_stream_is_what_the_tokenizers_crate_decodes(
        ids in prop::collection::vec(0u32..4100, 0..40), skip_special: bool,
    ) {
        static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(tiny);
        same_as_the_crate(&TOKENIZER, &ids, skip_special);
    }

    /// Random bytes are left out: where they are no characters, the crate discards valid ones before them.
    #[test]
    fn so_is_one_with_byte_tokens(
        parts in prop::collection::vec(prop_oneof![
            (0u32..3).prop_map(|id| vec![id]),
            (259u32..280).prop_map(|id| vec![id]),
            any::<char>().prop_map(|c| {
                c.encode_utf8(&mut [0; 4]).bytes().map(|byte| u32::from(byte) + 3).collect()
            }),
        ], 0..20),
        skip_special: bool,
    ) {
        static LLAMA: std::sync::LazyLock<[Tokenizer; 2]> =
            std::sync::LazyLock::new(|| [llama_like(&mixtral_decoder()), llama_like(&Value::Null)]);
        let ids = parts.concat();
        for tokenizer in &*LLAMA {
            same_as_the_crate(tokenizer, &ids, skip_special);
        }
    }

    #[test]
    fn and_one_with_metaspace(ids in prop::collection::vec(259u32..280, 0..20)) {
        static METASPACE: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(|| llama_like(&metaspace()));
        same_as_the_crate(&METASPACE, &ids, true);
    }

    #[test]
    fn every_text_survives(text in "\\PC{0,60}") {
        static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(tiny);
        let ids = TOKENIZER.encode(&text, false).unwrap();
        prop_assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.size()));
        prop_assert_eq!(TOKENIZER.decode(&ids, false), text);
    }

    #[test]
    fn damaged_files_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static FILE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            fs::read(testing::fixture("mixtral-f32").join("tokenizer.json")).unwrap()
        });
        let mut bytes = FILE.clone();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(tokenizer) = Tokenizer::parse(Path::new("tokenizer.json"), &bytes) {
            let _ = tokenizer.encode("Some text, <s>some</s> more", true);
            let _ = tokenizer.decode(&(0..400).collect::<Vec<_>>(), false);
        }
    }
}
