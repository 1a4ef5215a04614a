import copy
from functools import partial

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from kvlib import (
    DistilBERTwithBottleNeck,
    DistillationTrainer,
    KeyIndexDataset,
    distillation_loss,
    fine_tune,
    predict_logits,
)
from kvlib.teacher import fingerprint


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


def arguments(folder, **options):
    settings = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    settings["dataloader_pin_memory"] = False
    return TrainingArguments(str(folder), **(settings | options))


def gradients(model, train, folder, **options):
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
