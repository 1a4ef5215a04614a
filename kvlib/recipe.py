"""The whole recipe in one place: three stages, each kept on disk under what it was made from."""

import hashlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from kvlib.data import CustomDataset, get_task, hold_out, load_glue
from kvlib.evaluation import evaluate, majority_predictions, tfidf_predictions
from kvlib.metrics import compute_metrics
from kvlib.profiles import Profile, get_profile
from kvlib.student import DistilBERTwithBottleNeck
from kvlib.teacher import BERTbase, cached_logits, fine_tune, fingerprint, load_tokenizer, predict_logits
from kvlib.training import DistillationTrainer, KeyIndexDataset

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs"
SYSTEMS = {
    "majority": "majority class",
    "tfidf": "TF-IDF + linear model",
    "teacher": "teacher",
    "fine_tuned": "student without teacher",
    "distilled": "distilled student",
    "bottleneck": "distilled student with bottleneck",
}


class WeakTeacherError(RuntimeError):
    """The teacher knows no more than the majority class: there is nothing to distil."""


class Experiment:
    """One task, one seed: the data and the three stages, each trained once and then read from disk.

    Parameters
    ----------
    task : str
        One of the eight GLUE names.
    source : str or pathlib.Path, optional
        As in `load_glue`; by default the profile's.
    profile : str or Profile, optional
        By default the one that ``KVLIB_PROFILE`` names, else ``"quick"``.
    seed : int
        Of the held-out rows, new heads, shuffling, dropout and keys.
    runs : str or pathlib.Path, optional
        Folder for finished stages; ``data/runs`` of the project by default.

    Attributes
    ----------
    data : datasets.DatasetDict
        All splits as loaded.
    train, held_out : CustomDataset
        The two parts of the training split: to train on, and to choose the best epoch by.
    validation : dict of str to CustomDataset
        The validation split; two for MNLI, matched first. Reported, never chosen by.
    seconds : dict of str to float
        How long each stage took, by name, when it was trained.
    histories : dict of str to pandas.DataFrame
        The epochs of each stage so far, by name, as `fine_tune` gives them.
    """

    def __init__(
        self,
        task: str,
        source: str | Path | None = None,
        profile: str | Profile | None = None,
        seed: int = 0,
        runs: str | Path | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.task = get_task(task)
        self.profile = profile if isinstance(profile, Profile) else get_profile(profile)
        self.source = str(source or self.profile.source)
        self.seed = seed
        self.runs = Path(runs or RUNS)
        self.data = load_glue(task, self.source)
        if max_rows is not None:
            self.data["train"] = self.data["train"].select(range(min(max_rows, len(self.data["train"]))))
        self.tokenizer = load_tokenizer(self.profile.teacher_checkpoint)
        tokenized = partial(CustomDataset, tokenizer=self.tokenizer, task=task, max_length=self.profile.max_length)
        self.train_split, held_out = hold_out(self.data["train"], seed=seed)
        self.train, self.held_out = tokenized(self.train_split), tokenized(held_out)
        self.validation = {name: tokenized(self.data[name]) for name in self.task.validation if name in self.data}
        self.seconds: dict[str, float] = {}
        self.histories: dict[str, pd.DataFrame] = {}

    @cached_property
    def teacher(self) -> BERTbase:
        """Stage 1: BERT fine-tuned on the labels.

        Raises
        ------
        WeakTeacherError
            If it does not beat the majority class on the held-out rows.
        """
        p = self.profile
        settings = {"epochs": p.teacher_epochs, "learning_rate": p.teacher_learning_rate}
        teacher = self._stage("teacher", BERTbase, self._pretrained, settings)
        metric = self.task.metrics[0]
        labels = np.asarray(self.held_out.labels)
        chance = compute_metrics(
            self.task.name, majority_predictions(self.train.labels, self.task.name, len(labels)), labels
        )[metric]
        score = evaluate(teacher, self.held_out)[metric]
        if score <= chance:
            raise WeakTeacherError(
                f"the teacher's {metric} on held-out {self.task.name} rows is {score:.3f}, the majority class's "
                f"{chance:.3f}: a student would learn noise. Train it longer, at another learning rate or seed, "
                "or on more rows"
            )
        return teacher

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits on `train`, shape ``(len(train), num_labels)``; also attached to `train`."""
        key = hashlib.sha256(f"{fingerprint(self.teacher)} {self.train.fingerprint}".encode()).hexdigest()
        path = self.runs / f"{self.task.name}-logits-{key[:12]}.safetensors"
        with self.precision():
            logits = cached_logits(self.teacher, self.train, path)
        self.train.attach(logits)
        return logits

    @cached_property
    def fine_tuned(self) -> DistilBERTwithBottleNeck:
        """The baseline: the same student trained on the labels, started from the pretrained teacher."""
        return self._stage("fine_tuned", DistilBERTwithBottleNeck, self._fresh_student, self._stage_two(alpha=0.0))

    @cached_property
    def distilled(self) -> DistilBERTwithBottleNeck:
        """Stage 2: the student trained on the teacher's logits and the labels, started from the teacher."""
        p = self.profile
        settings = self._stage_two(alpha=p.alpha) | {"temperature": p.temperature, **self._taught_by()}
        return self._stage("distilled", DistilBERTwithBottleNeck, self._taught_student, settings)

    @cached_property
    def bottleneck(self) -> DistilBERTwithBottleNeck:
        """Stage 3: the distilled student's frozen encoder, discretised; values trained on key indices."""
        p = self.profile
        settings = {
            "epochs": p.bottleneck_epochs,
            "learning_rate": p.bottleneck_learning_rate,
            "alpha": p.alpha,
            "temperature": p.temperature,
            "num_codebooks": p.num_codebooks,
            "codebook_size": p.codebook_size,
            "encoder": fingerprint(self.distilled),
            **self._taught_by(),
        }
        return self._stage("bottleneck", DistilBERTwithBottleNeck, self.discretized, settings)

    def precision(self) -> AbstractContextManager:
        """Return the autocast under which the encoders of this experiment run: bfloat16, or none."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.autocast(device.type, torch.bfloat16, enabled=self.profile.bf16)

    def discretized(self) -> DistilBERTwithBottleNeck:
        """Return the distilled student with a bottleneck whose keys are fitted and whose values are still zero."""
        return self.distilled.discretize(
            self.train,
            num_codebooks=self.profile.num_codebooks,
            codebook_size=self.profile.codebook_size,
            seed=self.seed,
        )

    def scores(self) -> dict[str, dict[str, float]]:
        """Score all six systems on the validation split.

        Returns
        -------
        dict
            System (the names of `SYSTEMS`) to metric to number. Metrics of MNLI's mismatched split end in
            ``_mismatched``.
        """
        return {system: self._score(system) for system in SYSTEMS}

    def _score(self, system: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, dataset in self.validation.items():
            labels = np.asarray(dataset.labels)
            if system == "majority":
                predictions = majority_predictions(self.data["train"]["label"][:], self.task.name, len(labels))
            elif system == "tfidf":
                predictions = tfidf_predictions(self.data["train"], self.data[name], self.task.name)
            else:
                predictions = predict_logits(getattr(self, system), dataset).numpy()
            suffix = "_mismatched" if name.endswith("_mismatched") else ""
            metrics = compute_metrics(self.task.name, predictions, labels)
            found |= {f"{metric}{suffix}": value for metric, value in metrics.items()}
        return found

    def _fresh_student(self) -> DistilBERTwithBottleNeck:
        p = self.profile
        if p.student_checkpoint:
            set_seed(self.seed)
            return DistilBERTwithBottleNeck.for_task(self.task.name, p.student_checkpoint)
        return DistilBERTwithBottleNeck.from_teacher(self._pretrained())

    def _pretrained(self) -> BERTbase:
        return BERTbase.for_task(
            self.task.name, self.profile.teacher_checkpoint, self.profile.teacher_pooling, self.seed
        )

    def _taught_student(self) -> DistilBERTwithBottleNeck:
        if self.profile.student_checkpoint:
            return self._fresh_student()
        set_seed(self.seed)
        return DistilBERTwithBottleNeck.from_teacher(self.teacher)

    def _stage_two(self, alpha: float) -> dict[str, Any]:
        p = self.profile
        return {"epochs": p.student_epochs, "learning_rate": p.student_learning_rate, "alpha": alpha}

    def _taught_by(self) -> dict[str, str]:
        return {"teacher_logits": hashlib.sha256(self.teacher_logits.numpy().tobytes()).hexdigest()}

    def _stage(
        self,
        stage: str,
        model_class: type[PreTrainedModel],
        build: Callable[[], PreTrainedModel],
        settings: dict[str, Any],
    ) -> PreTrainedModel:
        """Load a finished stage, or build, train and keep it."""
        p = self.profile
        made_from = settings | {
            "stage": stage,
            "task": self.task.name,
            "seed": self.seed,
            "teacher_checkpoint": p.teacher_checkpoint,
            "student_checkpoint": p.student_checkpoint,
            "teacher_pooling": p.teacher_pooling,
            "batch_size": p.batch_size,
            "bf16": p.bf16,
            "train": self.train.fingerprint,
            "held_out": self.held_out.fingerprint,
            "versions": {name: version(name) for name in ("kvlib", "torch", "transformers")},
        }
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        folder = self.runs / f"{self.task.name}-{stage}-{key[:12]}"
        if not folder.is_dir():
            self.runs.mkdir(parents=True, exist_ok=True)
            # written aside and renamed: a stage is whole or not there, and a failed one leaves nothing
            with tempfile.TemporaryDirectory(dir=self.runs, prefix=f"{folder.name}-") as aside:
                self._run_stage(stage, build, settings, made_from, Path(aside))
                (Path(aside) / "finished").rename(folder)
        record = json.loads((folder / "record.json").read_text())
        if record["made_from"] != made_from:
            raise ValueError(f"{folder} was made from something else than its name says: delete it")
        self.seconds[stage] = record["seconds"]
        self.histories[stage] = pd.read_csv(folder / "history.csv")
        return model_class.from_pretrained(folder / "model", dtype=torch.float32)

    def _run_stage(
        self,
        stage: str,
        build: Callable[[], PreTrainedModel],
        settings: dict[str, Any],
        made_from: dict[str, Any],
        aside: Path,
    ) -> None:
        start = time.perf_counter()
        model = build()
        history = self._train(stage, model, aside / "checkpoints", settings)
        finished = aside / "finished"
        model.save_pretrained(finished / "model")
        self.tokenizer.save_pretrained(finished / "model")
        history.to_csv(finished / "history.csv", index=False)
        record = {
            "made_from": made_from,
            "seconds": time.perf_counter() - start,
            "peak_memory_mb": _peak_memory_mb(),
            "threads": torch.get_num_threads(),
        }
        (finished / "record.json").write_text(json.dumps(record, indent=1))

    def _train(
        self, stage: str, model: PreTrainedModel, output_dir: Path, settings: dict[str, Any]
    ) -> pd.DataFrame:
        train, held_out, options = self.train, self.held_out, {"batch_size": self.profile.batch_size}
        options["bf16"] = self.profile.bf16
        if stage == "bottleneck":
            train, held_out = (KeyIndexDataset(model, split, self.runs) for split in (train, held_out))
            options |= {"weight_decay": 0.0, "train_sampling_strategy": "random"}
        if stage != "teacher":
            loss = {name: settings[name] for name in ("temperature", "alpha") if name in settings}
            options["trainer"] = partial(DistillationTrainer, **loss)
        return fine_tune(
            model,
            train,
            held_out,
            output_dir,
            epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            seed=self.seed,
            **options,
        )


@dataclass(frozen=True)
class Distilled:
    """What `distil` returns.

    Parameters
    ----------
    teacher : BERTbase
        Stage 1.
    fine_tuned, distilled, bottleneck : DistilBERTwithBottleNeck
        The student without a teacher, of stage 2, and of stage 3.
    metrics : dict
        What ``metrics.json`` holds.
    """

    teacher: BERTbase
    fine_tuned: DistilBERTwithBottleNeck
    distilled: DistilBERTwithBottleNeck
    bottleneck: DistilBERTwithBottleNeck
    metrics: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Scores by system, one column a metric."""
        frame = pd.DataFrame(self.metrics["scores"]).T
        return frame.rename(index=SYSTEMS)


def distil(
    task: str,
    source: str | Path | None = None,
    profile: str | Profile | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    runs: str | Path | None = None,
) -> Distilled:
    """Run the whole recipe on one task: teach, distil, discretise, score.

    Stages that an earlier call finished with the same data, settings and seed are read from `runs`.

    Parameters
    ----------
    task, source, profile, seed, runs
        As in `Experiment`.
    output : str or pathlib.Path, optional
        Folder for ``metrics.json`` and, under ``student``, the discretised student with its tokenizer.

    Returns
    -------
    Distilled

    Raises
    ------
    WeakTeacherError
        If the teacher does not beat the majority class on held-out rows.
    ValueError, FileNotFoundError
        As `load_glue` and `get_profile`.
    """
    experiment = Experiment(task, source, profile, seed, runs)
    teacher = experiment.teacher  # first of all: a weak one ends the run here
    scores = experiment.scores()
    rows = {"train": len(experiment.train) + len(experiment.held_out)}
    rows |= {name.removesuffix("_matched"): len(split) for name, split in experiment.validation.items()}
    metrics = {
        "task": task,
        "profile": experiment.profile.name,
        "source": experiment.source,
        "seed": seed,
        "rows": rows,
        "scores": scores,
        "seconds": experiment.seconds,
        "peak_memory_mb": _peak_memory_mb(),
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets")},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    if output is not None:
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
        experiment.bottleneck.save_pretrained(output / "student")
        experiment.tokenizer.save_pretrained(output / "student")
        aside = output / f"metrics.json.{os.getpid()}.partial"
        aside.write_text(json.dumps(metrics, indent=1) + "\n")
        aside.replace(output / "metrics.json")
    return Distilled(teacher, experiment.fine_tuned, experiment.distilled, experiment.bottleneck, metrics)


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes on Linux, bytes on macOS
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
