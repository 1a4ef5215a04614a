import copy
import tracemalloc

import numpy as np
import pytest
import torch

from kvlib import (
    BERTwithBottleNeck,
    CustomDataset,
    DistilBERTwithBottleNeck,
    compute_metrics,
    load_glue,
    predict_logits,
)
from kvlib.evaluation import (
    bootstrap_interval,
    key_agreement,
    majority_predictions,
    model_size,
    probe_predictions,
    sentence_vectors,
    teacher_agreement,
    tfidf_predictions,
)
from kvlib.explore import explain, shared_keys

FIRST = "The young nurse thanked the old teacher on Monday."
SECOND = "On Monday, the old teacher was thanked by the young nurse."


@pytest.fixture(scope="module")
def student(pretrained, small):
    torch.manual_seed(0)
    plain = DistilBERTwithBottleNeck.from_teacher(pretrained)
    found = plain.discretize(small[0], num_codebooks=16, codebook_size=8)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found


def test_pushes_sum_to_the_logits(student, tokenizer):
    frame = explain(student, tokenizer, FIRST, SECOND)
    encoded = tokenizer(FIRST, SECOND, return_tensors="pt")
    with torch.inference_mode():
        output = student(**encoded)
    pushes = frame[["push_not_equivalent", "push_equivalent"]].sum().to_numpy(np.float32).copy()
    torch.testing.assert_close(torch.from_numpy(pushes), output.logits[0], atol=1e-5, rtol=1e-5)
    fired = frame.pivot(index="position", columns="codebook", values="key")
    assert (fired.to_numpy() == output.key_indices[0].numpy()).all()
    assert (frame["runner_up_gap"].dropna() >= -1e-4).all()


def test_explain_refuses_what_it_cannot_explain(student, pretrained, tokenizer):
    with pytest.raises(ValueError, match="no bottleneck"):
        explain(DistilBERTwithBottleNeck.from_teacher(pretrained), tokenizer, FIRST)
    with pytest.raises(ValueError, match="text is empty"):
        explain(student, tokenizer, "  ")


def test_a_sentence_shares_all_keys_with_itself(student, tokenizer):
    frame = explain(student, tokenizer, FIRST)
    shared = shared_keys(frame, frame)
    assert (np.diag(shared) == 1).all()
    assert shared.to_numpy().min() < 1
    assert list(shared.columns) == ["[CLS]", *tokenizer.tokenize(FIRST), "[SEP]"]


def test_majority_and_mean_predictions():
    assert majority_predictions([0, 1, 1], "sst2", 2).tolist() == [1, 1]
    assert majority_predictions([1.0, 4.0], "stsb", 2).tolist() == [2.5, 2.5]


def test_tfidf_finds_a_word_that_tells_and_not_an_order_that_tells():
    data = load_glue("sst2")["train"].select(range(60))
    telling = data.map(lambda row: {"sentence": f"{'wonderful' if row['label'] else 'awful'} film"})
    found = tfidf_predictions(telling, telling, "sst2")
    assert (found == np.array(telling["label"][:])).all()


@pytest.fixture(scope="module")
def plain(pretrained):
    torch.manual_seed(0)
    return DistilBERTwithBottleNeck.from_teacher(pretrained)


def test_sentence_vectors_are_means_of_real_tokens(pretrained, plain, small):
    rows = small[1]
    states = torch.cat(list(plain.hidden_states(rows))).split(rows.lengths.tolist())
    expected = torch.stack([row.mean(0) for row in states]).numpy()
    # states are stored in half precision
    np.testing.assert_allclose(sentence_vectors(plain, rows), expected, atol=2e-3)
    # what the teacher's classifier gets
    logits = pretrained.classifier(torch.from_numpy(sentence_vectors(pretrained, rows)))
    torch.testing.assert_close(logits, predict_logits(pretrained, rows), atol=5e-3, rtol=0)


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_linear_probe_finds_a_word_that_tells(plain, tokenizer, task):
    words = ["awful", "wonderful"] if task == "sst2" else ["zero", "one", "two", "three", "four", "five"]
    data = load_glue(task)

    def tell(row):
        column = "sentence" if task == "sst2" else "sentence1"
        return {column: f"{words[round(row['label'])]}: {row[column]}"}

    splits = (data["train"].select(range(120)), data["validation"].select(range(60)))
    train, split = (CustomDataset(part.map(tell), tokenizer, task, max_length=32) for part in splits)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    found = probe_predictions(plain, train, split)
    assert found.shape == (60,)
    metrics = compute_metrics(task, found, np.array(split.labels))
    if task == "sst2":
        majority = compute_metrics(task, majority_predictions(train.labels, task, 60), np.array(split.labels))
        # one row of 60 is 0.017; the majority has about half of them
        assert majority["accuracy"] < 0.65
        assert metrics["accuracy"] > 0.8
    else:
        # scores, no class numbers, and of their order
        assert len(set(found.tolist())) == 60
        assert metrics["pearson"] > 0.6
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_key_agreement_counts_equal_keys_a_codebook(pretrained, plain, small):
    train, held_out = small
    teacher = BERTwithBottleNeck.from_teacher(pretrained, train, num_codebooks=16, codebook_size=8)
    agreement, error = key_agreement(teacher, teacher, held_out)
    assert agreement.shape == error.shape == (16,)
    assert (agreement == 1).all()
    states = torch.cat(list(teacher.hidden_states(held_out)))
    usage = teacher.bottleneck.usage(teacher.bottleneck.quantize(states), states)
    assert (error == usage["quantization_error"]).all()

    # the same keys under other numbers: in codebook 3 all, in codebook 5 the first two
    renumbered = copy.deepcopy(teacher)
    renumbered.bottleneck.keys[3] = teacher.bottleneck.keys[3].roll(1, 0)
    renumbered.bottleneck.keys[5] = teacher.bottleneck.keys[5][[1, 0, 2, 3, 4, 5, 6, 7]]
    share = (teacher.bottleneck.quantize(states)[:, 5] > 1).double().mean().item()
    assert 0 < share < 1
    expected = [0 if codebook == 3 else share if codebook == 5 else 1 for codebook in range(16)]
    agreement, unchanged = key_agreement(teacher, renumbered, held_out)
    assert agreement == pytest.approx(expected, abs=1e-12)
    assert unchanged == pytest.approx(error, rel=1e-6)

    # another encoder behind the same keys agrees less than fully, but more than behind keys of its own
    carried = key_agreement(teacher, plain.carry_keys(teacher), held_out)[0].mean()
    # of another seed: keys that start at the same tokens would have the same numbers
    keys = {"num_codebooks": 16, "codebook_size": 8, "seed": 1}
    own = key_agreement(teacher, plain.discretize(train, **keys), held_out)[0].mean()
    assert own < 0.25  # chance is one in 8 for keys hit alike
    assert own + 0.05 < carried < 1


