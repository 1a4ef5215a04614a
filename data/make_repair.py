"""Repair one answer of MRPC's student in five ways, and keep the student as integers for notebook 08.

Run from the top folder: a minute of one core with the stages in ``data/runs``, five more without.

    python data/make_repair.py

Writes into ``data/results``: ``repair.json``, a record a way, and ``repair.safetensors``, the finished values and
the key indices of all texts that the notebook looks at, so that it repairs by values without an encoder.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

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
# what is trained and by which optimiser; rates are those of training, ten for SGD, whose steps are not scaled
WAYS: dict[str, tuple[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "values, SGD": ("bottleneck", lambda weights: torch.optim.SGD(weights, lr=10.0)),
    "values, AdamW": ("bottleneck", lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)),
    "values, LazyAdam": ("bottleneck", lambda weights: LazyAdam(weights, lr=0.01)),
    "head, AdamW": ("classifier", lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)),
    "encoder and head, AdamW": ("", lambda weights: torch.optim.AdamW(weights, lr=2e-5, weight_decay=0.0)),
}


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


def repair(experiment: Experiment, way: str) -> dict[str, int]:
    """Train until the near miss is no paraphrase, and count steps, numbers that moved and answers that flipped."""
    part, make_optimizer = WAYS[way]
    by_values = part == "bottleneck"
    model = copy.deepcopy(experiment.model("bottleneck" if by_values else "distilbert"))
    model.eval().requires_grad_(False)
    weights = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(part)]
    optimizer = make_optimizer(weights)
    near_miss = dict(experiment.tokenizer(FIRST, NEAR_MISS, return_tensors="pt"))
    validation = experiment.validation["validation"]
    if by_values:
        # momentum, as in stage 3
        rows = in_one_batch(KeyIndexDataset(model, experiment.train))
        for part_of in torch.randperm(len(rows["labels"]), generator=torch.Generator().manual_seed(0)).split(16):
            take_step(model, optimizer, rows["labels"][part_of], {"key_indices": rows["key_indices"][part_of]})
        validation = KeyIndexDataset(model, validation)
    inputs = {name: tensor for name, tensor in in_one_batch(validation).items() if name != "labels"}
    before, answers, steps = [w.detach().clone() for w in weights], answers_of(model, inputs), 0
    while model(**near_miss).logits.argmax() != NO_PARAPHRASE:
        take_step(model, optimizer, torch.tensor([NO_PARAPHRASE]), near_miss)
        steps += 1
    return {
        "steps": steps,
        "numbers moved": sum(int((w != old).sum()) for w, old in zip(weights, before, strict=True)),
        "of": sum(w.numel() for w in weights),
        "answers flipped": int((answers_of(model, inputs) != answers).sum()),
    }


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
    records = [{"way": way} | repair(experiment, way) | describe() for way in WAYS]
    with write_aside(RESULTS / "repair.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
