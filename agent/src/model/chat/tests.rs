use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::model::testing;

fn open(directory: &Path) -> Result<Option<ChatTemplates>, ChatError> {
    ChatTemplates::open(&ModelFiles::Directory(directory.to_owned()))
}

/// A directory with nothing but a `tokenizer_config.json`.
fn with_config(config: &Value) -> (tempfile::TempDir, Result<Option<ChatTemplates>, ChatError>) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let templates = open(directory.path());
    (directory, templates)
}

fn template(text: &str) -> ChatTemplates {
    with_config(&json!({"chat_template": text})).1.unwrap().unwrap()
}

fn render(templates: &ChatTemplates, messages: &[Value]) -> Result<String, ChatError> {
    templates.render(&Conversation { messages, add_generation_prompt: true, ..Conversation::default() })
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

#[test]
fn tiny_moe() {
    let templates = open(&testing::tiny_moe()).unwrap().unwrap();
    let messages = [
        json!({"role": "system", "content": " Be kind. "}),
        user("Hello\n"),
        json!({"role": "assistant", "content": "Hi"}),
        user("Go on"),
    ];
    assert_eq!(
        render(&templates, &messages).unwrap(),
        "<s><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>Hi</s><|user|>Go on<|end|><|assistant|>"
    );
}

/// chat.json was written by transformers, see `testdata/make_chat.py`.
#[test]
fn real_templates_as_transformers_renders_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/testdata");
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(root.join("chat.json")).unwrap()).unwrap();
    assert!(cases.len() >= 40);
    for (number, case) in cases.iter().enumerate() {
        let name = case["template"].as_str().unwrap();
        let mut config = case["special"].clone();
        config["chat_template"] =
            fs::read_to_string(root.join(format!("templates/{name}.jinja"))).unwrap().into();
        let (_directory, templates) = with_config(&config);
        let rendered = templates.unwrap().unwrap().render(&Conversation {
            messages: case["messages"].as_array().unwrap(),
            tools: case["tools"].as_array().map(Vec::as_slice),
            documents: None,
            add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
            continue_final_message: case["continue_final_message"].as_bool().unwrap(),
            variables: case["variables"].as_object(),
        });
        match (rendered, case["expected"].as_str()) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{name}, case {number}"),
            (Err(ChatError::Refused(reason)), None) => assert_eq!(reason, case["refused"].as_str().unwrap()),
            (other, _) => panic!("{name}, case {number}: {other:?}"),
        }
    }
}

#[test]
fn the_places_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, content: &str| fs::write(directory.path().join(file), content).unwrap();
    let said = || render(&open(directory.path()).unwrap().unwrap(), &[user("x")]).unwrap();
    assert!(open(directory.path()).unwrap().is_none());
    write("special_tokens_map.json", r#"{"bos_token": {"content": "<old>"}, "eos_token": "<end>"}"#);
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<new>", "lstrip": false}}"#);
    assert!(open(directory.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<new>"}, "pad_token": null, "chat_template": "config {{ bos_token }}{{ eos_token }}{{ pad_token }}"}"#,
    );
    assert_eq!(said(), "config <new><end>");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(said(), "json");
    write("chat_template.jinja", "jinja\n");
    assert_eq!(said(), "jinja");
    fs::create_dir(directory.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "with tools");
    assert_eq!(said(), "jinja");
    let templates = open(directory.path()).unwrap().unwrap();
    let with_tools = Conversation { messages: &[user("x")], tools: Some(&[]), ..Conversation::default() };
    assert_eq!(templates.render(&with_tools).unwrap(), "with tools");
}

#[test]
fn several_templates_with_names() {
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    let templates = with_config(&json!({ "chat_template": named })).1.unwrap().unwrap();
    assert_eq!(render(&templates, &[user("x")]).unwrap(), "plain");
    let only = json!([{"name": "rag", "template": "documents"}]);
    let templates = with_config(&json!({ "chat_template": only })).1.unwrap().unwrap();
    let error = render(&templates, &[user("x")]).unwrap_err();
    assert!(matches!(error, ChatError::NoDefault(_)) && error.to_string().contains("rag"), "{error}");
}

#[test]
fn what_is_broken_names_its_file() {
    for (config, says) in [
        (json!({"chat_template": "{% if %}"}), "does not compile"),
        (json!({"chat_template": "{{ x"}), "does not compile"),
        (json!({"chat_template": 3}), "chat_template"),
        (json!({"chat_template": [{"name": "default"}]}), "chat_template"),
        (json!({"bos_token": 3}), "bos_token"),
        (json!([]), "invalid type"),
    ] {
        let message = with_config(&config).1.unwrap_err().to_string();
        assert!(message.contains("tokenizer_config.json") && message.contains(says), "{message}");
    }
}

#[test]
fn a_refusal_is_the_clients_and_a_failure_says_where() {
    let refusing = template("{{ raise_exception('roles must alternate') }}");
    let error = render(&refusing, &[user("x")]).unwrap_err();
    assert!(matches!(&error, ChatError::Refused(reason) if reason == "roles must alternate"), "{error}");
    let failing = template("{{ messages[0].content.nothing.more }}");
    assert!(matches!(render(&failing, &[user("x")]), Err(ChatError::Render(_))));
    assert!(matches!(render(&failing, &[]), Err(ChatError::Empty)));
    let endless =
        template("{% for a in range(100000) %}{% for b in range(100000) %}{{ b }}{% endfor %}{% endfor %}");
    assert!(matches!(render(&endless, &[user("x")]), Err(ChatError::Render(_))));
    let macros = template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}");
    assert!(matches!(render(&macros, &[user("x")]), Err(ChatError::Render(_))));
}

