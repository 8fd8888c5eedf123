"""Whether answers are, bit for bit, those of an undisturbed server."""

import collections
from dataclasses import dataclass, field

from client import Answer
from load import Record


@dataclass
class Comparison:
    compared: int = 0
    different: int = 0
    # Answers for which no reference could be had.
    missing: int = 0
    tokens: int = 0
    # Numerics ids that answers named.
    cohorts: int = 0
    kinds: collections.Counter = field(default_factory=collections.Counter)
    # The first few, for people.
    examples: list[str] = field(default_factory=list)

    def add(self, record: Record, reference: Answer | None, why: str = "") -> None:
        if reference is None:
            self.missing += 1
            self._example(record, f"no reference: {why}")
            return
        self.compared += 1
        self.kinds[record.ask.kind] += 1
        self.tokens += sum(len(choice.ids) for choice in record.answer.choices)
        difference = differ(record.answer, reference)
        if difference:
            self.different += 1
            self._example(record, difference)

    def _example(self, record: Record, what: str) -> None:
        if len(self.examples) < 5:
            self.examples.append(f"{record.load} {record.index} ({record.ask.kind}, by {record.gateway}): {what}")


def differ(answer: Answer, reference: Answer) -> str:
    """The first difference, or nothing."""
    for i, (one, other) in enumerate(zip(answer.choices, reference.choices, strict=True)):
        for at, (left, right) in enumerate(zip(one.ids, other.ids)):
            if left != right:
                return f"choice {i}: token {at} is {left}, not {right}"
        if len(one.ids) != len(other.ids):
            return f"choice {i}: {len(one.ids)} tokens, not {len(other.ids)}"
        for at, (left, right) in enumerate(zip(one.logprobs, other.logprobs)):
            if left != right:
                return f"choice {i}: log-probability of token {at} is {left}, not {right}"
        if one.printed() != other.printed():
            return f"choice {i}: text or finish_reason ({one.finish}, not {other.finish})"
    if answer.seed != reference.seed:
        return f"seed {answer.seed}, not {reference.seed}"
    return ""


def by_cohort(records: list[Record]) -> dict[str, list[Record]]:
    """Answers by the numerics id that they name."""
    out: dict[str, list[Record]] = {}
    for record in records:
        (fingerprint,) = record.answer.fingerprints
        out.setdefault(fingerprint, []).append(record)
    return out
