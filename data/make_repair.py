"""Repair one answer of MRPC's student in six ways, and keep the student as integers for notebook 08.

Run from the top folder: a minute of one core with the stages in ``data/runs``, five more without.

    python data/make_repair.py

Writes into ``data/results``: ``repair.json``, a record a way and order of rows, and ``repair.safetensors``, the
finished values and the key indices of all texts that the notebook looks at, so that it needs no encoder.
"""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from kvlib import Experiment, KeyIndexDataset
from kvlib.cache import write_aside
from kvlib.data import CustomDataset
from kvlib.machine import describe
from kvlib.student import EncoderWithBottleNeck
from kvlib.training import LazyAdam

RESULTS = Path(__file__).parent / "results"
FIRST = "The young nurse thanked the old teacher on Monday."
PAIR = "On Monday, the old teacher was thanked by the young nurse."
NEAR_MISS = "On Monday, the old teacher thanked the young nurse."
NO_PARAPHRASE = 0
# what is trained and by which optimiser. Rates are so small that most repairs take tens of steps: larger ones
# overshoot (SGD at 0.1 repairs by the head in one step, and flips nearly all answers)
WAYS: dict[str, tuple[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "values, SGD": ("bottleneck", lambda weights: torch.optim.SGD(weights, lr=10.0)),
    "values, AdamW": ("bottleneck", lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)),
    "values, LazyAdam": ("bottleneck", lambda weights: LazyAdam(weights, lr=0.01)),
    "head, SGD": ("classifier", lambda weights: torch.optim.SGD(weights, lr=1e-3)),
    "head, AdamW": ("classifier", lambda weights: torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)),
    "encoder and head, AdamW": ("", lambda weights: torch.optim.AdamW(weights, lr=2e-5, weight_decay=0.0)),
}
# of the epoch that values are trained for before their repair: one order of its rows each
ORDERS = range(5)


def in_one_batch(dataset: CustomDataset | KeyIndexDataset) -> dict[str, Tensor]:
    """Stack all rows of a split, without what only training needs."""
    batch = dataset.collate([dataset[row] for row in range(len(dataset))])
    return {name: batch[name] for name in batch if name not in ("idx", "teacher_logits")}


def take_step(
    model: EncoderWithBottleNeck, optimizer: torch.optim.Optimizer, labels: Tensor, inputs: dict[str, Tensor]
) -> None:
    """Take one gradient step of cross-entropy."""
    optimizer.zero_grad()
    F.cross_entropy(model(**inputs).logits, labels).backward()
    optimizer.step()


def repair(experiment: Experiment, way: str, orders: Iterable[int] = ORDERS) -> list[dict[str, Any]]:
    """Train until the near miss is no paraphrase; count steps, numbers that moved and answers that flipped.

    Values first get an epoch of training, so that Adam has momentum: a record for each order of its rows. What is
    trained of the student without bottleneck starts as it is.
    """
    part, make_optimizer = WAYS[way]
    by_values = part == "bottleneck"
    source = experiment.model("bottleneck" if by_values else "distilbert").eval().requires_grad_(False)
    near_miss = dict(experiment.tokenizer(FIRST, NEAR_MISS, return_tensors="pt"))
    validation = experiment.validation["validation"]
    if by_values:
        train, validation = (
            in_one_batch(KeyIndexDataset(source, split)) for split in (experiment.train, validation)
        )
        labels = train.pop("labels")
        near_miss = {"key_indices": source(**near_miss).key_indices}
    else:
        validation = in_one_batch(validation)
    validation.pop("labels")
    records = []
    for order in orders if by_values else (0,):
        model = copy.deepcopy(source)
        weights = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(part)]
        optimizer = make_optimizer(weights)
        if by_values:
            generator = torch.Generator().manual_seed(order)
            for rows in torch.randperm(len(labels), generator=generator).split(16):
                take_step(model, optimizer, labels[rows], {"key_indices": train["key_indices"][rows]})
        before, answers, steps = [w.detach().clone() for w in weights], answers_of(model, validation), 0
        paraphrase = model(**near_miss).logits.softmax(-1)[0, 1 - NO_PARAPHRASE].item()
        while model(**near_miss).logits.argmax() != NO_PARAPHRASE:
            take_step(model, optimizer, torch.tensor([NO_PARAPHRASE]), near_miss)
            steps += 1
        moved = sum(int((w != old).sum()) for w, old in zip(weights, before, strict=True))
        flipped = int((answers_of(model, validation) != answers).sum())
        records.append(
            {
                "way": way, "order": order, "near miss before": round(paraphrase, 3), "steps": steps,
                "numbers moved": moved, "of": sum(w.numel() for w in weights), "answers flipped": flipped,
            }
        )  # fmt: skip
    return records


@torch.no_grad()
def answers_of(model: EncoderWithBottleNeck, inputs: dict[str, Tensor]) -> Tensor:
    """Answer all rows, ``(n,)``."""
    return model(**inputs).logits.argmax(1)


def as_integers(experiment: Experiment) -> dict[str, Tensor]:
    """Return the student's values, and the keys ``(N, C)`` that all tokens of each text or split fire."""
    student = experiment.model("bottleneck")
    kept = {"values": student.bottleneck.values.detach()}
    for name, second in (("pair", PAIR), ("near miss", NEAR_MISS)):
        with torch.no_grad():
            fired = student(**experiment.tokenizer(FIRST, second, return_tensors="pt")).key_indices
        kept |= {f"{name}: keys": fired[0].to(torch.uint8), f"{name}: tokens": torch.tensor([fired.shape[1]])}
    for name, split in (("train", experiment.train), ("validation", experiment.validation["validation"])):
        dataset = KeyIndexDataset(student, split)
        kept |= {
            f"{name}: keys": dataset.key_indices,
            f"{name}: tokens": torch.tensor(dataset.lengths),
            f"{name}: labels": torch.tensor(dataset.labels),
        }
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def main() -> None:
    """Write both files."""
    experiment = Experiment("mrpc", "mini", "quick")
    with write_aside(RESULTS / "repair.safetensors") as temporary:
        save_file(as_integers(experiment), temporary)
    records = [record for way in WAYS for record in repair(experiment, way)]
    with write_aside(RESULTS / "repair.json") as temporary:
        # a record a line
        lines = ",\n".join(json.dumps(record) for record in records)
        temporary.write_text(f'{{"made_by": {json.dumps(describe())}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
