"""Log-probabilities, penalties, biases, and the extensions that carry vLLM's names."""

import math

import pytest

from asking import STORY, greedy_chat, greedy_completion

EOS = 2


def test_chat_logprobs(client, model):
    answer = greedy_chat(client, model, 16, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    entries = choice.logprobs.content
    assert len(entries) == answer.usage.completion_tokens == 16
    for entry in entries:
        assert entry.logprob <= 0
        best = [t.logprob for t in entry.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert sum(map(math.exp, best)) < 1.0001
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, best[0]), "greedy takes the best"
    assert b"".join(bytes(e.bytes) for e in entries).decode(errors="replace") == choice.message.content


def test_chat_logprobs_without_alternatives(client, model):
    answer = greedy_chat(client, model, 3, logprobs=True)
    assert [e.top_logprobs for e in answer.choices[0].logprobs.content] == [[]] * 3
    assert greedy_chat(client, model, 3).choices[0].logprobs is None


def test_chat_logprobs_in_a_stream(client, model):
    whole = greedy_chat(client, model, 16, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = []
    for chunk in greedy_chat(client, model, 16, logprobs=True, top_logprobs=2, stream=True):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    assert streamed == whole


def test_completion_logprobs(client, model):
    choice = greedy_completion(client, model, "Once upon a time", 12, logprobs=2).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 12
    assert "".join(logprobs.tokens) == choice.text
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert top[token] == logprob == max(top.values())
        assert len(top) <= 3
    starts = [choice.text.startswith(t, at) for t, at in zip(logprobs.tokens, logprobs.text_offset)]
    assert all(starts), "text_offset points at the token in the text"


def test_logprob_differences_are_those_of_the_reference_logits(client, model, references):
    for reference in references[:6]:
        answer = greedy_completion(client, model, reference["prompt_ids"], 16, logprobs=5)
        for ours, theirs in zip(answer.choices[0].logprobs.top_logprobs, reference["top5"]):
            ours = sorted(ours.values(), reverse=True)
            if len(ours) == 5:  # two tokens may have one text
                wanted = [logit - theirs[0][1] for _, logit in theirs]
                assert [a - ours[0] for a in ours] == pytest.approx(wanted, abs=2e-3)


def test_logprobs_have_every_digit(client, model):
    """Equal bits give equal JSON: the same request, alone and in company, is the same to the last digit."""
    first = greedy_chat(client, model, 24, logprobs=True, top_logprobs=5).choices[0].logprobs
    again = greedy_chat(client, model, 24, logprobs=True, top_logprobs=5, n=2)
    assert [c.logprobs for c in again.choices] == [first, first]
    digits = [len(repr(e.logprob).lstrip("-0.")) for e in first.content]
    assert max(digits) >= 8, f"an f32 has up to nine digits, these have {digits}"


def test_penalties_reduce_repetition(client, model):
    plain = greedy_chat(client, model, 96).choices[0].token_ids
    for name in ("frequency_penalty", "presence_penalty"):
        ids = greedy_chat(client, model, 96, **{name: 2.0}).choices[0].token_ids
        assert ids != plain, name
        assert len(set(ids)) > len(set(plain)), name


def test_repetition_penalty(client, model):
    plain = greedy_chat(client, model, 96).choices[0].token_ids
    ids = greedy_chat(client, model, 96, extra={"repetition_penalty": 1.5}).choices[0].token_ids
    assert len(set(ids)) > len(set(plain))


def test_logit_bias(client, model):
    plain = greedy_chat(client, model, 8).choices[0].token_ids
    banned = greedy_chat(client, model, 8, logit_bias={str(plain[0]): -100}).choices[0].token_ids
    assert plain[0] not in banned
    forced = greedy_chat(client, model, 8, logit_bias={"300": 100}).choices[0].token_ids
    assert forced == [300] * 8


def test_top_k_and_min_p_of_one_are_greedy(client, model):
    plain = greedy_chat(client, model, 24).choices[0].token_ids
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        answer = client.chat.completions.create(
            model=model,
            messages=STORY,
            max_completion_tokens=24,
            temperature=1,
            seed=9,
            extra_body={"ignore_eos": True, "return_token_ids": True, **extra},
        )
        assert answer.choices[0].token_ids == plain, extra


def to_the_end(client, model, tokens=12, **extra):
    """The end of sequence is by far the likeliest token at every step."""
    return client.chat.completions.create(
        model=model,
        messages=STORY,
        max_completion_tokens=tokens,
        temperature=0,
        logit_bias={str(EOS): 100},
        extra_body={"return_token_ids": True, **extra},
    )


def test_eos_ends_an_answer(client, model):
    answer = to_the_end(client, model)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens <= 1
    assert not answer.choices[0].message.content


def test_ignore_eos(client, model):
    answer = to_the_end(client, model, ignore_eos=True)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].token_ids == [EOS] * 12


def test_min_tokens(client, model):
    answer = to_the_end(client, model, min_tokens=5)
    ids = [i for i in answer.choices[0].token_ids if i != EOS]
    assert len(ids) == 5
    assert answer.choices[0].finish_reason == "stop"


def test_stop_token_ids(client, model):
    plain = greedy_chat(client, model, 24).choices[0].token_ids
    stop = plain[9]
    choice = greedy_chat(client, model, 24, extra={"stop_token_ids": [stop]}).choices[0]
    before = plain[: plain.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.token_ids[: len(before)] == before
    assert len(choice.token_ids) <= len(before) + 1


def test_return_token_ids(client, model, references):
    answer = greedy_completion(client, model, references[0]["prompt_ids"], 8)
    assert answer.choices[0].token_ids == references[0]["greedy_ids"][:8]
    streamed = []
    for chunk in greedy_chat(client, model, 8, stream=True):
        for choice in chunk.choices:
            streamed += getattr(choice, "token_ids", None) or []
    assert streamed == greedy_chat(client, model, 8).choices[0].token_ids
    without = client.chat.completions.create(model=model, messages=STORY, max_completion_tokens=2)
    assert getattr(without.choices[0], "token_ids", None) is None
