import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from kvlib import (
    BERTbase,
    BERTwithBottleNeck,
    CustomDataset,
    DistilBERTwithBottleNeck,
    KeyIndexDataset,
    load_glue,
    predict_logits,
)
from kvlib.student import BERTwithBottleNeckConfig
from kvlib.evaluation import key_agreement
from kvlib.explore import explain
from kvlib.cache import fingerprint
from kvlib.data import MODEL_INPUTS

RANDOM = {"projection": "random", "dim_key": 14}


def discretized(teacher, dataset, **options):
    """A teacher with a bottleneck whose values are random, so that logits say something."""
    found = BERTwithBottleNeck.from_teacher(teacher, dataset, num_codebooks=16, codebook_size=8, **options)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture(scope="module")
def teacher(pretrained, small):
    return discretized(pretrained, small[0])


@pytest.fixture(scope="module")
def student(pretrained):
    torch.manual_seed(0)
    return DistilBERTwithBottleNeck.from_teacher(pretrained).eval()


def batch_of(dataset, rows):
    batch = dataset.collate([dataset[row] for row in rows])
    return {name: batch[name] for name in MODEL_INPUTS}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_encoder_is_the_teachers_bit_for_bit_frozen_and_its_own(pretrained, small, pooling):
    plain = pretrained if pooling == "mean" else BERTbase.for_task("mrpc", pooling="cls")
    assert any(name.startswith("pooler.") for name in plain.bert.state_dict()) == (pooling == "cls")
    before = fingerprint(plain)
    found = discretized(plain, small[0])
    theirs, ours = plain.bert.state_dict(), found.bert.state_dict()
    assert set(ours) == {name for name in theirs if not name.startswith("pooler.")}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not any(parameter.requires_grad for parameter in found.bert.parameters())
    assert found.config.id2label == plain.config.id2label
    assert found.config.pooling == "mean"
    # and the teacher is none the worse for it: no shared memory, still trainable
    found.bert.embeddings.word_embeddings.weight.zero_()
    assert fingerprint(plain) == before
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_values_start_at_zero_under_frozen_keys_of_the_seed(pretrained, small):
    def build(seed):
        return BERTwithBottleNeck.from_teacher(pretrained, small[1], num_codebooks=16, codebook_size=8, seed=seed)

    first, again, other = build(0), build(0), build(1)
    assert first.bottleneck.frozen
    assert not first.bottleneck.values.any()
    assert not predict_logits(first, small[1]).any()
    assert fingerprint(first) == fingerprint(again)
    assert not torch.equal(first.bottleneck.keys, other.bottleneck.keys)


def test_segments_reach_the_encoder(teacher, small):
    batch = batch_of(small[0], range(4))
    with torch.inference_mode():
        found = teacher(**batch)
        without = teacher(batch["input_ids"], batch["attention_mask"])
    real = batch["attention_mask"].bool()
    second = batch["token_type_ids"].bool()
    changed = (found.key_indices != without.key_indices).any(-1)
    # a quarter of the second sentences' tokens: MiniLM's segments are little apart
    assert changed[second].double().mean() > 0.1
    assert not changed[~real].any()
    assert (found.logits - without.logits).abs().max() > 1e-3


