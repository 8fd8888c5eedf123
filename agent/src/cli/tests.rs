//! Parsing, checking, and the help texts.

use super::*;
use crate::bench::{End, Load};
use sluice_core::config::Policy;
use sluice_core::hello::{Role, WireVersions};

fn parse_words(line: &str) -> Result<Cli, CliError> {
    let args: Vec<OsString> =
        std::iter::once("sluice-agent").chain(line.split_whitespace()).map(Into::into).collect();
    parse(&args)
}

fn serve(line: &str) -> Result<ServeOptions, Invalid> {
    match parse_words(&format!("serve {line}")).unwrap_or_else(|e| panic!("{line}: {e}")).command {
        Command::Serve(args) => args.check(),
        other => panic!("{other:?}"),
    }
}

fn refused(line: &str) -> String {
    serve(line).expect_err(line).0
}

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn serve_needs_no_flag() {
    let o = serve("").unwrap();
    assert_eq!(o.model, ModelSource::Bundled);
    assert_eq!((o.engine.layout, o.engine.workers(), o.engine.kv), (Layout::Hybrid, 1, KvSize::Auto));
    assert_eq!(o.engine.schedulers, Schedulers { attention: Policy::Frontier, experts: Policy::Frontier });
    assert!(o.engine.spans && o.engine.prefix_cache && o.front.api_key_file.is_none());
    assert_eq!(o.front.listen.to_string(), "127.0.0.1:8080");
}

#[test]
fn every_flag_reaches_its_option() {
    let o = serve(
        "--model /m --listen 0.0.0.0:1 --admin-listen off --layout disaggregated --attention-ranks 2 \
         --expert-workers 4 --scheduler attention=flfs,experts=defrag --slices 2 --segments 4 --prefill-chunk 16 \
         --replicas 3 --waves 2 --routing skew:0.4,7 --backend modelled:f --threads 3 --isa avx2 --kv-tokens 4096 \
         --max-sequences 8 --max-step-tokens 64 --prefix-cache off --spans off --api-key-file k --max-body 1MiB \
         --max-concurrency 9 --request-timeout 0s --write-timeout 3s --shutdown-grace 2s --max-prompt-tokens 100 \
         --max-schema 64KiB --max-stops 0 --max-queue 8 --max-choices 8",
    )
    .unwrap();
    assert_eq!((o.model, o.front.admin_listen), (ModelSource::Directory("/m".into()), None));
    let e = o.engine;
    assert_eq!((e.workers(), e.slices, e.segments, e.replicas, e.waves), (6, 2, 4, 3, 2));
    assert_eq!((e.prefill_chunk, e.prefill_tokens, e.max_step_tokens, e.max_sequences), (16, 64, 64, 8));
    assert_eq!(e.schedulers, Schedulers { attention: Policy::Flfs, experts: Policy::Defrag });
    assert_eq!(
        (e.routing, e.backend),
        (Routing::Skew { share: 0.4, seed: 7 }, BackendChoice::Modelled("f".into()))
    );
    assert_eq!((e.threads, e.isa, e.kv), (Some(3), IsaChoice::Avx2, KvSize::Tokens(4096)));
    assert!(!e.prefix_cache && !e.spans);
    let f = o.front;
    assert_eq!((f.max_body, f.max_concurrency, f.request_timeout), (1 << 20, 9, None));
    assert_eq!((f.write_timeout.as_secs(), f.shutdown_grace.as_secs()), (3, 2));
    assert_eq!((f.max_prompt_tokens, f.max_schema, f.max_stops), (Some(100), 64 << 10, 0));
    assert_eq!((f.max_queue, f.max_choices), (8, 8));
}

