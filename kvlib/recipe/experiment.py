"""The whole recipe in one place: three stages, each kept on disk under what it was made from."""

import copy
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from filelock import FileLock
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from kvlib.data import CustomDataset, get_task, hold_out, load_glue
from kvlib.discretized import BERTwithBottleNeck
from kvlib.evaluation import evaluate, majority_predictions, probe_predictions, tfidf_predictions
from kvlib.metrics import compute_metrics
from kvlib.profiles import Profile, get_profile
from kvlib.student import DistilBERTwithBottleNeck
from kvlib.teacher import (
    BERTbase,
    cached_logits,
    cached_states,
    fine_tune,
    fingerprint,
    load_tokenizer,
    predict_logits,
    process_state,
    whole_checkpoint,
    writing,
)
from kvlib.training import DistillationTrainer, KeyIndexDataset

RUNS = Path(__file__).resolve().parents[1] / "data" / "runs"
# what is scored, in the order of the tables
SYSTEMS = {
    "majority": "majority class",
    "tfidf": "TF-IDF + linear model",
    "linear-probe": "linear probe on the pretrained student",
    "undistilled": "bottleneck on the pretrained student",
    "fine-tuned": "student without teacher",
    "teacher": "teacher",
    "distilbert": "distilled student",
    "bottleneck": "distilled student with bottleneck",
    "teacher-bottleneck": "teacher with bottleneck",
    "new-keys": "its student with bottleneck, new keys",
    "carried-keys": "its student with bottleneck, carried keys",
}
BASELINES = ("majority", "tfidf", "linear-probe", "undistilled", "fine-tuned")
# the four systems that are compared, each with the models before it
COMPARED = {
    "distilbert": ("teacher", "distilbert"),
    "bottleneck": ("teacher", "distilbert", "bottleneck"),
    "new-keys": ("teacher", "teacher-bottleneck", "new-keys"),
    "carried-keys": ("teacher", "teacher-bottleneck", "carried-keys"),
}
# the stages, as `Experiment` names them, that a system needs; of those that train anything
STAGES = {
    "undistilled": ("teacher", "undistilled"),
    "fine-tuned": ("fine_tuned",),
    "teacher": ("teacher",),
    "distilbert": ("teacher", "distilbert"),
    "bottleneck": ("teacher", "distilbert", "bottleneck"),
    "teacher-bottleneck": ("teacher", "teacher_bottleneck"),
    "new-keys": ("teacher", "teacher_bottleneck", "taught_by_bottleneck", "new_keys"),
    "carried-keys": ("teacher", "teacher_bottleneck", "aligned", "carried_keys"),
}


# of a stage's settings, those that `DistillationTrainer` takes
_LOSS_OPTIONS = ("temperature", "alpha", "hidden_weight", "key_weight")


def systems_of(system: str) -> list[str]:
    """Return what is scored for one of the four compared systems, or for ``"all"``, in the order of `SYSTEMS`.

    Raises
    ------
    ValueError
        If there is no such system.
    """
    if system not in ("all", *COMPARED):
        raise ValueError(f"unknown system {system!r}: choose one of {', '.join(COMPARED)}, all")
    chosen = COMPARED.values() if system == "all" else [COMPARED[system]]
    wanted = {*BASELINES, *(name for chain in chosen for name in chain)}
    return [name for name in SYSTEMS if name in wanted]


class WeakTeacherError(RuntimeError):
    """The teacher knows no more than the majority class: there is nothing to distil."""


