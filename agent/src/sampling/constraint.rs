//! Structured output: which tokens may come next.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;

use super::extent;
use super::lark::Outline;

/// The state of one sequence's structured output.
pub trait Constraint: Send + fmt::Debug {
    /// Sets the logits of all tokens that may not come next to negative infinity.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError>;
    /// Goes on by one token.
    fn accept(&mut self, id: u32) -> Result<(), ConstraintError>;
    /// Whether nothing may follow any more.
    fn is_complete(&self) -> bool;
}

/// Structured output that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot go on: {0}")]
pub struct ConstraintError(String);

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that fits a schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A regular expression over the whole output.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// One of these strings.
    Choice(Vec<String>),
}

/// A grammar that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The text is longer than allowed.
    #[error("the {what} has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// What kind of grammar.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Its references and combinations multiply beyond the limit.
    #[error(
        "the JSON schema expands to over {max} parts; reduce the references under allOf, anyOf and oneOf"
    )]
    Explodes {
        /// The limit.
        max: u64,
    },
    /// Its nesting, references and rules go deeper than a compiler can follow.
    #[error(
        "the {what} is over {max} levels deep: nest less, and shorten the chains of references from one definition to the next"
    )]
    Deep {
        /// What kind of grammar.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// It is not a grammar, or needs more than the limits allow.
    #[error("the {what} was refused: {why}")]
    Refused {
        /// What kind of grammar.
        what: &'static str,
        /// The reason.
        why: String,
    },
}

/// A tokenizer whose tokens cannot be told apart as bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("structured output cannot use this tokenizer: {0}")]
pub struct VocabularyError(String);

/// What a grammar may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of the schema, expression or grammar.
    pub bytes: usize,
    /// Parts of a JSON schema after its references are followed.
    pub parts: u64,
    /// Levels of nesting, of references and of rules, one after the other.
    pub levels: usize,
    /// Symbols of the compiled grammar.
    pub symbols: usize,
    /// Work to build its lexer; about 50,000 a millisecond.
    pub build_fuel: u64,
    /// Work for one mask; about 14,000 a millisecond.
    pub step_fuel: u64,
    /// Alternatives open at one place of the output: an object's thousand optional properties are some four thousand.
    pub alternatives: usize,
    /// Alternatives looked at for one mask; about 20,000 a millisecond.
    pub step_alternatives: usize,
    /// States its lexer may grow to, in each sequence for itself; 1 to 2 kB each.
    pub states: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        Self {
            bytes: 256 << 10,
            parts: 20_000,
            levels: 2_000,
            symbols: 200_000,
            build_fuel: 1_000_000,
            step_fuel: 200_000,
            alternatives: 10_000,
            step_alternatives: 200_000,
            states: 8_000,
        }
    }
}

/// Room for the library's recursion over [`GrammarLimits::levels`]: about 8 kB a level. Only what is used of it becomes
/// memory.
const STACK: usize = 32 << 20;

