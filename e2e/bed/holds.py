"""What must hold, checked against what was measured."""

from dataclasses import dataclass

from scenario import Hold


@dataclass(frozen=True)
class Verdict:
    hold: Hold
    held: bool
    text: str


def judge(hold: Hold, measures: dict[str, float]) -> Verdict:
    """A measure that was not taken does not hold."""
    def missing(name: str) -> Verdict:
        return Verdict(hold, False, f"{name} was not measured")

    if hold.measure not in measures:
        return missing(hold.measure)
    value, unit, words = measures[hold.measure], 1.0, ""
    if hold.of:
        if hold.of not in measures:
            return missing(hold.of)
        if not measures[hold.of]:
            return Verdict(hold, False, f"{hold.measure} = {plain(value)}: a multiple of {hold.of}, which is 0, says nothing")
        unit, words = measures[hold.of], f" x {hold.of} ({plain(measures[hold.of])})"
    bounds, held = [], True
    if hold.low is not None:
        bounds.append(f">= {plain(hold.low)}{words}")
        held &= value >= hold.low * unit
    if hold.high is not None:
        bounds.append(f"<= {plain(hold.high)}{words}")
        held &= value <= hold.high * unit
    return Verdict(hold, held, f"{hold.measure} = {plain(value)}, must be {' and '.join(bounds)}")


def plain(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
