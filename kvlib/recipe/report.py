"""What a run leaves for a reader: the report beside a student, and its card for the hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay
from torch import Tensor
from transformers import PreTrainedModel

from kvlib.cache import write_aside
from kvlib.data import Task
from kvlib.evaluation import joined_texts
from kvlib.explore import loudest_keys
from kvlib.recipe.experiment import Experiment
from kvlib.recipe.stages import SYSTEMS
from kvlib.training import KeyIndexDataset


def write_report(experiment: Experiment, system: str, table: pd.DataFrame, folder: Path) -> None:
    """Write ``report.md`` and its picture into `folder`: scores, confusions, loudest keys, most certain mistakes.

    Parameters
    ----------
    experiment : Experiment
        Its validation split (for MNLI the matched one) is looked at.
    system : str
        One of `COMPARED`, which the report is about.
    table : pandas.DataFrame
        Scores by system.
    folder : pathlib.Path
        Where the files go.
    """
    task, split = experiment.task, experiment.task.validation[0]
    labels = np.asarray(experiment.validation[split].labels)
    logits = torch.as_tensor(experiment.predictions(system, split))
    with write_aside(folder / "report.png") as temporary:
        _draw(task, logits, labels).savefig(temporary, format="png", dpi=120)
    parts = [
        f"# {task.name}: {SYSTEMS[system]}",
        f"{len(experiment.train)} rows to train on, {len(experiment.held_out)} held out to choose the best epoch, "
        f"{len(labels)} to report on; seed {experiment.seed}, profile {experiment.profile.name}. Intervals are "
        "those of a bootstrap over the reported rows, and do not cover the spread over seeds.",
        _markdown(table),
        "![Predicted and true labels of the reported rows](report.png)",
    ]
    model = experiment.model(system)
    if model.has_bottleneck:
        fired = KeyIndexDataset(model, experiment.train)
        parts += [
            "## The keys that speak loudest",
            "By how far a key's value pushes one logit above the mean of all, in a text of one token; of keys "
            "that at least three training tokens fire. The share is of those tokens: how many stand in rows of "
            "this label.",
            _markdown(loudest_keys(model, experiment.train, fired), index=False),
        ]
    texts = joined_texts(experiment.data[split], task, " / ")
    mistakes = _mistakes(task, logits, labels, texts)
    parts += ["## The most certain mistakes", _markdown(mistakes, index=False) if len(mistakes) else "None."]
    with write_aside(folder / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _draw(task: Task, logits: Tensor, labels: np.ndarray) -> Figure:
    size = 4 + 0.4 * task.num_labels
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    if task.is_regression:
        axes.scatter(labels, logits.reshape(-1), s=10, alpha=0.5, color="black")
        axes.set(xlabel="true score", ylabel="predicted score", title=f"{task.name}: {len(labels)} rows")
        return figure
    ConfusionMatrixDisplay.from_predictions(
        labels, logits.argmax(-1).numpy(), labels=range(task.num_labels), display_labels=task.label_names,
        xticks_rotation="vertical", cmap="Blues", colorbar=False, ax=axes,
    )  # fmt: skip
    right = int((logits.argmax(-1).numpy() == labels).sum())
    axes.set(xlabel="predicted", ylabel="true", title=f"{task.name}: {right} of {len(labels)} rows right")
    return figure


def _mistakes(task: Task, logits: Tensor, labels: np.ndarray, texts: list[str], limit: int = 10) -> pd.DataFrame:
    """List the wrong rows of the highest probability, or for regression those furthest off."""
    if task.is_regression:
        scores = logits.reshape(-1).numpy()
        off = np.abs(scores - labels)
        rows = (-off).argsort(kind="stable")[:limit]
        columns = {"predicted": scores[rows].round(2), "true": labels[rows]}
    else:
        sure, chosen = (found.numpy() for found in logits.softmax(-1).max(-1))
        wrong = np.flatnonzero(chosen != labels)
        rows = wrong[(-sure[wrong]).argsort(kind="stable")][:limit]
        names = np.array(task.label_names)
        columns = {
            "probability": sure[rows].round(2),
            "predicted": names[chosen[rows]],
            "true": names[labels[rows]],
        }
    return pd.DataFrame(columns | {"text": [texts[row] for row in rows]})


def _markdown(table: pd.DataFrame, index: bool = True) -> str:
    """Write a frame as a Markdown table."""
    names = ([""] if index else []) + list(map(str, table.columns))
    rows = [
        ([str(place)] if index else []) + list(row)
        for place, row in zip(table.index, table.values.tolist(), strict=True)
    ]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}"
    return " ".join(str(value).split()).replace("|", "\\|")


def model_card(experiment: Experiment, system: str, model: PreTrainedModel, scores: dict[str, float]) -> ModelCard:
    """Make the hub's card of a student: metadata with its scores, how to load it, what it was made from."""
    task, p = experiment.task, experiment.profile
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["kvlib", "knowledge-distillation", "discrete-key-value-bottleneck"],
        model_name=f"{task.name}-{system}",
        eval_results=[
            EvalResult(
                "text-classification",
                task.name,
                experiment.source,
                metric,
                value,
                dataset_split=task.validation[0],
            )
            for metric, value in scores.items()
        ],
    )
    classes = f"Its labels are {', '.join(task.label_names)}." if task.label_names else "It predicts a number."
    rows = experiment.rows_used()
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {task.name}: {SYSTEMS[system]}

A text classifier distilled with kvlib from `{p.teacher_checkpoint}`: {model.num_parameters() / 1e6:.1f} million
parameters. {classes} It was trained on {rows["train"]} rows (seed {experiment.seed}); its scores are those on
{rows[task.validation[0].removesuffix("_matched")]} validation rows, which chose nothing.

```python
import kvlib  # registers the architecture
from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER OR HUB NAME")
```

Texts are read as far as {p.max_length} tokens. Who wrote the training texts, and for whom the model is fit, is for
its maker to add here.
"""
    )
