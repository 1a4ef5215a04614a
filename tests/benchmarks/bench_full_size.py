"""Rates and memory of every stage at BERT-base's size, and what each GLUE task would take; see README.md.

The weights are random: a step takes as long with them as with trained ones. Sequences have the mean length of a
task's training rows, and no padding.
"""

import argparse
import ctypes
import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from conftest import machine, markdown, work_of_others
from torch import Tensor, nn

from kvlib import (
    BERTbase,
    CustomDataset,
    DiscreteKeyValueBottleneck,
    DistilBERTwithBottleNeck,
    distillation_loss,
    get_profile,
    load_glue,
    load_tokenizer,
)
from kvlib.loss import layer_loss

PROFILE = get_profile("base")
OFFICIAL_ROWS = {"cola": 8551, "rte": 2490, "mrpc": 3668, "stsb": 5749, "sst2": 67349, "qnli": 104743}
OFFICIAL_ROWS |= {"qqp": 363846, "mnli": 392702}
# not measured, for want of these tasks: mrpc from the size of its file (237 characters of text a row, at RTE's 4.8
# a token); stsb and qqp are assumptions
ASSUMED_LENGTHS = {"mrpc": 53.0, "stsb": 31.0, "qqp": 30.0}
KEY_OPTIONS = inspect.signature(DiscreteKeyValueBottleneck.init_keys).parameters
PASSES, VECTORS = (KEY_OPTIONS[name].default for name in ("passes", "max_vectors"))

Batch = dict[str, Tensor]
Step = Callable[[Batch], object]


