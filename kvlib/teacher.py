"""Stage 1: fine-tune BERT on a task, then keep its logits."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from accelerate import PartialState
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from kvlib.data import CustomDataset, Task, get_task
from kvlib.metrics import compute_metrics
from kvlib.profiles import resolve_checkpoint

MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def process_state() -> PartialState:
    """Join the processes that a launcher started, once; later calls only look them up."""
    # without cpu=True several processes without an accelerator would each think they are alone; and while the
    # first computes a cache, the others may wait for longer than the usual half hour
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))


@contextmanager
def writing(path: Path, way_out: str) -> Iterator[None]:
    """Turn the errors of a full disk, which differ by library and name no file, into one OSError that does."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch appends its C++ stack
        reason = str(error).strip().split("\n")[0]
        raise OSError(f"cannot write {path}: {reason}. {way_out}") from error


def load_tokenizer(checkpoint: str = "minilm") -> PreTrainedTokenizerBase:
    """Load the tokenizer that teacher and student share."""
    return AutoTokenizer.from_pretrained(resolve_checkpoint(checkpoint))


def label_config(task: Task) -> dict[str, Any]:
    """Return what a model's config says about the labels of `task`."""
    names = task.label_names or ("score",)
    return {
        "num_labels": task.num_labels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
    }


class BERTbaseConfig(BertConfig):
    """BERT's config and how its tokens become one vector.

    Parameters
    ----------
    pooling : {"cls", "mean"}
        ``"cls"`` is BERT's own: its pretrained pooler on the [CLS] token. ``"mean"`` takes the mean over the
        real tokens, the way all-MiniLM-L6-v2 was pretrained.
    """

    model_type = "kvlib-bert"

    pooling: str = "cls"


