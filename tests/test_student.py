"""The encoders with a bottleneck, teacher and student alike, and the plain student."""

import copy
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from kvlib import (
    BERTbase,
    BERTwithBottleNeck,
    CustomDataset,
    DistilBERTwithBottleNeck,
    KeyIndexDataset,
    load_glue,
    predict_logits,
)
from kvlib.bottleneck import draw_positions
from kvlib.cache import fingerprint
from kvlib.data import MODEL_INPUTS
from kvlib.evaluation import key_agreement
from kvlib.explore import explain
from kvlib.student import BERTwithBottleNeckConfig, DistilBERTwithBottleNeckConfig, pool_real_tokens
from kvlib.teacher import BERTbaseConfig

RANDOM = {"projection": "random", "dim_key": 14}
PAIR = "The nurse thanked the teacher.", "The teacher was thanked."

pytestmark = pytest.mark.filterwarnings("ignore:.* keys a codebook are many")


def put_in(plain, dataset, num_codebooks=16, codebook_size=8, **options):
    """Put a bottleneck with untrained values behind the encoder of a plain teacher or student."""
    options |= {"num_codebooks": num_codebooks, "codebook_size": codebook_size}
    if isinstance(plain, BERTbase):
        return BERTwithBottleNeck.from_teacher(plain, dataset, **options)
    return plain.discretize(dataset, **options)


def discretized(plain, dataset, **options):
    """As `put_in`, but with random values, so that logits say something."""
    found = put_in(plain, dataset, **options)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found.eval()


@pytest.fixture(scope="module")
def student(pretrained):
    torch.manual_seed(0)
    return DistilBERTwithBottleNeck.from_teacher(pretrained).eval()


@pytest.fixture(scope="module", params=["teacher", "student"])
def plain(request, pretrained, student):
    """A teacher and a student without a bottleneck."""
    return pretrained if request.param == "teacher" else student


@pytest.fixture(scope="module")
def with_bottleneck(plain, small):
    return discretized(plain, small[0])


@pytest.fixture(scope="module")
def models(pretrained, student, small):
    """One model of each kind, by name."""
    return {
        "teacher": pretrained,
        "student": student,
        "teacher with bottleneck": discretized(pretrained, small[1]),
        "student with bottleneck": discretized(student, small[1]),
    }


KINDS = ["teacher", "student", "teacher with bottleneck", "student with bottleneck"]


def batch_of(dataset, rows):
    batch = dataset.collate([dataset[row] for row in rows])
    return {name: batch[name] for name in MODEL_INPUTS}


# from a teacher to a student