class Experiment:
    """One task, one seed: the data and the stages, each trained once and then read from disk.

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
    max_rows : int, optional
        Take only the first of the training rows; by default all.

    Attributes
    ----------
    data : datasets.DatasetDict
        All splits as loaded.
    train_split : datasets.Dataset
        The part of the training split that is trained on.
    train, held_out : CustomDataset
        The two parts of the training split: to train on, and to choose the best epoch by.
    validation : dict of str to CustomDataset
        The validation split; two for MNLI, matched first. Reported, never chosen by.
    records : dict of str to dict
        What each stage took so far, by name: ``epochs``, ``seconds``, ``peak_memory_mb``, ``threads``,
        ``processes``, and whether it was ``resumed`` (then seconds and memory are those of its last process).
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
        self.records: dict[str, dict[str, Any]] = {}
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
        majority = majority_predictions(self.train.labels, self.task.name, len(labels))
        chance = compute_metrics(self.task.name, majority, labels)[metric]
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
        """The teacher's logits on `train`, shape ``(len(train), num_labels)``."""
        return self._logits_of(self.teacher)

    @cached_property
    def fine_tuned(self) -> DistilBERTwithBottleNeck:
        """The baseline: the same student trained on the labels, started from the pretrained teacher."""
        settings = self._student_settings() | {"alpha": 0.0}
        return self._stage("fine_tuned", DistilBERTwithBottleNeck, self._fresh_student, settings)

    @cached_property
    def distilbert(self) -> DistilBERTwithBottleNeck:
        """Stage 2: the student trained on the teacher's logits and the labels, started from the teacher."""
        settings = self._student_settings() | {"hidden_weight": self.profile.hidden_weight}
        return self._student_of(self.teacher, "distilbert", settings)

    @cached_property
    def bottleneck(self) -> DistilBERTwithBottleNeck:
        """Stage 3: the distilled student's frozen encoder, discretised; values trained on key indices."""
        return self._discretized_stage("bottleneck", self.distilbert, self.discretized, self.teacher)

    @cached_property
    def undistilled(self) -> DistilBERTwithBottleNeck:
        """The baseline: stage 3 on a pretrained encoder that no stage 2 has touched."""
        student = self._fresh_student()
        return self._discretized_stage("undistilled", student, partial(self._discretize, student), self.teacher)

    @cached_property
    def teacher_bottleneck(self) -> BERTwithBottleNeck:
        """The teacher's frozen encoder, discretised; values trained on the labels."""

        def build() -> BERTwithBottleNeck:
            with self.precision():
                return BERTwithBottleNeck.from_teacher(self.teacher, self.train, **self._keys())

        settings = self._value_settings(self.teacher) | {"alpha": 0.0}
        return self._stage("teacher_bottleneck", BERTwithBottleNeck, build, settings)

    @cached_property
    def new_keys(self) -> DistilBERTwithBottleNeck:
        """A student of the teacher with bottleneck, with keys fitted on its own hidden states."""
        settings = self._student_settings() | {"hidden_weight": self.profile.hidden_weight}
        student = self._student_of(self.teacher_bottleneck, "taught_by_bottleneck", settings)
        return self._discretized_stage(
            "new_keys", student, partial(self._discretize, student), self.teacher_bottleneck
        )

    @cached_property
    def aligned(self) -> DistilBERTwithBottleNeck:
        """A student of the teacher with bottleneck whose hidden states were aligned to the teacher's keys."""
        p = self.profile
        settings = self._student_settings() | {
            "hidden_weight": p.alignment_weight,
            "key_weight": p.key_weight,
            "start": "teacher's last layer norm",
        }
        return self._stage(
            "aligned", DistilBERTwithBottleNeck, self._student_to_align, settings, self.teacher_bottleneck
        )

    @cached_property
    def carried_keys(self) -> DistilBERTwithBottleNeck:
        """The aligned student behind the teacher's own keys; values trained on key indices."""
        build = partial(self.aligned.carry_keys, self.teacher_bottleneck)
        return self._discretized_stage("carried_keys", self.aligned, build, self.teacher_bottleneck)

    def precision(self) -> AbstractContextManager:
        """Return the autocast under which the encoders of this experiment run: bfloat16, or none."""
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        return torch.autocast(device.type, torch.bfloat16, enabled=self.profile.bf16)

    def discretized(self) -> DistilBERTwithBottleNeck:
        """Return the distilled student with a bottleneck whose keys are fitted and whose values are still zero."""
        return self._discretize(self.distilbert)

    def scores(self, system: str = "all") -> dict[str, dict[str, float]]:
        """Score one of the four systems, or all of them, and what stands beside it on the validation split.

        Returns
        -------
        dict
            System (as `systems_of` lists them) to metric to number. Metrics of MNLI's mismatched split end in
            ``_mismatched``.
        """
        return {name: self.score(name) for name in systems_of(system)}

    def score(self, system: str) -> dict[str, float]:
        """Score one of `SYSTEMS` on the validation split, after training what it needs."""
        found: dict[str, float] = {}
        for name, dataset in self.validation.items():
            labels = np.asarray(dataset.labels)
            if system == "majority":
                predictions = majority_predictions(self.data["train"]["label"][:], self.task.name, len(labels))
            elif system == "tfidf":
                predictions = tfidf_predictions(self.data["train"], self.data[name], self.task.name)
            else:
                predictions = self._predictions(system, dataset)
            suffix = "_mismatched" if name.endswith("_mismatched") else ""
            metrics = compute_metrics(self.task.name, predictions, labels)
            found |= {f"{metric}{suffix}": value for metric, value in metrics.items()}
        return found

    def model(self, system: str) -> PreTrainedModel:
        """Return the trained model of one of `SYSTEMS`."""
        return getattr(self, system.replace("-", "_"))

    def _predictions(self, system: str, dataset: CustomDataset) -> np.ndarray:
        model = self._fresh_student() if system == "linear-probe" else self.model(system)
        with self.precision():
            if system == "linear-probe":
                return probe_predictions(model, self.train, dataset)
            return predict_logits(model, dataset).numpy()

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

    def _student_to_align(self) -> DistilBERTwithBottleNeck:
        """Give a new student its teacher's last layer norm: both speak on one scale from the start."""
        student = self._taught_student()
        norm = self.teacher.bert.encoder.layer[-1].output.LayerNorm
        student.distilbert.transformer.layer[-1].output_layer_norm.load_state_dict(norm.state_dict())
        return student

    def _keys(self) -> dict[str, int]:
        p = self.profile
        return {"num_codebooks": p.num_codebooks, "codebook_size": p.codebook_size, "seed": self.seed}

    def _discretize(self, student: DistilBERTwithBottleNeck) -> DistilBERTwithBottleNeck:
        with self.precision():
            return student.discretize(self.train, **self._keys())

    def _student_of(
        self, teacher: BERTbase | BERTwithBottleNeck, stage: str, settings: dict[str, Any]
    ) -> DistilBERTwithBottleNeck:
        return self._stage(stage, DistilBERTwithBottleNeck, self._taught_student, settings, teacher)

    def _discretized_stage(
        self,
        stage: str,
        student: DistilBERTwithBottleNeck,
        build: Callable[[], DistilBERTwithBottleNeck],
        teacher: BERTbase | BERTwithBottleNeck,
    ) -> DistilBERTwithBottleNeck:
        return self._stage(stage, DistilBERTwithBottleNeck, build, self._value_settings(student), teacher)

    def _student_settings(self) -> dict[str, Any]:
        p = self.profile
        loss = {"temperature": p.temperature, "alpha": p.alpha}
        return {"epochs": p.student_epochs, "learning_rate": p.student_learning_rate} | loss

    def _value_settings(self, encoder: PreTrainedModel) -> dict[str, Any]:
        p = self.profile
        loss = {"temperature": p.temperature, "alpha": p.alpha}
        training = {"epochs": p.bottleneck_epochs, "learning_rate": p.bottleneck_learning_rate}
        return training | loss | self._keys() | {"encoder": fingerprint(encoder.base_model)}

    def _logits_of(self, teacher: PreTrainedModel) -> Tensor:
        with self.precision():
            return cached_logits(teacher, self.train, self._cache("logits", teacher))

    def _cache(self, what: str, teacher: PreTrainedModel) -> Path:
        key = hashlib.sha256(f"{fingerprint(teacher)} {self.train.fingerprint}".encode()).hexdigest()
        return self.runs / f"{self.task.name}-{what}-{key[:12]}.safetensors"

    def _stage(
        self,
        stage: str,
        model_class: type[PreTrainedModel],
        build: Callable[[], PreTrainedModel],
        settings: dict[str, Any],
        teacher: PreTrainedModel | None = None,
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
        if teacher is not None:
            made_from["teacher"] = fingerprint(teacher)
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        folder = self.runs / f"{self.task.name}-{stage}-{key[:12]}"
        with _alone(folder) as finished:
            if not finished:
                self._run_stage(stage, build, settings, made_from, teacher, folder)
            elif process_state().is_main_process:
                # what a run leaves that is killed once its stage is finished
                shutil.rmtree(_aside(folder), ignore_errors=True)
        record = json.loads((folder / "record.json").read_text())
        if record.pop("made_from") != made_from:
            raise ValueError(f"{folder} was made from something else than its name says: delete it")
        self.records[stage] = record
        self.histories[stage] = pd.read_csv(folder / "history.csv")
        return model_class.from_pretrained(folder / "model", dtype=torch.float32)

    def _run_stage(
        self,
        stage: str,
        build: Callable[[], PreTrainedModel],
        settings: dict[str, Any],
        made_from: dict[str, Any],
        teacher: PreTrainedModel | None,
        folder: Path,
    ) -> None:
        """Train a stage in a folder aside, from its last whole checkpoint on, and rename it when finished."""
        aside = _aside(folder)
        finished = aside / "finished"
        resumed = whole_checkpoint(aside / "checkpoints") is not None
        start = time.perf_counter()
        reset_peak_memory()
        model = build()
        history = self._train(stage, model, aside / "checkpoints", settings, teacher)
        record = {
            "made_from": made_from,
            "epochs": settings["epochs"],
            "seconds": time.perf_counter() - start,
            "peak_memory_mb": peak_memory_mb(),
            "threads": torch.get_num_threads(),
            "processes": PartialState().num_processes,
            "resumed": resumed,
        }
        if PartialState().is_main_process:
            # what an earlier process was killed in the middle of
            shutil.rmtree(finished, ignore_errors=True)
            with writing(folder, "Make room and start the same command again; the training itself is kept"):
                model.save_pretrained(finished / "model")
                self.tokenizer.save_pretrained(finished / "model")
                history.to_csv(finished / "history.csv", index=False)
                (finished / "record.json").write_text(json.dumps(record, indent=1))
                finished.rename(folder)
            shutil.rmtree(aside)

    def _train(
        self,
        stage: str,
        model: PreTrainedModel,
        output_dir: Path,
        settings: dict[str, Any],
        teacher: PreTrainedModel | None,
    ) -> pd.DataFrame:
        train, held_out = copy.copy(self.train), self.held_out
        options: dict[str, Any] = {"batch_size": self.profile.batch_size, "bf16": self.profile.bf16}
        if teacher is not None:
            states = None
            if settings.get("hidden_weight"):
                with self.precision():
                    states = cached_states(self.teacher, self.train, self._cache("states", self.teacher))
            train.attach(self._logits_of(teacher), states)
        if "encoder" in settings:
            with self.precision():
                train, held_out = (KeyIndexDataset(model, split, self.runs) for split in (train, held_out))
            options |= {"weight_decay": 0.0, "train_sampling_strategy": "random"}
        if stage != "teacher":
            loss = {name: settings[name] for name in _LOSS_OPTIONS if name in settings}
            if "key_weight" in settings:
                loss["bottleneck"] = teacher.bottleneck
            options["trainer"] = partial(DistillationTrainer, **loss)
        return fine_tune(
            model,
            train,
            held_out,
            output_dir,
            epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            seed=self.seed,
            resume=True,
            **options,
        )


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.unfinished")


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Keep other runs away from `folder` and say whether it is finished; the processes of one run go together."""
    state = process_state()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    if state.is_main_process:
        lock.acquire()
    try:
        state.wait_for_everyone()
        finished = folder.is_dir()
        state.wait_for_everyone()
        yield finished
        state.wait_for_everyone()
    finally:
        # held on one process only; released by the system if that is killed
        lock.release()


@dataclass(frozen=True)
class Distilled:
    """What `distil` returns.

    Parameters
    ----------
    models : dict of str to PreTrainedModel
        The trained models by system, as in `SYSTEMS`: teachers, students and baselines.
    metrics : dict
        What ``metrics.json`` holds.
    """

    models: dict[str, PreTrainedModel]
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
    system: str = "bottleneck",
) -> Distilled:
    """Run the whole recipe on one task: teach, distil, discretise, score.

    Stages that an earlier call finished with the same data, settings and seed are read from `runs`; one that was
    killed goes on from its last checkpoint.

    Parameters
    ----------
    task, source, profile, seed, runs
        As in `Experiment`.
    output : str or pathlib.Path, optional
        Folder for ``metrics.json`` and, under ``student``, the system's student with its tokenizer; with
        ``system="all"`` one folder a system.
    system : {"distilbert", "bottleneck", "new-keys", "carried-keys", "all"}
        What to train; ``"all"`` trains the four on shared teachers.

    Returns
    -------
    Distilled

    Raises
    ------
    WeakTeacherError
        If the teacher does not beat the majority class on held-out rows.
    ValueError, FileNotFoundError
        As `load_glue`, `get_profile` and `systems_of`.
    """
    names = systems_of(system)
    experiment = Experiment(task, source, profile, seed, runs)
    _ = experiment.teacher  # first of all: a weak one ends the run here
    scores = experiment.scores(system)
    metrics = {
        "task": task,
        "system": system,
        "profile": experiment.profile.name,
        "source": experiment.source,
        "seed": seed,
        "rows": rows_used(experiment),
        "scores": scores,
        "seconds": {stage: record["seconds"] for stage, record in experiment.records.items()},
        "peak_memory_mb": max(record["peak_memory_mb"] for record in experiment.records.values()),
        **machine(),
    }
    models = {name: experiment.model(name) for name in names if name in STAGES}
    if output is not None and PartialState().is_main_process:
        folders = {name: name for name in COMPARED} if system == "all" else {"student": system}
        _write_output(Path(output), experiment, folders, metrics)
    return Distilled(models, metrics)


def _write_output(output: Path, experiment: Experiment, folders: dict[str, str], metrics: dict[str, Any]) -> None:
    """Write the students, by folder the system whose it is, and the metrics."""
    for folder, system in folders.items():
        experiment.model(system).save_pretrained(output / folder)
        experiment.tokenizer.save_pretrained(output / folder)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "metrics.json", metrics)


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename it: the file is whole, or the old one."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.replace(path)


def rows_used(experiment: Experiment) -> dict[str, int]:
    """Count the rows of the training split (held-out ones included) and of each validation split."""
    rows = {"train": len(experiment.train) + len(experiment.held_out)}
    return rows | {name.removesuffix("_matched"): len(split) for name, split in experiment.validation.items()}


def machine() -> dict[str, Any]:
    """Name what a result depends on beside the code: package versions, processor, threads, processes."""
    return {
        "versions": {name: version(name) for name in ("kvlib", "torch", "transformers", "datasets")},
        "machine": f"{_processor()}, {torch.get_num_threads()} threads, {PartialState().num_processes} processes",
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    found = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{found}, {os.cpu_count()} cores"


def reset_peak_memory() -> None:
    """Start `peak_memory_mb` anew, where the system can (Linux); elsewhere it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Return the process's largest resident memory since `reset_peak_memory`, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1.024e-3
    # bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