class BERTbase(BertPreTrainedModel):
    """The teacher: a BERT encoder, pooling, dropout and a linear head.

    With ``pooling="cls"`` it computes what `transformers.BertForSequenceClassification` does.
    """

    config_class = BERTbaseConfig

    def __init__(self, config: BERTbaseConfig) -> None:
        super().__init__(config)
        if config.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling is {config.pooling!r}, expected 'cls' or 'mean'")
        self.bert = BertModel(config, add_pooling_layer=config.pooling == "cls")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def for_task(cls, task: str, checkpoint: str = "minilm", pooling: str = "mean", seed: int = 0) -> "BERTbase":
        """Load a pretrained BERT with a new head for `task`.

        Parameters
        ----------
        task : str
            One of the eight GLUE names.
        checkpoint : str
            Folder or hub name of a BERT checkpoint; ``"minilm"`` for the pip-installed one.
        pooling : {"mean", "cls"}
            As in `BERTbaseConfig`.
        seed : int
            Seed of the new head's weights (and of PyTorch's generator from here on).

        Raises
        ------
        ValueError
            If the checkpoint's labels have names that differ from the task's or stand in another order: its
            class numbers would mean something else.
        """
        spec = get_task(task)
        path = resolve_checkpoint(checkpoint)
        pretrained = BertConfig.from_pretrained(path)
        named = tuple(pretrained.id2label[number].lower() for number in range(pretrained.num_labels))
        if not all(name.startswith("label_") for name in named) and named != spec.label_names:
            raise ValueError(
                f"{checkpoint} numbers its labels {', '.join(named)}, but {task} numbers them "
                f"{', '.join(spec.label_names) or 'not at all'}: start from a checkpoint without a head"
            )
        config = cls.config_class.from_dict(pretrained.to_dict() | label_config(spec) | {"pooling": pooling})
        set_seed(seed)
        # dtype: transformers would otherwise keep the checkpoint's, and half precision does not train here
        return cls.from_pretrained(path, config=config, dtype=torch.float32, use_safetensors=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids : torch.Tensor
            ``(B, T)`` int64, as BERT's tokenizer gives them.
        labels : torch.Tensor, optional
            ``(B,)``: class numbers (int64), or scores for regression.

        Returns
        -------
        transformers.modeling_outputs.SequenceClassifierOutput
            ``logits``, shape ``(B, num_labels)``; with `labels` also ``loss``, the mean cross-entropy or
            squared error.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        encoded = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        pooled = encoded.pooler_output
        if self.config.pooling == "mean":
            real = attention_mask.unsqueeze(-1).to(encoded.last_hidden_state.dtype)  # (B, T, 1)
            pooled = (encoded.last_hidden_state * real).sum(1) / real.sum(1)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None and self.config.problem_type == "regression":
            loss = F.mse_loss(logits.squeeze(-1), labels)
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class _LengthGrouped(LengthGroupedSampler):
    """Shuffle by seed and epoch alone: the same order in every process, and again after a resume."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


class GuardedTrainer(Trainer):
    """`transformers.Trainer` for a `CustomDataset`, with an end that explains itself.

    It stops at a loss that is not finite (FloatingPointError, with step, learning rate and idx of the batch),
    says what to lower when memory runs out (MemoryError), and marks each checkpoint that is whole on the disk, so
    that a half-written one is never resumed from. Several processes see the rows in the order in which one would;
    only if the last batch of an epoch is not full do they fill theirs up with rows from the epoch's start.
    """

    # the loss is a mean over the batch: without this, accumulating gradients would add instead of averaging
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # by default columns that forward does not name are dropped: idx and teacher_logits
        self.args.remove_unused_columns = False
        self.label_names = ["labels"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss on the labels; `Trainer` calls this in training and in evaluation."""
        outputs = model(**{name: inputs[name] for name in (*MODEL_INPUTS, "labels")})
        return (outputs.loss, {"logits": outputs.logits}) if return_outputs else outputs.loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or say why it cannot be done."""
        try:
            return super().train(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            # on a CPU torch has no class of its own for it
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
                raise MemoryError(self._out_of_memory()) from error
            raise

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Do one step, unless its loss is not finite."""
        # read before the step: a GPU may not be asked after a failure
        idx = inputs["idx"].tolist() if "idx" in inputs else "not in it"
        self._last_batch = tuple(next(iter(inputs.values())).shape)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}, at learning rate "
                f"{self._get_learning_rate():.2e}, in the batch with idx {idx}: lower the learning rate, look at "
                "these rows, or train without bf16. The last checkpoint was written before it"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; weights that no longer give a finite loss stop here, before they get into a checkpoint."""
        metrics = super().evaluate(*args, **kwargs)
        if not np.isfinite(metrics["eval_loss"]):
            raise FloatingPointError(
                f"the loss on held-out rows is {metrics['eval_loss']} after step {self.state.global_step}, at "
                f"learning rate {self._get_learning_rate():.2e}: lower the learning rate, or train without bf16. "
                "The last checkpoint was written before it"
            )
        return metrics

    def _out_of_memory(self) -> str:
        rows, *shape = getattr(self, "_last_batch", (self.args.per_device_train_batch_size,))
        return (
            f"out of memory in step {self.state.global_step + 1}, in a batch of {rows} rows of {tuple(shape)}: "
            f"lower batch_size ({self.args.per_device_train_batch_size} a process) and raise "
            "gradient_accumulation_steps by as much, lower max_length, or set gradient_checkpointing or bf16"
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _LengthGrouped(rows, self.train_dataset.lengths.tolist(), self.args.seed)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        kept = whole_checkpoint(folder.parent)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with writing(folder, f"Make room and start the same command again; it goes on from {kept or 'the start'}"):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _mark_whole(folder)
        # an older one goes only now that this one is whole
        self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(folder.parent, limit, self.state.best_model_checkpoint)


_WHOLE = "whole.json"


def _mark_whole(checkpoint: Path) -> None:
    """Write down the size of each file, after the last one has reached the disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    aside = checkpoint / f"{_WHOLE}.partial"
    aside.write_text(json.dumps(sizes))
    _sync(aside)
    aside.replace(checkpoint / _WHOLE)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def whole_checkpoint(folder: str | Path) -> Path | None:
    """Return the last checkpoint in `folder` that was written to its end, None if there is none.

    A run that goes on from a checkpoint may end with the weights of the best one so far, so that one must be whole
    too.
    """
    for path in sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if _is_whole(path):
            best = json.loads((path / "trainer_state.json").read_text())["best_global_step"]
            if best is None or _is_whole(path.with_name(f"checkpoint-{best}")):
                return path
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _WHOLE).read_text())
    except (OSError, ValueError):
        return False
    return all(
        (file := checkpoint / name).is_file() and file.stat().st_size == size for name, size in sizes.items()
    )


