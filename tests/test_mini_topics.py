"""What the data card promises of mini-topics."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from kvlib import BERTbase, CustomDataset, load_task, load_tokenizer
from kvlib.evaluation import tfidf_predictions
from kvlib.teacher import predict_states

DATA = Path(__file__).resolve().parents[1] / "data"
FOLDER = DATA / "mini_topics"
# words that are of no topic, and may stand in held-out phrases as well as in training
GENERAL = {"a", "an", "the", "at", "for", "in", "out", "up", "through", "way", "doing"}


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("make_mini_topics", DATA / "make_mini_topics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(split):
    header, *rows = [line.split("\t") for line in (FOLDER / f"{split}.tsv").read_text("utf-8").splitlines()]
    assert header == ["sentence", "label"]
    assert all(len(row) == 2 for row in rows)
    return rows


def bare_words(text):
    return set(re.findall("[a-z]+", text.lower()))


def forms(generator, topic, held_out):
    """Return all that a topic has of its own, in singular and plural."""
    found = {word for kind in generator.TOPICS[topic] for word in generator.words(topic, kind, held_out)}
    return {generator.form(word, plural) for word in found for plural in (False, True)}


@pytest.fixture(scope="module")
def task_and_data():
    files = FOLDER / "train.tsv", FOLDER / "validation.tsv"
    return load_task(files[0], "sentence", "label", validation=files[1], name="mini-topics")


@pytest.fixture(scope="module")
def vectors(task_and_data):
    """The pretrained encoder's last hidden states, mean over real tokens: by split ``(N, 384)``."""
    task, data = task_and_data
    encoder, tokenizer, found = BERTbase.for_task(task), load_tokenizer(), {}
    for name, split in data.items():
        rows = CustomDataset(split, tokenizer, task)
        states = predict_states(encoder, rows).float().split(rows.lengths.tolist())
        found[name] = torch.stack([row.mean(0) for row in states]).numpy()
    return found


def test_generator_reproduces_the_committed_files(tmp_path):
    for path in DATA.glob("*.py"):
        shutil.copy(path, tmp_path)
    # another hash seed and locale must change nothing
    environment = os.environ | {"PYTHONHASHSEED": "1234", "LC_ALL": "C"}
    subprocess.run([sys.executable, tmp_path / "make_mini_topics.py"], check=True, cwd="/", env=environment)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.tsv")}
    assert made == {path.relative_to(DATA): path.read_bytes() for path in FOLDER.glob("*.tsv")}
    assert len(made) == 2


def test_distinct_sentences_of_ten_topics_in_equal_shares():
    rows = {split: read(split) for split in ("train", "validation")}
    assert Counter(Counter(label for _, label in rows["train"]).values()) == {120: 10}
    assert Counter(Counter(label for _, label in rows["validation"]).values()) == {30: 10}
    sentences = [sentence for part in rows.values() for sentence, _ in part]
    assert len({sentence.casefold() for sentence in sentences}) == 1500
    assert all(sentence[0].isupper() and sentence[-1] == "." for sentence in sentences)
    assert not any(set(sentence) & set('[]{}|;/"_') for sentence in sentences)
    # shuffled: no long run of one topic
    assert all(len({label for _, label in part[:30]}) >= 8 for part in rows.values())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_frames_do_not_tell_the_topic(generator, split):
    frames = [re.sub(r"\{\w+\}", ".+", frame.translate({91: "(", 93: ")"})) for frame in generator.FRAMES]
    assert len(frames) == 30
    used = Counter()
    for sentence, label in read(split):
        (number,) = (n for n, frame in enumerate(frames) if re.fullmatch(frame + r"\.", sentence, re.IGNORECASE))
        used[label, number] += 1
    assert len(used) == 300
    assert set(used.values()) == {generator.ROWS[split] // 30}


def test_a_third_of_the_words_stand_in_validation_only(generator):
    training = set().union(*(bare_words(sentence) for sentence, _ in read("train")))
    for topic, kinds in generator.TOPICS.items():
        seen, held_out = (sum(len(generator.words(topic, kind, part)) for kind in kinds) for part in (False, True))
        assert seen + held_out >= 40
        assert held_out / (seen + held_out) == pytest.approx(1 / 3, abs=0.03)
        assert set().union(*map(bare_words, forms(generator, topic, True))) & training <= GENERAL


def test_validation_sentences_have_a_held_out_word_and_at_most_one_that_training_has(generator):
    seen = {topic: forms(generator, topic, False) for topic in generator.TOPICS}
    held_out = {topic: forms(generator, topic, True) for topic in generator.TOPICS}
    for sentence, label in read("validation"):
        # the longest first: a phrase may hold a word that is one of its own
        entries = sorted(seen[label] | held_out[label], key=lambda entry: (-len(entry), entry))
        found = re.findall(rf"\b(?:{'|'.join(entries)})\b", sentence[0].lower() + sentence[1:])
        assert sum(entry in held_out[label] for entry in found) >= 1, sentence
        assert sum(entry in seen[label] for entry in found) <= 1, sentence


def test_topics_are_told_by_meaning_and_not_by_counting_words(task_and_data, vectors, capsys):
    task, data = task_and_data
    labels = {name: np.array(split["label"][:]) for name, split in data.items()}
    counted = tfidf_predictions(data["train"], data["validation"], task)
    probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(vectors["train"], labels["train"])
    scores = {
        "tfidf": (counted == labels["validation"]).mean(),
        "probe": probe.score(vectors["validation"], labels["validation"]),
    }
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
    assert 0.25 < scores["tfidf"] < 0.45
    assert 0.80 < scores["probe"] < 0.95


def test_some_topics_lie_closer_than_others(task_and_data, vectors, capsys):
    task, data = task_and_data
    labels = np.array(data["train"]["label"][:])
    means = np.stack([vectors["train"][labels == number].mean(0) for number in range(task.num_labels)])
    means -= means.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = {
        frozenset((task.label_names[a], task.label_names[b])): means[a] @ means[b]
        for a in range(len(means))
        for b in range(a)
    }
    furthest, *_, second, first = sorted(cosines, key=cosines.get)
    with capsys.disabled():
        print("\n" + ", ".join(f"{' and '.join(sorted(p))} {cosines[p]:.2f}" for p in (first, second, furthest)))
    assert {first, second} == {frozenset(("cooking", "gardening")), frozenset(("law", "money"))}
    assert cosines[second] > 0.15
    assert cosines[furthest] < -0.25
