import json
import os
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from shared_stages import small_minilm, tiny_profile
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from kvlib import load_tokenizer
from kvlib.pretrained import check_checkpoint
from kvlib.recipe.experiment import check_seed
from kvlib.recipe.profiles import check_models


@pytest.fixture
def checkpoint(tmp_path):
    return small_minilm(tmp_path / "checkpoint", layers=2)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_a_whole_checkpoint_passes_whatever_its_weights_are_called(checkpoint):
    assert check_checkpoint(str(checkpoint)).num_hidden_layers == 2
    weights = load_file(checkpoint / "model.safetensors")
    # as old checkpoints with a head call them
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): weight for name, weight in weights.items()
    }
    save_file(
        old | {"cls.predictions.bias": weights["embeddings.LayerNorm.bias"].clone()},
        checkpoint / "model.safetensors",
    )
    check_checkpoint(str(checkpoint))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer.json or vocab.txt"),
        (lambda f: (f / "config.json").unlink(), r"no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model.safetensors"),
        (lambda f: change_config(f, model_type="roberta"), r"is of type 'roberta', expected bert: other encoders"),
        (lambda f: change_config(f, vocab_size=500), r"knows 7000 words, its embeddings 500"),
        (lambda f: change_config(f, num_hidden_layers=3), r"lacks 16 weights, for example encoder.layer.2"),
        (lambda f: change_config(f, num_hidden_layers=1), r"unlike its config, 16 weights, .* encoder.layer.1"),
        (lambda f: change_config(f, intermediate_size=512), r"in another shape than its config 6 weights"),
        (lambda f: change_weights(f, lambda w: w.pop("embeddings.LayerNorm.bias")), r"lacks 1"),
        (
            lambda f: change_weights(f, lambda w: w.update({"bert.encoder.x": w["pooler.dense.bias"] + 0})),
            r"unlike its config, 1 weights, for example bert.encoder.x",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 9000), r"are damaged .*get them again"),
    ],
)  # fmt: skip
def test_checkpoints_that_would_train_on_nonsense_are_refused(checkpoint, spoil, message):
    spoil(checkpoint)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_checkpoint(str(checkpoint))


def test_a_pooler_is_asked_for_where_it_is_used(checkpoint):
    change_weights(
        checkpoint, lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("pooler")]
    )
    check_checkpoint(str(checkpoint))
    with pytest.raises(ValueError, match=r"lacks 2 weights, for example pooler.dense"):
        check_checkpoint(str(checkpoint), with_pooler=True)


@pytest.mark.parametrize(("layers", "dim"), [(1, 192), (3, 384), (2, 384)])
def test_a_student_that_cannot_learn_layer_by_layer_is_refused(layers, dim, checkpoint, tmp_path):
    student = tmp_path / "student"
    sizes = {"n_layers": layers, "dim": dim, "hidden_dim": 64, "vocab_size": 7000, "max_position_embeddings": 512}
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(student)
    load_tokenizer(str(checkpoint)).save_pretrained(student)
    profile = replace(tiny_profile(checkpoint), student_checkpoint=str(student))
    if (layers, dim) == (2, 384):
        check_models(profile)
    else:
        with pytest.raises(ValueError, match=rf"has {layers} layers of {dim} dimensions, .* 2 of 384: .* as wide"):
            check_models(profile)


def test_one_layer_is_refused_before_the_teacher_is_trained(tmp_path):
    profile = tiny_profile(small_minilm(tmp_path, layers=1))
    with pytest.raises(ValueError, match=r"has one layer, of which a student cannot take half"):
        check_models(profile)


def test_texts_are_read_as_far_as_there_are_positions(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=30522, max_position_embeddings=16, **sizes)
    BertModel(config).save_pretrained(tmp_path)
    load_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"as far as 16 tokens, not 24: the checkpoint has no more positions"):
        assert check_models(tiny_profile(tmp_path)).max_length == 16


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_numpy_does_not_take_are_refused(seed):
    with pytest.raises(ValueError, match=rf"the seed is {seed}, expected a whole number from 0 to 4294967295"):
        check_seed(seed)