def fine_tune(
    model: PreTrainedModel,
    train: Dataset,
    held_out: Dataset,
    output_dir: str | Path,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 16,
    weight_decay: float = 0.01,
    seed: int = 0,
    resume: bool = False,
    trainer: Callable[..., Trainer] = GuardedTrainer,
    **arguments: Any,
) -> pd.DataFrame:
    """Train `model` with AdamW and keep its best epoch.

    Linear warm-up over the first tenth of the steps, then linear decay to zero; gradients clipped to norm 1.
    The best epoch is chosen by the task's first metric on rows *held out of training*.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Trained in place; ends with the weights of its best epoch, in evaluation mode.
    train, held_out : Dataset
        As `CustomDataset`: with ``task`` and ``collate``.
    output_dir : str or pathlib.Path
        Folder for the checkpoints, one kept at a time beside the best.
    epochs : int
        Passes over `train`.
    learning_rate : float
        Peak learning rate.
    batch_size : int
        Examples a step, over all processes.
    weight_decay : float
        AdamW's; biases and layer norms are exempt.
    seed : int
        Of shuffling and dropout.
    resume : bool
        Go on from the last whole checkpoint in `output_dir`, if there is one. It must come from the same call.
        What was half-written when a run was killed is removed.
    trainer : callable
        `GuardedTrainer` or `DistillationTrainer`, perhaps with options bound by `functools.partial`.
    **arguments
        Further `transformers.TrainingArguments`, for example ``bf16=True``.

    Returns
    -------
    pandas.DataFrame
        One row an epoch: ``epoch``, ``train_loss`` (mean over the epoch), ``held_out_loss`` and the metrics on
        the held-out rows.

    Raises
    ------
    FileExistsError
        If `output_dir` holds checkpoints and `resume` is False: they may belong to another run.
    """
    task: Task = train.task
    has_checkpoint = any(Path(output_dir).glob("checkpoint-*"))
    if has_checkpoint and not resume:
        raise FileExistsError(
            f"{output_dir} holds checkpoints: pass resume=True to go on from them, or choose another folder"
        )
    last = whole_checkpoint(output_dir)
    state = process_state()
    if batch_size % state.num_processes:
        raise ValueError(
            f"batch_size is {batch_size}, the examples of one step over all processes: expected a multiple of the "
            f"{state.num_processes} processes"
        )
    if state.is_main_process:
        for path in Path(output_dir).glob("checkpoint-*"):
            if last is None or int(path.name.split("-")[1]) > int(last.name.split("-")[1]):
                shutil.rmtree(path)
    state.wait_for_everyone()
    quiet = are_progress_bars_disabled()
    settings = {
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size // state.num_processes,
        "per_device_eval_batch_size": 2 * batch_size,
        "weight_decay": weight_decay,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        # one fused kernel: on CPUs the plain loop over 100 tensors took a tenth of a step
        "optim": "adamw_torch_fused",
        # like lengths together: less padding to compute
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        # the best and the last
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": task.metrics[0],
        "greater_is_better": True,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": quiet,
        "dataloader_pin_memory": torch.cuda.is_available(),
        # bf16 on a CPU is refused unless the CPU is asked for by name
        "use_cpu": not torch.accelerator.is_available(),
    }
    run = trainer(
        model=model,
        args=TrainingArguments(str(output_dir), **(settings | arguments)),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=train.collate,
        compute_metrics=partial(_metrics, task.name),
    )
    # prints every log as a dict when bars are off
    run.remove_callback(PrinterCallback)
    run.train(resume_from_checkpoint=str(last) if last else None)
    model.eval()
    return _epochs(run.state.log_history)


def _metrics(task: str, output: EvalPrediction) -> dict[str, float]:
    if not np.isfinite(output.predictions).all():
        # `GuardedTrainer` stops at their loss, and can say more about it
        return {}
    return compute_metrics(task, output.predictions, output.label_ids)


def _epochs(log_history: list[dict[str, float]]) -> pd.DataFrame:
    losses = {row["epoch"]: row["loss"] for row in log_history if "loss" in row}
    rows = []
    for row in log_history:
        if "eval_loss" in row:
            metrics = {
                name.removeprefix("eval_"): value
                for name, value in row.items()
                if name.startswith("eval_") and not name.endswith(("_loss", "_runtime", "_second"))
            }
            rows.append(
                {
                    "epoch": row["epoch"],
                    "train_loss": losses[row["epoch"]],
                    "held_out_loss": row["eval_loss"],
                    **metrics,
                }
            )
    return pd.DataFrame(rows)