def training(model: nn.Module, loss: Callable[[Batch], Tensor]) -> Step:
    """Make a training step: loss, backward, AdamW; weights and loss are in float32, as under the Trainer."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step(batch: Batch) -> None:
        loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def distillation(model: nn.Module, *inputs: str) -> Step:
    """Make a step of stage 2 or 3."""
    return training(
        model,
        lambda batch: distillation_loss(
            model(**{name: batch[name] for name in inputs}).logits.float(),
            batch["teacher_logits"],
            batch["labels"],
            PROFILE.temperature,
            PROFILE.alpha,
        ),
    )


def teacher(device: torch.device, autocast: torch.autocast) -> BERTbase:
    model = BERTbase(BERTbase.config_class()).to(device).eval()
    model.forward = autocast(model.forward)
    return model


def student(device: torch.device, autocast: torch.autocast, has_bottleneck: bool) -> DistilBERTwithBottleNeck:
    config = DistilBERTwithBottleNeck.config_class(
        has_bottleneck=has_bottleneck, num_codebooks=PROFILE.num_codebooks, codebook_size=PROFILE.codebook_size
    )
    model = DistilBERTwithBottleNeck(config)
    if has_bottleneck:
        model.bottleneck.keys.normal_()
        model.bottleneck.counts.fill_(1)
        model.bottleneck.freeze_keys()
    model.forward = autocast(model.forward)
    return model.to(device).eval()


def teacher_training(device: torch.device, autocast: torch.autocast) -> Step:
    model = teacher(device, autocast)
    return training(
        model,
        lambda batch: F.cross_entropy(
            model(batch["input_ids"], batch["attention_mask"]).logits.float(), batch["labels"]
        ),
    )


def teacher_logits(device: torch.device, autocast: torch.autocast) -> Step:
    model = teacher(device, autocast)
    return torch.inference_mode()(lambda batch: model(batch["input_ids"], batch["attention_mask"]))


def layer_training(device: torch.device, autocast: torch.autocast) -> Step:
    """Make a step of stage 2 on hidden states: the teacher answers in it."""
    model, above = student(device, autocast, has_bottleneck=False), teacher(device, autocast)
    model.distilbert.embeddings.requires_grad_(False)

    def loss(batch: Batch) -> Tensor:
        inputs = batch["input_ids"], batch["attention_mask"]
        with torch.no_grad():
            theirs = above(*inputs, output_hidden_states=True).hidden_states
        return layer_loss(model(*inputs, output_hidden_states=True).hidden_states[1:], theirs[1:], inputs[1])

    return training(model, loss)


def student_training(device: torch.device, autocast: torch.autocast) -> Step:
    return distillation(student(device, autocast, has_bottleneck=False), "input_ids", "attention_mask")


def hidden_states(device: torch.device, autocast: torch.autocast) -> Step:
    encode = autocast(student(device, autocast, has_bottleneck=True).encode)
    return torch.inference_mode()(lambda batch: encode(batch["input_ids"], batch["attention_mask"]))


def key_indices(device: torch.device, autocast: torch.autocast) -> Step:
    model = student(device, autocast, has_bottleneck=True)
    return torch.inference_mode()(lambda batch: model(batch["input_ids"], batch["attention_mask"]))


def values_training(device: torch.device, autocast: torch.autocast) -> Step:
    return distillation(student(device, autocast, has_bottleneck=True), "key_indices")


STAGES = {
    "1 train the teacher": teacher_training,
    "1 teacher's logits": teacher_logits,
    "2 learn the teacher's hidden states": layer_training,
    "2 learn its logits": student_training,
    "3 hidden states": hidden_states,
    "3 key indices: hidden states + search": key_indices,
    "3 train values on key indices": values_training,
}


def make_batch(rows: int, length: int, device: torch.device) -> Batch:
    """Make random tokens, key indices, labels and teacher's logits."""
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(1000, 30000, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.int64),
        "key_indices": torch.randint(PROFILE.codebook_size, (rows, length, PROFILE.num_codebooks)),
        "labels": torch.randint(2, (rows,)),
        "teacher_logits": torch.randn(rows, 2),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time one call."""
    start = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def forget_peak(device: torch.device) -> None:
    """Lower the high-water mark of memory to what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # what the allocator has kept of freed memory is held, too
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: torch.device) -> float:
    """Read the high-water mark: of the process, or of what torch allocated on a GPU; nan where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform != "linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def measure(
    build: Callable[[torch.device, torch.autocast], Step],
    device: torch.device,
    bf16: bool,
    rows: int,
    lengths: list[int],
    steps: int,
) -> tuple[list[float], float]:
    """Return the median seconds an example takes at each length, and the peak memory in GB."""
    forget_peak(device)
    step = build(device, torch.autocast(device.type, torch.bfloat16, enabled=bf16))
    # the first step allocates; the longest is the peak
    step(make_batch(rows, max(lengths), device))
    found = []
    for length in lengths:
        batch = make_batch(rows, length, device)
        times: list[float] = []
        # quick steps until a second has passed: one alone would be mostly chance
        while len(times) < steps or sum(times) < 1:
            times.append(seconds(lambda: step(batch), device))  # noqa: B023 (called at once)
        found.append(median(times) / rows)
    return found, peak_gb(device)


def key_update_rate(device: torch.device) -> float:
    """Return how many vectors a second pass through a step of key initialisation."""
    bottleneck = DiscreteKeyValueBottleneck(768, PROFILE.num_codebooks, PROFILE.codebook_size).to(device)
    bottleneck.keys.normal_()
    bottleneck.counts.fill_(1)
    vectors = torch.randn(KEY_OPTIONS["batch_size"].default, *bottleneck.keys.shape[::2]).to(device)
    generator = torch.Generator().manual_seed(0)
    decay = KEY_OPTIONS["decay"].default
    times = [seconds(lambda: bottleneck.update_keys(vectors, decay, generator), device) for _ in range(3)]
    return len(vectors) / median(times[1:])


def mean_lengths(source: Path) -> dict[str, float]:
    """Measure the mean number of tokens of the training rows of each task that is there; assume the others'."""
    tokenizer = load_tokenizer()
    found = {}
    for task in OFFICIAL_ROWS:
        if (source / task).is_dir():
            split = load_glue(task, source)["train"]
            found[task] = float(np.mean(CustomDataset(split, tokenizer, task, PROFILE.max_length).lengths))
        else:
            found[task] = ASSUMED_LENGTHS[task]
    return found


