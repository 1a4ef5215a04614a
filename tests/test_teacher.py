import copy

import pytest
import torch
from small_data import tiny_teacher
from transformers import BertForSequenceClassification, Trainer

from kvlib import BERTbase, CustomDataset, fine_tune, predict_logits, pretrained
from kvlib.cache import fingerprint, tokenizer_fingerprint
from kvlib.pretrained import minilm_path
from kvlib.recipe import get_profile
from kvlib.teacher import cached_logits, predict_states


def test_minilm_is_the_published_one_and_other_weights_are_refused(monkeypatch):
    assert (minilm_path() / "model.safetensors").is_file()
    monkeypatch.setattr(pretrained, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"has SHA-256 53aa5117.*, expected 0000"):
        minilm_path.__wrapped__()  # past the cache


def test_unknown_profile_names_both(monkeypatch):
    monkeypatch.setenv("KVLIB_PROFILE", "huge")
    with pytest.raises(ValueError, match="unknown profile 'huge': choose one of quick, real, base"):
        get_profile()


def test_cls_pooling_is_transformers_own_bert(small):
    train, _ = small
    teacher = BERTbase.for_task("mrpc", pooling="cls").eval()
    reference = BertForSequenceClassification(teacher.config).eval()
    reference.load_state_dict(teacher.state_dict())
    batch = train.collate([train[row] for row in range(8)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        assert torch.equal(teacher(**inputs).logits, reference(**inputs).logits)


def test_mean_pooling_ignores_padding(small, pretrained):
    train, _ = small
    batch = train.collate([train[0], train[1]])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    padded = {name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in inputs.items()}
    with torch.inference_mode():
        # float32 sums over another number of zeros: rounding only
        torch.testing.assert_close(pretrained(**inputs).logits, pretrained(**padded).logits, atol=1e-5, rtol=0)


def test_teacher_saves_and_loads_bit_equal(small, pretrained, tmp_path):
    train, _ = small
    pretrained.save_pretrained(tmp_path)
    loaded = BERTbase.from_pretrained(tmp_path)
    assert torch.equal(predict_logits(loaded, train), predict_logits(pretrained, train))
    assert [path.suffix for path in tmp_path.iterdir()].count(".safetensors") == 1


def test_permuted_labels_of_a_checkpoint_are_refused(pretrained, tmp_path):
    swapped = copy.deepcopy(pretrained)
    swapped.config.id2label = {0: "equivalent", 1: "not_equivalent"}
    swapped.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="numbers its labels equivalent, not_equivalent, but mrpc numbers them"):
        BERTbase.for_task("mrpc", str(tmp_path))


def test_fine_tuning_learns_and_ends_in_evaluation_mode(small, tmp_path):
    train, held_out = small
    teacher = tiny_teacher()
    history = fine_tune(teacher, train, train, tmp_path, epochs=3, learning_rate=3e-3, batch_size=8)
    assert list(history.columns) == ["epoch", "train_loss", "held_out_loss", "accuracy", "f1", "mcc"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["held_out_loss"].iloc[-1] < history["held_out_loss"].iloc[0]
    assert not teacher.training
    with pytest.raises(FileExistsError, match="resume=True"):
        fine_tune(teacher, train, held_out, tmp_path, epochs=1, learning_rate=1e-4)


def test_the_best_epoch_is_kept(small, tmp_path):
    accuracies, seen = [0.5, 0.9, 0.9, 0.7], []

    class Spy(Trainer):
        def evaluate(self, *args, **kwargs):
            seen.append(fingerprint(self.model))
            return super().evaluate(*args, **kwargs) | {"eval_accuracy": accuracies[len(seen) - 1]}

    teacher = tiny_teacher()
    fine_tune(teacher, *small, tmp_path, epochs=4, learning_rate=3e-3, batch_size=8, trainer=Spy)
    assert len(set(seen)) == 4
    # the first of equally good ones
    assert fingerprint(teacher) == seen[1]


def test_predict_logits_is_deterministic_and_keeps_order_and_mode(small, pretrained):
    _, rows = small
    teacher = copy.deepcopy(pretrained).train()
    logits = predict_logits(teacher, rows, batch_size=7)
    assert teacher.training
    assert torch.equal(logits, predict_logits(teacher, rows, batch_size=7))
    alone = predict_logits(teacher, rows, batch_size=1)
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)  # padding changes the order of float32 sums


def test_hidden_states_under_autocast_are_those_without_but_for_their_rounding(small, pretrained):
    plain = predict_states(pretrained, small[1])
    with torch.autocast("cpu", torch.bfloat16):
        found = predict_states(pretrained, small[1])
    assert found.dtype == torch.float16
    # bfloat16 keeps 8 bits; 6 layers add up to some of its steps
    assert (found.float() - plain.float()).abs().mean() < 2**-6 * plain.float().abs().max()
    assert not torch.equal(found, plain)


def test_segments_reach_the_teacher(small, pretrained):
    train, _ = small
    batch = train.collate([train[0]])
    with torch.inference_mode():
        with_segments = pretrained(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits
        without = pretrained(batch["input_ids"], batch["attention_mask"]).logits
    assert (with_segments - without).abs().max() > 1e-4


def test_cached_logits_are_computed_once_and_refused_for_anything_else(
    small, pretrained, tmp_path, tokenizer, mrpc
):
    train, held_out = small
    path = tmp_path / "logits.safetensors"
    logits = cached_logits(pretrained, train, path)
    written = path.stat().st_mtime_ns
    assert torch.equal(cached_logits(pretrained, train, path), logits)
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir()] == ["logits.safetensors"]
    with pytest.raises(ValueError, match="current rows: delete it"):
        cached_logits(pretrained, held_out, path)
    other = copy.deepcopy(pretrained)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    with pytest.raises(ValueError, match="current teacher: delete it"):
        cached_logits(other, train, path)
    renamed = copy.deepcopy(tokenizer)
    renamed.add_tokens(["[NEW]"])
    relabelled = CustomDataset(mrpc["train"].select(range(4)), renamed, "mrpc")
    with pytest.raises(ValueError, match="current tokenizer and rows"):
        cached_logits(pretrained, relabelled, path)


def test_tokenizer_fingerprint_does_not_depend_on_the_last_call(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer("a sentence", truncation=True, max_length=5, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before
