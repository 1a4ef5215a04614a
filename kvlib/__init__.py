"""kvlib: distil BERT into a DistilBERT with a discrete key-value bottleneck on GLUE."""

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.data import TASKS, CustomDataset, Task, hold_out
from kvlib.evaluation import evaluate
from kvlib.loss import distillation_loss
from kvlib.metrics import compute_metrics
from kvlib.pretrained import load_tokenizer
from kvlib.recipe import PROFILES, Experiment, distil, get_profile
from kvlib.search import nearest_keys
from kvlib.sources.glue import load_glue
from kvlib.sources.own_data import load_task
from kvlib.student import BERTwithBottleNeck, DistilBERTwithBottleNeck
from kvlib.teacher import BERTbase, predict_logits
from kvlib.training import DistillationTrainer, FineTuningTrainer, KeyIndexDataset, fine_tune

__all__ = [
    "PROFILES",
    "TASKS",
    "BERTbase",
    "BERTwithBottleNeck",
    "CustomDataset",
    "DiscreteKeyValueBottleneck",
    "DistilBERTwithBottleNeck",
    "DistillationTrainer",
    "Experiment",
    "FineTuningTrainer",
    "KeyIndexDataset",
    "Task",
    "compute_metrics",
    "distil",
    "distillation_loss",
    "evaluate",
    "fine_tune",
    "get_profile",
    "hold_out",
    "load_glue",
    "load_task",
    "load_tokenizer",
    "nearest_keys",
    "predict_logits",
]
