import numpy as np
import pytest

from kvlib import TASKS, compute_metrics


def test_official_metrics_on_a_hand_counted_case():
    # true positives 2, false positives 1, false negatives 1, true negatives 2
    labels, predictions = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    found = compute_metrics("mrpc", predictions, labels)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(2 / 3)  # 2·2 / (2·2 + 1 + 1)
    assert found["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 9)  # sqrt(3·3·3·3) below


def test_logits_and_class_numbers_score_alike():
    logits = np.array([[0.1, 2.0, -1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    labels = np.array([1, 0, 0])
    assert compute_metrics("mnli", logits, labels) == compute_metrics("mnli", logits.argmax(1), labels)


def test_majority_class_has_no_mcc_but_a_high_f1():
    labels = np.array([1] * 68 + [0] * 32)
    found = compute_metrics("mrpc", np.ones(100, dtype=int), labels)
    assert found["mcc"] == 0
    assert found["f1"] == pytest.approx(2 * 68 / (2 * 68 + 32))


def test_stsb_correlations_know_order_from_distance():
    labels = np.array([0.0, 1.0, 2.0, 5.0])
    found = compute_metrics("stsb", np.array([[0.0], [1.0], [4.0], [5.0]]), labels)
    assert found["spearman"] == pytest.approx(1.0)
    assert 0.85 < found["pearson"] < 1.0
    assert compute_metrics("stsb", np.full(4, 2.0), labels) == {"pearson": 0.0, "spearman": 0.0}


def test_official_metrics_are_computed():
    for task in TASKS.values():
        predictions = np.zeros((4, task.num_labels))
        found = compute_metrics(task.name, predictions, np.array([0, 1, 0, 1]))
        assert set(task.metrics) <= set(found)


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "message"),
    [
        ("sst2", np.zeros((3, 2)), np.zeros(2), "as many rows"),
        ("sst2", np.zeros((0, 2)), np.zeros(0), "at least one"),
        ("mnli", np.zeros((2, 2)), np.zeros(2), "needs 3 logits"),
        ("stsb", np.zeros((2, 2)), np.zeros(2), "one score a row"),
        ("sst2", np.full((2, 2), np.nan), np.zeros(2), "NaN"),
        ("sst2", np.zeros((2, 2)), np.array([-1, -1]), "hidden"),
    ],
)
def test_bad_input_is_refused(task, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(task, predictions, labels)
