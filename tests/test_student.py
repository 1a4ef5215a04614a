import copy
import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline

from kvlib import BERTbase, DistilBERTwithBottleNeck, KeyIndexDataset, predict_logits
from kvlib.student import DistilBERTwithBottleNeckConfig, pool_real_tokens
from kvlib.teacher import BERTbaseConfig


def discretized(student, dataset, **options):
    """A student with a bottleneck whose values are random, so that logits say something."""
    found = student.discretize(dataset, num_codebooks=16, codebook_size=8, **options)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found.eval()


@pytest.fixture(scope="module")
def student(pretrained):
    torch.manual_seed(0)
    return DistilBERTwithBottleNeck.from_teacher(pretrained).eval()


@pytest.fixture(scope="module")
def with_bottleneck(student, small):
    return discretized(student, small[0])


def batch_of(dataset, rows):
    batch = dataset.collate([dataset[row] for row in rows])
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_all_layers_give_the_teachers_hidden_states(pretrained, small):
    student = DistilBERTwithBottleNeck.from_teacher(pretrained, num_layers=6).eval()
    batch = batch_of(small[0], range(4))
    with torch.inference_mode():
        expected = pretrained.bert(**batch).last_hidden_state  # no segments given: all segment 0
        found = student.distilbert(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    # six layers of float32 whose sums are ordered differently
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=0)


def test_the_plain_student_hands_out_the_states_of_its_real_tokens(student, small):
    batch = batch_of(small[0], range(4))
    with torch.inference_mode():
        found = student(**batch)
        everything = student.distilbert(**batch).last_hidden_state
    assert found.key_indices is None
    assert torch.equal(found.hidden_states, everything[batch["attention_mask"].bool()])
    pooled = pool_real_tokens(found.hidden_states, batch["attention_mask"])
    assert torch.equal(found.logits, student.classifier(pooled))


def test_half_of_the_layers_are_every_other_one(pretrained, student):
    for kept, taken in enumerate((0, 2, 4)):
        ours = student.distilbert.transformer.layer[kept].ffn.lin1.weight
        assert torch.equal(ours, pretrained.bert.encoder.layer[taken].intermediate.dense.weight)
    with pytest.raises(ValueError, match="num_layers is 7, expected 1 to 6"):
        DistilBERTwithBottleNeck.from_teacher(pretrained, num_layers=7)


@pytest.mark.parametrize("option", ["pooling", "pool", "decoder"])
def test_unknown_options_are_refused(pretrained, option):
    with pytest.raises(ValueError, match=f"{option} is 'other', expected one of"):
        DistilBERTwithBottleNeck.from_teacher(pretrained, **{option: "other"})


def test_pooling_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    states = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    assert torch.equal(pool_real_tokens(states, mask), torch.tensor([[2.0, 4.0], [5.0, 5.0]]))


COMBINATIONS = [
    {"pooling": pooling, "pool": pool, "decoder": decoder, "standardize": standardize, **projection}
    for pooling, pool, decoder, standardize, projection in itertools.product(
        ("mean", "cls"),
        ("before", "after"),
        ("mean", "linear"),
        (True, False),
        ({"projection": "chunk"}, {"projection": "random", "dim_key": 14}),
    )
]


@pytest.mark.filterwarnings("ignore:8 keys a codebook are many")
@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_padding_and_batching_change_nothing_and_every_option_saves(student, small, options, tmp_path):
    train, _ = small
    found = discretized(student, train, **options)
    batch = batch_of(train, range(6))
    padded = {name: torch.nn.functional.pad(tensor, (0, 11)) for name, tensor in batch.items()}
    with torch.inference_mode():
        output, further, alone = found(**batch), found(**padded), found(**batch_of(train, [3]))
    real = output.key_indices[..., 0] >= 0
    assert torch.equal(output.key_indices[real], further.key_indices[further.key_indices[..., 0] >= 0])
    assert torch.equal(output.logits, further.logits)
    # a linear decoder's matrix product rounds differently for one row than for six
    torch.testing.assert_close(output.logits[3:4], alone.logits, atol=1e-5, rtol=0)
    found.save_pretrained(tmp_path)
    loaded = DistilBERTwithBottleNeck.from_pretrained(tmp_path)
    assert torch.equal(predict_logits(loaded, train), predict_logits(found, train))
    assert loaded.bottleneck.frozen
    assert not any(parameter.requires_grad for parameter in loaded.distilbert.parameters())
    half = DistilBERTwithBottleNeck.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.distilbert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    for name, tensor in found.bottleneck.state_dict().items():
        assert torch.equal(half.bottleneck.state_dict()[name], tensor)
    with torch.inference_mode():
        assert half(**batch).logits.isfinite().all()


