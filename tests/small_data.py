"""Small data and checkpoints for tests with processes of their own."""

from transformers import BertModel

from kvlib import load_glue, load_tokenizer
from kvlib.pretrained import minilm_path

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


def four_layers(folder, dropout=0.1):
    """Write the first four of MiniLM's six layers as a checkpoint: real weights, and a student of two layers."""
    model = BertModel.from_pretrained(
        minilm_path(), num_hidden_layers=4, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    return folder