@torch.inference_mode()
def predict_logits(model: PreTrainedModel, dataset: CustomDataset, batch_size: int = 64) -> Tensor:
    """Run `model` over `dataset` in evaluation mode, without a graph.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Teacher or student; its training mode is put back afterwards.
    dataset : CustomDataset
        Its row order is kept, whatever the batches.
    batch_size : int
        Rows a batch; rows of like length go together to save padding.

    Returns
    -------
    torch.Tensor
        Logits, shape ``(len(dataset), num_labels)``, float32, on the CPU.
    """
    was_training = model.training
    model.eval()
    logits = torch.empty(len(dataset), model.config.num_labels)
    for rows in np.array_split(np.argsort(dataset.lengths, kind="stable"), -(-len(dataset) // batch_size)):
        batch = dataset.collate([dataset[int(row)] for row in rows])
        inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
        logits[torch.from_numpy(rows)] = model(**inputs).logits.float().cpu()
    model.train(was_training)
    return logits


@torch.inference_mode()
def predict_states(model: PreTrainedModel, dataset: CustomDataset, batch_size: int = 64) -> Tensor:
    """Run the encoder of `model` over `dataset` in evaluation mode and keep the last hidden states.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A teacher; its training mode is put back afterwards.
    dataset : CustomDataset
        Its row order is kept.
    batch_size : int
        Rows a batch.

    Returns
    -------
    torch.Tensor
        ``(sum(dataset.lengths), dim)``, one row a real token, float16 (half the disk; a BERT's states are of
        the order of one), on the CPU.
    """
    was_training = model.training
    model.eval()
    ends = np.concatenate([[0], np.cumsum(dataset.lengths)])
    states = torch.empty(ends[-1], model.config.hidden_size, dtype=torch.float16)
    for rows in np.array_split(np.argsort(dataset.lengths, kind="stable"), -(-len(dataset) // batch_size)):
        batch = dataset.collate([dataset[int(row)] for row in rows])
        inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
        found = model.base_model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
        tokens = np.concatenate([np.arange(ends[row], ends[row + 1]) for row in rows])
        states[torch.from_numpy(tokens)] = found.half().cpu()
    model.train(was_training)
    return states


def fingerprint(tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of a model's weights and buffers, or of named tensors: changes whenever they do."""
    digest = hashlib.sha256()
    named = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a fast tokenizer's vocabulary and rules."""
    # truncation and padding are left over from the last call, not a property of the tokenizer
    fresh = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    fresh.no_truncation()
    fresh.no_padding()
    return hashlib.sha256(fresh.to_str().encode()).hexdigest()


def cached_tensors(
    path: str | Path, made_from: dict[str, str], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors kept in `path`, computing them only if it does not exist.

    The file (safetensors) is written aside and renamed, so it is whole or not there. It is read through a memory
    map: a row comes from the disk when it is looked at.

    Parameters
    ----------
    path : str or pathlib.Path
        The cache file.
    made_from : dict of str to str
        Fingerprints of all that the tensors depend on, by name; kept in the file.
    compute : callable
        Gives the tensors by name.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    ValueError
        If the file was made from something else; the message says from what.
    """
    path = Path(path)
    # of several processes the first computes, the others read
    with process_state().main_process_first():
        if not path.exists():
            _write_tensors(path, compute(), made_from)
    with safe_open(path, framework="pt") as stored:
        found = stored.metadata() or {}
        differing = [name for name, value in made_from.items() if found.get(name) != value]
        if differing:
            raise ValueError(
                f"{path} was made from another {' and '.join(differing)}: delete it, or choose another path"
            )
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)


def _write_tensors(path: Path, tensors: dict[str, Tensor], made_from: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with writing(path, "Make room and start the same command again"):
            save_file(tensors, aside, metadata=made_from)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def cached_logits(teacher: PreTrainedModel, dataset: CustomDataset, path: str | Path) -> Tensor:
    """Return the teacher's logits on `dataset`, computing them only if `path` does not exist.

    Parameters
    ----------
    teacher : transformers.PreTrainedModel
        A fine-tuned teacher.
    dataset : CustomDataset
        The rows to run it on.
    path : str or pathlib.Path
        The cache file, see `cached_tensors`.

    Returns
    -------
    torch.Tensor
        Shape ``(len(dataset), num_labels)``, float32, in the order of `dataset`.

    Raises
    ------
    ValueError
        If the file was made from another teacher, tokenizer, or other rows; the message says which.
    """
    made_from = _taught_by(teacher, dataset)
    return cached_tensors(path, made_from, lambda: {"logits": predict_logits(teacher, dataset)})["logits"]


def cached_states(teacher: PreTrainedModel, dataset: CustomDataset, path: str | Path) -> Tensor:
    """Return what `predict_states` gives, computing it only if `path` does not exist; as `cached_logits`."""
    made_from = _taught_by(teacher, dataset)
    return cached_tensors(path, made_from, lambda: {"states": predict_states(teacher, dataset)})["states"]


def _taught_by(teacher: PreTrainedModel, dataset: CustomDataset) -> dict[str, str]:
    return {
        "teacher": fingerprint(teacher),
        "tokenizer": tokenizer_fingerprint(dataset.tokenizer),
        "rows": dataset.fingerprint,
    }


AutoConfig.register(BERTbaseConfig.model_type, BERTbaseConfig)
AutoModelForSequenceClassification.register(BERTbaseConfig, BERTbase)
