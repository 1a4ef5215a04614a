import copy
from functools import partial

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from kvlib import (
    BERTwithBottleNeck,
    DistilBERTwithBottleNeck,
    DistillationTrainer,
    KeyIndexDataset,
    distillation_loss,
    fine_tune,
    predict_logits,
)
from kvlib.evaluation import key_agreement
from kvlib.loss import alignment_loss, hidden_state_loss
from kvlib.cache import fingerprint
from kvlib.data import MODEL_INPUTS
from kvlib.teacher import cached_states, predict_states


@pytest.fixture(scope="module")
def taught(small, pretrained):
    """Rows with the logits of a teacher, and a plain student."""
    train, held_out = (copy.copy(split) for split in small)
    train.attach(predict_logits(pretrained, train))
    torch.manual_seed(0)
    student = DistilBERTwithBottleNeck.from_teacher(pretrained)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    student.distilbert.transformer.layer[0].attention.dropout.p = 0.0
    return train, held_out, student


@pytest.fixture(scope="module")
def aligned(taught, pretrained):
    """The rows with the teacher's hidden states as well, and the teacher with a bottleneck."""
    train = copy.copy(taught[0])
    train.attach(train.teacher_logits, predict_states(pretrained, train))
    return train, BERTwithBottleNeck.from_teacher(pretrained, train, num_codebooks=16, codebook_size=8)


def arguments(folder, **options):
    settings = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    settings["dataloader_pin_memory"] = False
    return TrainingArguments(str(folder), **(settings | options))


def gradients(model, train, folder, loss=None, **options):
    """What the Trainer hands to its first optimiser step."""
    model = copy.deepcopy(model)
    seen = {}

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer = DistillationTrainer(
        model=model,
        args=arguments(folder, max_steps=1, train_sampling_strategy="sequential", **options),
        train_dataset=train,
        data_collator=train.collate,
        callbacks=[Grab()],
        alpha=0.7,
        temperature=3.0,
        **(loss or {}),
    )
    trainer.train()
    return seen


