"""Each bad request: its class, its status and an error in OpenAI's form that says what is wrong."""

import http.client
import json
import os
import time
from urllib.parse import urlsplit

import openai
import pytest

from asking import STORY
from conftest import api, wanted


def check(error: openai.APIStatusError, status: int, param: str | None = None, code: str | None = None) -> None:
    assert error.status_code == status
    body = error.body
    assert isinstance(body, dict) and body["message"] and body["type"], body
    assert {"param", "code"} <= body.keys()
    if param:
        assert (body["param"] or "").startswith(param), body
    if code:
        assert body["code"] == code, body


def chat(client, model, messages=STORY, **fields):
    return client.chat.completions.create(model=model, messages=messages, **{"max_completion_tokens": 4, **fields})


# Small to write, 2^24 alternatives to compile.
PRODUCT = {
    "type": "object",
    "allOf": [
        {"anyOf": [{"properties": {f"x{i}": {"type": "string"}}}, {"properties": {f"y{i}": {"type": "integer"}}}]}
        for i in range(24)
    ],
}


def schema(value) -> dict:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": value}}}


BAD_CHATS = {
    "no messages": ("messages", {"messages": []}),
    "unknown role": ("messages", {"messages": [{"role": "wizard", "content": "hi"}]}),
    "an image": ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    "temperature under 0": ("temperature", {"temperature": -1}),
    "temperature over 2": ("temperature", {"temperature": 2.5}),
    "temperature as a text": (None, {"temperature": "hot"}),
    "top_p over 1": ("top_p", {"top_p": 1.5}),
    "top_p of 0": ("top_p", {"top_p": 0}),
    "n of 0": ("n", {"n": 0}),
    "n too large": ("n", {"n": 100_000}),
    "frequency_penalty over 2": ("frequency_penalty", {"frequency_penalty": 3}),
    "presence_penalty under -2": ("presence_penalty", {"presence_penalty": -3}),
    "an empty stop": ("stop", {"stop": ""}),
    "too many stops": ("stop", {"stop": [str(i) for i in range(10_000)]}),
    "a bias outside the vocabulary": ("logit_bias", {"logit_bias": {"99999999": 1}}),
    "a bias that names no token": ("logit_bias", {"logit_bias": {"word": 1}}),
    "max_completion_tokens over the room": ("max_completion_tokens", {"max_completion_tokens": 10_000_000}),
    "top_logprobs without logprobs": ("top_logprobs", {"top_logprobs": 2}),
    "too many top_logprobs": (None, {"logprobs": True, "top_logprobs": 1000}),
    "a stop token outside the vocabulary": ("stop_token_ids", {"extra_body": {"stop_token_ids": [99999999]}}),
    "min_tokens over max": ("min_tokens", {"extra_body": {"min_tokens": 50}}),
    "a seed that is no integer": ("seed", {"extra_body": {"seed": 1.5}}),
    "an unknown response_format": ("response_format", {"response_format": {"type": "poem"}}),
    "a schema that is none": (None, schema({"type": "no such type"})),
    "a schema that explodes": (None, schema(PRODUCT)),
    "tool_choice without tools": ("tool_choice", {"tool_choice": "required"}),
    "tool_choice of no tool": (
        "tool_choice",
        {
            "tools": [{"type": "function", "function": {"name": "a"}}],
            "tool_choice": {"type": "function", "function": {"name": "b"}},
        },
    ),
    "a tool without a name": ("tools", {"tools": [{"type": "function", "function": {}}]}),
}


@pytest.mark.parametrize("name", BAD_CHATS)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_chat_requests(client, model, name, stream):
    param, fields = BAD_CHATS[name]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, model, stream=stream, **fields)
    check(caught.value, 400, param)


BAD_COMPLETIONS = {
    "no prompt": ("prompt", {"prompt": None}),
    "an empty list": ("prompt", {"prompt": []}),
    "no token": ("prompt", {"prompt": [[]]}),
    "a token outside the vocabulary": ("prompt", {"prompt": [1, 99999999]}),
    "a negative token": (None, {"prompt": [1, -5]}),
    "max_tokens over the room": ("max_tokens", {"prompt": "a", "max_tokens": 10_000_000}),
    "too many logprobs": ("logprobs", {"prompt": "a", "logprobs": 1000}),
}