def wall_times(
    rates: dict[str, list[float]], lengths: list[int], length: float, rows: int, updates: float
) -> dict[str, float]:
    """Return the seconds of each part of the recipe on one task."""
    # between the measured lengths an example's time is all but linear in its length
    train_1, logits, layers, train_2, states, search, train_3 = (
        rows * float(np.interp(length, lengths, rates[stage])) for stage in STAGES
    )
    parts = {
        "teacher": train_1 * PROFILE.teacher_epochs,
        "logits": logits,
        # all rows and as many fresh ones
        "layers": 2 * layers * PROFILE.layer_epochs,
        "student": train_2 * PROFILE.student_epochs,
        "keys": states + PASSES * VECTORS / updates,
        "indices": search,
        "values": train_3 * PROFILE.bottleneck_epochs,
    }
    # to compare with, distil trains student and bottleneck once more, without the teacher
    again = sum(parts[name] for name in ("student", "keys", "indices", "values"))
    return parts | {"distil": sum(parts.values()) + again}


def duration(spent: float) -> str:
    """Write seconds in the unit that suits them."""
    unit, name = next(unit for unit in ((86400, "d"), (3600, "h"), (60, "min"), (0, "s")) if spent >= 2 * unit[0])
    return f"{spent / max(unit, 1):.1f} {name}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default="../shared/glue", help="folder of real GLUE")
    parser.add_argument("--batch-size", type=int, default=PROFILE.batch_size)
    parser.add_argument("--steps", type=int, default=2, help="timed at each stage and length, at least")
    options = parser.parse_args()
    missing = [task for task in OFFICIAL_ROWS if not (options.source / task).is_dir()]
    if needed := [task for task in missing if task not in ASSUMED_LENGTHS]:
        print(f"skipped: {options.source} has no {', '.join(needed)}; name a folder of real GLUE with --source")
        return
    means = mean_lengths(options.source)
    shortest, longest = round(min(means.values())), round(max(means.values()))
    lengths = [shortest, (shortest + longest) // 2, longest]
    kinds = [(torch.device("cpu"), False), (torch.device("cpu"), True)]
    kinds += [(torch.device("cuda"), True)] if torch.cuda.is_available() else []

    start, work = perf_counter(), work_of_others()
    stages, tasks = [], []
    for device, bf16 in kinds:
        where = f"{device.type} {'bf16' if bf16 else 'fp32'}"
        rates = {}
        for name, build in STAGES.items():
            rates[name], peak = measure(build, device, bf16, options.batch_size, lengths, options.steps)
            stages.append([where, name, *(f"{1 / time:,.1f}" for time in rates[name]), f"{peak:.1f}"])
        updates = key_update_rate(device)
        stages.append([where, f"3 fit keys: {updates:,.0f} vectors/s", *("-" for _ in lengths), "-"])
        for task, rows in OFFICIAL_ROWS.items():
            parts = wall_times(rates, lengths, means[task], rows, updates)
            length = f"{means[task]:.1f}{' (assumed)' if task in missing else ''}"
            tasks.append([where, task, f"{rows:,}", length, *map(duration, parts.values())])
    took = perf_counter() - start
    others = (work_of_others() - work) / took

    print(f"{machine(('torch', 'transformers'))}; batch of {options.batch_size}; {took / 60:.1f} min; ", end="")
    print(f"other processes took {others:.2f} of a core meanwhile\n")
    columns = ("on", "stage", *(f"examples/s at {length} tokens" for length in lengths), "peak GB")
    print("\n".join(markdown(columns, stages)))
    epochs = (
        f"teacher x {PROFILE.teacher_epochs}",
        "its logits",
        f"layers x {PROFILE.layer_epochs}",
        f"student x {PROFILE.student_epochs}",
        "keys",
        "key indices",
        f"values x {PROFILE.bottleneck_epochs}",
        "distil in all",
    )
    print()
    print("\n".join(markdown(("on", "task", "training rows", "mean tokens", *epochs), tasks)))


if __name__ == "__main__":
    main()
