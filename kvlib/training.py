"""Fine-tuning with the Trainer: on labels, on a teacher's logits, and on key indices in place of tokens."""

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from transformers.utils import ModelOutput

from kvlib.augmentation import FreshTextDataset
from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.cache import cached_tensors, disk_errors, fingerprint
from kvlib.checkpoints import last_complete, mark_complete, step_of
from kvlib.data import MODEL_INPUTS, CustomDataset
from kvlib.loss import alignment_loss, distillation_loss, layer_loss
from kvlib.machine import process_state
from kvlib.metrics import compute_metrics
from kvlib.student import EncoderWithBottleNeck
from kvlib.teacher import given, predict_packed

# epochs of one seed that come before those of the next: their orders never meet
_EPOCHS_A_SEED = 1_000_003


class _LengthGrouped(LengthGroupedSampler):
    """Shuffle by seed and epoch alone: the same order in every process, and again after a resume."""

    def __init__(self, batch_size: int, dataset: Dataset, seed: int) -> None:
        super().__init__(batch_size, lengths=dataset.lengths.tolist())
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if isinstance(self.dataset, FreshTextDataset):
            # with several processes, accelerate would not tell it
            self.dataset.set_epoch(epoch)
            self.lengths = self.dataset.lengths.tolist()

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed * _EPOCHS_A_SEED + self.epoch)
        return super().__iter__()


class FineTuningTrainer(Trainer):
    """`transformers.Trainer` for a `CustomDataset`, with an end that explains itself.

    It stops at a loss that is not finite (FloatingPointError, with step, learning rate and idx of the batch),
    says what to lower when memory runs out (MemoryError), and never resumes from a half-written checkpoint.
    Several processes see the rows in the order in which one would; only if the last batch of an epoch is not full
    do they fill theirs up with rows from the epoch's start.
    """

    # the loss is a mean over the batch, whatever a model's forward takes: accumulated gradients are averaged
    loss_is_scaled_for_ga = False
    # what the model is called with, where a batch has it
    _inputs = (*MODEL_INPUTS, "key_indices", "labels")
    _output_hidden_states: bool | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # by default columns that forward does not name are dropped: idx and teacher_logits
        self.args.remove_unused_columns = False
        self.label_names = ["labels"]
        if self.args.bf16 and self.args.device.type == "cpu":
            # torch's fused attention goes backwards in bfloat16 on a processor three to nine times more slowly
            self.model.set_attn_implementation("eager")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch, in training and in evaluation; stop training if it is not finite."""
        self._last_batch = tuple(next(iter(inputs.values())).shape)
        options = given(output_hidden_states=self._output_hidden_states)
        outputs = model(**{name: inputs[name] for name in self._inputs if name in inputs}, **options)
        loss = self._loss(outputs, inputs)
        # in evaluation too: weights that give no finite loss must not get into a checkpoint
        if self.is_in_train and not torch.isfinite(loss):
            step = self.state.global_step
            where = f"in step {step + 1}" if model.training else f"on held-out rows after step {step}"
            idx = inputs["idx"].tolist() if "idx" in inputs else "not in it"
            raise FloatingPointError(
                f"the loss is {loss.item()} {where}, at learning rate {self._get_learning_rate():.2e}, in the "
                f"batch with idx {idx}: lower the learning rate, look at these rows, or train without bf16. The "
                "last checkpoint was written before it"
            )
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _loss(self, outputs: ModelOutput, inputs: dict[str, Tensor]) -> Tensor:
        return outputs.loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, or say what to lower."""
        try:
            return super().train(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            # on a CPU torch has no class of its own for it
            if not out_of_memory and "can't allocate memory" not in str(error):
                raise
            rows, *shape = getattr(self, "_last_batch", (self.args.per_device_train_batch_size,))
            raise MemoryError(
                f"out of memory in step {self.state.global_step + 1}, in a batch of {rows} rows of {tuple(shape)}"
                f": lower batch_size ({self.args.per_device_train_batch_size} a process) and raise "
                "gradient_accumulation_steps by as much, lower max_length, or set gradient_checkpointing or bf16"
            ) from error

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _LengthGrouped(rows, self.train_dataset, self.args.seed)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        kept = last_complete(folder.parent)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        way_out = f"Make room and start the same command again; it goes on from {kept or 'the start'}"
        with disk_errors(folder, way_out):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder)
        # an older one goes only now that this one is complete
        self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(folder.parent, limit, self.state.best_model_checkpoint)


