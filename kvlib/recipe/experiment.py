"""One task and one seed: the stages of the recipe, each trained once and then read from disk."""

import copy
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from kvlib.augmentation import FreshTextDataset
from kvlib.cache import disk_errors, fingerprint, share_files
from kvlib.checkpoints import last_complete
from kvlib.data import CustomDataset, Task, get_task, hold_out
from kvlib.evaluation import (
    bootstrap_interval,
    evaluate,
    majority_predictions,
    probe_predictions,
    tfidf_predictions,
)
from kvlib.machine import announce, device, peak_memory_mb, process_state
from kvlib.metrics import compute_metrics, metric_functions
from kvlib.pretrained import checkpoint_fingerprint, load_tokenizer
from kvlib.recipe.profiles import Profile, check_models, get_profile
from kvlib.recipe.stages import STAGE_FORMAT, STAGES, Stage, systems_of
from kvlib.sources.glue import load_glue
from kvlib.student import BERTwithBottleNeck, DistilBERTwithBottleNeck
from kvlib.teacher import BERTbase, cached_logits, cached_states, predict_logits
from kvlib.training import DistillationTrainer, FineTuningTrainer, KeyIndexDataset, LayerTrainer, fine_tune


def runs_folder() -> Path:
    """Return ``KVLIB_RUNS``, or ``data/runs`` of the checkout if there is one, else of the working directory."""
    checkout = Path(__file__).resolve().parents[2]
    base = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return Path(os.environ.get("KVLIB_RUNS") or base / "data" / "runs")


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that NumPy would not take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed is {seed}, expected a whole number from 0 to {2**32 - 1}")


class WeakTeacherError(RuntimeError):
    """The teacher knows no more than the majority class: there is nothing to distil."""


