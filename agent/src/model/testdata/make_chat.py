"""Writes chat.json beside this file: what transformers renders from the templates in templates/.

    pip install 'transformers>=5' jinja2 && python make_chat.py

qwen3.jinja, mixtral.jinja, mixtral-tools.jinja and olmoe.jinja are the chat templates of the models Qwen3-30B-A3B,
Mixtral-8x7B-Instruct-v0.1, Mixtral-8x22B-Instruct-v0.1 and OLMoE-1B-7B-0924-Instruct, all under Apache-2.0.
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
SPECIAL = {
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "mixtral": {"bos_token": "<s>", "eos_token": "</s>"},
    "mixtral-tools": {"bos_token": "<s>", "eos_token": "</s>"},
    "olmoe": {"bos_token": "|||IP_ADDRESS|||", "eos_token": "|||IP_ADDRESS|||"},
    "corners": {"bos_token": "<s>"},
}
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather <now>, in °C & more",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "A \"city\""},
        "days": {"type": "integer", "minimum": 1, "maximum": 7, "default": 1.0}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Now", "parameters": {}}}
SYSTEM = {"role": "system", "content": "Be brief."}
HI = {"role": "user", "content": " Hi there,\n  Zoë 🙂 "}
HELLO = {"role": "assistant", "content": "Hello! "}
MORE = {"role": "user", "content": "And then?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "x": 1e-7}}}]}
CALLS = {"role": "assistant", "content": "Let me see", "tool_calls": [
    {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
    {"id": "123456789", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "{\"t\": 21}"}
RESULT2 = {"role": "tool", "tool_call_id": "123456789", "content": "12:00"}
THOUGHT = {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nYes"}
REASONED = {"role": "assistant", "reasoning": "so it is", "content": "Indeed", "refusal": None}
PARTS = {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image"}]}
EXTRA = {"key": "v", "text": "  hello jolly world ", "list": [3, 1, 2], "nested": {"deep": [{"x": "é\u0007"}]}, "yes": True,
         "no": None, "pi": 3.14159, "whole": 2.0, "n": -5, "html": "<b>'\"&</b>", "late": 1, "tiny": 1e-9, "big": 1e21}

CASES = [
    (name, conversation, tools, generate, {})
    for name in ("qwen3", "mixtral", "mixtral-tools", "olmoe")
    for conversation, tools, generate in [
        ([HI], None, True),
        ([HI], None, False),
        ([SYSTEM, HI], None, True),
        ([SYSTEM, HI, HELLO, MORE], None, True),
        ([HI, HELLO, MORE], None, True),
        ([HI, HELLO], None, False),
        ([HI, MORE], None, True),
    ]
]
for name in ("qwen3", "mixtral-tools"):
    CASES += [
        (name, [SYSTEM, HI], [WEATHER, CLOCK], True, {}),
        (name, [HI, CALL, RESULT], [WEATHER], True, {}),
        (name, [HI, CALLS, RESULT, RESULT2, HELLO, MORE], [WEATHER, CLOCK], True, {}),
    ]
CASES += [
    ("qwen3", [HI, THOUGHT, MORE], None, True, {"enable_thinking": False}),
    ("qwen3", [HI, THOUGHT, MORE], None, True, {"enable_thinking": True}),
    ("qwen3", [HI, REASONED], None, False, {}),
    ("qwen3", [HI, CALL, RESULT, REASONED], [WEATHER], False, {}),
    ("corners", [HI, PARTS, HELLO, {"role": "user"}, {"role": "user", "content": {"a": [1, None]}}], None, True,
     {"extra": EXTRA}),
    ("corners", [HI], [CLOCK], True, {"extra": EXTRA, "bos_token": "<other>"}),
    ("qwen3", [HI, {"role": "assistant", "content": "One, two, "}], None, "continue", {}),
    ("mixtral-tools", [HI, {"role": "assistant", "content": "One, two, "}], None, "continue", {}),
    ("olmoe", [HI, HELLO, {"role": "user", "content": "I am not"}], None, "continue", {}),
]

out = []
for name, conversation, tools, generate, variables in CASES:
    template = (HERE / "templates" / f"{name}.jinja").read_text()
    # As PreTrainedTokenizerBase.apply_chat_template does before it renders; and, so that templates do not fail on
    # an answer that is nothing but tool calls, an assistant's missing content is empty.
    messages = [{**({"content": ""} if message["role"] == "assistant" and message.get("content") is None else {}),
                 **{key: value for key, value in message.items() if value is not None}} for message in conversation]
    case = {"template": name, "special": SPECIAL[name], "messages": conversation, "tools": tools,
            "add_generation_prompt": generate is True, "continue_final_message": generate == "continue",
            "variables": variables}
    try:
        rendered, _ = render_jinja_template(conversations=[messages], tools=tools, chat_template=template,
                                            add_generation_prompt=generate is True,
                                            continue_final_message=generate == "continue", **{**SPECIAL[name], **variables})
        case["expected"] = rendered[0]
    except Exception as error:
        case["refused"] = str(error)
        print(name, type(error).__name__, error)
    out.append(case)
(HERE / "chat.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
print(len(out), "cases")