class DistillationTrainer(FineTuningTrainer):
    """`FineTuningTrainer` with `distillation_loss`.

    Batches carry ``labels`` and, in training, ``teacher_logits``, as `CustomDataset` gives them; the teacher
    itself is not needed. Where there are no teacher logits (evaluation), the loss is that on the labels. Values
    of a bottleneck are exempt from weight decay, which would shrink those that no input selected. ValueError is
    raised if the training data lacks the teacher's logits or states that a positive weight needs.

    Parameters
    ----------
    temperature, alpha : float
        As in `distillation_loss`; ``alpha=0`` is fine-tuning without a teacher.
    alignment_weight : float
        Weight of the `alignment_loss`, added to the others. A mean over a batch's tokens: accumulated gradients
        are those of one large batch only up to the batches' unequal numbers of tokens.
    bottleneck, key_weight
        As in `alignment_loss`: the teacher's, to whose keys the student is aligned before it carries them.
    lazy : bool
        For values: `LazyAdam` in place of AdamW.
    """

    # without labels: with alpha=1 they may be hidden
    _inputs = (*MODEL_INPUTS, "key_indices")

    def __init__(
        self,
        *args: Any,
        temperature: float = 2.0,
        alpha: float = 0.9,
        alignment_weight: float = 0.0,
        bottleneck: DiscreteKeyValueBottleneck | None = None,
        key_weight: float = 0.0,
        lazy: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if lazy:
            self.optimizer_cls_and_kwargs = LazyAdam, {"lr": self.args.learning_rate}
        self.temperature, self.alpha = temperature, alpha
        self.alignment_weight, self.key_weight = alignment_weight, key_weight
        if alignment_weight > 0 and bottleneck is None:
            raise ValueError(f"alignment_weight is {alignment_weight} but there is no bottleneck to align to")
        # a copy: the teacher stays where it is
        self.bottleneck = None if bottleneck is None else copy.deepcopy(bottleneck).to(self.args.device)
        for name, weight, column in (("alpha", alpha, "logits"), ("alignment_weight", alignment_weight, "states")):
            if weight > 0 and getattr(self.train_dataset, f"teacher_{column}", None) is None:
                raise ValueError(
                    f"{name} is {weight} but the training data has no teacher {column}: make it with "
                    f"teacher_{column}, or use {name}=0"
                )

    def _loss(self, outputs: ModelOutput, inputs: dict[str, Tensor]) -> Tensor:
        teacher_logits = inputs.get("teacher_logits")
        # without them, training stops with an error, and evaluation has the labels
        alpha = self.alpha if self.model.training or teacher_logits is not None else 0.0
        loss = distillation_loss(outputs.logits, teacher_logits, inputs["labels"], self.temperature, alpha)
        if self.alignment_weight > 0 and "teacher_states" in inputs:
            states = outputs.packed_states.float(), inputs["teacher_states"].float()
            loss = loss + self.alignment_weight * alignment_loss(self.bottleneck, *states, self.key_weight)
        return loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that weight decay shrinks."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("bottleneck.values")]


class LazyAdam(torch.optim.Adam):
    """Adam that moves only the rows with a gradient: values that no example of a batch selected stay bit by bit.

    Adam and AdamW move them on by the momentum of earlier steps. A row is the last dimension of a parameter. Its
    moments are Adam's, and fade while it stays. (`torch.optim.SparseAdam` does much the same, forty times more
    slowly at 32 codebooks of 256 values.)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step."""
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [(p, p.clone(), (p.grad == 0).all(-1, keepdim=True)) for p in moving]
        loss = super().step(closure)
        for parameter, old, idle in before:
            parameter.copy_(torch.where(idle, old, parameter))
        return loss


class LayerTrainer(FineTuningTrainer):
    """`FineTuningTrainer` with `layer_loss`, the teacher answering in the step: it needs no labels and no logits.

    The epoch with the smallest loss on held-out rows is kept. Embeddings stay as they are and no dropout is used:
    student and teacher see the same numbers.

    Parameters
    ----------
    teacher : transformers.PreTrainedModel
        A model whose hidden states are as wide as the student's; a copy of it is used.
    """

    _inputs = MODEL_INPUTS
    _output_hidden_states = True

    def __init__(self, *args: Any, teacher: PreTrainedModel, **kwargs: Any) -> None:
        # the head is not trained: its scores would mean nothing
        super().__init__(*args, **kwargs | {"compute_metrics": None})
        self.args.metric_for_best_model, self.args.greater_is_better = "eval_loss", False
        self.teacher = copy.deepcopy(teacher).to(self.args.device).eval()

    def _loss(self, outputs: ModelOutput, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            named = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
            theirs = self.teacher(**named, output_hidden_states=True).hidden_states
        return layer_loss(outputs.hidden_states[1:], theirs[1:], inputs["attention_mask"])

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the layers alone."""
        dropouts = [module for module in self.model.modules() if isinstance(module, nn.Dropout)]
        before = [module.p for module in dropouts]
        embeddings = self.model.base_model.embeddings.requires_grad_(False)
        for module in dropouts:
            module.p = 0.0
        try:
            return super().train(*args, **kwargs)
        finally:
            embeddings.requires_grad_(True)
            for module, p in zip(dropouts, before, strict=True):
                module.p = p


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
    trainer: Callable[..., Trainer] = FineTuningTrainer,
    **arguments: Any,
) -> pd.DataFrame:
    """Train `model` in place with AdamW; it ends in evaluation mode, with the weights of its best epoch.

    Linear warm-up to `learning_rate` over the first tenth of the steps, then linear decay to zero; gradients
    clipped to norm 1; no weight decay of biases and layer norms. The task's first metric on rows *held out of
    training* chooses the best epoch. `batch_size` counts the examples of a step over all processes.

    `output_dir` keeps checkpoints of the best and the last epoch. With `resume`, training goes on from the last
    complete one, which must come from the same call; without it, a folder that has any raises FileExistsError.
    `trainer` is `FineTuningTrainer` or one of its subclasses, perhaps with options bound by `functools.partial`;
    `arguments` are further `transformers.TrainingArguments`, for example ``bf16=True``.

    Returns one row an ``epoch``: ``train_loss``, ``held_out_loss`` and the metrics on the held-out rows. Raises
    ValueError if one process sees several GPUs, or if `batch_size` cannot be divided among the processes.
    """
    processes = process_state().num_processes
    if batch_size % processes:
        raise ValueError(f"batch_size is {batch_size} a step over all processes, not a multiple of {processes}")
    settings = {
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size // processes,
        "per_device_eval_batch_size": 2 * batch_size,
        "weight_decay": weight_decay,
        "warmup_steps": 0.1,
        # like lengths together: less padding to compute
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": train.task.metrics[0],
        "seed": seed,
        "disable_tqdm": are_progress_bars_disabled(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # bf16 on a CPU is refused unless the CPU is asked for by name
        "use_cpu": not torch.accelerator.is_available(),
    }
    settings = TrainingArguments(str(output_dir), **(settings | arguments))
    for name in ("eval_strategy", "logging_strategy"):
        if getattr(settings, name) == "steps":
            raise ValueError(
                f"{name} is 'steps', but the history that is returned has a row an epoch: leave it out"
            )
    if settings.n_gpu > 1:
        raise ValueError(
            f"{settings.n_gpu} GPUs are visible to one process, and each would take a batch of {batch_size}: "
            "start one process a GPU with accelerate launch, or set CUDA_VISIBLE_DEVICES=0"
        )
    last = _checkpoint_to_resume(Path(output_dir), resume)
    run = trainer(
        model=model,
        args=settings,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=train.collate,
        compute_metrics=lambda output: compute_metrics(train.task, output.predictions, output.label_ids),
    )
    # prints every log as a dict when bars are off
    run.remove_callback(PrinterCallback)
    run.train(resume_from_checkpoint=str(last) if last else None)
    model.eval()
    return _history(run.state.log_history)


def _checkpoint_to_resume(output_dir: Path, resume: bool) -> Path | None:
    """Return the last complete checkpoint and remove those after it, or refuse a folder that has any."""
    checkpoints, state = list(output_dir.glob("checkpoint-*")), process_state()
    if checkpoints and not resume:
        raise FileExistsError(f"{output_dir} holds checkpoints: go on with resume=True, or choose another folder")
    last = last_complete(output_dir)
    if state.is_main_process:
        for path in checkpoints:
            if last is None or step_of(path) > step_of(last):
                shutil.rmtree(path)
    state.wait_for_everyone()
    return last


def _history(log: list[dict[str, float]]) -> pd.DataFrame:
    # an epoch's training loss and its evaluation are two entries
    epochs = pd.DataFrame(log).groupby("epoch", as_index=False).first()
    names = {"epoch": "epoch", "loss": "train_loss", "eval_loss": "held_out_loss"}
    metrics = epochs.filter(regex="^eval_(?!loss$|runtime$|samples_per_second$|steps_per_second$)").columns
    # without an evaluation there is no loss of it
    epochs = epochs.reindex(columns=[*names, *metrics])
    return epochs.rename(columns=lambda name: names.get(name, name.removeprefix("eval_")))


class KeyIndexDataset(Dataset):
    """A split as the bottleneck sees it: key indices (codes) in place of tokens.

    With encoder and keys frozen they are constant, so stage 3 trains on integers. The model gives the same logits
    for them as for the tokens, bit for bit; only where two keys are equally near to within the rounding of the
    encoder's float32, another batch may find the other. Labels, idx, teacher logits and order are those of
    `dataset`. With a `folder` they are kept there, in a file named by what they were made from; ValueError if it
    does not match, RuntimeError if the keys are not frozen.

    Attributes
    ----------
    key_indices : torch.Tensor
        ``(N, C)``, those of one row after those of another, in the smallest integer type that holds K.
    lengths : numpy.ndarray
        How many of them belong to each row: its real tokens, or 1 if hidden states are pooled before the search.
    """

    def __init__(
        self,
        student: EncoderWithBottleNeck,
        dataset: CustomDataset,
        folder: str | Path | None = None,
        batch_size: int = 64,
    ) -> None:
        if not student.bottleneck.frozen:
            raise RuntimeError("the keys are not frozen, so indices can still change: call freeze_keys() first")
        self.task, self.labels, self.idx = dataset.task, dataset.labels, dataset.idx
        self.teacher_logits = dataset.teacher_logits
        self.lengths = student.states_per_row(dataset)
        self._ends = self.lengths.cumsum()
        if folder is None:
            self.key_indices = _key_indices(student, dataset, batch_size)
        else:
            options = ("pool", "projection", "standardize")
            made_from = {
                "encoder": fingerprint(student.base_model),
                "bottleneck": fingerprint(dict(student.bottleneck.named_buffers())),
                "options": " ".join(str(getattr(student.config, option)) for option in options),
                "rows": dataset.fingerprint,
            }
            name = hashlib.sha256(" ".join(made_from.values()).encode()).hexdigest()[:12]
            self.key_indices = cached_tensors(
                Path(folder) / f"{dataset.task.name}-key-indices-{name}.safetensors",
                made_from,
                lambda: {"key_indices": _key_indices(student, dataset, batch_size)},
            )["key_indices"]

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, row: int) -> dict:
        end = self._ends[row]
        indices = self.key_indices[end - self.lengths[row] : end].long()  # (T, C)
        example = {"key_indices": indices, "labels": self.labels[row], "idx": self.idx[row]}
        if self.teacher_logits is not None:
            example["teacher_logits"] = self.teacher_logits[row].tolist()
        return example

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """Stack `examples`: ``key_indices`` (B, T, C) int64 with -1 at padding; the rest as `CustomDataset`."""
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        batch = {"key_indices": pad_sequence(columns.pop("key_indices"), batch_first=True, padding_value=-1)}
        return batch | {name: torch.tensor(column) for name, column in columns.items()}


def _key_indices(student: EncoderWithBottleNeck, dataset: CustomDataset, batch_size: int) -> Tensor:
    largest = student.bottleneck.codebook_size - 1
    smallest = next(kind for kind in (torch.uint8, torch.uint16, torch.uint32) if largest <= torch.iinfo(kind).max)

    def quantize(**inputs: Tensor) -> Tensor:
        return student.bottleneck.quantize(student.encode(**inputs)[0]).to(smallest)

    return predict_packed(student, dataset, quantize, student.states_per_row(dataset), batch_size)