def test_agreement_with_the_teacher_by_hand():
    teacher = np.log([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    student = np.log([[0.6, 0.4], [0.4, 0.6], [0.25, 0.75]]) + 7
    found = teacher_agreement(teacher, student)
    # of equal logits the first is the answer
    assert found["same_answer"] == pytest.approx(2 / 3)
    by_hand = [sum(t * np.log(t / s) for t, s in zip(*rows, strict=True)) for rows in (
        ((0.9, 0.1), (0.6, 0.4)), ((0.5, 0.5), (0.4, 0.6)), ((0.2, 0.8), (0.25, 0.75)),
    )]  # fmt: skip
    assert found["kl"] == pytest.approx(np.mean(by_hand))
    assert teacher_agreement(np.array([[1.0], [2.0]]), np.array([[1.5], [1.0]])) == {"squared_difference": 0.625}


def test_bootstrap_interval_covers_what_the_binomial_says():
    labels = np.zeros(300)
    predictions = (np.arange(300) < 30).astype(float)  # 90 % right
    low, high = bootstrap_interval(lambda p, y: float((p == y).mean()), predictions, labels)
    half = 1.96 * (0.9 * 0.1 / 300) ** 0.5
    assert (low, high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.006)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_bootstrap_interval_is_the_percentile_bootstrap_by_hand(level):
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 2, 80)
    # two systems on the same rows, and how much better the first is
    predictions = np.stack([np.where(generator.random(80) < right, labels, 1 - labels) for right in (0.9, 0.7)], 1)

    def difference(predictions, labels):
        right = (predictions == labels[:, None]).mean(0)
        return right[0] - right[1]

    draws = np.random.default_rng(3)
    found = []
    for _ in range(200):
        rows = draws.integers(0, 80, 80)
        found.append(difference(predictions[rows], labels[rows]))
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    interval = bootstrap_interval(difference, predictions, labels, level, resamples=200, seed=3)
    assert interval == pytest.approx(tuple(ends), abs=1e-12)
    assert interval[0] < interval[1]
    assert bootstrap_interval(difference, predictions, labels, level, resamples=200, seed=4) != interval


def test_resamples_of_qqp_are_not_held_at_once():
    labels = np.arange(40_430) % 3 // 2  # as many rows as QQP's validation split
    predictions = np.roll(labels, 1)
    tracemalloc.start()
    try:
        # a quarter of the default's: how many there are adds seconds and no memory
        bootstrap_interval(lambda p, y: (p == y).mean(), predictions, labels, resamples=250)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # row numbers of one resample are 0.3 MB, of all 81 MB
    assert peak < 16e6


def test_model_size_counts_parameters_and_buffers(student):
    parameters = [tensor.numel() for tensor in student.parameters()]
    trained = [tensor.numel() for tensor in student.parameters() if tensor.requires_grad]
    stored = [tensor.nbytes for tensor in (*student.parameters(), *student.buffers())]
    size = model_size(student)
    assert size["parameters_m"] == pytest.approx(sum(parameters) / 1e6)
    assert size["trainable_m"] == pytest.approx(sum(trained) / 1e6)
    assert size["megabytes"] == pytest.approx(sum(stored) / 1e6)
    # the encoder is frozen; the keys are no parameters, but stored
    assert size["trainable_m"] < 0.1 * size["parameters_m"]
    assert size["megabytes"] - 4 * size["parameters_m"] > student.bottleneck.keys.nbytes / 1e6
