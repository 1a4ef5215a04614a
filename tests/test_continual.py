"""Learning one task after another: learners, measures, streams, suppression and the command."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_stages import shared_recipe
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from kvlib.__main__ import main
from kvlib.continual.grid import continual_table
from kvlib.continual.in_turn import distil_in_turn
from kvlib.continual.learners import (
    LEARNING_RATES,
    ClassMeans,
    GradientLearner,
    RandomRidge,
    SharedCovariance,
    Values,
    bottleneck_learner,
    choose_learning_rate,
    fitted_bottleneck,
    overlap,
    run_stream,
    selected_pairs,
)
from kvlib.continual.measures import MEASURES, forgetting
from kvlib.continual.streams import EPOCHS, digits, learners, toy
from kvlib.continual.study import suppress_each_class
from kvlib.continual.suppression import most_used, pairs_to_suppress, switched_off
from kvlib.training import LazyAdam


@pytest.fixture(scope="module")
def digit_stream():
    return digits(0)


DATA = Path(__file__).resolve().parents[1] / "data"
CAPSTONE = str(DATA / "capstone" / "messages.tsv")


def probe(stream, rate=0.01, **options):
    torch.manual_seed(0)
    model = torch.nn.Linear(stream.train.vectors.shape[1], stream.num_classes)
    return GradientLearner(model, lambda examples: examples.vectors, rate, **options)


def test_measures_of_a_matrix_whose_column_maximum_is_off_the_diagonal():
    accuracies = np.array([[0.8, 0.1, 0.0], [0.9, 0.6, 0.0], [0.5, 0.4, 1.0]])
    found = {name: measure(accuracies) for name, measure in MEASURES.items()}
    assert found == pytest.approx(
        {
            "final accuracy": 1.9 / 3,
            "incremental accuracy": (0.8 + 0.75 + 1.9 / 3) / 3,
            # from the best: 0.9 to 0.5 and 0.6 to 0.4
            "forgetting": 0.3,
            # from the diagonal: 0.8 to 0.5 and 0.6 to 0.4
            "backward transfer": -0.25,
            "plasticity": 0.8,
        }
    )
    # what was learnt after the last task counts as the end, not as the best
    assert forgetting(np.array([[0.5, 0.0], [1.0, 1.0]])) == -0.5


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_class_means_and_lda_are_those_of_scikit_learn_however_the_tasks_come(digit_stream):
    stream = digit_stream.stream
    x, y, test = stream.train.vectors.numpy(), stream.train.labels.numpy(), stream.test.vectors
    # scikit-learn adds the logarithms of the classes' shares, which are a tenth but for a row or two
    for learner, reference, agree in (
        (ClassMeans(10), NearestCentroid(), 1.0),
        (SharedCovariance(10, shrinkage=0.1), LinearDiscriminantAnalysis("lsqr", shrinkage=0.1), 0.99),
    ):
        run_stream(learner, stream)
        theirs = reference.fit(x, y).predict(test.numpy())
        assert (learner.predict(test.double()).numpy() == theirs).mean() >= agree


def test_the_order_of_tasks_does_not_matter_without_gradients(digit_stream):
    stream = digit_stream.stream
    x, y, test = stream.train.vectors.double(), stream.train.labels, stream.test.vectors.double()
    for make in (ClassMeans, SharedCovariance):
        in_turn, at_once = make(10), make(10)
        run_stream(in_turn, stream)
        at_once.learn(x, y)
        assert torch.equal(in_turn.predict(test), at_once.predict(test))
    ridge = RandomRidge(10)
    final = run_stream(ridge, stream)[0][-1].mean()
    assert final > 0.95


def test_the_lazy_optimiser_leaves_every_other_value_bit_by_bit():
    bottleneck = fitted_bottleneck(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)), 3, 4, 16)
    model = Values(bottleneck)
    keys = torch.tensor([[[0, 1, 2, 3]]])
    optimizer = LazyAdam(model.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(keys), torch.tensor([0])).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = bottleneck.values.detach().clone()
    assert before.any()
    torch.nn.functional.cross_entropy(model(keys + 5), torch.tensor([1])).backward()
    optimizer.step()
    moved = (bottleneck.values != before).any(-1)
    assert moved.nonzero().tolist() == [[0, 5], [1, 6], [2, 7], [3, 8]]
    # the first step is Adam's own
    adam = torch.nn.Parameter(torch.zeros(2, 3))
    lazy = torch.nn.Parameter(torch.zeros(2, 3))
    for parameter, kind in ((adam, torch.optim.Adam), (lazy, LazyAdam)):
        (parameter * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        kind([parameter], lr=0.1).step()
    torch.testing.assert_close(adam, lazy)


@pytest.mark.filterwarnings("ignore:64 keys a codebook are many")
def test_a_probe_forgets_and_replay_joint_training_and_values_do_not(digit_stream):
    stream = digit_stream.stream
    bottleneck = fitted_bottleneck(digit_stream.key_states["first task"], 10, 16, 64)
    found = {
        "naive": probe(stream),
        "replay": probe(stream, replay=200),
        "joint": probe(stream, replay=-1),
        "values": bottleneck_learner(bottleneck, 0.003),
    }
    accuracies = {name: run_stream(learner, stream)[0] for name, learner in found.items()}
    final = {name: matrix[-1].mean() for name, matrix in accuracies.items()}
    assert final["naive"] < 0.5 < 0.7 < final["replay"] < final["joint"]
    assert final["values"] > 0.8
    assert len(found["replay"].kept[0]) == 200
    # of every class some
    assert len(found["replay"].kept[1].unique()) == 10


def test_elastic_weight_consolidation_has_a_penalty(digit_stream):
    stream = digit_stream.stream
    learner = probe(stream, penalty=1e5)
    first, second = (torch.isin(stream.train.labels, torch.tensor(task)) for task in stream.tasks[:2])
    learner.learn(stream.train.vectors[first], stream.train.labels[first])
    assert learner.consolidation() == 0.0
    anchor = learner.model.weight.detach().clone()
    learner.learn(stream.train.vectors[second], stream.train.labels[second])
    assert learner.consolidation() > 0.0
    free = probe(stream)
    for rows in (first, second):
        free.learn(stream.train.vectors[rows], stream.train.labels[rows])
    assert (learner.model.weight - anchor).norm() < 0.8 * (free.model.weight - anchor).norm()


def test_the_learning_rate_is_chosen_on_the_classes_of_the_first_task_in_turn(digit_stream):
    stream = digit_stream.stream
    shown = []

    def make(rate):
        learner = probe(stream, rate)
        learn = learner.learn
        learner.learn = lambda x, labels: (shown.append((len(x), set(labels.tolist()))), learn(x, labels))
        return learner

    rate = choose_learning_rate(make, stream, (1e-9, 0.01, 100.0))
    rows = int(torch.isin(stream.train.labels, torch.tensor(stream.tasks[0])).sum())
    first, second = ({label} for label in stream.tasks[0])
    assert [classes for _, classes in shown] == [first, second, second, first] * 3
    assert sum(number for number, _ in shown[:2]) == rows - rows // 5
    # at 1e-9 nothing is learnt, at 100 the first class is forgotten
    assert rate == 0.01


def test_the_toy_separates_the_learners():
    setting = toy(0)
    found = learners("toy", setting, 0)
    final = {}
    for name in ("nearest class mean", "linear probe", "bottleneck, keys of other data"):
        make, chooser = found[name]
        rate = choose_learning_rate(make, setting.stream, LEARNING_RATES[::3]) if chooser else 0.0
        final[name] = run_stream(make(rate), setting.stream)[0][-1].mean()
    assert final["linear probe"] < 0.3 < 0.9 < final["bottleneck, keys of other data"]
    assert final["nearest class mean"] == 1.0


def test_overlap_counts_pairs_of_the_second_that_the_first_selects():
    first = selected_pairs(torch.tensor([[[0, 0], [1, 1]], [[2, 0], [-1, -1]]]), 4)
    second = selected_pairs(torch.tensor([[[0, 3]]]), 4)
    assert first.tolist() == [[1, 1, 1, 0], [2, 1, 0, 0]]
    assert overlap(first, second) == 0.5
    assert overlap(second, first) == pytest.approx(0.2)


def test_suppression_forgets_the_class_on_training_rows_and_hides_nothing_more_than_needed(digit_stream):
    stream = digit_stream.stream
    bottleneck = fitted_bottleneck(digit_stream.key_states["oracle"], 10, 16, 64)
    learner = bottleneck_learner(bottleneck, 0.1)
    x, labels = learner.prepare(stream.train), stream.train.labels
    learner.learn(x, labels)
    wanted = 3
    off = pairs_to_suppress(learner.model, x, labels, wanted)
    own = x[labels == wanted]
    assert not (switched_off(learner.model, own, off) == wanted).any()
    counts = selected_pairs(own, 64)
    fewer = most_used(counts, int(off.sum()) - 1)
    assert (switched_off(learner.model, own, fewer) == wanted).any()
    # nothing left to fire: no answer, rather than that of class 0
    assert (switched_off(learner.model, own, torch.ones(16, 64, dtype=torch.bool)) == -1).all()
    # the model itself is as it was
    assert (learner.predict(own) == wanted).double().mean() > 0.8


@pytest.mark.filterwarnings("ignore:256 keys a codebook are many")
def test_every_class_is_suppressed_in_every_way_and_questioned(digit_stream):
    found = suppress_each_class(digit_stream, 0)["classes"]
    assert [one["class"] for one in found] == list(range(10))
    for one in found:
        ways = one["ways"]
        assert ways["before"]["forgotten"] > ways["pairs"]["forgotten"]
        # a masked logit never wins, and what was not learnt is not answered
        assert ways["logit"]["forgotten"] == ways["without"]["forgotten"] == 0.0
        assert ways["pairs"]["forgotten"] < 0.2
        assert 0 < ways["pairs"]["pairs"] < ways["without"]["pairs"]
        assert one["nearest_class"] != one["class"]
        assert one["steps_to_relearn"]["pairs"] > 0
        assert one["probe"]["all pairs"] > 0.8


def test_a_student_distilled_in_turn_keeps_the_values_of_earlier_tasks(tmp_path_factory, tmp_path):
    recipe = shared_recipe(tmp_path_factory)
    profile = replace(recipe.profile, bottleneck_epochs=8)
    first = recipe.experiment(profile=profile)
    # another task's stages have no place among those that the other tests count
    second = recipe.experiment(profile=profile, runs=tmp_path)
    second.task = replace(second.task, name="once more")
    found = distil_in_turn([first, second], 0)
    for name in ("values, pretrained encoder", "values, first encoder"):
        matrix = np.array(found[name]["matrix"])
        # each task has logits of its own: the later one moves none of the first's
        assert matrix[0, 0] == matrix[1, 0]
        assert matrix[1, 1] > 0.6
    in_turn, at_once = (
        np.array(found[f"encoder, {how}"]["matrix"]) for how in ("task after task", "all tasks at once")
    )
    assert in_turn[1, 1] > 0.6
    assert (at_once[0] == at_once[1]).all()
    assert found["encoder, task after task"]["teachers"]["sst2"] > 0.6


def test_a_student_kept_as_integers_is_repaired_as_itself(tmp_path_factory, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_repair", DATA / "make_repair.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    experiment = shared_recipe(tmp_path_factory).experiment()
    student, stored = experiment.model("bottleneck"), program.as_integers(experiment)
    near_miss = dict(experiment.tokenizer(program.FIRST, program.NEAR_MISS, return_tensors="pt"))
    with torch.no_grad():
        logits = student(**near_miss).logits
    values, keys = Values(student.bottleneck), stored["near miss: keys"].long().unsqueeze(0)
    torch.testing.assert_close(values(keys), logits)
    assert stored["train: keys"].shape == (stored["train: tokens"].sum(), 16)
    # whatever this student answers, it shall say the other
    monkeypatch.setattr(program, "NO_PARAPHRASE", 1 - int(logits.argmax()))
    found = {way: program.repair(experiment, way, (0, 1))[-1] for way in program.WAYS}
    assert all(counts["steps"] > 0 for counts in found.values())
    assert {way: counts["order"] for way, counts in found.items() if counts["order"]}.keys() == {
        way for way in program.WAYS if way.startswith("values")
    }
    selected = int((selected_pairs(keys, 8) > 0).sum())
    for way in ("values, SGD", "values, LazyAdam"):
        assert found[way]["numbers moved"] == 2 * selected, way
    assert found["values, AdamW"]["numbers moved"] > 2 * selected


def test_the_command_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    # in hindsight, two other rates will do, and fewer epochs
    monkeypatch.setattr("kvlib.continual.streams.LEARNING_RATES", (1e-3, 1.0))
    monkeypatch.setitem(EPOCHS, "toy", 2)
    output = tmp_path / "continual.json"
    command = ["continual", "--output", str(output), "--streams", "toy", "--seeds", "0"]
    assert main(command) == 0
    runs = json.loads(output.read_text())["runs"]
    kept, output_without_last = runs[:-1], tmp_path / "part.json"
    output_without_last.write_text(json.dumps({"runs": kept}))
    capsys.readouterr()
    command[2] = str(output_without_last)
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("seed 0") for line in lines) == 1
    again = json.loads(output_without_last.read_text())["runs"]
    assert [run["matrix"] for run in again] == [run["matrix"] for run in runs]
    table = continual_table(output, "toy")
    assert table.loc["nearest class mean", ("final accuracy", "mean")] == 100.0


def test_the_command_refuses_what_it_does_not_know(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text("[]")
    for options, said in (
        (["--output", str(tmp_path / "x.json"), "--streams", "nothing"], "unknown stream 'nothing'"),
        (["--output", str(file)], "is no file of results"),
        (["--output", str(tmp_path / "x.json"), "--data", "mine.tsv"], "--data needs --text and --label"),
        (
            ["--output", str(tmp_path / "x.json"), "--data", CAPSTONE, "--text", "sentence", "--label", "label"],
            "has 2 classes, expected at least 4",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["continual", *options])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
