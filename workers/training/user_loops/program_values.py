"""Finding steps and values in what a program prints, or writes to the file of `tuner_trial`.

A line may be JSON (`{"step": 3, "val_acc": 0.9}`), match a metric's pattern, or say `val_acc=0.9`,
`val_acc: 0.9`, `val acc 0.9`. A number may be a fraction: `9871/10000`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SAID, TRACKED, AS_JSON, MATCHED, REPORTED = range(1, 6)
"""How sure a value is what was meant: in a line of output, in a tracker's file, in a line of JSON,
where the operator's pattern says, or by `tuner_trial`."""

MAX_LINE: Final = 1 << 16  # of what is searched for values; longer lines are cut
_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?|[-+]?(?:nan|inf(?:inity)?)"
_STEP: Final = re.compile(r"(?i)\b(?:epoch|step|iter(?:ation)?)\b\W{0,4}(\d+)")
_STEP_KEYS: Final = ("step", "epoch", "iteration", "global_step")


class NoNumberError(ValueError):
    """What a pattern found is no number."""


@dataclass(slots=True)
class Measurement:
    """What one line says.

    Attributes:
        step: None: it does not say.
        values: Metric -> number, of those that were asked for and, of JSON, all others.
        rank: How sure it is; of two that speak of one metric the surer counts.
        is_new: The step was said with the values; else it is that of a line before.
    """

    step: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    rank: int = SAID
    is_new: bool = True


class OutputReader:
    """Reads lines of output.

    Args:
        objectives: Names that are looked for without a pattern.
        patterns: Metric -> pattern, with a group `value` or one group, and perhaps `step`.
    """

    def __init__(self, objectives: Sequence[str], patterns: Mapping[str, str]) -> None:
        self._patterns = {name: re.compile(one) for name, one in patterns.items()}
        self._patterns |= {
            name: _default_pattern(name) for name in objectives if name not in patterns
        }
        self._asked = frozenset(patterns)
        self._telling = None if patterns else _telling(objectives)
        self._step: int | None = None
        self._torn = b""

    def feed(self, chunk: bytes) -> Iterator[Measurement]:
        """Yield what the lines say that end in this chunk; a carriage return ends one, too.

        Raises:
            NoNumberError: A pattern found something else.
        """
        text = self._torn + chunk
        if self._telling is not None and not self._telling.search(text):
            # A flood of lines that say nothing: looked through at once, not line by line.
            self._torn = text[max(text.rfind(b"\n"), text.rfind(b"\r")) + 1 :][:MAX_LINE]
            return
        *lines, torn = re.split(rb"[\r\n]", text)
        self._torn = torn[:MAX_LINE]
        for line in lines:
            yield from self._line(line[:MAX_LINE].decode("utf-8", "replace"))

    def end(self) -> Iterator[Measurement]:
        """Yield what a last line says that had no end."""
        yield from self.feed(b"\n")

    def _line(self, line: str) -> Iterator[Measurement]:
        said = _STEP.search(line)
        if said is not None:
            self._step = int(said[1])
        as_json = json_report(line)
        if as_json is not None:
            yield as_json
            return
        found = Measurement(self._step, is_new=said is not None)
        for name, pattern in self._patterns.items():
            match = pattern.search(line)
            if match is None:
                continue
            groups = match.groupdict()
            text = groups["value"] if "value" in groups else match[1]
            if text is None:
                continue
            found.values[name] = number(name, text)
            if name in self._asked:
                found.rank = MATCHED
            if groups.get("step"):
                found.step, found.is_new = int(number("step", groups["step"])), True
        if found.values:
            yield found


def json_report(line: str) -> Measurement | None:
    """Return what a JSON line says; None: it is none, or says no number."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    numbers = {str(key): float(one) for key, one in said.items() if _is_number(one)}
    step = next((int(numbers[key]) for key in _STEP_KEYS if key in numbers), None)
    values = {key: one for key, one in numbers.items() if key not in _STEP_KEYS}
    return Measurement(step, values, rank=AS_JSON) if values else None


def number(name: str, text: str) -> float:
    """Return a number, also of a fraction or with a per cent sign.

    Raises:
        NoNumberError: It is none.
    """
    above, _, below = text.strip().removesuffix("%").partition("/")
    try:
        return float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise NoNumberError(f"the pattern of {name} found {text!r}, which is no number") from error


def _telling(objectives: Sequence[str]) -> re.Pattern[bytes]:
    """Return what is in every line that can say a value or a step."""
    words = [re.escape(name.split("_")[-1].encode()) for name in objectives]
    return re.compile(rb"(?i)\{|epoch|step|iter|" + b"|".join(words))


def _default_pattern(name: str) -> re.Pattern[str]:
    words = r"[\s_/-]".join(re.escape(word) for word in name.split("_"))
    return re.compile(
        rf"(?i)(?<![\w/]){words}['\"]?\s*[:=]?\s*['\"]?(?P<value>{_NUMBER})(?!\w|\.\d)"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
