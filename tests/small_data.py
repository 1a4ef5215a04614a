"""Small data and a small model, for tests that need no more."""

import torch

from kvlib import BERTbase, load_glue
from kvlib.data import get_task
from kvlib.teacher import BERTbaseConfig, label_config

# a word that tells the class: a teacher learns it from a few dozen rows
_TELLING = {0: "terrible", 1: "wonderful", -1: "terrible"}


def easy_rows(folder, train=80, validation=40):
    """Write the first rows of mini SST-2 as a folder of one's own, each with a word that tells its class."""
    (folder / "sst2").mkdir(parents=True)
    for name, split in load_glue("sst2").items():
        frame = split.select(range(train if name == "train" else validation)).to_pandas()
        frame["sentence"] = frame["label"].map(_TELLING) + " " + frame["sentence"]
        frame.to_csv(folder / "sst2" / f"{name}.csv", index=False)
    return folder


def tiny_teacher(task="mrpc", dropout=0.1):
    """Return a BERT of random weights for MiniLM's tokens, in which a step takes a moment."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BERTbaseConfig(**shape, vocab_size=30522, pooling="mean", **label_config(get_task(task)))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return BERTbase(config)