#[test]
fn flags_that_do_not_go_together_are_refused_with_what_to_do() {
    for (line, said) in [
        ("--segments 3", "none of 1, 2, 4 and 8"),
        ("--max-queue 8", "--max-choices 16 is more than --max-queue 8"),
        ("--max-choices 32 --max-queue 31", "raise --max-queue or lower --max-choices"),
        ("--segments 2 --slices 4", "does not divide"),
        ("--slices 0", "does not divide"),
        ("--attention-ranks 2 --expert-workers 3", "--layout disaggregated"),
        ("--replicas 2", "as many workers"),
        ("--layout disaggregated --expert-workers 2 --replicas 3", "as many workers"),
        ("--scheduler attention=mtfs,experts=flfs", "--layout disaggregated"),
        ("--layout disaggregated --scheduler attention=sync,experts=flfs", "for both roles"),
        ("--scheduler sync --waves 2", "there is one wave"),
        ("--prefill-chunk 512 --max-step-tokens 64", "would never fit"),
        ("--prefill-chunk 512 --prefill-tokens 64", "no chunk could start"),
        ("--kv-tokens 100 --kv-memory 1GiB", "not both"),
        ("--kv-tokens 15", "less than one page"),
        ("--kv-memory 0", "no token"),
        ("--write-timeout 0s", "at least 1ms"),
        ("--trace-sample 1.5", "between 0 and 1"),
        ("--listen 127.0.0.1:9090", "a port of its own"),
    ] {
        let message = refused(line);
        assert!(message.contains(said), "{line}: {message}");
    }
    assert!(serve("--attention-ranks 2 --expert-workers 2 --replicas 2").is_ok());
    assert!(serve("--layout disaggregated --scheduler sync").is_ok());
}

#[test]
fn a_value_that_is_none_is_named_with_its_flag() {
    for (line, said) in [
        ("serve --attention-ranks 0", "--attention-ranks"),
        ("serve --scheduler fastest", "mtfs, flfs, defrag, frontier, sync"),
        ("serve --routing skew:2,1", "at most 1"),
        ("serve --kv-memory lots", "2GiB"),
        ("serve --request-timeout 5", "30s"),
        ("serve --listen localhost", "--listen"),
        ("bench --output-len zipf:1,2", "lognormal:MEAN,SIGMA"),
        ("bench --requests 5 --duration 3s", "cannot be used with"),
        ("bench --prompts a --input-len 5", "cannot be used with"),
        ("gateway --name g --table t --tls off --wire-max 0", "'--wire-max <N>': 0 is not in 1..=2"),
        ("experts --name e --table t --tls off --wire-max 3", "'--wire-max <N>': 3 is not in 1..=2"),
        ("launch", "unrecognized subcommand"),
    ] {
        let message = parse_words(line).expect_err(line).to_string();
        assert!(message.contains(said), "{line}: {message}");
    }
}

#[test]
fn a_process_may_hold_an_older_version_of_the_wire() {
    let wire = |more: &str| {
        let line = format!("experts --name e0 --table t --tls off {more}");
        let Command::Experts(args) = parse_words(&line).unwrap().command else { panic!("{line}") };
        let WireVersions { min, max } = args.check(Role::Experts).unwrap().node.wire;
        (min, max)
    };
    assert_eq!((wire(""), wire("--wire-max 1")), ((1, 2), (1, 1)));
}

#[test]
fn the_placement_comes_from_one_place() {
    let node = |line: &str| match parse_words(&format!("{line} --name n --tls off")).unwrap().command {
        Command::Gateway(args) => args.check().map(|o| o.node.placement),
        Command::Experts(args) => args.check(Role::Experts).map(|o| o.node.placement),
        other => panic!("{other:?}"),
    };
    assert_eq!(node("experts --table t").unwrap(), PlacementOptions::File("t".into()));
    let watched = node("experts --deployment ns/m --placement m --cohort c1 --placement-cache /c/t.yaml");
    let expected = PlacementOptions::Watched {
        namespace: "ns".into(),
        name: "m".into(),
        cohort: Some("c1".into()),
        cache: Some("/c/t.yaml".into()),
    };
    assert_eq!(watched.unwrap(), expected);
    assert!(node("gateway --placement m").is_ok(), "a gateway serves all cohorts");
    for (line, said) in [
        ("experts", "neither --table nor --placement is given"),
        ("gateway --table t --placement m", "leave one out"),
        ("experts --placement m", "--placement needs --cohort"),
        ("gateway --table t --cohort c1", "go with --placement"),
        ("gateway --table t --placement-cache f", "go with --placement"),
        ("gateway --placement a,b=c", "small letters, digits and dashes"),
        ("gateway --placement m --cohort C", "--cohort \"C\""),
    ] {
        let message = node(line).expect_err(line).0;
        assert!(message.contains(said), "{line}: {message}");
    }
}

