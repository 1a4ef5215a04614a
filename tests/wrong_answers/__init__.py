"""The mistakes people make, and which property of which exercise must reject each, with which hint."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRONG_ANSWERS: "list[WrongAnswer]" = []


@dataclass(frozen=True)
class WrongAnswer:
    """A function that a learner might hand in; `hint` is a part of what `check` must then say."""

    exercise: str
    mistake: str
    rejected_by: str
    hint: str
    function: Callable[..., Any]


def wrong(exercise: str, mistake: str, rejected_by: str, hint: str) -> Callable[[Callable[..., Any]], None]:
    """Add the decorated function to the wrong answers."""

    def add(function: Callable[..., Any]) -> None:
        WRONG_ANSWERS.append(WrongAnswer(exercise, mistake, rejected_by, hint, function))

    return add