@pytest.mark.parametrize("name", BAD_COMPLETIONS)
def test_bad_completion_requests(client, model, name):
    param, fields = BAD_COMPLETIONS[name]
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, **{"max_tokens": 4, **fields})
    check(caught.value, 400, param)


def test_prompt_over_the_context(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=[5] * 200_000, max_tokens=1)
    check(caught.value, 400, code="context_length_exceeded")


@pytest.mark.parametrize("ask", [chat, lambda c, m: c.completions.create(model=m, prompt="a"), lambda c, m: c.models.retrieve(m)])
def test_unknown_model(client, ask):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "no-such-model")
    check(caught.value, 404, code="model_not_found")


def test_unknown_page(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.get("/no/such/page", cast_to=object)
    check(caught.value, 404)


def test_an_endpoint_that_is_not_served(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=model, input="a")
    check(caught.value, 404)


def post(url: str, body: bytes, path="/v1/chat/completions", headers=None) -> tuple[int, dict]:
    """What the package cannot be made to send."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("POST", path, body, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"messages": "hi"}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": Infinity}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[" * 100_000,
    ],
)
def test_invalid_json(client, body):
    status, error = post(wanted("SLUICE_URL"), body)
    assert status == 400 and error["message"] and error["type"] == "invalid_request_error"


def test_a_schema_that_is_too_deep(client):
    deep = '{"type": "array", "items": ' * 5000 + "{}" + "}" * 5000
    form = f'{{"type": "json_schema", "json_schema": {{"name": "s", "schema": {deep}}}}}'
    body = f'{{"messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 4, "response_format": {form}}}'
    status, error = post(wanted("SLUICE_URL"), body.encode())
    assert status == 400 and error["message"]


def test_keys(guarded):
    wrong = api(wanted("SLUICE_GUARDED_URL"), "not-a-key")
    for ask in (lambda: wrong.models.list(), lambda: chat(wrong, "any")):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask()
        check(caught.value, 401)
    status, error = post(wanted("SLUICE_GUARDED_URL"), b"{}")
    assert status == 401 and error["message"]
    assert guarded.models.list().data


def test_a_key_is_not_told_back():
    with pytest.raises(openai.AuthenticationError) as caught:
        api(wanted("SLUICE_GUARDED_URL"), "secret-that-is-wrong").models.list()
    assert "secret-that-is-wrong" not in str(caught.value.body)


def test_body_too_large(guarded):
    size = int(wanted("SLUICE_GUARDED_MAX_BODY"))
    with pytest.raises(openai.APIStatusError) as caught:
        chat(guarded, guarded.models.list().data[0].id, [{"role": "user", "content": "a" * (size + 1)}])
    check(caught.value, 413)


def test_too_many_requests_and_a_cancelled_one_frees_its_place(guarded):
    """The server takes one request at a time: the second is refused, and let in when the first client is gone."""
    model = guarded.models.list().data[0].id
    long = dict(max_completion_tokens=900, stream=True, extra_body={"ignore_eos": True})
    stream = chat(guarded, model, **long)
    next(iter(stream))
    refused = None
    # The first may be done before the second asks: hold places until one is refused.
    for _ in range(200):
        try:
            other = chat(guarded, model, **long)
        except openai.RateLimitError as error:
            refused = error
            break
        stream.close()
        stream = other
    assert refused is not None, "no request was refused at --max-concurrency 1"
    check(refused, 429)
    assert int(refused.response.headers["retry-after"]) >= 1
    stream.close()
    give_up = time.monotonic() + 60
    while True:
        try:
            assert chat(guarded, model).choices
            break
        except openai.RateLimitError:
            assert time.monotonic() < give_up, "the place of a cancelled request is not given back"
            time.sleep(0.05)


def test_the_server_serves_on_after_all_this(client, model):
    assert chat(client, model).choices[0].message.content is not None
    assert os.environ.get("SLUICE_URL")
