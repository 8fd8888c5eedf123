"""Models, chat and text completions, streaming, n, stop, seeds."""

import pytest

from asking import STORY, check_chat, check_usage, greedy_chat, greedy_completion, stream_texts


def test_models(client, model):
    listed = client.models.list().data
    assert [m.object for m in listed] == ["model"] * len(listed)
    assert client.models.retrieve(model).id == model


def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=STORY, max_completion_tokens=40, temperature=0)
    check_chat(answer, model)
    assert answer.choices[0].message.content.strip()
    assert 0 < answer.usage.completion_tokens <= 40


def test_max_tokens_by_both_names(client, model):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model=model, messages=STORY, temperature=0, extra_body={"ignore_eos": True}, **{name: 7}
        )
        assert answer.choices[0].finish_reason == "length"
        check_usage(answer.usage, tokens=7)


def test_messages_of_every_role(client, model):
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is 1 plus 1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    check_chat(greedy_chat(client, model, 4, messages), model)


def test_chat_stream_says_what_the_whole_says(client, model):
    whole = greedy_chat(client, model)
    chunks = list(greedy_chat(client, model, stream=True))
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1 and len({c.created for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks)
    assert sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content) > 3, "it came in pieces"
    texts, reasons = stream_texts(chunks)
    assert texts == [whole.choices[0].message.content]
    assert reasons == ["length"]


def test_chat_stream_with_usage(client, model):
    chunks = list(greedy_chat(client, model, 12, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    check_usage(chunks[-1].usage, tokens=12)


def test_stream_helper(client, model):
    full = greedy_chat(client, model).choices[0].message.content
    # The helper takes an answer that is cut by length for an error, so this one ends at a stop string.
    ending = {"max_completion_tokens": 32, "temperature": 0, "stop": full[12:16]}
    with client.chat.completions.stream(model=model, messages=STORY, **ending) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content == full[: full.index(full[12:16])]


def test_completion_of_text(client, model):
    answer = client.completions.create(model=model, prompt="Once upon a time", max_tokens=20, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in {"stop", "length"}
    check_usage(answer.usage)


def test_completion_max_tokens_defaults_to_16(client, model):
    answer = client.completions.create(model=model, prompt="Once", temperature=0, extra_body={"ignore_eos": True})
    check_usage(answer.usage, tokens=16)


def test_completion_of_token_ids_is_that_of_the_text(client, model, references):
    for reference in [r for r in references if r["kind"] == "raw"][:4]:
        by_text = greedy_completion(client, model, reference["prompt"])
        by_ids = greedy_completion(client, model, reference["prompt_ids"])
        assert by_text.choices[0].token_ids == by_ids.choices[0].token_ids
        assert by_text.usage.prompt_tokens == len(reference["prompt_ids"])


def test_completion_of_many_prompts(client, model, references):
    some = [r["prompt_ids"] for r in references[:3]]
    many = greedy_completion(client, model, some, 8)
    assert [c.index for c in many.choices] == [0, 1, 2]
    for prompt, choice in zip(some, many.choices):
        assert choice.token_ids == greedy_completion(client, model, prompt, 8).choices[0].token_ids
    check_usage(many.usage, choices=3, tokens=8)
    texts = greedy_completion(client, model, ["Once upon a time", "The king"], 8, n=2)
    assert [c.index for c in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text != texts.choices[2].text


def test_completion_stream_says_what_the_whole_says(client, model):
    whole = greedy_completion(client, model, "Once upon a time")
    chunks = list(
        greedy_completion(client, model, "Once upon a time", stream=True, stream_options={"include_usage": True})
    )
    texts, reasons = stream_texts(chunks)
    assert texts == [whole.choices[0].text] and reasons == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_echo(client, model):
    answer = greedy_completion(client, model, "Once upon a time", 4, echo=True)
    assert answer.choices[0].text.startswith("Once upon a time")


@pytest.mark.parametrize("kind", ["raw", "chat"])
def test_greedy_tokens_are_those_of_transformers(client, model, references, kind):
    for reference in [r for r in references if r["kind"] == kind]:
        if kind == "raw":
            answer = greedy_completion(client, model, reference["prompt"], len(reference["greedy_ids"]))
        else:
            messages = [{"role": "user", "content": reference["prompt"]}]
            answer = greedy_chat(client, model, len(reference["greedy_ids"]), messages)
        assert answer.usage.prompt_tokens == len(reference["prompt_ids"]), reference["prompt"]
        assert answer.choices[0].token_ids == reference["greedy_ids"], reference["prompt"]


def sampled(client, model, seed, n=1, **fields):
    return client.chat.completions.create(
        model=model,
        messages=STORY,
        max_completion_tokens=24,
        temperature=1,
        top_p=0.95,
        seed=seed,
        n=n,
        extra_body={"ignore_eos": True},
        **fields,
    )


def test_two_choices(client, model):
    answer = sampled(client, model, seed=5, n=2)
    check_chat(answer, model, choices=2)
    assert answer.choices[0].message.content != answer.choices[1].message.content
    check_usage(answer.usage, choices=2, tokens=24)
    texts, reasons = stream_texts(sampled(client, model, seed=5, n=2, stream=True), choices=2)
    assert texts == [c.message.content for c in answer.choices]
    assert reasons == ["length", "length"]


def test_a_seed_reproduces(client, model):
    texts = [sampled(client, model, seed).choices[0].message.content for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    assert sampled(client, model, 1).system_fingerprint == sampled(client, model, 2).system_fingerprint


def test_without_a_seed_answers_differ(client, model):
    assert len({sampled(client, model, None).choices[0].message.content for _ in range(3)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, model, stream):
    full = greedy_chat(client, model, 48).choices[0].message.content
    for at in range(3, len(full) - 6, 11):
        stop = full[at : at + 5]
        answer = greedy_chat(client, model, 48, stop=[stop, "never said"], stream=stream)
        if stream:
            (text,), (reason,) = stream_texts(answer)
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert text == full[: full.index(stop)]
        assert reason == "stop"


def test_stop_as_one_string(client, model):
    full = greedy_completion(client, model, "Once upon a time").choices[0].text
    answer = greedy_completion(client, model, "Once upon a time", stop=full[5:9])
    assert answer.choices[0].text == full[: full.index(full[5:9])]
    assert answer.choices[0].finish_reason == "stop"


def test_system_fingerprint_and_request_id(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=STORY, max_completion_tokens=1, extra_headers={"x-request-id": "my-own-id"}
    )
    assert raw.headers["x-request-id"] == "my-own-id"
    raw = client.chat.completions.with_raw_response.create(model=model, messages=STORY, max_completion_tokens=1)
    assert raw.headers["x-request-id"]
    assert raw.parse().system_fingerprint


def test_unknown_fields_are_ignored(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=STORY,
        max_completion_tokens=2,
        user="someone",
        metadata={"a": "b"},
        store=False,
        extra_body={"no_such_field": {"x": [1]}},
    )
    check_chat(answer, model)
