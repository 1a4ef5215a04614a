"""What the data card promises of the capstone's messages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

DATA = Path(__file__).resolve().parents[1] / "data"
FILE = DATA / "capstone" / "messages.tsv"


@pytest.fixture(scope="module")
def messages():
    header, *rows = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert header == ["label", "sentence"]
    assert all(len(row) == 2 for row in rows)
    return [label for label, _ in rows], [sentence for _, sentence in rows]


def test_generator_reproduces_the_committed_file(tmp_path):
    for path in DATA.glob("*.py"):
        shutil.copy(path, tmp_path)
    # another hash seed and locale must change nothing
    environment = os.environ | {"PYTHONHASHSEED": "1234", "LC_ALL": "C"}
    subprocess.run([sys.executable, tmp_path / "make_capstone.py"], check=True, cwd="/", env=environment)
    assert (tmp_path / "capstone" / "messages.tsv").read_bytes() == FILE.read_bytes()


def test_two_hundred_distinct_sentences_one_class_after_the_other(messages):
    labels, sentences = messages
    assert labels == ["complaint"] * 100 + ["request"] * 100
    assert len({" ".join(sentence.lower().split()) for sentence in sentences}) == 200
    assert all(sentence[0].isupper() and sentence[-1] in ".?" for sentence in sentences)
    assert not any(set(sentence) & set('[]{}|"') for sentence in sentences)


def test_no_word_tells_the_classes_apart(messages):
    labels, sentences = messages
    is_request = np.array(labels) == "request"
    holds = CountVectorizer(binary=True).fit_transform(sentences).toarray() == 1
    right = (holds == is_request[:, None]).mean(0)
    assert np.maximum(right, 1 - right).max() < 0.65
    lengths = np.array([len(sentence.split()) for sentence in sentences])
    assert abs(lengths[is_request].mean() - lengths[~is_request].mean()) < 2


def test_words_together_are_neither_useless_nor_enough(messages):
    labels, sentences = messages
    scores = []
    for seed in range(20):
        train, held, known, true = train_test_split(
            sentences, labels, test_size=0.3, random_state=seed, stratify=labels
        )
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
        scores.append(model.fit(train, known).score(held, true))
    assert np.mean(scores) == pytest.approx(0.83, abs=0.02)