def test_trainers_gradient_is_that_of_the_loss(taught, tmp_path):
    train, _, student = taught
    found = gradients(student, train, tmp_path, per_device_train_batch_size=8)
    by_hand = copy.deepcopy(student).train()
    batch = train.collate([train[row] for row in range(8)])
    logits = by_hand(batch["input_ids"], batch["attention_mask"]).logits
    distillation_loss(logits, batch["teacher_logits"], batch["labels"], 3.0, 0.7).backward()
    assert len(found) > 40
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_accumulating_four_steps_equals_one_large_batch(taught, tmp_path):
    train, _, student = taught
    whole = gradients(student, train, tmp_path, per_device_train_batch_size=16)
    parts = gradients(student, train, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for name, gradient in whole.items():
        # float32 sums in another order, over differently padded batches
        torch.testing.assert_close(parts[name], gradient, atol=2e-6, rtol=1e-3)


def test_distilling_without_teacher_logits_is_refused(taught, small, tmp_path):
    _, _, student = taught
    with pytest.raises(ValueError, match="training data has no teacher logits"):
        DistillationTrainer(model=student, args=arguments(tmp_path), train_dataset=small[1])


def test_stage_three_moves_selected_values_only(taught, tmp_path):
    train, held_out, student = taught
    model = student.discretize(train, num_codebooks=16, codebook_size=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    indexed = KeyIndexDataset(model, train)
    history = fine_tune(
        model,
        indexed,
        KeyIndexDataset(model, held_out),
        tmp_path,
        epochs=3,
        learning_rate=0.05,
        trainer=partial(DistillationTrainer, alpha=0.9),
        train_sampling_strategy="random",
    )
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["bottleneck.values"]
    hit = model.bottleneck.hits(indexed.key_indices) > 0
    assert not model.bottleneck.values[~hit].any()
    assert model.bottleneck.values[hit].any(-1).all()
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_values_are_exempt_from_weight_decay(taught, tmp_path):
    train, _, student = taught
    model = student.discretize(train, num_codebooks=16, codebook_size=8, decoder="linear")
    trainer = DistillationTrainer(model=model, args=arguments(tmp_path), train_dataset=train)
    assert trainer.get_decay_parameter_names(model).count("bottleneck.values") == 0
    assert "decoder.weight" in trainer.get_decay_parameter_names(model)
    assert "bottleneck.values" in Trainer.get_decay_parameter_names(trainer, model)


def test_stopped_and_resumed_equals_never_stopped(taught, tmp_path):
    train, held_out, student = taught

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 1

    weights = []
    for folder, interruptions in (("whole", [None]), ("parts", [[Stop()], None])):
        for number, callbacks in enumerate(interruptions):
            model = student.discretize(train, num_codebooks=16, codebook_size=8)
            fine_tune(
                model,
                KeyIndexDataset(model, train),
                KeyIndexDataset(model, held_out),
                tmp_path / folder,
                epochs=4,
                learning_rate=0.05,
                resume=number > 0,
                trainer=partial(DistillationTrainer, alpha=0.9, callbacks=callbacks),
                train_sampling_strategy="random",
                load_best_model_at_end=False,
            )
        weights.append(fingerprint(model))
    assert weights[0] == weights[1]


def test_hidden_states_without_those_of_the_teacher_are_refused(taught, tmp_path):
    train, _, student = taught
    with pytest.raises(ValueError, match=r"hidden_weight is 0\.5 but the training data has no teacher states"):
        DistillationTrainer(model=student, args=arguments(tmp_path), train_dataset=train, hidden_weight=0.5)


@pytest.mark.parametrize("key_weight", [None, 0.0, 0.3], ids=lambda weight: f"key_weight {weight}")
def test_trainers_gradient_includes_that_of_the_loss_on_hidden_states(taught, aligned, tmp_path, key_weight):
    """None: no bottleneck, the cosine of DistilBERT."""
    train, teacher = aligned
    student = taught[2]
    extra = {} if key_weight is None else {"bottleneck": teacher.bottleneck, "key_weight": key_weight}
    before = fingerprint(teacher)
    found = gradients(student, train, tmp_path, {"hidden_weight": 0.5, **extra}, per_device_train_batch_size=8)
    by_hand = copy.deepcopy(student).train()
    batch = train.collate([train[row] for row in range(8)])
    states = by_hand.encode(batch["input_ids"], batch["attention_mask"])[0]
    theirs = batch["teacher_states"].float()
    if key_weight is None:
        hidden = hidden_state_loss(states, theirs)
    else:
        hidden = alignment_loss(teacher.bottleneck, states, theirs, key_weight)
    logits = by_hand(batch["input_ids"], batch["attention_mask"]).logits
    loss = distillation_loss(logits, batch["teacher_logits"], batch["labels"], 3.0, 0.7)
    alone = torch.autograd.grad(hidden, list(by_hand.distilbert.parameters()), retain_graph=True)
    assert all(gradient.any() for gradient in alone)  # it reaches every weight of the encoder
    (loss + 0.5 * hidden).backward()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)
    assert fingerprint(teacher) == before
    assert teacher.bottleneck.values.grad is None


def test_kept_teacher_states_are_the_live_ones_in_the_order_of_the_rows(taught, pretrained, tmp_path):
    train = copy.copy(taught[0])
    path = tmp_path / "states.safetensors"
    kept = cached_states(pretrained, train, path)
    assert torch.equal(kept, predict_states(pretrained, train))
    assert kept.shape == (train.lengths.sum(), 384)
    assert kept.dtype == torch.float16
    assert (train.lengths[1:] < train.lengths[:-1]).any()  # rows do not stand in the order of their lengths
    written = path.stat().st_mtime_ns
    train.attach(train.teacher_logits, cached_states(pretrained, train, path))
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another rows: delete it"):
        cached_states(pretrained, taught[1], path)
    batch = train.collate([train[row] for row in (11, 3, 40)])
    with torch.inference_mode():
        live = pretrained.bert(**{name: batch[name] for name in MODEL_INPUTS}).last_hidden_state
    live = live[batch["attention_mask"].bool()]
    # float16 rounds by at most 2**-11 of a number; other batches order float32 sums differently
    torch.testing.assert_close(batch["teacher_states"].float(), live, atol=2e-5, rtol=2**-10)


def test_key_indices_are_those_of_the_rows_whatever_else_is_attached(aligned, taught):
    train, teacher = aligned
    indexed, without = KeyIndexDataset(teacher, train), KeyIndexDataset(teacher, taught[0])
    assert torch.equal(indexed.key_indices, without.key_indices)
    batch = indexed.collate([indexed[row] for row in (5, 2)])
    assert set(batch) == {"key_indices", "labels", "idx", "teacher_logits"}


def test_alignment_makes_a_student_fire_its_teachers_keys(aligned, taught, tmp_path):
    train, teacher = aligned
    held_out, student = taught[1:]
    agreement = {"start": key_agreement(teacher, student.carry_keys(teacher), held_out)[0].mean()}
    for name, weight in (("none", 0.0), ("aligned", 1.0)):
        model = copy.deepcopy(student)
        DistillationTrainer(
            model=model,
            args=arguments(tmp_path, max_steps=12, learning_rate=3e-4, per_device_train_batch_size=8),
            train_dataset=train,
            data_collator=train.collate,
            hidden_weight=weight,
            bottleneck=teacher.bottleneck,
        ).train()
        agreement[name] = key_agreement(teacher, model.carry_keys(teacher), held_out)[0].mean()
    # 46 % before any training; after it 43 % without alignment, 55 % with: half of the difference is asked for
    assert agreement["aligned"] > agreement["none"] + 0.06
    assert agreement["aligned"] > agreement["start"] + 0.04