def test_order_of_rows_changes_nothing(with_bottleneck, small):
    train, _ = small
    with torch.inference_mode():
        forward = with_bottleneck(**batch_of(train, [0, 1, 2])).logits
        backward = with_bottleneck(**batch_of(train, [2, 1, 0])).logits
    assert torch.equal(forward, backward.flip(0))


def test_a_row_without_a_real_token_is_an_error(student, with_bottleneck, small):
    batch = batch_of(small[0], range(3))
    batch["attention_mask"][1] = 0
    for model in (student, with_bottleneck):
        with pytest.raises(ValueError, match="row 1 of the batch has no real token"):
            model(**batch)


def test_key_indices_stand_for_the_tokens(with_bottleneck, small):
    with torch.inference_mode():
        output = with_bottleneck(**batch_of(small[0], range(5)))
        again = with_bottleneck(key_indices=output.key_indices)
    assert torch.equal(output.logits, again.logits)


@pytest.mark.filterwarnings("ignore:.* keys a codebook are many")
@pytest.mark.parametrize(("pool", "size", "kind"), [("before", 8, torch.uint8), ("after", 257, torch.uint16)])
def test_cached_key_indices_give_the_logits_of_the_tokens(student, small, tmp_path, pool, size, kind):
    train, _ = small
    found = student.discretize(train, num_codebooks=16, codebook_size=size, pool=pool).eval()
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    indexed = KeyIndexDataset(found, train, tmp_path, batch_size=10)
    assert indexed.key_indices.dtype == kind
    # batches of other rows than those that the cache was computed in
    for rows in torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).split(7):
        batch = train.collate([train[int(row)] for row in rows])
        integers = indexed.collate([indexed[int(row)] for row in rows])
        with torch.inference_mode():
            from_tokens = found(batch["input_ids"], batch["attention_mask"]).logits
            assert torch.equal(from_tokens, found(key_indices=integers["key_indices"]).logits)
        assert torch.equal(batch["idx"], integers["idx"])
        assert torch.equal(batch["labels"], integers["labels"])


def test_key_indices_are_computed_once_and_keyed_by_what_they_are_made_from(student, small, tmp_path, monkeypatch):
    train, held_out = small
    found = discretized(student, train)
    first = KeyIndexDataset(found, train, tmp_path)
    (path,) = tmp_path.iterdir()

    def refuse(self, *inputs):
        raise AssertionError("the encoder ran")

    with monkeypatch.context() as patch:
        patch.setattr(DistilBERTwithBottleNeck, "encode", refuse)
        torch.nn.init.ones_(found.bottleneck.values)  # values do not matter
        again = KeyIndexDataset(found, train, tmp_path)
        assert torch.equal(again.key_indices, first.key_indices)
        assert str(path) in Path("/proc/self/maps").read_text()  # read through a memory map
    others = [found, found, copy.deepcopy(found), copy.deepcopy(found)]
    others[2].distilbert.transformer.layer[0].ffn.lin1.bias.data[0] += 1e-3
    others[3].bottleneck.keys[0, 0, 0] += 1e-3
    for number, (other, rows) in enumerate(zip(others, (train, held_out, train, train), strict=True)):
        KeyIndexDataset(other, rows, tmp_path)
        assert len(list(tmp_path.iterdir())) == number + 1
    stolen = max(tmp_path.iterdir(), key=lambda other: (other != path, other.name))
    stolen.replace(path)
    with pytest.raises(ValueError, match="was made from another"):
        KeyIndexDataset(found, train, tmp_path)