class Experiment:
    """One task, one seed: the data and the stages of `STAGES`, each trained once and then read from disk.

    Parameters
    ----------
    task : str or Task
        A GLUE task's name, or a task.
    source : str, pathlib.Path or datasets.DatasetDict, optional
        As in `load_glue`, or the splits themselves, as `load_task` gives them; by default the profile's.
    profile : str or Profile, optional
        By default the one that ``KVLIB_PROFILE`` names, else ``"quick"``.
    seed : int
        Seed for the held-out rows, new heads, shuffling, dropout and keys.
    runs : str or pathlib.Path, optional
        Folder for finished stages; by default `runs_folder`.
    max_rows : int, optional
        Take only so many of the training rows, drawn by their labels' shares and for all seeds the same.

    Attributes
    ----------
    data : datasets.DatasetDict
        All splits as loaded.
    train_split : datasets.Dataset
        The part of the training split that is trained on.
    records : dict of str to dict
        What each stage took so far, by name: ``epochs``, ``seconds``, ``peak_memory_mb`` (of its process up to
        then), ``threads``, ``processes``, and whether it was ``resumed`` (then they are those of its last
        process).
    histories : dict of str to pandas.DataFrame
        The epochs of each stage so far, by name, as `fine_tune` gives them.
    """

    def __init__(
        self,
        task: str | Task,
        source: str | Path | DatasetDict | None = None,
        profile: str | Profile | None = None,
        seed: int = 0,
        runs: str | Path | None = None,
        max_rows: int | None = None,
    ) -> None:
        self.task = get_task(task)
        profile = profile if isinstance(profile, Profile) else get_profile(profile)
        check_seed(seed)
        self.seed = seed
        self.runs = Path(runs) if runs else runs_folder()
        given = isinstance(source, DatasetDict)
        self.source = self.task.name if given else str(source or profile.source)
        self.data = DatasetDict(source) if given else load_glue(self.task, self.source)
        if missing := [name for name in ("train", self.task.validation[0]) if name not in self.data]:
            raise FileNotFoundError(
                f"{self.source} has no {' and no '.join(missing)} split of {self.task.name}, only "
                f"{', '.join(self.data)}"
            )
        self.profile = check_models(profile)
        if max_rows is not None and max_rows < len(self.data["train"]):
            self.data["train"] = _drawn(self.data["train"], max_rows)
        self.tokenizer = load_tokenizer(self.profile.teacher_checkpoint)
        # saved with each model, so that whoever uses it reads as many tokens as in training
        self.tokenizer.model_max_length = self.profile.max_length
        self.train_split, self._held_out_split = hold_out(self.data["train"], seed=seed)
        self.records: dict[str, dict[str, Any]] = {}
        self.histories: dict[str, pd.DataFrame] = {}
        # kept while someone holds them, for a grid of all systems would keep a dozen; but processes that read a
        # stage together must all have it or none, whenever their garbage is collected
        self._models: MutableMapping[str, PreTrainedModel] = (
            WeakValueDictionary() if process_state().num_processes == 1 else {}
        )
        # of the stages as they were read
        self._fingerprints: dict[str, str] = {}
        self._predictions: dict[tuple[str, str], np.ndarray] = {}

    @cached_property
    def train(self) -> CustomDataset:
        """The rows of `train_split`."""
        return self.tokenize(self.train_split)

    @cached_property
    def held_out(self) -> CustomDataset:
        """The other rows of the training split: the best epoch is chosen by them."""
        return self.tokenize(self._held_out_split)

    @cached_property
    def validation(self) -> dict[str, CustomDataset]:
        """The validation split; two for MNLI, matched first. Reported, never chosen by."""
        return {name: self.tokenize(self.data[name]) for name in self.task.validation if name in self.data}

    def tokenize(self, split: Dataset, **teacher: Tensor) -> CustomDataset:
        """Tokenise a split of the task, with the teacher's logits and states as in `CustomDataset`."""
        return CustomDataset(split, self.tokenizer, self.task, self.profile.max_length, **teacher)

    def model(self, name: str) -> PreTrainedModel:
        """Return the trained model of one of `STAGES`, on `kvlib.machine.device`.

        The same object is returned while anyone holds it; after that it is read again from disk, without changes
        made in place. Several processes keep all models.

        Raises
        ------
        WeakTeacherError
            If the teacher that it needs does not beat the majority class on the held-out rows.
        """
        model = self._models.get(name)
        if model is None:
            model = self._read_or_train(STAGES[name])
            if name not in self._fingerprints:
                if name == "teacher":
                    self._refuse_weak_teacher(model)
                self._fingerprints[name] = fingerprint(model)
            self._models[name] = model
        return model

    def _fingerprint_of(self, name: str) -> str:
        held = self._models.get(name)
        if held is None and name not in self._fingerprints:
            held = self.model(name)
        # a model in somebody's hands may have been changed in place
        return self._fingerprints[name] if held is None else fingerprint(held)

    @cached_property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits on `train`, shape ``(len(train), num_labels)``."""
        return self._logits_of(self.model("teacher"))

    def precision(self) -> AbstractContextManager:
        """Return the autocast under which the encoders of this experiment run: bfloat16, or none."""
        return torch.autocast(device().type, torch.bfloat16, enabled=self.profile.bf16)

    def start(self, name: str) -> PreTrainedModel:
        """Return the model that a stage starts from, untrained: a bottleneck has keys, but zero values."""
        stage = STAGES[name]
        source, teacher = (
            None if parent is None else self.model(parent) for parent in (stage.source, stage.teacher)
        )
        with self.precision():
            return STARTS[stage.start](self, source, teacher).to(device())

    def scores(self, system: str = "all") -> dict[str, dict[str, float]]:
        """Score a compared system, or ``"all"``, and what stands beside it: by system what `score` gives."""
        return {name: self.score(name) for name in systems_of(system)}

    def score(self, system: str) -> dict[str, float]:
        """Score one of `SYSTEMS` on the validation split, after training what it needs: metric to number.

        Metrics of MNLI's mismatched split end in ``_mismatched``.
        """
        found: dict[str, float] = {}
        for name, dataset in self.validation.items():
            predictions = self.predictions(system, name)
            suffix = "_mismatched" if name.endswith("_mismatched") else ""
            metrics = compute_metrics(self.task, predictions, np.asarray(dataset.labels))
            found |= {f"{metric}{suffix}": value for metric, value in metrics.items()}
        return found

    def interval(self, system: str) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of a system's first metric on the (matched) validation split."""
        split = self.task.validation[0]
        predictions = self.predictions(system, split)
        if predictions.ndim == 2:
            predictions = predictions[:, 0] if self.task.is_regression else predictions.argmax(1)
        metric = metric_functions(self.task)[self.task.metrics[0]]
        labels = np.asarray(self.validation[split].labels)
        with warnings.catch_warnings():
            # of few rows, a resample may hold one class
            warnings.simplefilter("ignore")
            return bootstrap_interval(metric, predictions, labels, resamples=400)

    def rows_used(self) -> dict[str, int]:
        """Count the rows of the training split (held-out ones included) and of each validation split."""
        rows = {"train": len(self.train) + len(self.held_out)}
        return rows | {name.removesuffix("_matched"): len(split) for name, split in self.validation.items()}

    def predictions(self, system: str, split: str) -> np.ndarray:
        """Return a system's predictions for a validation split: logits, or a baseline's classes or scores."""
        if (system, split) not in self._predictions:
            self._predictions[system, split] = self._predict(system, split)
        return self._predictions[system, split]

    def _predict(self, system: str, split: str) -> np.ndarray:
        # the baselines see the rows that the students are trained on
        dataset = self.validation[split]
        if system == "majority":
            return majority_predictions(self.train.labels, self.task, len(dataset))
        if system == "tfidf":
            return tfidf_predictions(self.train_split, self.data[split], self.task)
        # made before: training inside another autocast would see the weights that it has cached, and learn nothing
        model = self.start("fine-tuned") if system == "linear-probe" else self.model(system)
        with self.precision():
            if system == "linear-probe":
                return probe_predictions(model, self.train, dataset)
            return predict_logits(model, dataset).numpy()

    def _refuse_weak_teacher(self, teacher: BERTbase) -> None:
        metric = self.task.metrics[0]
        majority = majority_predictions(self.train.labels, self.task, len(self.held_out))
        chance = compute_metrics(self.task, majority, np.asarray(self.held_out.labels))[metric]
        score = evaluate(teacher, self.held_out)[metric]
        if score <= chance:
            raise WeakTeacherError(
                f"the teacher's {metric} on held-out {self.task.name} rows is {score:.3f}, the majority class's "
                f"{chance:.3f}: a student would learn noise. Train it longer, at another learning rate or seed, "
                "or on more rows"
            )

    def key_options(self, of_teacher: bool = False) -> dict[str, int]:
        """Return the shape of a student's or the teacher's bottleneck and the seed for its keys."""
        p = self.profile
        # keys that start at the same tokens would have the same numbers in teacher and student: seeds far apart
        seed = self.seed + 1_000_003 if of_teacher else self.seed
        return {"num_codebooks": p.num_codebooks, "codebook_size": p.codebook_size, "seed": seed}

    def _logits_of(self, teacher: PreTrainedModel) -> Tensor:
        with self.precision():
            return cached_logits(teacher, self.train, self._cache("logits", teacher))

    def _cache(self, what: str, teacher: PreTrainedModel) -> Path:
        key = hashlib.sha256(f"{fingerprint(teacher)} {self.train.fingerprint}".encode()).hexdigest()
        return self.runs / f"{self.task.name}-{what}-{key[:12]}.safetensors"

    def _read_or_train(self, stage: Stage) -> PreTrainedModel:
        made_from = self._made_from(stage)
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        folder = self.runs / f"{self.task.name}-{stage.name}-{key[:12]}"
        with _locked(folder) as is_finished:
            if not is_finished:
                self._announce_other_formats(folder)
                self._train_in(folder, stage, made_from)
            elif process_state().is_main_process:
                # what a run leaves that is killed once its stage is finished
                shutil.rmtree(_training_folder(folder), ignore_errors=True)
        return self._read(folder, stage, made_from)

    def _read(self, folder: Path, stage: Stage, made_from: dict[str, Any]) -> PreTrainedModel:
        try:
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            if record.pop("made_from") != made_from:
                raise ValueError("its record does not match its name")
            history = pd.read_csv(folder / "history.csv")
            model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{folder} is damaged ({error}): delete it and start the same command again"
            ) from error
        self.records[stage.name], self.histories[stage.name] = record, history
        return model.to(device())

    def _made_from(self, stage: Stage) -> dict[str, Any]:
        """Name all that the result of a stage depends on."""
        p = self.profile
        checkpoints = [
            checkpoint_fingerprint(name) for name in (p.teacher_checkpoint, p.student_checkpoint) if name
        ]
        parents = {name: self._fingerprint_of(name) for name in (stage.source, stage.teacher) if name}
        made_from = {
            "format": STAGE_FORMAT,
            "stage": stage.name,
            "task": self.task.name,
            "labels": self.task.label_names,
            "seed": self.seed,
            "checkpoints": checkpoints,
            "teacher_pooling": p.teacher_pooling,
            "parents": parents,
            "settings": self._settings(stage),
            "loss": self._loss_options(stage),
            "keys": self.key_options(stage.role == "teacher") if stage.trains_on == "key indices" else None,
            "train": self.train.fingerprint,
            "held_out": self.held_out.fingerprint,
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
        # as JSON gives it back
        return json.loads(json.dumps(made_from))

    def _settings(self, stage: Stage) -> dict[str, Any]:
        p = self.profile
        return {
            "epochs": getattr(p, f"{stage.schedule}_epochs"),
            "learning_rate": stage.learning_rate or getattr(p, f"{stage.schedule}_learning_rate"),
            "batch_size": p.batch_size,
            "bf16": p.bf16,
        }

    def _loss_options(self, stage: Stage) -> dict[str, float]:
        """Return what the stage's trainer takes; a stage without teacher learns from the labels alone."""
        p = self.profile
        if stage.trains_on == "fresh text":
            return {}
        if stage.teacher is None:
            return {"alpha": 0.0}
        options = {"temperature": p.temperature, "alpha": p.alpha if stage.alpha is None else stage.alpha}
        if stage.aligns:
            options |= {"alignment_weight": p.alignment_weight, "key_weight": p.key_weight}
        return options

    def _announce_other_formats(self, folder: Path) -> None:
        # the key is hexadecimal: "teacher-*" would find the teacher with a bottleneck, too
        stage, key = folder.name[:-12], "[0-9a-f]" * 12
        records = [json.loads(path.read_text("utf-8")) for path in self.runs.glob(f"{stage}{key}/record.json")]
        others = {record["made_from"].get("format", 1) for record in records} - {STAGE_FORMAT}
        if others and process_state().is_main_process:
            found = " and ".join(map(str, sorted(others)))
            announce(
                f"{self.runs} has {stage[:-1]} of format {found}, this is format {STAGE_FORMAT}: trained anew"
            )

    def _train_in(self, folder: Path, stage: Stage, made_from: dict[str, Any]) -> None:
        """Train a stage in a folder aside, from its last complete checkpoint on, and rename it when finished."""
        aside = _training_folder(folder)
        finished = aside / "finished"
        resumed = last_complete(aside / "checkpoints") is not None
        begun = time.perf_counter()
        model = self.start(stage.name)
        history = self._train(model, stage, aside / "checkpoints")
        record = {
            "made_from": made_from,
            "epochs": made_from["settings"]["epochs"],
            "seconds": time.perf_counter() - begun,
            "peak_memory_mb": peak_memory_mb(),
            "threads": torch.get_num_threads(),
            "processes": process_state().num_processes,
            "resumed": resumed,
        }
        if process_state().is_main_process:
            # what an earlier process was killed in the middle of
            shutil.rmtree(finished, ignore_errors=True)
            with disk_errors(folder, "Make room and start the same command again; the training itself is kept"):
                model.save_pretrained(finished / "model")
                self.tokenizer.save_pretrained(finished / "model")
                history.to_csv(finished / "history.csv", index=False)
                (finished / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
                share_files(finished)
                finished.rename(folder)
            shutil.rmtree(aside)

    def _train(self, model: PreTrainedModel, stage: Stage, output_dir: Path) -> pd.DataFrame:
        train, held_out, settings = self.train, self.held_out, self._settings(stage)
        trainer: Callable[..., FineTuningTrainer] = partial(DistillationTrainer, **self._loss_options(stage))
        if stage.trains_on == "fresh text":
            rows = (self.train_split, self.tokenizer, self.task, self.profile.max_length)
            train = FreshTextDataset(*rows, seed=self.seed)
            trainer = partial(LayerTrainer, teacher=self.model(stage.teacher))
        elif stage.teacher:
            train = self._with_teacher(stage)
        if stage.aligns:
            trainer = partial(trainer, bottleneck=self.model(stage.teacher).bottleneck)
        if stage.trains_on == "key indices":
            with self.precision():
                train, held_out = (KeyIndexDataset(model, split, self.runs) for split in (train, held_out))
            settings |= {"weight_decay": 0.0, "train_sampling_strategy": "random"}
        return fine_tune(
            model, train, held_out, output_dir, seed=self.seed, resume=True, trainer=trainer, **settings
        )

    def _with_teacher(self, stage: Stage) -> CustomDataset:
        """Return the training rows with the logits of the stage's teacher, perhaps with its encoder's states."""
        teacher = {"teacher_logits": self._logits_of(self.model(stage.teacher))}
        if stage.aligns:
            # the teacher with a bottleneck has the same encoder
            encoder = self.model("teacher")
            with self.precision():
                teacher["teacher_states"] = cached_states(encoder, self.train, self._cache("states", encoder))
        return self.tokenize(self.train_split, **teacher)


def _pretrained_teacher(experiment: Experiment) -> BERTbase:
    p = experiment.profile
    return BERTbase.for_task(experiment.task, p.teacher_checkpoint, p.teacher_pooling, experiment.seed)


def _student(experiment: Experiment, source: BERTbase | None = None) -> DistilBERTwithBottleNeck:
    """Start the profile's student, or else from layers of `source`, by default of the pretrained teacher."""
    set_seed(experiment.seed)
    if checkpoint := experiment.profile.student_checkpoint:
        return DistilBERTwithBottleNeck.for_task(experiment.task, checkpoint)
    return DistilBERTwithBottleNeck.from_teacher(_pretrained_teacher(experiment) if source is None else source)


def _student_of_more_layers(experiment: Experiment, source: BERTbase) -> DistilBERTwithBottleNeck:
    set_seed(experiment.seed)
    return DistilBERTwithBottleNeck.from_teacher(source, max(1, source.config.num_hidden_layers * 2 // 3))


# how the model of a stage is made, of the experiment and the models of its source and its teacher
STARTS: dict[str, Callable[..., PreTrainedModel]] = {
    "pretrained teacher": lambda experiment, source, teacher: _pretrained_teacher(experiment),
    "pretrained student": lambda experiment, source, teacher: _student(experiment),
    "teacher's layers": lambda experiment, source, teacher: _student(experiment, source),
    "more layers": lambda experiment, source, teacher: _student_of_more_layers(experiment, source),
    "copy": lambda experiment, source, teacher: copy.deepcopy(source),
    "new head": lambda experiment, source, teacher: source.with_new_head(experiment.seed),
    "discretised": lambda experiment, source, teacher: source.discretize(
        experiment.train, **experiment.key_options()
    ),
    "discretised pretrained student": lambda experiment, source, teacher: (
        _student(experiment).to(device()).discretize(experiment.train, **experiment.key_options())
    ),
    "discretised teacher": lambda experiment, source, teacher: BERTwithBottleNeck.from_teacher(
        source, experiment.train, **experiment.key_options(of_teacher=True)
    ),
    "carried keys": lambda experiment, source, teacher: source.carry_keys(teacher),
}


def _drawn(split: Dataset, rows: int) -> Dataset:
    stratify = "label" if isinstance(split.features["label"], ClassLabel) else None
    return split.train_test_split(train_size=rows, seed=0, stratify_by_column=stratify)["train"]


def _training_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training")


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep other runs away from `folder` and say whether it is finished; the processes of one run go together."""
    state = process_state()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    # what is finished needs no lock, which a disk that cannot be written would refuse
    if state.is_main_process and not folder.is_dir():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            announce(f"another run is training {folder}: waiting until it has finished")
            lock.acquire()
    try:
        state.wait_for_everyone()
        is_finished = folder.is_dir()
        state.wait_for_everyone()
        yield is_finished
        state.wait_for_everyone()
    finally:
        # held on one process only; released by the system if that is killed
        lock.release()
