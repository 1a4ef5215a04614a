"""How an answer is judged: property after property, from cheap to diagnostic, and never with an exception."""

import contextlib
import copy
import ctypes
import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kvlib.recipe import runs_folder

EXERCISES: "dict[str, Exercise]" = {}  # by id, in the order of the course


class Mistake(Exception):  # noqa: N818 - it is the learner's, not an error of this program
    """An answer lacks a property: what was seen, and the property and hint where they are not the probe's."""

    def __init__(self, saw: str, property_name: str = "", hint: str = "") -> None:
        super().__init__(saw)
        self.saw, self.property_name, self.hint = saw, property_name, hint


class _OutOfTime(BaseException):
    """Thrown into an answer that runs for too long; no `except Exception` of the learner's swallows it."""


@dataclass(frozen=True)
class Probe:
    """One property of a right answer: its name, the hint for who lacks it, and the test that raises `Mistake`."""

    property_name: str
    hint: str
    test: "Callable[[Answer], None]"


@dataclass
class Exercise:
    """An exercise of the workbook.

    Attributes
    ----------
    id : str
        Chapter and number, ``"4.1"``.
    title : str
        As in the notebook.
    difficulty : int
        1 (a line) to 3 (a page).
    minutes : int
        What a learner should plan.
    seconds : float
        How long one check may run.
    probes : list of Probe
        From cheap to diagnostic, so that the first that fails names the mistake.
    """

    id: str
    title: str
    difficulty: int
    minutes: int
    seconds: float = 10.0
    probes: list[Probe] = field(default_factory=list)

    def __post_init__(self) -> None:
        EXERCISES[self.id] = self

    def probe(self, property_name: str, hint: str) -> "Callable[[Callable[[Answer], None]], None]":
        """Add the decorated function, which gets an `Answer` and raises `Mistake`, as the next property."""

        def add(test: "Callable[[Answer], None]") -> None:
            self.probes.append(Probe(property_name, hint, test))

        return add


class Answer:
    """A learner's function, as a probe sees it: it gets copies, and is told apart from the probe when it raises.

    Attributes
    ----------
    given : tuple
        The copies that the last call was given, for example to read the gradients that arrived there.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.given: tuple[Any, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with these inputs and return what it returns.

        Raises
        ------
        Mistake
            If it raises, or changes one of its inputs.
        """
        before = copy.deepcopy((args, kwargs))
        self.given, named = copy.deepcopy((args, kwargs))
        try:
            returned = self.function(*self.given, **named)
        except Exception as error:
            if isinstance(error, NotImplementedError) and not str(error):
                raise  # the stub; torch's own "not implemented for 'Long'" has a message
            raise Mistake(
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                "runs without an error",
                "call your function in a new cell with small inputs; the traceback names the line",
            ) from error
        for old, new in zip(_leaves(before), _leaves((self.given, named)), strict=True):
            if not same(old, new):
                raise Mistake(
                    f"was {show(old)}, is {show(new)}",
                    "leaves its inputs as they were",
                    "a method that ends in _, += and item assignment change the caller's data: make a new "
                    "tensor, or clone() first",
                )
        return returned


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        yield len(value)
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, torch.nn.Module):
        yield from value.state_dict().values()
    else:
        yield value


def same(one: Any, other: Any) -> bool:
    """Say whether two inputs are equal: tensors and arrays by shape and entries, numbers and texts by ``==``.

    What is of no other kind, such as a module, counts as equal: its tensors are compared one by one.
    """
    if isinstance(one, torch.Tensor):
        alike = isinstance(other, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, np.ndarray):
        numbers = one.dtype.kind in "fc"
        return isinstance(other, np.ndarray) and np.array_equal(one, other, equal_nan=numbers)
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return one.equals(other)
    if isinstance(one, (str, int, float, bool, bytes, Path)):
        return one == other or (one != one and other != other)  # NaN is unequal to itself
    return True


def show(value: Any) -> str:
    """Write a value in at most 60 characters, numbers to four digits."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist() if value.numel() <= 12 else f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.size <= 12 else f"an array of shape {value.shape}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(show(part) for part in value)
        text = f"[{inner}]" if isinstance(value, list) else f"({inner})"
    else:
        text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def expect(holds: Any, saw: str) -> None:
    """Raise `Mistake` with what was seen unless `holds`."""
    if not bool(holds):
        raise Mistake(saw)


def expect_tensor(value: Any, shape: tuple[int, ...], integers: bool = False) -> torch.Tensor:
    """Raise `Mistake` unless `value` is a tensor of this shape, of integers or of floating-point numbers."""
    expect(isinstance(value, torch.Tensor), f"{type(value).__name__} instead of a tensor")
    expect(tuple(value.shape) == shape, f"shape {tuple(value.shape)} instead of {shape}")
    kind = "integers" if integers else "floating-point numbers"
    expect(value.is_floating_point() != integers, f"{value.dtype} instead of {kind}")
    return value


def expect_number(value: Any) -> float:
    """Raise `Mistake` unless `value` is one finite number (or a tensor or array of one); return it as a float."""
    single = isinstance(value, (int, float, np.number)) or getattr(value, "shape", None) == ()
    expect(single, f"{show(value)} instead of one number")
    expect(np.isfinite(float(value)), f"{float(value)}")
    return float(value)


def expect_close(value: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Raise `Mistake` unless both agree to `tolerance`, relative to the largest expected entry, at least 1.

    Their shapes must be equal already.
    """
    value, expected = (
        torch.as_tensor(np.array(part) if isinstance(part, np.ndarray) else part) for part in (value, expected)
    )
    value, expected = value.detach().double(), expected.detach().double()
    limit = tolerance * max(1.0, expected.abs().max().item())
    difference = (value - expected).abs().max().item()
    saw = f"{show(value)} instead of {show(expected)}"
    expect(difference <= limit, saw if value.numel() <= 12 else f"entries that are off by up to {difference:.4g}")