def test_all_layers_give_the_teachers_hidden_states(pretrained, small):
    student = DistilBERTwithBottleNeck.from_teacher(pretrained, num_layers=6).eval()
    batch = batch_of(small[0], range(4))
    del batch["token_type_ids"]
    with torch.inference_mode():
        expected = pretrained.bert(**batch).last_hidden_state  # no segments given: all segment 0
        found = student.distilbert(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    # six layers of float32 whose sums are ordered differently
    torch.testing.assert_close(found[real], expected[real], atol=2e-5, rtol=0)


def test_half_of_the_layers_are_every_other_one(pretrained, student):
    for kept, taken in enumerate((0, 2, 4)):
        ours = student.distilbert.transformer.layer[kept].ffn.lin1.weight
        assert torch.equal(ours, pretrained.bert.encoder.layer[taken].intermediate.dense.weight)
    with pytest.raises(ValueError, match="num_layers is 7, expected 1 to 6"):
        DistilBERTwithBottleNeck.from_teacher(pretrained, num_layers=7)


def test_the_plain_student_hands_out_the_states_of_its_real_tokens(student, small):
    batch = batch_of(small[0], range(4))
    with torch.inference_mode():
        found = student(**batch)
        everything = student.distilbert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    assert found.key_indices is None
    assert torch.equal(found.packed_states, everything[batch["attention_mask"].bool()])
    pooled = pool_real_tokens(found.packed_states, batch["attention_mask"])
    assert torch.equal(found.logits, student.classifier(pooled))


def test_pooling_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    states = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    assert torch.equal(pool_real_tokens(states, mask), torch.tensor([[2.0, 4.0], [5.0, 5.0]]))


def test_full_size_shape_fits_bert_base():
    size = {"hidden_size": 768, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 50}
    teacher = BERTbase(BERTbaseConfig(**{**BertConfig().to_dict(), **size, "model_type": "kvlib-bert"}))
    student = DistilBERTwithBottleNeck.from_teacher(teacher, has_bottleneck=True)
    assert student.bottleneck.keys.shape == (64, 4096, 12)


# a bottleneck behind an encoder


@pytest.mark.parametrize("kind", ["teacher", "teacher with its pooler", "student"])
def test_the_encoder_is_the_plain_models_bit_for_bit_frozen_and_its_own(kind, pretrained, student, small):
    if kind == "teacher with its pooler":
        plain = BERTbase.for_task("mrpc", pooling="cls")
    else:
        plain = student if kind == "student" else pretrained
    theirs = plain.base_model.state_dict()
    assert any(name.startswith("pooler.") for name in theirs) == (kind == "teacher with its pooler")
    before = fingerprint(plain)
    found = discretized(plain, small[1])
    ours = found.base_model.state_dict()
    assert set(ours) == {name for name in theirs if not name.startswith("pooler.")}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not any(parameter.requires_grad for parameter in found.base_model.parameters())
    assert found.config.id2label == plain.config.id2label
    assert not hasattr(found.config, "pooling")
    # and the plain model is none the worse for it: no shared memory, still trainable, still plain
    with torch.no_grad():
        found.get_input_embeddings().weight.zero_()
    assert fingerprint(plain) == before
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert not getattr(plain.config, "has_bottleneck", False)


def test_values_start_at_zero_under_frozen_keys_of_the_seed(plain, small):
    first, again, other = (put_in(plain, small[1], seed=seed) for seed in (0, 0, 1))
    assert first.bottleneck.frozen
    assert not first.bottleneck.values.any()
    assert not predict_logits(first, small[1]).any()
    assert fingerprint(first) == fingerprint(again)
    assert not torch.equal(first.bottleneck.keys, other.bottleneck.keys)


@pytest.mark.parametrize("option", ["pool", "decoder", "pooling"])
def test_unknown_options_are_refused(plain, small, option):
    with pytest.raises(ValueError if option == "pool" else TypeError, match=option):
        put_in(plain, small[1], **{option: "other"})
    with pytest.raises(ValueError, match=f"{option} is 'other', expected one of"):
        # a student without a bottleneck, too, and one that was saved when the others were choices
        DistilBERTwithBottleNeck(DistilBERTwithBottleNeckConfig(**{option: "other"}))


def test_a_misspelt_option_is_refused(plain, small):
    with pytest.raises(TypeError, match="unknown option num_codebook, expected some of pool"):
        put_in(plain, small[1], num_codebook=2)


# an orthogonal array: of any two of the four options, each of the four pairs stands in two of the eight rows
OPTIONS = [
    {
        "kind": ("teacher", "student")[a],
        "pool": ("before", "after")[c],
        "standardize": bool(a ^ c),
        **({"projection": "chunk"}, RANDOM)[b ^ c],
    }
    for a, b, c in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_padding_and_batching_change_nothing_and_every_option_saves(pretrained, student, small, options, tmp_path):
    _, rows = small
    options = dict(options)
    found = discretized(pretrained if options.pop("kind") == "teacher" else student, rows, **options)
    batch = batch_of(rows, range(6))
    padded = {name: torch.nn.functional.pad(tensor, (0, 11)) for name, tensor in batch.items()}
    backward = {name: tensor.flip(0) for name, tensor in batch.items()}
    with torch.inference_mode():
        output, further, alone = found(**batch), found(**padded), found(**batch_of(rows, [3]))
        assert torch.equal(found(**backward).logits.flip(0), output.logits)
    assert output.key_indices.shape == (6, 1 if options["pool"] == "before" else batch["input_ids"].shape[1], 16)
    real = output.key_indices[..., 0] >= 0
    assert torch.equal(output.key_indices[real], further.key_indices[further.key_indices[..., 0] >= 0])
    assert torch.equal(output.logits, further.logits)
    # a mean over codebooks may be summed in another order for one row than for six
    torch.testing.assert_close(output.logits[3:4], alone.logits, atol=1e-5, rtol=0)

    found.save_pretrained(tmp_path)
    loaded = type(found).from_pretrained(tmp_path)
    assert fingerprint(loaded) == fingerprint(found)
    assert torch.equal(predict_logits(loaded, rows), predict_logits(found, rows))
    assert loaded.bottleneck.frozen
    assert not any(parameter.requires_grad for parameter in loaded.base_model.parameters())
    half = type(found).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.get_input_embeddings().weight.dtype == torch.bfloat16
    for name, tensor in found.bottleneck.state_dict().items():
        assert torch.equal(half.bottleneck.state_dict()[name], tensor), name
    with torch.inference_mode():
        assert half(**batch).logits.isfinite().all()


def test_a_row_without_a_real_token_is_an_error(student, with_bottleneck, small):
    batch = batch_of(small[0], range(3))
    batch["attention_mask"][1] = 0
    for model in (student, with_bottleneck):
        with pytest.raises(ValueError, match="row 1 of the batch has no real token"):
            model(**batch)


def test_segments_reach_the_teachers_encoder(models, small):
    teacher, batch = models["teacher with bottleneck"], batch_of(small[0], range(4))
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


def test_a_pair_is_explained_as_the_teacher_reads_it_with_its_segments(models, tokenizer):
    teacher = models["teacher with bottleneck"]
    frame = explain(teacher, tokenizer, *PAIR)
    with torch.inference_mode():
        output = teacher(**tokenizer(*PAIR, return_tensors="pt"))
    assert frame["key"].tolist() == output.key_indices.flatten().tolist()
    pushes = [frame[f"push_{name}"].sum() for name in teacher.config.id2label.values()]
    assert pushes == pytest.approx(output.logits[0].tolist(), abs=1e-5)


def test_encoder_stays_frozen_and_without_dropout_in_training_mode(with_bottleneck, small):
    model = copy.deepcopy(with_bottleneck).train()
    assert model.training
    assert not any(module.training for module in model.base_model.modules())
    assert not any(parameter.requires_grad for parameter in model.base_model.parameters())
    batch = batch_of(small[0], range(4))
    assert torch.equal(model(**batch).key_indices, with_bottleneck(**batch).key_indices)
    model(**batch).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["bottleneck.values"]
    assert model.bottleneck.values.grad.any()


def test_under_a_new_head_the_encoder_is_the_same_and_frozen(student, small):
    found = student.with_new_head(seed=1).train()
    assert fingerprint(found.distilbert) == fingerprint(student.distilbert)
    assert not torch.equal(found.classifier.weight, student.classifier.weight)
    assert torch.equal(found.classifier.weight, student.with_new_head(seed=1).classifier.weight)
    assert not any(module.training for module in found.base_model.modules())
    found(**batch_of(small[0], range(4))).logits.square().sum().backward()
    trained = [name for name, parameter in found.named_parameters() if parameter.grad is not None]
    assert trained == ["classifier.weight", "classifier.bias"]
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_values_pass_gradcheck(student, small):
    found = discretized(student, small[0])
    with torch.no_grad():
        # a row of one token, -1 at its padding, beside a row of three
        key_indices = found(**batch_of(small[0], range(2))).key_indices[:, :3].clone()
    key_indices[1, 1:] = -1
    names = [name for name, parameter in found.named_parameters() if parameter.requires_grad]
    assert names == ["bottleneck.values"]

    def logits(values):
        return torch.func.functional_call(found, {names[0]: values}, kwargs={"key_indices": key_indices}).logits

    wide = found.bottleneck.values.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(logits, wide, fast_mode=True)


def test_missing_bottleneck_weights_are_initialised_not_garbage(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    kinds = (
        (BERTwithBottleNeck, BERTwithBottleNeckConfig),
        (DistilBERTwithBottleNeck, DistilBERTwithBottleNeckConfig),
    )
    model, kind = kinds[plain.config.model_type != BERTbaseConfig.model_type]
    options = {"num_codebooks": 16, "codebook_size": 8, **RANDOM}
    if kind is DistilBERTwithBottleNeckConfig:
        options["has_bottleneck"] = True
    config = kind.from_pretrained(tmp_path, **options)
    loaded = model.from_pretrained(tmp_path, config=config)
    for buffer in ("values", "keys", "counts", "frozen"):
        assert not getattr(loaded.bottleneck, buffer).any()
    assert torch.equal(loaded.bottleneck.std, torch.ones(384))
    # 384 × 224 normal numbers: their standard deviation is within 0.3 %, and so within 2 %
    assert loaded.bottleneck.projections.std().item() == pytest.approx(384**-0.5, rel=0.02)
    with pytest.raises(RuntimeError, match="no keys yet"):
        loaded(torch.tensor([[101, 102]]))


# the states that keys are fitted on


@pytest.mark.parametrize("options", [{}, {"pool": "before"}], ids=str)
def test_sampled_states_are_those_at_the_drawn_positions(plain, small, options):
    _, rows = small
    found = put_in(plain, rows, **options)
    everything = torch.cat(list(found.hidden_states(rows, batch_size=10)))
    assert len(everything) == found.states_per_row(rows).sum() == (len(rows) if options else rows.lengths.sum())
    for max_vectors in (10, 65536):
        positions = np.sort(draw_positions(len(everything), max_vectors, seed=3))
        sample = found.sample_states(rows, max_vectors, seed=3, batch_size=7)
        # other batches order float32 sums differently
        torch.testing.assert_close(sample, everything[positions], atol=1e-5, rtol=0)


def test_no_row_without_a_drawn_state_is_encoded(with_bottleneck, small, monkeypatch):
    drawn = draw_positions(small[0].lengths.sum(), 10, seed=0)
    rows = set(small[0].lengths.cumsum().searchsorted(drawn, side="right"))
    encoded, encode = [], with_bottleneck.encode

    def record(input_ids, *args, **kwargs):
        encoded.extend(ids[ids != 0].tolist() for ids in input_ids)
        return encode(input_ids, *args, **kwargs)

    monkeypatch.setattr(with_bottleneck, "encode", record)
    with_bottleneck.sample_states(small[0], 10, seed=0)
    assert sorted(encoded) == sorted(small[0].inputs["input_ids"][row] for row in rows)


# key indices in place of tokens


@pytest.mark.parametrize(
    ("kind", "pool", "size", "dtype"),
    [("teacher", "before", 8, torch.uint8), ("student", "after", 257, torch.uint16)],
)
def test_key_indices_stand_for_the_tokens(pretrained, student, small, tmp_path, kind, pool, size, dtype):
    train, held_out = small
    found = discretized(pretrained if kind == "teacher" else student, train, codebook_size=size, pool=pool)
    indexed = KeyIndexDataset(found, train, tmp_path, batch_size=10)
    assert indexed.key_indices.dtype == dtype
    # batches of other rows than those that the key indices were computed in
    for rows in torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).split(7):
        batch = train.collate([train[int(row)] for row in rows])
        integers = indexed.collate([indexed[int(row)] for row in rows])
        with torch.inference_mode():
            from_tokens = found(**batch_of(train, rows.tolist()))
            assert torch.equal(from_tokens.logits, found(key_indices=integers["key_indices"]).logits)
        assert torch.equal(from_tokens.key_indices, integers["key_indices"])
        assert torch.equal(batch["idx"], integers["idx"])
        assert torch.equal(batch["labels"], integers["labels"])
    lengths = train.lengths if pool == "after" else np.ones(len(train))
    assert (indexed.lengths == lengths).all() and len(indexed.key_indices) == lengths.sum()
    KeyIndexDataset(found, held_out, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


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
        if sys.platform == "linux":
            assert str(path) in Path("/proc/self/maps").read_text()  # read through a memory map
    others = [found, found, copy.deepcopy(found), copy.deepcopy(found)]
    others[2].distilbert.transformer.layer[0].ffn.lin1.bias.data[0] += 1e-3
    others[3].bottleneck.keys[0, 0, 0] += 1e-3
    for number, (other, rows) in enumerate(zip(others, (train, held_out, train, train), strict=True)):
        KeyIndexDataset(other, rows, tmp_path)
        assert len(list(tmp_path.iterdir())) == number + 1
    stolen = max(tmp_path.iterdir(), key=lambda other: (other != path, other.name))
    stolen.replace(path)
    with pytest.raises(ValueError, match="does not match the current"):
        KeyIndexDataset(found, train, tmp_path)


def test_key_indices_need_frozen_keys(with_bottleneck, small):
    found = copy.deepcopy(with_bottleneck)
    found.bottleneck.frozen.fill_(False)
    with pytest.raises(RuntimeError, match="keys are not frozen"):
        KeyIndexDataset(found, small[0])


# the contract of transformers


@pytest.fixture(scope="module")
def regression(tokenizer):
    """Six rows of STS-B, and one model of each kind for them, by name."""
    rows = CustomDataset(load_glue("stsb")["train"].select(range(6)), tokenizer, "stsb")
    teacher = BERTbase.for_task("stsb").eval()
    student = DistilBERTwithBottleNeck.from_teacher(teacher).eval()
    both = (discretized(model, rows) for model in (teacher, student))
    return rows, dict(zip(KINDS, (teacher, student, *both), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_give_the_loss_of_classification_and_regression(kind, models, small, regression):
    scores, regressors = regression
    for dataset, model in ((small[0], models[kind]), (scores, regressors[kind])):
        batch = batch_of(dataset, range(6))
        labels = torch.tensor(dataset.labels[:6])
        with torch.inference_mode():
            output, unlabelled = model(**batch, labels=labels), model(**batch)
        logits = output.logits.double()
        if dataset is scores:
            expected = (logits.squeeze(-1) - labels).square().mean()
        else:
            expected = (logits.exp().sum(-1).log() - logits[range(6), labels]).mean()
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert unlabelled.loss is None and torch.equal(unlabelled.logits, output.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_trainer_trains_and_evaluates(kind, models, small, tmp_path):
    train, held_out = small
    model = copy.deepcopy(models[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=8, per_device_eval_batch_size=5,
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=train.collate,
    )  # fmt: skip
    loss = trainer.train().training_loss
    assert 0 < loss < 10
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    everything = {name for name, _ in model.named_parameters()}
    assert moved == ({"bottleneck.values"} if kind.endswith("bottleneck") else everything)
    # batches of 5, padded to different lengths: outputs beside the logits must not be gathered
    predictions = trainer.predict(held_out)
    expected = predict_logits(model, held_out)
    torch.testing.assert_close(torch.from_numpy(predictions.predictions), expected, atol=1e-5, rtol=0)
    entropy = torch.nn.functional.cross_entropy(expected, torch.tensor(held_out.labels))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(entropy.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_attentions_are_what_they_are_elsewhere(kind, models, small):
    model, batch = copy.deepcopy(models[kind]), batch_of(small[0], range(4))
    is_student = kind.startswith("student")
    reference = (DistilBertForSequenceClassification if is_student else BertForSequenceClassification)(
        model.config
    )
    # a teacher with a bottleneck has no pooler
    reference.base_model.load_state_dict(model.base_model.state_dict(), strict=is_student)
    for one in (model, reference.eval()):
        one.set_attn_implementation("eager")  # the others compute no attention weights to hand out
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.inference_mode():
        output, plain = model(**batch, **wanted), model(**batch)
        if is_student:
            del batch["token_type_ids"]
        expected = reference(**batch, **wanted)
    layers = 3 if is_student else 6
    (B, T) = batch["input_ids"].shape
    assert [tuple(states.shape) for states in output.hidden_states] == [(B, T, 384)] * (layers + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(B, 12, T, T)] * layers
    for name in ("hidden_states", "attentions"):
        assert isinstance(output[name], tuple)
        assert all(map(torch.equal, output[name], expected[name]))
        assert name not in plain
    assert torch.equal(output.logits, plain.logits)
    model.config.output_hidden_states = True
    with torch.inference_mode():
        assert len(model(**batch).hidden_states) == layers + 1
        assert "hidden_states" not in model(**batch, output_hidden_states=False)


@pytest.mark.parametrize("kind", KINDS)
def test_without_return_dict_an_output_is_a_tuple_of_what_is_there(kind, models, small):
    model, batch = copy.deepcopy(models[kind]), batch_of(small[0], range(4))
    labels = torch.tensor(small[0].labels[:4])
    with torch.inference_mode():
        output = model(**batch, labels=labels)
        found = model(**batch, labels=labels, return_dict=False)
        assert torch.equal(model(**batch, return_dict=False)[0], output.logits)
        model.config.return_dict = False
        assert torch.equal(model(**batch)[0], output.logits)
    names = ["loss", "logits"]
    names += ["key_indices"] if kind.endswith("bottleneck") else []
    names += ["packed_states"] if kind != "teacher" else []
    assert list(output) == names
    assert isinstance(found, tuple) and len(found) == len(names)
    assert all(torch.equal(tensor, output[name]) for name, tensor in zip(names, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_auto_class_and_pipeline_load_a_saved_model(kind, models, small, tokenizer, tmp_path):
    model = models[kind]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(predict_logits(loaded, small[1]), predict_logits(model, small[1]))
    classify = pipeline("text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    answer = classify({"text": PAIR[0], "text_pair": PAIR[1]})
    with torch.inference_mode():
        expected = model(**tokenizer(*PAIR, return_tensors="pt")).logits.softmax(-1)[0]
    best = int(expected.argmax())
    assert answer["label"] == model.config.id2label[best]
    assert answer["score"] == pytest.approx(expected[best].item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pushing_to_the_hub_uploads_weights_config_and_card(kind, models, small, tmp_path, monkeypatch):
    def keep(self, repo_id, operations, **options):
        # the files that are pushed go when this returns
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, tmp_path / operation.path_in_repo)

    class Created:
        repo_id = "someone/model"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: Created)
    monkeypatch.setattr(HfApi, "create_commit", keep)
    models[kind].push_to_hub("someone/model")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(predict_logits(loaded, small[1]), predict_logits(models[kind], small[1]))


# keys that a student takes over from its teacher


@pytest.mark.parametrize(
    "options",
    [{}, RANDOM, {"standardize": False}, {"pool": "before"}],
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
    assert not predict_logits(found, small[1]).any()
    assert fingerprint(found.distilbert) == fingerprint(student.distilbert)
    assert not any(parameter.requires_grad for parameter in found.distilbert.parameters())
    for name in ("pool", "num_codebooks", "codebook_size", "projection", "dim_key"):
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
