"""Requests that most tests make, and what every answer must look like."""

from openai.types import Completion
from openai.types.chat import ChatCompletion

STORY = [{"role": "user", "content": "Tell me a story about a clever fox."}]


def greedy_chat(client, model, tokens=32, messages=None, extra=None, **fields) -> ChatCompletion:
    """A greedy answer of exactly `tokens` tokens, unless `fields` end it earlier."""
    return client.chat.completions.create(
        model=model,
        messages=messages or STORY,
        max_completion_tokens=tokens,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True, **(extra or {})},
        **fields,
    )


def greedy_completion(client, model, prompt, tokens=32, extra=None, **fields) -> Completion:
    return client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True, **(extra or {})},
        **fields,
    )


def check_usage(usage, choices: int = 1, tokens: int | None = None) -> None:
    assert usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if tokens is not None:
        assert usage.completion_tokens == choices * tokens


def check_chat(answer: ChatCompletion, model: str, choices: int = 1) -> None:
    assert answer.object == "chat.completion"
    assert answer.id and answer.created > 1_600_000_000
    assert answer.model == model
    assert answer.system_fingerprint
    assert [c.index for c in answer.choices] == list(range(choices))
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        assert choice.finish_reason in {"stop", "length", "tool_calls"}
    check_usage(answer.usage)


def stream_texts(chunks, choices: int = 1) -> tuple[list[str], list[str | None]]:
    """Texts and finish reasons by choice, of the chunks of a chat or completion stream."""
    texts, reasons = [""] * choices, [None] * choices
    for chunk in chunks:
        for choice in chunk.choices:
            assert reasons[choice.index] is None, "a choice goes on after its finish_reason"
            delta = getattr(choice, "delta", None)
            texts[choice.index] += (delta.content if delta else choice.text) or ""
            reasons[choice.index] = choice.finish_reason
    return texts, reasons