#[test]
fn the_file_gives_defaults_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.toml");
    std::fs::write(
        &path,
        "attention-ranks = 3\nspans = false\nkv_memory = \"1GiB\"\nlisten = \"127.0.0.1:7\"\n",
    )
    .unwrap();
    let config = format!("--config {}", path.display());
    let o = serve(&format!("{config} --listen 127.0.0.1:8")).unwrap();
    assert_eq!((o.engine.attention_ranks, o.engine.spans, o.engine.kv), (3, false, KvSize::Bytes(1 << 30)));
    assert_eq!(o.front.listen.port(), 8);
    let Command::Generate(g) = parse_words(&format!("{config} generate hello")).unwrap().command else {
        panic!()
    };
    assert_eq!(g.check().unwrap().engine.attention_ranks, 3);
}

#[test]
fn the_file_gives_what_is_required_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.toml");
    let named = |line: &str| match parse_words(&format!("{line} --config {}", path.display()))?.command {
        Command::Gateway(args) => Ok(args.check().unwrap().node),
        Command::Attention(args) => Ok(args.check(Role::Attention).unwrap().node),
        Command::Experts(args) => Ok(args.check(Role::Experts).unwrap().node),
        Command::Hybrid(args) => Ok(args.check(Role::Hybrid).unwrap().node),
        other => panic!("{other:?}"),
    };
    std::fs::write(&path, "name = \"n0\"\ntable = \"t.yaml\"\ntls = \"/tls\"\n").unwrap();
    for role in ["gateway", "attention", "experts", "hybrid"] {
        let node = named(role).unwrap_or_else(|e: CliError| panic!("{role}: {e}"));
        let placement = PlacementOptions::File("t.yaml".into());
        assert_eq!((node.name.as_str(), node.placement), ("n0", placement), "{role}");
        assert_eq!(node.tls, Some("/tls".into()), "{role}");
        assert_eq!(named(&format!("{role} --name n1 --tls off")).unwrap().name, "n1", "{role}");
    }
    std::fs::write(&path, "table = \"t.yaml\"\ntls = \"off\"\n").unwrap();
    let missing = named("experts").unwrap_err().to_string();
    assert!(missing.contains("--name") && !missing.contains("--table"), "{missing}");
}

#[test]
fn a_wrong_file_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.toml");
    let try_with = |text: &str| {
        std::fs::write(&path, text).unwrap();
        parse_words(&format!("serve --config {}", path.display())).unwrap_err().to_string()
    };
    assert!(try_with("atention-ranks = 3").contains("\"atention-ranks\""));
    let said = try_with("max-tokens = 3");
    assert!(said.contains("no flag of `sluice-agent` serve, gateway, attention, experts, hybrid"), "{said}");
    assert!(try_with("listen = [1]").contains("a list"));
    assert!(try_with("listen = ").contains("not valid TOML"));
    assert!(try_with("attention-ranks = 0").contains("attention-ranks"));
    let missing = parse_words("serve --config /nowhere/x.toml").unwrap_err().to_string();
    assert!(missing.contains("/nowhere/x.toml"), "{missing}");
}

#[test]
fn bench_tells_its_loops_apart() {
    let options = |line: &str| match parse_words(&format!("bench {line}")).unwrap().command {
        Command::Bench(args) => args.check(),
        other => panic!("{other:?}"),
    };
    let o = options("").unwrap();
    assert_eq!((o.load, o.end), (Load::Closed { concurrency: 1 }, End::Requests(100)));
    let o = options("--rate 2.5 --duration 3s").unwrap();
    assert_eq!(
        (o.load, o.end),
        (Load::Open { rate: 2.5, limit: None }, End::After(std::time::Duration::from_secs(3)))
    );
    let o = options("--rate 2.5 -c 4").unwrap();
    assert_eq!(o.load, Load::Open { rate: 2.5, limit: Some(4) });
    for bad in [
        "--rate 0",
        "--rate NaN",
        "-c 0",
        "--extra [1]",
        "--extra {",
        "--bytes-per-token 0",
        "--temperature NaN",
    ] {
        assert!(options(bad).is_err(), "{bad}");
    }
}

#[test]
fn help_explains_every_flag_and_shows_examples() {
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands_mut() {
        if sub.get_name() == "help" {
            continue;
        }
        let name = sub.get_name().to_owned();
        for arg in sub.get_arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty(), "{name}: {} has no help", arg.get_id());
        }
        let text = sub.render_long_help().to_string();
        assert!(text.contains("Examples:"), "{name}");
    }
}