def test_a_pair_is_explained_as_the_model_reads_it_with_its_segments(teacher, tokenizer):
    pair = "The nurse thanked the teacher.", "The teacher was thanked."
    frame = explain(teacher, tokenizer, *pair)
    with torch.inference_mode():
        output = teacher(**tokenizer(*pair, return_tensors="pt"))
    assert frame["key"].tolist() == output.key_indices.flatten().tolist()
    pushes = [frame[f"push_{name}"].sum() for name in teacher.config.id2label.values()]
    assert pushes == pytest.approx(output.logits[0].tolist(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:8 keys a codebook are many")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": "linear", **RANDOM},
        {"pool": "before", "standardize": False},
        {"pool": "before", "decoder": "linear"},
        {"pooling": "cls", **RANDOM, "standardize": False},
        {"pooling": "cls", "pool": "before", "decoder": "linear"},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_padding_and_batching_change_nothing_and_every_option_saves(pretrained, small, options, tmp_path):
    _, rows = small
    found = discretized(pretrained, rows, **options)
    batch = batch_of(rows, range(6))
    padded = {name: torch.nn.functional.pad(tensor, (0, 11)) for name, tensor in batch.items()}
    backward = {name: tensor.flip(0) for name, tensor in batch.items()}
    with torch.inference_mode():
        output, further, alone = found(**batch), found(**padded), found(**batch_of(rows, [3]))
        assert torch.equal(found(**backward).logits.flip(0), output.logits)
    tokens = 1 if {"cls", "before"} & set(options.values()) else batch["input_ids"].shape[1]
    assert output.key_indices.shape == (6, tokens, 16)
    real = output.key_indices[..., 0] >= 0
    assert torch.equal(output.key_indices[real], further.key_indices[further.key_indices[..., 0] >= 0])
    assert torch.equal(output.logits, further.logits)
    # a linear decoder's matrix product rounds differently for one row than for six
    torch.testing.assert_close(output.logits[3:4], alone.logits, atol=1e-5, rtol=0)
    found.save_pretrained(tmp_path)
    loaded = BERTwithBottleNeck.from_pretrained(tmp_path)
    assert fingerprint(loaded) == fingerprint(found)
    assert torch.equal(predict_logits(loaded, rows), predict_logits(found, rows))
    assert not any(parameter.requires_grad for parameter in loaded.bert.parameters())
    half = BERTwithBottleNeck.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    for name, tensor in found.bottleneck.state_dict().items():
        assert torch.equal(half.bottleneck.state_dict()[name], tensor), name


@pytest.mark.parametrize("option", ["pooling", "pool", "decoder"])
def test_unknown_options_are_refused(pretrained, small, option):
    with pytest.raises(ValueError, match=f"{option} is 'other', expected one of"):
        BERTwithBottleNeck.from_teacher(pretrained, small[0], **{option: "other"})


def test_auto_class_and_pipeline_load_it(teacher, small, tokenizer, tmp_path):
    teacher.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is BERTwithBottleNeck
    assert torch.equal(predict_logits(loaded, small[0]), predict_logits(teacher, small[0]))
    classify = pipeline("text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    pair = {"text": "The nurse thanked the teacher.", "text_pair": "The teacher was thanked."}
    with torch.inference_mode():
        expected = teacher(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")).logits.softmax(-1)[0]
    answer = classify(pair)
    best = int(expected.argmax())
    assert answer["label"] == teacher.config.id2label[best]
    assert answer["score"] == pytest.approx(expected[best].item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:8 keys a codebook are many")
@pytest.mark.parametrize("pool", ["before", "after"])
def test_key_indices_stand_for_the_tokens(pretrained, small, tmp_path, pool):
    train, held_out = small
    found = discretized(pretrained, held_out, pool=pool)
    indexed = KeyIndexDataset(found, held_out, tmp_path, batch_size=10)
    # batches of other rows than those that the key indices were computed in
    for rows in torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0)).split(7):
        integers = indexed.collate([indexed[int(row)] for row in rows])
        with torch.inference_mode():
            from_tokens = found(**batch_of(held_out, rows.tolist()))
            assert torch.equal(from_tokens.logits, found(key_indices=integers["key_indices"]).logits)
        assert torch.equal(from_tokens.key_indices, integers["key_indices"])
    KeyIndexDataset(found, train, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_encoder_stays_frozen_and_without_dropout_in_training_mode(teacher, small):
    model = copy.deepcopy(teacher).train()
    assert model.training
    assert not any(module.training for module in model.bert.modules())
    assert not any(parameter.requires_grad for parameter in model.bert.parameters())
    batch = batch_of(small[0], range(4))
    assert torch.equal(model(**batch).key_indices, teacher(**batch).key_indices)
    model(**batch).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["bottleneck.values"]
    assert model.bottleneck.values.grad.any()


def test_missing_bottleneck_weights_are_initialised_not_garbage(pretrained, tmp_path):
    pretrained.save_pretrained(tmp_path)
    options = {"num_codebooks": 16, "codebook_size": 8, "decoder": "linear", **RANDOM}
    config = BERTwithBottleNeckConfig.from_pretrained(tmp_path, **options)
    loaded = BERTwithBottleNeck.from_pretrained(tmp_path, config=config)
    assert not loaded.bottleneck.values.any()
    assert not loaded.bottleneck.keys.any()
    assert not loaded.bottleneck.counts.any()
    assert not loaded.bottleneck.frozen
    assert torch.equal(loaded.bottleneck.std, torch.ones(384))
    # 384 × 224 normal numbers: their standard deviation is within 0.3 %, and so within 2 %
    assert loaded.bottleneck.projections.std().item() == pytest.approx(384**-0.5, rel=0.02)
    assert loaded.decoder.weight.std().item() == pytest.approx(config.initializer_range, rel=0.2)
    assert not loaded.decoder.bias.any()
    with pytest.raises(RuntimeError, match="no keys yet"):
        loaded(torch.tensor([[101, 102]]))


@pytest.mark.filterwarnings("ignore:8 keys a codebook are many")
@pytest.mark.parametrize(
    "options",
    [{}, {"decoder": "linear", **RANDOM}, {"standardize": False}, {"pool": "before"}, {"pooling": "cls"}],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_carried_keys_are_the_teachers_bit_for_bit(pretrained, student, small, options, tmp_path):
    teacher = discretized(pretrained, small[1], **options)
    before = fingerprint(teacher), fingerprint(student)
    found = student.carry_keys(teacher)
    theirs, ours = dict(teacher.bottleneck.named_buffers()), dict(found.bottleneck.named_buffers())
    fitted = {"keys", "counts", "mean", "std", "frozen"}
    assert set(ours) == set(theirs) == fitted | ({"projections"} if "projection" in options else set())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert found.bottleneck.frozen
    assert not found.bottleneck.values.any()
    assert not predict_logits(found, small[1]).any() or found.config.decoder == "linear"
    assert fingerprint(found.distilbert) == fingerprint(student.distilbert)
    assert not any(parameter.requires_grad for parameter in found.distilbert.parameters())
    for name in ("pooling", "pool", "decoder", "num_codebooks", "codebook_size", "projection", "dim_key"):
        assert getattr(found.config, name) == getattr(teacher.config, name)
    assert found.config.standardize == found.bottleneck.standardize == teacher.config.standardize
    assert found.config.id2label == student.config.id2label
    # copies: what is done to the one happens to it alone
    found.bottleneck.keys.zero_()
    found.distilbert.embeddings.word_embeddings.weight.zero_()
    assert (fingerprint(teacher), fingerprint(student)) == before
    assert not student.config.has_bottleneck
    found = student.carry_keys(teacher)
    found.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForSequenceClassification.from_pretrained(tmp_path)) == fingerprint(found)


def test_keys_of_another_width_are_refused(student):
    config = BERTwithBottleNeckConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, num_codebooks=16
    )
    with pytest.raises(ValueError, match="have 48 dimensions, the student's 384: keys can be carried only"):
        student.carry_keys(BERTwithBottleNeck(config))


def test_a_student_with_the_teachers_own_encoder_fires_the_teachers_keys(tokenizer):
    """All six layers and one sentence a row (DistilBERT has no second segment): the same hidden states."""
    rows = CustomDataset(load_glue("sst2")["train"].select(range(48)), tokenizer, "sst2")
    plain = BERTbase.for_task("sst2").eval()
    teacher = discretized(plain, rows)
    students = (DistilBERTwithBottleNeck.from_teacher(plain, num_layers=layers) for layers in (6, 3))
    whole, half = (student.eval().carry_keys(teacher) for student in students)
    states = torch.cat(list(teacher.hidden_states(rows)))
    # six layers of float32 whose sums are ordered differently
    torch.testing.assert_close(torch.cat(list(whole.hidden_states(rows))), states, atol=2e-5, rtol=0)

    agreement, error = key_agreement(teacher, whole, rows)
    vectors = teacher.bottleneck.split(states).transpose(0, 1)  # (C, N, d)
    nearest = torch.cdist(vectors, teacher.bottleneck.keys).sort(-1).values
    ties = (nearest[..., 1] - nearest[..., 0] < 1e-3).double().mean(1).numpy()
    assert (agreement >= 1 - ties).all()
    assert agreement.min() > 0.99
    theirs = teacher.bottleneck.usage(teacher.bottleneck.quantize(states), states)["quantization_error"]
    assert error == pytest.approx(theirs.to_numpy(), rel=1e-3)
    # half of the layers give other hidden states, and so other keys: the agreement can be low
    assert key_agreement(teacher, half, rows)[0].mean() < 0.8