/// Compiles grammars against one model's vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    limits: GrammarLimits,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// From the parsed `tokenizer.json`. `vocab` is the number of logits; `eos` the ids that may end an output.
    pub fn from_tokenizer_json(
        tokenizer: &Value,
        vocab: usize,
        eos: &[u32],
        limits: GrammarLimits,
    ) -> Result<Self, VocabularyError> {
        let words =
            quietly(|| llguidance::token_bytes_from_tokenizer_json(tokenizer)).map_err(VocabularyError)?;
        Self::new(words, vocab, eos, limits)
    }

    /// From the bytes of each token; those of a special token begin with 0xFF.
    pub fn new(
        mut words: Vec<Vec<u8>>,
        vocab: usize,
        eos: &[u32],
        limits: GrammarLimits,
    ) -> Result<Self, VocabularyError> {
        let eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < vocab).collect();
        let Some(&first) = eos.first() else {
            return Err(VocabularyError("it names no end-of-sequence token".to_owned()));
        };
        words.resize(vocab, Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, first), &words).with_eos_tokens(&eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = quietly(|| ParserFactory::new_simple(&env)).map_err(VocabularyError)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: limits.build_fuel,
            step_lexer_fuel: limits.step_fuel,
            max_items_in_row: limits.alternatives,
            step_max_items: limits.step_alternatives,
            max_lexer_states: limits.states,
            max_grammar_size: limits.symbols,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory, limits })
    }

    /// Compiles within the limits.
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar, CompileError> {
        self.check(grammar)?;
        let what = grammar.name();
        let refused = |why: &str| CompileError::Refused { what, why: why.to_owned() };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            match builder.spawn_scoped(scope, || self.build(grammar)) {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(refused("its compiler broke off"))),
                Err(error) => Err(refused(&format!("no thread can compile it now: {error}"))),
            }
        })
    }

    /// What bounds the library's recursion comes first, and does not recurse itself.
    fn check(&self, grammar: &Grammar) -> Result<(), CompileError> {
        let what = grammar.name();
        let deep = CompileError::Deep { what, max: self.limits.levels };
        if let Grammar::JsonSchema(schema) = grammar {
            self.check_schema(schema, &deep)?;
        }
        let len = grammar.len();
        if len > self.limits.bytes {
            return Err(CompileError::TooLong { what, len, max: self.limits.bytes });
        }
        if let Grammar::Lark(text) = grammar {
            let outline =
                Outline::read(text).map_err(|why| CompileError::Refused { what, why: why.to_string() })?;
            if outline.levels > self.limits.levels {
                return Err(deep);
            }
            outline.schemas.iter().try_for_each(|schema| self.check_schema(schema, &deep))?;
        }
        Ok(())
    }

    fn check_schema(&self, schema: &Value, deep: &CompileError) -> Result<(), CompileError> {
        let max = self.limits.parts;
        match extent::depth(schema) {
            Some(levels) if levels <= self.limits.levels => {}
            _ => return Err(deep.clone()),
        }
        if extent::parts(schema, max) > max { Err(CompileError::Explodes { max }) } else { Ok(()) }
    }

    /// Of what passed the check.
    fn build(&self, grammar: &Grammar) -> Result<CompiledGrammar, CompileError> {
        let what = grammar.name();
        let refused = |why| CompileError::Refused { what, why };
        let source = grammar.source().map_err(refused)?;
        let parser = quietly(|| self.factory.create_parser(source)).map_err(refused)?;
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask builds the lexer's first states: a grammar that cannot give one is refused here.
        matcher.compute_mask().map_err(|error| refused(one_line(&error.to_string())))?;
        Ok(CompiledGrammar { source: Arc::new(grammar.clone()), matcher: Arc::new(Mutex::new(matcher)) })
    }
}

/// A grammar ready to constrain any number of sequences.
#[derive(Clone)]
pub struct CompiledGrammar {
    source: Arc<Grammar>,
    matcher: Arc<Mutex<Matcher>>,
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").finish_non_exhaustive()
    }
}

impl CompiledGrammar {
    /// What it was compiled from.
    pub fn source(&self) -> &Arc<Grammar> {
        &self.source
    }

    /// The state before the first token.
    pub fn start(&self) -> Box<dyn Constraint> {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(MatcherConstraint { matcher })
    }
}

struct MatcherConstraint {
    matcher: Matcher,
}

impl fmt::Debug for MatcherConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MatcherConstraint").field("stop", &self.matcher.stop_reason()).finish_non_exhaustive()
    }
}

impl Constraint for MatcherConstraint {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask().map_err(failed)?;
        let words = allowed.as_slice().iter().chain(std::iter::repeat(&0));
        for (word, logits) in words.zip(logits.chunks_mut(32)) {
            if *word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(id).map_err(failed)
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}

fn failed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError(one_line(&error.to_string()))
}

impl Grammar {
    /// Its name in messages.
    fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::JsonObject => "JSON object",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "grammar",
            Self::Choice(_) => "choice",
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::JsonObject => 0,
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    fn source(&self) -> Result<TopLevelGrammar, String> {
        Ok(match self {
            Self::JsonSchema(schema) => json_grammar(schema.clone()),
            Self::JsonObject => json_grammar(serde_json::json!({"type": "object"})),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Self::Choice(texts) => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    return Err("it needs at least one text, and none may be empty".to_owned());
                }
                let quoted: Vec<String> =
                    texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
            }
        })
    }
}

/// White space between JSON tokens is the model's choice, but ends: a weak model can otherwise go on with it for ever.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,8}";

fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if schema.is_object() {
        let options =
            JsonCompileOptions { whitespace_pattern: Some(JSON_SPACE.to_owned()), ..Default::default() };
        options.apply_to(&mut schema);
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Runs library code whose panics on odd input are errors to us.
fn quietly<T>(run: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(run))
        .map_err(|error| one_line(&format!("{error:#}")))
}

/// A library's message on one line of bounded length. Its backtraces are left out.
fn one_line(text: &str) -> String {
    const MOST: usize = 300;
    if text.starts_with("NoExtension") {
        return "it allows no output".to_owned();
    }
    let text = text.split("<backtrace>").next().unwrap_or_default().replace("<non-verbose/>", "");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    const EOS: u32 = 2;

    fn compiler() -> GrammarCompiler {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-moe/tokenizer.json");
        let tokenizer = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        GrammarCompiler::from_tokenizer_json(&tokenizer, 4096, &[EOS], GrammarLimits::default()).unwrap()
    }

    fn words() -> Vec<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-moe/tokenizer.json");
        let tokenizer = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        llguidance::token_bytes_from_tokenizer_json(&tokenizer).unwrap()
    }

    /// Follows the mask with pseudo-random choices to the end, preferring the end once it is allowed.
    fn follow(constraint: &mut dyn Constraint, words: &[Vec<u8>], seed: u32) -> (String, Vec<u32>) {
        let (mut text, mut ids) = (Vec::new(), Vec::new());
        for step in 0..400u32 {
            if constraint.is_complete() {
                break;
            }
            let mut logits: Vec<f32> = (0..4096u32)
                .map(|id| {
                    (id.wrapping_mul(2_654_435_761).wrapping_add(step * 977 + seed) >> 8 & 0xffff) as f32
                })
                .collect();
            // Closing characters first, so that recursion ends.
            for (logit, word) in logits.iter_mut().zip(words) {
                if word.iter().all(u8::is_ascii_whitespace) {
                    *logit = -1.0;
                }
                if step > 40 && word.first().is_some_and(|byte| b"\"}],".contains(byte)) {
                    *logit += 1e6 / word.len() as f32;
                }
            }
            constraint.mask(&mut logits).unwrap();
            let id = if logits[EOS as usize].is_finite() {
                EOS
            } else {
                crate::sampling::math::argmax(&logits).unwrap() as u32
            };
            constraint.accept(id).unwrap();
            ids.push(id);
            if id == EOS {
                break;
            }
            text.extend_from_slice(&words[id as usize]);
        }
        (String::from_utf8(text).unwrap(), ids)
    }

    #[test]
    fn outputs_fit_their_grammars() {
        let (compiler, words) = (compiler(), words());
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]},
                           "next": {"$ref": "#/$defs/point"}},
            "required": ["name", "size", "next"], "additionalProperties": false,
            "$defs": {"point": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99},
                                "minItems": 2, "maxItems": 2}}
        });
        let grammar = compiler.compile(&Grammar::JsonSchema(schema)).unwrap();
        for seed in 0..3 {
            let (text, _) = follow(&mut *grammar.start(), &words, seed);
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(
                value["name"].is_string() && value["next"].as_array().is_some_and(|a| a.len() == 2),
                "{text}"
            );
            assert!(["small", "large"].contains(&value["size"].as_str().unwrap()));
        }
        let regex = compiler.compile(&Grammar::Regex("[0-9]{4}-[0-9]{2}".into())).unwrap();
        let (text, _) = follow(&mut *regex.start(), &words, 1);
        assert!(text.len() == 7 && text.as_bytes()[4] == b'-', "{text}");
        let choices: Vec<String> = ["yes", "no \"quoted\" \\ ü\n", "maybe"].map(String::from).into();
        let grammar = compiler.compile(&Grammar::Choice(choices.clone())).unwrap();
        for seed in 0..20 {
            assert!(choices.contains(&follow(&mut *grammar.start(), &words, seed).0));
        }
        let lark = compiler.compile(&Grammar::Lark("start: \"a\" (\"b\" | \"c\")".into())).unwrap();
        assert!(["ab", "ac"].contains(&follow(&mut *lark.start(), &words, 5).0.as_str()));
        let object = compiler.compile(&Grammar::JsonObject).unwrap();
        let (text, _) = follow(&mut *object.start(), &words, 3);
        assert!(text.starts_with('{'), "{text}");
    }

    #[test]
    fn a_replay_has_the_same_masks() {
        let (compiler, words) = (compiler(), words());
        let grammar = compiler.compile(&Grammar::Regex("(ab|cd)+[0-9]{3}".into())).unwrap();
        let (_, ids) = follow(&mut *grammar.start(), &words, 4);
        let (mut live, mut replay) = (grammar.start(), grammar.start());
        for (i, &id) in ids.iter().enumerate() {
            let mut a = vec![0.0; 4096];
            live.mask(&mut a).unwrap();
            live.accept(id).unwrap();
            if i == 1 {
                replay.accept(ids[0]).unwrap();
                let mut b = vec![0.0; 4096];
                replay.mask(&mut b).unwrap();
                assert_eq!(a, b);
            }
        }
        assert!(live.is_complete());
        assert!(replay.accept(words.iter().position(|w| w == b"z").unwrap() as u32).is_err());
    }

    #[test]
    fn what_explodes_is_refused_quickly() {
        let compiler = compiler();
        let mut defs = serde_json::Map::new();
        for i in 0..30 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(format!("d{i}"), json!({"allOf": [next, next], "anyOf": [next, next]}));
        }
        defs.insert("d30".into(), json!({"type": "string"}));
        let doubling = Grammar::JsonSchema(
            json!({"$defs": defs, "$ref": "#/$defs/d0", "allOf": [{"$ref": "#/$defs/d0"}]}),
        );
        assert_eq!(compiler.compile(&doubling).unwrap_err(), CompileError::Explodes { max: 20_000 });
        let refused = |grammar| compiler.compile(&grammar).unwrap_err().to_string();
        assert!(refused(Grammar::Regex("(".into())).starts_with("the regular expression was refused"));
        assert!(refused(Grammar::Lark("start: undefined_rule".into())).contains("undefined_rule"));
        assert!(refused(Grammar::Lark("a".repeat(300 << 10))).contains("at most 262144"));
        assert!(refused(Grammar::JsonSchema(json!({"type": "no such type"}))).contains("JSON schema"));
        assert!(refused(Grammar::Choice(vec![])).contains("at least one"));
    }

    /// Each is either refused or usable; none may take the process with it. The limits are what ends them, and
    /// `--nocapture` shows how soon.
    #[test]
    fn hostile_grammars_end() {
        let compiler = compiler();
        let wide: Vec<Value> =
            (0..3000).map(|i| json!(format!("choice number {i} of a long list"))).collect();
        let properties: serde_json::Map<String, Value> =
            (0..1000).map(|i| (format!("p{i}"), json!({"type": "integer", "minimum": i}))).collect();
        let nested =
            (0..100).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
        let any_of = |depth: usize| {
            (0..depth).fold(json!({"type": "string"}), |inner, i| {
                json!({"anyOf": [{"type": "object", "properties": {(format!("a{i}")): inner.clone()}},
                                 {"type": "object", "properties": {(format!("b{i}")): inner}}]})
            })
        };
        let all_of = |n: usize| {
            let part = |i| {
                json!({"anyOf": [{"properties": {(format!("x{i}")): {"type": "string"}}},
                                            {"properties": {(format!("y{i}")): {"type": "integer"}}}]})
            };
            json!({"type": "object", "allOf": (0..n).map(part).collect::<Vec<_>>()})
        };
        let hostile = [
            ("repetitions", Grammar::Regex("((((a{0,1000}){0,1000}){0,1000}){0,1000})".into())),
            ("a late decision", Grammar::Regex("[ab]*a[ab]{400}c".into())),
            ("alternatives", Grammar::Regex(format!("({})*", "(a|aa|aaa|b?)".repeat(300)))),
            ("unicode classes", Grammar::Regex(r"(\p{L}\p{N}){1,500}\p{Greek}+".into())),
            ("an ambiguous grammar", Grammar::Lark("start: s\ns: s s | \"a\" | ".into())),
            ("a pattern", Grammar::JsonSchema(json!({"type": "string", "pattern": "^(([a-z]+)+)+$(?=x)"}))),
            ("a long string", Grammar::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000u64}))),
            ("a bounded string", Grammar::JsonSchema(json!({"type": "string", "maxLength": 50_000}))),
            (
                "many items",
                Grammar::JsonSchema(json!({"type": "array", "items": {}, "minItems": 1_000_000u64})),
            ),
            ("a wide enum", Grammar::JsonSchema(json!({"enum": wide}))),
            ("many properties", Grammar::JsonSchema(json!({"type": "object", "properties": properties}))),
            ("deep arrays", Grammar::JsonSchema(nested)),
            ("doubling alternatives", Grammar::JsonSchema(any_of(12))),
            ("a product of alternatives", Grammar::JsonSchema(all_of(24))),
            ("a loop", Grammar::JsonSchema(json!({"$ref": "#"}))),
            ("a loop under allOf", Grammar::JsonSchema(json!({"allOf": [{"$ref": "#"}], "type": "object"}))),
            ("a far reference", Grammar::JsonSchema(json!({"$ref": "https://example.com/schema"}))),
            (
                "multiples",
                Grammar::JsonSchema(json!({"type": "integer", "multipleOf": 999_983, "minimum": 1})),
            ),
        ];
        for (name, grammar) in hostile {
            let start = std::time::Instant::now();
            let compiled = compiler.compile(&grammar);
            let built = start.elapsed();
            let outcome = match compiled {
                Err(error) => error.to_string(),
                Ok(grammar) => {
                    let mut constraint = grammar.start();
                    let (mut steps, mut ended) = (0, String::new());
                    while steps < 5 && !constraint.is_complete() {
                        let mut logits = vec![0.0; 4096];
                        let id = crate::sampling::math::argmax;
                        let step = constraint
                            .mask(&mut logits)
                            .and_then(|()| id(&logits).map_or(Ok(()), |id| constraint.accept(id as u32)));
                        if let Err(error) = step {
                            ended = error.to_string();
                            break;
                        }
                        steps += 1;
                    }
                    format!("{steps} tokens {ended}")
                }
            };
            println!("{name}: built in {built:.1?}, {:.1?} in all: {outcome:.200}", start.elapsed());
        }
    }

    /// A chain of definitions, each made from the reference to the next.
    fn chain(length: usize, link: impl Fn(Value) -> Value) -> Value {
        let name = |i: usize| format!("#/$defs/d{i}");
        let mut defs: serde_json::Map<String, Value> =
            (0..length).map(|i| (format!("d{i}"), link(json!({"$ref": name(i + 1)})))).collect();
        defs.insert(format!("d{length}"), json!({"type": "string"}));
        json!({"$defs": defs, "$ref": name(0)})
    }

    /// Ways from one definition to the next.
    const LINKS: [fn(Value) -> Value; 9] = [
        |next| next,
        |next| json!({"allOf": [next]}),
        |next| json!({"anyOf": [next, {"type": "null"}]}),
        |next| json!({"oneOf": [next]}),
        |next| json!({"type": "array", "items": next}),
        |next| json!({"prefixItems": [{"type": "null"}, next]}),
        |next| json!({"type": "object", "properties": {"a": next}, "required": ["a"]}),
        |next| json!({"type": "object", "additionalProperties": next}),
        |next| json!({"type": "object", "patternProperties": {"^a": next}}),
    ];

    #[test]
    fn what_is_too_deep_is_refused() {
        let compiler = compiler();
        let max = GrammarLimits::default().levels;
        let refused = |grammar: Grammar| {
            let what = grammar.name();
            assert_eq!(
                compiler.compile(&grammar).unwrap_err(),
                CompileError::Deep { what, max },
                "{grammar:.200?}"
            );
        };
        for link in LINKS {
            let schema = chain(5000, link);
            // In a grammar of another kind it is the same schema.
            let lark = format!("start: \"a\" b\nb: %json {schema}");
            if lark.len() <= GrammarLimits::default().bytes {
                refused(Grammar::Lark(lark));
            }
            refused(Grammar::JsonSchema(schema));
        }
        let circle: serde_json::Map<String, Value> = (0..2000)
            .map(|i| (format!("d{i}"), json!({"items": {"$ref": format!("#/$defs/d{}", (i + 1) % 2000)}})))
            .collect();
        refused(Grammar::JsonSchema(json!({"$defs": circle, "$ref": "#/$defs/d7"})));
        let nested = (0..3000).fold(json!({}), |inner, _| json!({"items": inner}));
        refused(Grammar::JsonSchema(nested));
        let rules = |name: char, body: fn(String) -> String| {
            let rules: String =
                (0..9000).map(|i| format!("{name}{i}: {}\n", body(format!("{name}{}", i + 1)))).collect();
            Grammar::Lark(format!("start: {name}0\n{rules}{name}9000: \"x\""))
        };
        refused(rules('a', |next| next));
        refused(rules('A', |next| format!("{next} | \"y\"")));
        refused(rules('a', |next| format!("[{next}]")));
        refused(Grammar::Lark(format!("start: {}", "a{".repeat(100_000))));
        refused(Grammar::Lark(format!("start: \"a\" %if {}", "not(".repeat(60_000))));
        refused(Grammar::Lark(format!("start: {}", "(".repeat(100_000))));
    }

    /// On half of the stack, so that there is as much again for one that needs more than these.
    #[test]
    fn what_is_just_not_too_deep_compiles() {
        let compiler = compiler();
        let levels = GrammarLimits::default().levels;
        let compiles = |name: &str, grammar: Grammar| {
            let outcome = std::thread::scope(|scope| {
                let builder = std::thread::Builder::new().stack_size(STACK / 2);
                builder.spawn_scoped(scope, || compiler.build(&grammar)).unwrap().join().unwrap()
            });
            // Steps have no more stack than any thread.
            let mut constraint = outcome.unwrap_or_else(|error| panic!("{name}: {error}")).start();
            for _ in 0..5 {
                if constraint.is_complete() {
                    break;
                }
                let mut logits = vec![0.0; 4096];
                constraint.mask(&mut logits).unwrap();
                constraint.accept(crate::sampling::math::argmax(&logits).unwrap() as u32).unwrap();
            }
        };
        for link in LINKS {
            let link_levels = extent::depth(&link(json!({"$ref": ""}))).unwrap();
            let schema = chain((levels - 20) / link_levels, link);
            assert!((levels - 30..levels).contains(&extent::depth(&schema).unwrap()));
            compiles(&link(json!("next")).to_string(), Grammar::JsonSchema(schema));
        }
        for (name, open, close) in [('a', "", ""), ('A', "", ""), ('a', "[", "]"), ('A', "(\"y\" | ", ")")] {
            let count = (levels - 20) / (1 + open.len().min(1));
            let rules: String =
                (0..count).map(|i| format!("{name}{i}: \"z\" {open}{name}{}{close}\n", i + 1)).collect();
            let grammar = format!("start: {name}0\n{rules}{name}{count}: \"x\"");
            assert!((levels - 30..levels).contains(&Outline::read(&grammar).unwrap().levels));
            compiles(&format!("{name}{open}"), Grammar::Lark(grammar));
        }
    }

    #[test]
    fn real_schemas_are_not_too_deep() {
        let compiler = compiler();
        // Sixty kinds of nodes that refer to each other, as in a syntax tree.
        let kinds: serde_json::Map<String, Value> = (0..60)
            .map(|i| {
                let next = |by: usize| json!({"$ref": format!("#/$defs/k{}", (i + by) % 60)});
                let fields = json!({"kind": {"const": i}, "left": next(1), "right": {"type": "array", "items": next(7)}});
                (format!("k{i}"), json!({"type": "object", "properties": fields}))
            })
            .collect();
        let tree = json!({"$defs": kinds, "$ref": "#/$defs/k0"});
        compiler.compile(&Grammar::JsonSchema(tree)).unwrap();
        // A thousand definitions, none of them deep.
        let flat: serde_json::Map<String, Value> = (0..1000)
            .map(|i| (format!("p{i}"), json!({"type": "string", "maxLength": i % 50 + 1})))
            .collect();
        let uses: serde_json::Map<String, Value> =
            (0..1000).map(|i| (format!("u{i}"), json!({"$ref": format!("#/$defs/p{i}")}))).collect();
        compiler
            .compile(&Grammar::JsonSchema(json!({"$defs": flat, "type": "object", "properties": uses})))
            .unwrap();
    }

    #[test]
    fn a_broken_tokenizer_is_an_error() {
        let broken = json!({"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
                            "added_tokens": [], "model": {"vocab": {"<0xZZ>": 0}}});
        assert!(GrammarCompiler::from_tokenizer_json(&broken, 1, &[0], GrammarLimits::default()).is_err());
        assert!(GrammarCompiler::from_tokenizer_json(&json!({}), 1, &[0], GrammarLimits::default()).is_err());
    }
}