#[test]
fn messages_as_clients_send_them() {
    let templates = template("{{ messages | tojson }}");
    let messages = [
        json!({"role": "assistant", "content": null, "tool_calls": null, "reasoning": "so"}),
        json!({"z": 1, "role": "user", "a": 2}),
    ];
    assert_eq!(
        render(&templates, &messages).unwrap(),
        r#"[{"role": "assistant", "reasoning": "so", "thinking": "so", "reasoning_content": "so", "content": ""}, {"z": 1, "role": "user", "a": 2}]"#
    );
}

#[test]
fn a_last_message_without_text_cannot_be_continued() {
    let templates = open(&testing::tiny_moe()).unwrap().unwrap();
    let parts = template("{% for part in messages[0].content %}{{ part.text }};{% endfor %}");
    let silent = template("always the same");
    let text = json!([{"type": "text", "text": "One,"}, {"type": "image"}]);
    let part = json!({"role": "assistant", "content": text});
    let image = json!({"role": "assistant", "content": [{"type": "image"}]});
    let cases = [
        (&templates, user("Hi"), Some("<s><|user|>Hi")),
        (&parts, part, Some("One,")),
        (&parts, image, None),
        (&parts, json!({"role": "user"}), None),
        (&silent, user("Hi"), None),
    ];
    for (templates, message, expected) in cases {
        let messages = [message];
        let rendered = templates.render(&Conversation {
            messages: &messages,
            continue_final_message: true,
            ..Conversation::default()
        });
        match expected {
            Some(expected) => assert_eq!(rendered.unwrap(), expected),
            None => assert!(matches!(rendered, Err(ChatError::NothingToContinue)), "{rendered:?}"),
        }
    }
}

#[test]
fn nothing_in_a_message_is_a_template() {
    let templates = open(&testing::tiny_moe()).unwrap().unwrap();
    let text = render(&templates, &[user("{{ bos_token }}{% raw %}<&>")]).unwrap();
    assert_eq!(text, "<s><|user|>{{ bos_token }}{% raw %}<&><|end|><|assistant|>");
}

#[test]
fn the_time() {
    let year = render(&template("{{ strftime_now('%Y-%m-%d') }}"), &[user("x")]).unwrap();
    assert!(year.len() == 10 && year.starts_with("20"), "{year}");
    assert!(matches!(render(&template("{{ strftime_now('%') }}"), &[user("x")]), Err(ChatError::Render(_))));
}

#[test]
fn marks_for_training_are_without_effect() {
    for (marked, plain) in [
        ("a {%- generation -%} b {% endgeneration %}\n c", "a {%- if true -%} b {% endif %}\n c"),
        ("{%generation%}{%+ endgeneration +%}", "{%if true%}{%+ endif +%}"),
        (
            "{% set generation = 1 %}{{ '{% generations %}' }}{%",
            "{% set generation = 1 %}{{ '{% generations %}' }}{%",
        ),
    ] {
        assert_eq!(without_generation_marks(marked), plain);
    }
}

#[test]
fn a_clients_variables_do_not_replace_the_conversation() {
    let templates = template(
        "{{ messages | length }}{{ tools is none }}{{ add_generation_prompt }}{{ bos_token }}{{ x }}",
    );
    let variables =
        json!({"messages": [], "tools": [1], "add_generation_prompt": false, "bos_token": "<b>", "x": "y"});
    let rendered = templates.render(&Conversation {
        messages: &[user("x")],
        add_generation_prompt: true,
        variables: variables.as_object(),
        ..Conversation::default()
    });
    assert_eq!(rendered.unwrap(), "1TrueTrue<b>y");
}
