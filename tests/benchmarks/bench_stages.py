"""One epoch of stages 2 and 3 on real GLUE, beside loops that call the teacher in every step; see README.md.

Whatever is compared runs in one process and in turn, so that a slow moment of the machine meets all; a ratio is
the median of the ratios of the rounds.
"""

import argparse
import cProfile
import pstats
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from conftest import machine, markdown, work_of_others
from huggingface_hub.utils import disable_progress_bars
from torch.utils.data import DataLoader, Dataset
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from kvlib import (
    BERTbase,
    CustomDataset,
    DistilBERTwithBottleNeck,
    DistillationTrainer,
    KeyIndexDataset,
    distillation_loss,
    fine_tune,
    get_profile,
    load_glue,
    load_tokenizer,
    predict_logits,
)

PROFILE = get_profile("quick")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# times faster than fixed padding; than dynamic padding; stage 3 than stage 2
TARGETS = {"cola": (8, 1.6, 50), "rte": (2, 1.6, 50)}
COLUMNS = ("task", "rows", "ours", "s", "compared with", "its s", "ratio", "target", "one-off s")
COLUMNS += ("ratio, one-off work shared", "ratio, all in one epoch")


def train_epochs(student: DistilBERTwithBottleNeck, train: Dataset, epochs: int, **options: object) -> None:
    """Train as the library does in stages 2 and 3, but for the evaluation and the checkpoint of each epoch."""
    with TemporaryDirectory() as folder:
        fine_tune(
            student,
            train,
            train,
            folder,
            epochs=epochs,
            batch_size=PROFILE.batch_size,
            trainer=partial(DistillationTrainer, temperature=PROFILE.temperature, alpha=PROFILE.alpha),
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            **options,
        )


def epoch_calling_the_teacher(
    student: DistilBERTwithBottleNeck, teacher: BERTbase, train: CustomDataset, collate: Callable
) -> None:
    """Write stage 2 as one does at first: shuffled batches, and the teacher asked in every step.

    It is spared what would make it slower still: rows are already tokens, and it has the same fused AdamW.
    """
    optimizer = torch.optim.AdamW(student.parameters(), PROFILE.student_learning_rate, fused=True)
    student.train()
    for batch in DataLoader(train, PROFILE.batch_size, shuffle=True, collate_fn=collate):
        batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.no_grad():
            teacher_logits = teacher(**inputs).logits
        logits = student(**inputs).logits
        loss = distillation_loss(logits, teacher_logits, batch["labels"], PROFILE.temperature, PROFILE.alpha)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def runs(task: str, tokenize: Callable[..., CustomDataset]) -> dict[str, Callable[[], object]]:
    """Prepare what is timed; every call starts from the same untrained student."""
    rows = tokenize()
    teacher = BERTbase.for_task(task, PROFILE.teacher_checkpoint, PROFILE.teacher_pooling).to(DEVICE).eval()
    student = DistilBERTwithBottleNeck.from_teacher(teacher).to(DEVICE)
    taught = tokenize(teacher_logits=predict_logits(teacher, rows))

    def discretized() -> tuple[DistilBERTwithBottleNeck, KeyIndexDataset]:
        found = student.discretize(
            taught, num_codebooks=PROFILE.num_codebooks, codebook_size=PROFILE.codebook_size
        )
        return found, KeyIndexDataset(found, taught)

    bottleneck, key_indices = discretized()
    stage_3 = {
        "learning_rate": PROFILE.bottleneck_learning_rate,
        "weight_decay": 0.0,
        "train_sampling_strategy": "random",
    }
    fixed = DataCollatorWithPadding(rows.tokenizer, padding="max_length", max_length=PROFILE.max_length)
    return {
        "stage 2": lambda: train_epochs(
            deepcopy(student), taught, PROFILE.student_epochs, learning_rate=PROFILE.student_learning_rate
        ),
        "fixed": lambda: epoch_calling_the_teacher(deepcopy(student), teacher, rows, fixed),
        "dynamic": lambda: epoch_calling_the_teacher(deepcopy(student), teacher, rows, rows.collate),
        "logits": lambda: predict_logits(teacher, rows),
        "stage 3": lambda: train_epochs(deepcopy(bottleneck), key_indices, PROFILE.bottleneck_epochs, **stage_3),
        "keys": discretized,
    }


# of a step of stage 3: file and function, and what it does
PARTS = {
    ("transformers/trainer.py", "get_batch_samples"): "reading the batch",
    ("kvlib/student.py", "train"): "training mode, which the Trainer sets in every step",
    ("kvlib/training.py", "compute_loss"): "forward pass and loss",
    ("accelerate/accelerator.py", "backward"): "backward pass",
    ("transformers/trainer.py", "_clip_grad_norm"): "clipping",
    ("accelerate/optimizer.py", "step"): "AdamW",
    ("modules/module.py", "zero_grad"): "clearing gradients",
}


