//! Grammars travel as their source, and are compiled where they are used.

use std::sync::Arc;

use sluice_core::sequence::{Abort, Finish, RankEvent};

use super::net::config;
use super::sides::{Asked, Bed, VOCAB, bind, greedy, pass, run, seq, token, until};
use crate::link::grammars::{Grammars, Wanted};
use crate::link::message::{Source, Told};
use crate::sampling::{Grammar, GrammarCompiler, GrammarLimits};

fn compiler() -> Arc<GrammarCompiler> {
    let mut words: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    words.extend((256..VOCAB).map(|id| [&[0xff], format!("<{id}>").as_bytes()].concat()));
    Arc::new(GrammarCompiler::new(words, VOCAB, &[999], GrammarLimits::default()).unwrap())
}

async fn bed() -> Bed {
    Bed::with(config(1_000, 1_000_000), Some(compiler())).up().await
}

fn refused(request: u64) -> Told {
    Told { event: RankEvent::Finished(Finish::Aborted(Abort::Constraint)), ..token(request, 0) }
}

#[test]
fn a_grammar_is_compiled_by_the_rank() {
    run(async {
        let bed = bed().await;
        for (request, grammar) in [
            Grammar::Regex("[ab]+".into()),
            Grammar::JsonSchema(serde_json::json!({"type": "integer", "maximum": 7})),
            Grammar::JsonObject,
            Grammar::Lark("start: \"x\"".into()),
            Grammar::Choice(vec!["yes".into(), "no".into()]),
        ]
        .iter()
        .enumerate()
        {
            bed.gateway.rank().bind(bind(request as u64), greedy(), Some(grammar));
            until(|| bed.rank.asked().len() == request + 2).await;
            let Some(Asked::Bind(bind, _, true)) = bed.rank.asked().pop() else {
                panic!("{:?}", bed.rank.asked())
            };
            assert_eq!(bind.seq, seq(request as u64));
        }
    });
}

#[test]
fn a_grammar_that_is_refused_ends_its_attempt() {
    run(async {
        let bed = bed().await;
        bed.gateway.rank().bind(bind(1), greedy(), Some(&Grammar::Regex("(".into())));
        until(|| bed.gateway.told() == [refused(1)]).await;
        // It is remembered: the next is answered without compiling it again, in its turn.
        bed.gateway.rank().bind(bind(2), greedy(), Some(&Grammar::Regex("(".into())));
        bed.gateway.rank().bind(bind(3), greedy(), None);
        until(|| bed.rank.asked().len() == 2).await;
        assert!(matches!(&bed.rank.asked()[1], Asked::Bind(bind, _, false) if bind.seq == seq(3)));
        until(|| bed.gateway.told() == [refused(1), refused(2)]).await;
    });
}

#[test]
fn a_rank_without_a_compiler_says_so() {
    run(async {
        let bed = Bed::new().up().await;
        bed.gateway.rank().bind(bind(1), greedy(), Some(&Grammar::JsonObject));
        until(|| bed.gateway.told() == [refused(1)]).await;
        assert_eq!(bed.rank.asked().len(), 1);
    });
}

#[test]
fn what_is_cancelled_while_its_grammar_is_compiled_is_not_bound() {
    run(async {
        let bed = bed().await;
        // They arrive in one piece, so no grammar is there before its cancel.
        let grammar = Grammar::Regex("a+".into());
        bed.gateway.rank().bind(bind(1), greedy(), Some(&grammar));
        bed.gateway.rank().cancel(seq(1), 1);
        let again = sluice_core::sequence::Bind { attempt: 3, ..bind(2) };
        bed.gateway.rank().bind(bind(2), greedy(), Some(&grammar));
        bed.gateway.rank().bind(again, greedy(), Some(&grammar));
        until(|| bed.rank.asked().len() == 3).await;
        pass(1_000_000_000).await;
        let asked = bed.rank.asked();
        let [_, Asked::Cancel(cancelled, 1), Asked::Bind(bind, _, true)] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!((*cancelled, bind.seq, bind.attempt), (seq(1), seq(2), 3));
    });
}

#[test]
fn a_bind_counts_from_its_arrival_to_its_end() {
    run(async {
        let bed = bed().await;
        assert!(!bed.net.has_bound());
        bed.gateway.rank().bind(bind(1), greedy(), Some(&Grammar::Regex("a+".into())));
        bed.gateway.rank().bind(bind(2), greedy(), Some(&Grammar::Regex("b+".into())));
        until(|| bed.net.has_bound()).await;
        until(|| bed.rank.asked().len() == 3).await;
        bed.gateway.rank().cancel(seq(2), 1);
        until(|| bed.rank.asked().len() == 4).await;
        assert!(bed.net.has_bound(), "one is neither cancelled nor over");
        bed.rank.gateway().told(vec![token(1, 0)]);
        assert!(bed.net.has_bound());
        bed.rank.gateway().told(vec![Told { event: RankEvent::HandedBack, ..token(1, 0) }]);
        assert!(!bed.net.has_bound());
    });
}

#[test]
fn what_is_used_is_kept_and_the_rest_forgotten() {
    run(async {
        let grammars = Grammars::new(Some(compiler()));
        let used = Source::JsonObject;
        let is_there = |source: &Source| matches!(grammars.want(source), Wanted::Now(Ok(_)));
        for i in 0..200 {
            let source = Source::Choice(vec![format!("text {i}")]);
            for source in [&source, &used] {
                if let Wanted::Later(pending) = grammars.want(source) {
                    assert!(i == 0 || source != &used, "it is compiled once");
                    grammars.compile(pending).await.unwrap();
                }
                assert!(is_there(source));
            }
        }
        assert!(is_there(&Source::Choice(vec!["text 199".into()])));
        assert!(!is_there(&Source::Choice(vec!["text 0".into()])));
    });
}