def test_key_indices_need_frozen_keys(student, small):
    found = copy.deepcopy(discretized(student, small[0]))
    found.bottleneck.frozen.fill_(False)
    with pytest.raises(RuntimeError, match="keys are not frozen"):
        KeyIndexDataset(found, small[0])


def test_encoder_stays_frozen_and_without_dropout_in_training_mode(with_bottleneck, small):
    model = copy.deepcopy(with_bottleneck).train()
    assert model.training
    assert not any(module.training for module in model.distilbert.modules())
    assert not any(parameter.requires_grad for parameter in model.distilbert.parameters())
    batch = batch_of(small[0], range(4))
    assert torch.equal(model(**batch).key_indices, model(**batch).key_indices)
    model(**batch).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.distilbert.parameters())


def test_discretize_leaves_the_plain_student_alone(student, small):
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = discretized(student, small[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert not student.config.has_bottleneck
    assert found.config.id2label == student.config.id2label


def test_auto_classes_and_pipeline_load_a_saved_student(student, with_bottleneck, small, tokenizer, tmp_path):
    for name, model in (("plain", student), ("bottleneck", with_bottleneck)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        assert type(loaded) is DistilBERTwithBottleNeck
        assert torch.equal(predict_logits(loaded, small[0]), predict_logits(model, small[0]))
        classify = pipeline(
            "text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path / name)
        )
        pair = {"text": "The nurse thanked the teacher.", "text_pair": "The teacher was thanked."}
        answer = classify(pair)
        with torch.inference_mode():
            encoded = tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")
            expected = model(**encoded).logits.softmax(-1)[0]
        best = int(expected.argmax())
        assert answer["label"] == model.config.id2label[best]
        assert answer["score"] == pytest.approx(expected[best].item(), abs=1e-6)


@pytest.mark.parametrize("decoder", ["mean", "linear"])
def test_values_and_decoder_pass_gradcheck(student, small, decoder):
    found = discretized(student, small[0], decoder=decoder)
    with torch.no_grad():
        # a row of one token, -1 at its padding, beside a row of three
        key_indices = found(**batch_of(small[0], range(2))).key_indices[:, :3].clone()
    key_indices[1, 1:] = -1
    names = [name for name, parameter in found.named_parameters() if parameter.requires_grad]
    assert names == ["bottleneck.values", "decoder.weight", "decoder.bias"][: 3 if decoder == "linear" else 1]
    wide = [found.get_parameter(name).detach().double().requires_grad_() for name in names]

    def logits(*tensors):
        replaced = dict(zip(names, tensors, strict=True))
        return torch.func.functional_call(found, replaced, kwargs={"key_indices": key_indices}).logits

    assert torch.autograd.gradcheck(logits, wide, fast_mode=True)


def test_missing_bottleneck_weights_are_initialised_not_garbage(student, tmp_path):
    student.save_pretrained(tmp_path)
    config = DistilBERTwithBottleNeckConfig.from_pretrained(
        tmp_path, has_bottleneck=True, num_codebooks=16, codebook_size=8
    )
    loaded = DistilBERTwithBottleNeck.from_pretrained(tmp_path, config=config)
    assert not loaded.bottleneck.values.any()
    assert not loaded.bottleneck.keys.any()
    assert not loaded.bottleneck.frozen
    assert torch.equal(loaded.bottleneck.std, torch.ones(384))


def test_full_size_shape_fits_bert_base():
    size = {"hidden_size": 768, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    teacher = BERTbase(BERTbaseConfig(**{**BertConfig().to_dict(), **size, "model_type": "kvlib-bert"}))
    student = DistilBERTwithBottleNeck.from_teacher(teacher, has_bottleneck=True)
    assert student.bottleneck.keys.shape == (64, 4096, 12)
