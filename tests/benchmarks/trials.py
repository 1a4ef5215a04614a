"""Shared by the programs that choose settings on held-out rows: options, experiments, a file of trials."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

from datasets import disable_progress_bars
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DistilBertModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from kvlib import Experiment, get_profile

ROOT = Path(__file__).resolve().parents[2]


def parse(
    about: str, tasks: list[str], seeds: list[int], output: str, trials: list[str] | None = None
) -> argparse.Namespace:
    """Read the options, and switch progress bars off; `output` is a file in ``data/results``."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--source", default="../shared/glue")
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    if trials:
        parser.add_argument("--trials", nargs="+", choices=trials, default=trials)
    parser.add_argument("--runs", type=Path, help="folder of finished stages (default: data/runs)")
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "results" / output)
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return parser.parse_args()


def experiments(arguments: argparse.Namespace) -> Iterator[Experiment]:
    """Yield each seed's and task's experiment on real GLUE, profile ``real``, at most 10,000 training rows."""
    for seed in arguments.seeds:
        for task in arguments.tasks:
            yield Experiment(task, arguments.source, get_profile("real"), seed, arguments.runs, max_rows=10_000)


def add_trial(output: Path, key: dict[str, object], run: Callable[[], dict[str, object]]) -> None:
    """Add a line of `key` and what `run` finds to a file, unless `key` stands there; processes may share it."""
    done = output.read_text().splitlines() if output.exists() else []
    if any(key.items() <= json.loads(line).items() for line in done):
        return
    line = json.dumps(key | run())
    with FileLock(f"{output}.lock"), output.open("a") as stream:
        stream.write(line + "\n")
    print(line, flush=True)


def frozen_encoder() -> AbstractContextManager:
    """While it is open, a DistilBERT (one, whose weights stay) computes the hidden states of a row only once."""
    compute, known = DistilBertModel.forward, {}

    def forward(encoder: DistilBertModel, input_ids: Tensor, attention_mask: Tensor, **_: bool) -> BaseModelOutput:
        masks = attention_mask.bool()
        rows = [ids[real].cpu().numpy().tobytes() for ids, real in zip(input_ids, masks, strict=True)]
        if any(row not in known for row in rows):
            states = compute(encoder, input_ids, attention_mask, return_dict=True).last_hidden_state
            known.update((row, own[real]) for row, own, real in zip(rows, states, masks, strict=True))
        return BaseModelOutput(pad_sequence([known[row] for row in rows], batch_first=True))

    return patch.object(DistilBertModel, "forward", forward)
