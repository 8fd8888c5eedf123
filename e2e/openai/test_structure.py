"""Tools, and answers in a given form. The model is too small to choose well: what is checked is the form."""

import json
from enum import Enum

import jsonschema
import pytest
from pydantic import BaseModel

from asking import STORY, check_chat

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "warm": {"type": "boolean"},
    },
    "required": ["city", "days", "warm"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PLACE}}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, CLOCK)}
FORCED = {"type": "function", "function": {"name": "get_weather"}}


def ask(client, model, **fields):
    return client.chat.completions.create(
        model=model, messages=STORY, **{"max_completion_tokens": 200, "temperature": 0, **fields}
    )


def check_calls(calls) -> None:
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_forced_function_is_called(client, model, temperature):
    answer = ask(client, model, tools=[WEATHER, CLOCK], tool_choice=FORCED, temperature=temperature, seed=3)
    check_chat(answer, model)
    choice = answer.choices[0]
    # OpenAI ends a call of a named function with "stop", others with "tool_calls".
    assert choice.finish_reason in {"tool_calls", "stop"}
    check_calls(choice.message.tool_calls)
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    assert not choice.message.content


def test_required_calls_some_function(client, model):
    choice = ask(
        client, model, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    check_calls(choice.message.tool_calls)
    assert len(choice.message.tool_calls) == 1


def test_auto_calls_or_speaks(client, model):
    for choice_field in ({"tool_choice": "auto"}, {}):
        choice = ask(client, model, tools=[WEATHER], max_completion_tokens=40, **choice_field).choices[0]
        if choice.message.tool_calls:
            check_calls(choice.message.tool_calls)
            assert choice.finish_reason == "tool_calls"
        else:
            assert choice.message.content and choice.finish_reason in {"stop", "length"}


def test_none_calls_nothing(client, model):
    choice = ask(client, model, tools=[WEATHER], tool_choice="none", max_completion_tokens=20).choices[0]
    assert not choice.message.tool_calls and choice.message.content


def test_a_forced_call_streams(client, model):
    whole = ask(client, model, tools=[WEATHER], tool_choice=FORCED).choices[0].message.tool_calls[0]
    name, arguments, ids, reason = "", "", set(), None
    for chunk in ask(client, model, tools=[WEATHER], tool_choice=FORCED, stream=True):
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                ids |= {call.id} - {None}
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (name, arguments) == (whole.function.name, whole.function.arguments)
    assert len(ids) == 1 and reason in {"tool_calls", "stop"}


@pytest.mark.parametrize("seed", range(3))
def test_json_schema(client, model, seed):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}}
    choice = ask(client, model, response_format=form, temperature=1, seed=seed).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), PLACE)


def test_json_schema_nested(client, model):
    schema = {
        "type": "object",
        "properties": {
            "stops": {"type": "array", "items": {"$ref": "#/$defs/stop"}, "minItems": 2, "maxItems": 2},
            "note": {"type": ["string", "null"], "maxLength": 10},
        },
        "required": ["stops", "note"],
        "additionalProperties": False,
        "$defs": {"stop": PLACE},
    }
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}}
    choice = ask(client, model, response_format=form, max_completion_tokens=400).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), schema)


def test_json_schema_streams(client, model):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}
    chunks = ask(client, model, response_format=form, stream=True)
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    jsonschema.validate(json.loads(text), PLACE)


class City(str, Enum):
    paris = "Paris"
    rome = "Rome"


class Trip(BaseModel):
    city: City
    by_train: bool


def test_parse_into_a_pydantic_model(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=STORY, response_format=Trip, max_completion_tokens=100, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Trip)


def test_json_object(client, model):
    choice = ask(client, model, response_format={"type": "json_object"}, max_completion_tokens=120).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        # Cut by max_completion_tokens: still the beginning of an object, and of nothing else.
        assert choice.message.content.lstrip().startswith("{")
        with pytest.raises(json.JSONDecodeError):
            json.loads(choice.message.content)


def test_text_format_is_no_constraint(client, model):
    plain = ask(client, model, max_completion_tokens=16).choices[0].message.content
    assert ask(client, model, max_completion_tokens=16, response_format={"type": "text"}).choices[0].message.content == plain