def check(exercise_id: str, answer: Callable[..., Any], seconds: float | None = None) -> bool:
    """Test an answer and print the result: not attempted; the first property that fails, with a hint; passed.

    It never raises, whatever the answer does: wrong types and shapes, errors, changed inputs, endless loops
    and prints are met and named. A pass is remembered for `progress`.

    Parameters
    ----------
    exercise_id : str
        As in the notebook, ``"4.1"``.
    answer : callable
        The learner's function.
    seconds : float, optional
        How long the answer may run in all; by default what the exercise allows.

    Returns
    -------
    bool
        Whether all properties hold.
    """
    exercise = EXERCISES.get(str(exercise_id))
    if exercise is None:
        print(f"there is no exercise {exercise_id!r}: choose one of {', '.join(EXERCISES)}")
        return False
    limit = seconds or exercise.seconds
    printed = io.StringIO()
    with _restored_state(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        passed, report = _judge(exercise, answer, limit)
    print(report)
    if printed.getvalue():
        lines = len(printed.getvalue().splitlines())
        print(
            f"  (your function printed {lines} {'line' if lines == 1 else 'lines'}: call it yourself to see them)"
        )
    if passed:
        _remember(exercise.id)
    return passed


def _judge(exercise: Exercise, function: Any, limit: float) -> tuple[bool, str]:
    name = f"Exercise {exercise.id}"
    if not callable(function):
        saw = f"{type(function).__name__} {show(function)}"
        return False, _failed(name, "is a function", saw, "hand over the function itself, without calling it")
    answer = Answer(function)
    state = {"probe": None, "result": None}

    def work() -> None:
        try:
            for probe in exercise.probes:
                state["probe"] = probe
                probe.test(answer)
            state["result"] = (True, f"{name}: passes all {len(exercise.probes)} checks")
        except NotImplementedError:
            state["result"] = (False, f"{name}: not attempted yet")
        except Mistake as mistake:
            property_name = mistake.property_name or state["probe"].property_name
            hint = mistake.hint or state["probe"].hint
            state["result"] = (False, _failed(name, property_name, mistake.saw, hint))
        except _OutOfTime:
            pass
        except BaseException as error:  # an odd return value tripped the probe itself, or sys.exit was called
            saw = f"{type(error).__name__}: {error}"
            state["result"] = (False, _failed(name, state["probe"].property_name, saw, state["probe"].hint))

    _run_in_thread(work, limit)
    hint = "does your loop's condition ever change? Is there a loop over what one tensor operation does?"
    return state["result"] or (False, _failed(name, "comes to an end", f"still running after {limit:g} s", hint))


def _failed(name: str, property_name: str, saw: str, hint: str) -> str:
    return f"{name}: fails “{property_name}”\n  saw:  {saw}\n  hint: {hint}"


def _run_in_thread(work: Callable[[], None], limit: float) -> None:
    """Run `work` for at most `limit` seconds; what does not end is thrown an exception, then left behind."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_OutOfTime))
        thread.join(1.0)


@contextlib.contextmanager
def _restored_state() -> Iterator[None]:
    """Give back the random states and torch's default type as they were: an answer may have changed them."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate(), torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        torch.set_default_dtype(states[3])


def _folder() -> Path:
    return Path(os.environ.get("KVLIB_PROGRESS") or runs_folder() / "progress")


def _remember(exercise_id: str) -> None:
    with contextlib.suppress(OSError):  # a read-only checkout must not spoil the pass
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / exercise_id).touch()


def progress() -> None:
    """Print for each chapter how many exercises were solved, in this kernel or an earlier one.

    A solved exercise is an empty file of its name in ``data/runs/progress``, or in the folder that the
    environment variable ``KVLIB_PROGRESS`` names; delete the folder to begin again.
    """
    chapters: dict[str, list[Exercise]] = {}
    for exercise in EXERCISES.values():
        chapters.setdefault(exercise.id.split(".")[0].zfill(2), []).append(exercise)
    done_in_all = 0
    for chapter, exercises in chapters.items():
        done = [exercise for exercise in exercises if (_folder() / exercise.id).exists()]
        done_in_all += len(done)
        left = ", ".join(exercise.id for exercise in exercises if exercise not in done)
        print(f"chapter {chapter}: {len(done)} of {len(exercises)} done" + (f", to do: {left}" if left else ""))
    print(f"in all:     {done_in_all} of {len(EXERCISES)}")