def profile_stage_3(task: str, source: Path, share: float) -> None:
    """Print where the epochs of stage 3 spend their time, by `cProfile`, which weighs Python's calls too much."""
    split = load_glue(task, source)["train"].shuffle(seed=0)
    split = split.select(range(round(share * len(split))))
    run = runs(task, partial(CustomDataset, split, load_tokenizer(), task, PROFILE.max_length))["stage 3"]
    run()
    recorded = cProfile.Profile()
    recorded.runcall(run)
    found = pstats.Stats(recorded).stats
    took = {
        key: sum(found[one][3] for one in found if one[0].endswith(key[0]) and one[2] == key[1]) for key in PARTS
    }
    if missing := [part for key, part in PARTS.items() if not took[key]]:
        raise LookupError(f"no function was found for {', '.join(missing)}: transformers may have renamed it")
    (whole,) = (found[one][3] for one in found if one[2] == "_run_epoch")
    for key, part in PARTS.items():
        print(f"- {part}: {took[key] / whole:.0%}")
    print(f"- the rest of the Trainer's loop: {1 - sum(took.values()) / whole:.0%}")


def measure(task: str, source: Path, share: float, rounds: int) -> list[list[str]]:
    """Make the rows of the table for one task."""
    split = load_glue(task, source)["train"].shuffle(seed=0)
    split = split.select(range(round(share * len(split))))
    options = {
        "tokenizer": load_tokenizer(PROFILE.teacher_checkpoint),
        "task": task,
        "max_length": PROFILE.max_length,
    }
    # first times are slower: allocations, imports, kernels chosen
    for run in runs(task, partial(CustomDataset, split.select(range(2 * PROFILE.batch_size)), **options)).values():
        run()
    timed = runs(task, partial(CustomDataset, split, **options))
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, run in timed.items():
            times[name].append(seconds(run))
    # runs of all epochs: starting and ending the Trainer counts as often as it does in the recipe
    for stage, epochs in (("stage 2", PROFILE.student_epochs), ("stage 3", PROFILE.bottleneck_epochs)):
        times[stage] = [time / epochs for time in times[stage]]

    size = f"{len(split):,}"
    stage_2 = ("stage 2", "logits", PROFILE.student_epochs)
    table = []
    for (ours, one_off, epochs), other, name, target in (
        (stage_2, "fixed", f"(a) padding to {PROFILE.max_length}, teacher in every step", TARGETS[task][0]),
        (stage_2, "dynamic", "(b) padding per batch, teacher in every step", TARGETS[task][1]),
        (("stage 3", "keys", PROFILE.bottleneck_epochs), "stage 2", "an epoch of stage 2", TARGETS[task][2]),
    ):
        ratio, shared, at_once = (
            median(
                its / (own + part * extra)
                for its, own, extra in zip(times[other], times[ours], times[one_off], strict=True)
            )
            for part in (0, 1 / epochs, 1)
        )
        table.append(
            [
                task,
                size,
                f"epoch of {ours}",
                f"{median(times[ours]):.2f}",
                name,
                f"{median(times[other]):.2f}",
                f"{ratio:.1f} x faster",
                f">= {target} {'met' if ratio >= target else 'missed'}",
                f"{median(times[one_off]):.2f} ({one_off})",
                f"{shared:.1f} x faster ({epochs} epochs)",
                f"{at_once:.1f} x faster",
            ]
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default="../shared/glue", help="folder of real GLUE")
    parser.add_argument("--tasks", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--share", type=float, default=0.2, help="of each task's training rows, 0 to 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="only say where stage 3 of --tasks spends its time")
    options = parser.parse_args()
    missing = [task for task in options.tasks if not (options.source / task).is_dir()]
    if missing:
        print(f"skipped: {options.source} has no {', '.join(missing)}; name a folder of real GLUE with --source")
        return
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.profile:
        for task in options.tasks:
            profile_stage_3(task, options.source, options.share)
        return
    start, work = perf_counter(), work_of_others()
    table = [row for task in options.tasks for row in measure(task, options.source, options.share, options.rounds)]
    took = perf_counter() - start
    others = (work_of_others() - work) / took
    print(f"{machine(('torch', 'transformers'))}; {took / 60:.0f} min; ", end="")
    print(f"other processes took {others:.2f} of a core meanwhile\n")
    print("\n".join(markdown(COLUMNS, table)))


if __name__ == "__main__":
    main()
