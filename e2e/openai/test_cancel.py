"""Clients that go away in mid-stream leave nothing behind."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

from asking import STORY, greedy_chat

# Gauges of what a request holds while it runs.
HELD = re.compile(r"^sluice_\w*(in_flight|running|active|kv_blocks_used|kv_used)\w*(\{|$)")


def leave_early(client, model, number: int) -> None:
    stream = client.chat.completions.create(
        model=model,
        messages=[*STORY, {"role": "assistant", "content": f"{number}"}, *STORY],
        max_completion_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for count, _ in enumerate(stream):
        if count == number % 5:
            break
    stream.close()


def test_cancelled_streams_give_everything_back(client, model, metrics):
    before = greedy_chat(client, model, 24).choices[0].token_ids
    names = [name for name in metrics() if HELD.match(name)]
    assert names, f"no gauge says what is held: {sorted(metrics())}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: leave_early(client, model, i), range(40)))
    give_up = time.monotonic() + 60
    while held := {name: value for name, value in metrics().items() if name in names and value != 0}:
        assert time.monotonic() < give_up, f"still held a minute after all clients left: {held}"
        time.sleep(0.1)
    assert greedy_chat(client, model, 24).choices[0].token_ids == before


def test_a_cancelled_request_is_counted_as_such(client, model, metrics):
    def cancelled() -> float:
        return sum(value for name, value in metrics().items() if "cancelled" in name and not name.endswith("_bucket"))

    before = cancelled()
    leave_early(client, model, 1)
    give_up = time.monotonic() + 60
    while cancelled() <= before:
        assert time.monotonic() < give_up, "no counter of cancelled requests rose"
        time.sleep(0.1)
