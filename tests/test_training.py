import copy
from functools import partial

import pytest
import torch
from small_data import tiny_teacher
from transformers import Trainer, TrainerCallback, TrainingArguments

from kvlib import (
    BERTwithBottleNeck,
    CustomDataset,
    DiscreteKeyValueBottleneck,
    DistilBERTwithBottleNeck,
    DistillationTrainer,
    FineTuningTrainer,
    KeyIndexDataset,
    distillation_loss,
    fine_tune,
    predict_logits,
)
from kvlib.augmentation import FreshTextDataset
from kvlib.cache import fingerprint
from kvlib.data import MODEL_INPUTS
from kvlib.evaluation import key_agreement
from kvlib.loss import alignment_loss, layer_loss
from kvlib.teacher import cached_states, predict_states
from kvlib.training import LayerTrainer


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(scope="module")
def taught(small_splits, small, tokenizer, pretrained):
    """Rows with the logits of a teacher, and a plain student."""
    logits = predict_logits(pretrained, small[0])
    train = CustomDataset(small_splits[0], tokenizer, "mrpc", teacher_logits=logits)
    torch.manual_seed(0)
    return train, small[1], without_dropout(DistilBERTwithBottleNeck.from_teacher(pretrained))


@pytest.fixture(scope="module")
def aligned(taught, small_splits, tokenizer, pretrained):
    """The rows with the teacher's hidden states as well, and the teacher with a bottleneck."""
    states = predict_states(pretrained, taught[0])
    train = CustomDataset(small_splits[0], tokenizer, "mrpc", 128, taught[0].teacher_logits, states)
    return train, BERTwithBottleNeck.from_teacher(pretrained, train, num_codebooks=16, codebook_size=8)


def arguments(folder, **options):
    settings = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    settings["dataloader_pin_memory"] = False
    return TrainingArguments(str(folder), **(settings | options))


def gradients(model, train, folder, trainer=None, **options):
    """What the Trainer hands to its first optimiser step."""
    model = copy.deepcopy(model)
    seen = {}

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer = trainer or partial(DistillationTrainer, alpha=0.7, temperature=3.0)
    trainer(
        model=model,
        args=arguments(folder, max_steps=1, train_sampling_strategy="sequential", **options),
        train_dataset=train,
        data_collator=train.collate,
        callbacks=[Grab()],
    ).train()
    assert len(seen) > 30
    return seen


def test_trainers_gradient_is_that_of_the_loss(taught, tmp_path):
    train, _, student = taught
    found = gradients(student, train, tmp_path, per_device_train_batch_size=8)
    by_hand = copy.deepcopy(student).train()
    batch = train.collate([train[row] for row in range(8)])
    logits = by_hand(batch["input_ids"], batch["attention_mask"]).logits
    distillation_loss(logits, batch["teacher_logits"], batch["labels"], 3.0, 0.7).backward()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stage", ["fine-tuning a teacher", "distilling"])
def test_accumulating_four_steps_equals_one_large_batch(stage, taught, tmp_path):
    train, _, model = taught
    trainer = None
    if stage == "fine-tuning a teacher":
        model, trainer = tiny_teacher(dropout=0.0), FineTuningTrainer
    whole = gradients(model, train, tmp_path, trainer, per_device_train_batch_size=16)
    four = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    parts = gradients(model, train, tmp_path, trainer, **four)
    for name, gradient in whole.items():
        # float32 sums in another order, over differently padded batches
        torch.testing.assert_close(parts[name], gradient, atol=2e-6, rtol=1e-3)


@pytest.mark.parametrize("max_length", [18, 128])
def test_accumulating_with_hidden_states_needs_equally_many_tokens(
    max_length, small_splits, taught, aligned, pretrained, tokenizer, tmp_path
):
    rows, student = small_splits[0].select(range(16)), taught[2]
    plain = CustomDataset(rows, tokenizer, "mrpc", max_length)
    logits, states = predict_logits(pretrained, plain), predict_states(pretrained, plain)
    train = CustomDataset(rows, tokenizer, "mrpc", max_length, logits, states)
    trainer = partial(DistillationTrainer, alignment_weight=5.0, bottleneck=aligned[1].bottleneck)
    whole = gradients(student, train, tmp_path, trainer, per_device_train_batch_size=16)
    four = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    parts = gradients(student, train, tmp_path, trainer, **four)
    if max_length == 18:
        assert set(train.lengths) == {18}
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-3)
    else:
        # a mean of four means weighs tokens of short batches more; what it is worth, as a share of the gradient
        difference = sum((parts[name] - whole[name]).square().sum() for name in whole).sqrt()
        assert 1e-3 < difference / sum(gradient.square().sum() for gradient in whole.values()).sqrt() < 0.1


def test_no_two_epochs_of_any_two_seeds_see_the_rows_in_the_same_order(small, tmp_path):
    def orders(seed):
        """The idx of all rows in the order of training, for each of two epochs."""
        seen = []

        class Record(FineTuningTrainer):
            def training_step(self, model, inputs, *args, **kwargs):
                seen.extend(inputs["idx"].tolist())
                return super().training_step(model, inputs, *args, **kwargs)

        Record(
            model=tiny_teacher(),
            args=arguments(
                tmp_path, num_train_epochs=2, seed=seed, per_device_train_batch_size=8,
                train_sampling_strategy="group_by_length",
            ),
            train_dataset=small[0],
            data_collator=small[0].collate,
        ).train()  # fmt: skip
        return [tuple(seen[:48]), tuple(seen[48:])]

    found = [order for seed in range(3) for order in orders(seed)]
    assert all(sorted(order) == sorted(small[0].idx) for order in found)
    assert len(set(found)) == len(found) == 6
    assert orders(1) == found[2:4]


def test_several_visible_gpus_in_one_process_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"2 GPUs are visible.*accelerate launch.*CUDA_VISIBLE_DEVICES=0"):
        fine_tune(tiny_teacher(), *small, tmp_path / "run", epochs=1, learning_rate=1e-3)
    assert not list(tmp_path.rglob("checkpoint-*"))


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


@pytest.mark.parametrize("lazy", [False, True])
def test_lazy_stage_three_moves_in_each_step_only_what_its_batch_selected(lazy, taught, tmp_path):
    train, _, student = taught
    model = student.discretize(train, num_codebooks=16, codebook_size=8)
    drifted = []

    class Recorder(DistillationTrainer):
        def training_step(self, model, inputs, *arguments, **options):
            self.batch, self.before = inputs["key_indices"].clone(), model.bottleneck.values.detach().clone()
            return super().training_step(model, inputs, *arguments, **options)

    class Compare(TrainerCallback):
        def on_step_end(self, args, state, control, model, **options):
            selected = model.bottleneck.hits(trainer.batch) > 0
            moved = (model.bottleneck.values != trainer.before).any(-1)
            drifted.append(int((moved & ~selected).sum()))

    indexed = KeyIndexDataset(model, train)
    settings = {"learning_rate": 0.05, "num_train_epochs": 2, "train_sampling_strategy": "random"}
    trainer = Recorder(
        model=model,
        args=arguments(tmp_path, **settings),
        train_dataset=indexed,
        data_collator=indexed.collate,
        callbacks=[Compare()],
        lazy=lazy,
    )
    trainer.train()
    assert model.bottleneck.values.any()
    # AdamW's momentum moves what an earlier batch selected
    assert (sum(drifted) == 0) == lazy


def test_values_are_exempt_from_weight_decay(taught, tmp_path):
    train, _, student = taught
    model = student.discretize(train, num_codebooks=16, codebook_size=8)
    trainer = DistillationTrainer(model=model, args=arguments(tmp_path), train_dataset=train)
    assert "bottleneck.values" not in trainer.get_decay_parameter_names(model)
    assert "classifier.weight" in trainer.get_decay_parameter_names(student)
    assert "bottleneck.values" in Trainer.get_decay_parameter_names(trainer, model)


def test_stopped_and_resumed_equals_never_stopped(taught, tmp_path):
    train, held_out, _ = taught
    student = DistilBERTwithBottleNeck.from_teacher(tiny_teacher())

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 1

    weights = []
    for folder, interruptions in (("whole", [None]), ("parts", [[Stop()], None])):
        for number, callbacks in enumerate(interruptions):
            model = student.discretize(train, num_codebooks=4, codebook_size=8)
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


def test_alignment_without_what_it_aligns_to_is_refused(taught, aligned, tmp_path):
    train, _, student = taught
    with pytest.raises(ValueError, match=r"alignment_weight is 0\.5 but there is no bottleneck"):
        DistillationTrainer(model=student, args=arguments(tmp_path), train_dataset=train, alignment_weight=0.5)
    with pytest.raises(ValueError, match=r"alignment_weight is 0\.5 but the training data has no teacher states"):
        DistillationTrainer(
            model=student,
            args=arguments(tmp_path),
            train_dataset=train,
            alignment_weight=0.5,
            bottleneck=aligned[1].bottleneck,
        )


@pytest.mark.parametrize("key_weight", [0.0, 0.3], ids=lambda weight: f"key_weight {weight}")
def test_trainers_gradient_includes_that_of_the_alignment(taught, aligned, tmp_path, key_weight):
    train, teacher = aligned
    student = taught[2]
    extra = {"bottleneck": teacher.bottleneck, "key_weight": key_weight}
    before = fingerprint(teacher)
    trainer = partial(DistillationTrainer, alpha=0.7, temperature=3.0, alignment_weight=0.5, **extra)
    found = gradients(student, train, tmp_path, trainer, per_device_train_batch_size=8)
    by_hand = copy.deepcopy(student).train()
    batch = train.collate([train[row] for row in range(8)])
    states = by_hand.encode(batch["input_ids"], batch["attention_mask"])[0]
    theirs = batch["teacher_states"].float()
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


def layers_stage(student, teacher, small_splits, tokenizer, folder, **options):
    """Two epochs on fresh text."""
    rows, held_out = small_splits
    train = FreshTextDataset(rows, tokenizer, "mrpc", 32)
    trainer = partial(LayerTrainer, teacher=teacher, callbacks=options.pop("callbacks", None))
    held_out = CustomDataset(held_out, tokenizer, "mrpc", 32)
    settings = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16} | options
    return fine_tune(student, train, held_out, folder, trainer=trainer, **settings)


def test_layer_by_layer_a_student_comes_to_its_teachers_hidden_states(
    pretrained, small_splits, tokenizer, tmp_path
):
    student = DistilBERTwithBottleNeck.from_teacher(pretrained)
    kept, teachers = copy.deepcopy(student.state_dict()), fingerprint(pretrained)
    history = layers_stage(student, pretrained, small_splits, tokenizer, tmp_path)
    # scores of a head that is not trained would mean nothing
    assert list(history.columns) == ["epoch", "train_loss", "held_out_loss"]
    rows = CustomDataset(small_splits[1], tokenizer, "mrpc", 32)

    def loss():
        batch = rows.collate([rows[row] for row in range(16)])
        inputs = {name: batch[name] for name in MODEL_INPUTS}
        with torch.no_grad():
            states = [model(**inputs, output_hidden_states=True).hidden_states for model in (student, pretrained)]
        return layer_loss(states[0][1:], states[1][1:], inputs["attention_mask"]).item()

    after = loss()
    # one batch of all held-out rows; the trainer's ran through the same model
    assert history["held_out_loss"].min() == pytest.approx(after, rel=1e-4)
    still = {name for name, weight in student.state_dict().items() if torch.equal(weight, kept[name])}
    assert still == {name for name in kept if "embeddings" in name or name.startswith("classifier")}
    student.load_state_dict(kept)
    # 0.39, 0.66 times what it was
    assert after < 0.75 * loss()
    assert fingerprint(pretrained) == teachers
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.distilbert.embeddings.dropout.p == student.config.dropout > 0


def test_a_student_that_stops_between_two_fresh_copies_goes_on_as_if_it_had_not(
    pretrained, small_splits, tokenizer, tmp_path
):
    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= 1

    weights = []
    for folder, interruptions in (("whole", [None]), ("parts", [[Stop()], None])):
        for number, callbacks in enumerate(interruptions):
            student = DistilBERTwithBottleNeck.from_teacher(pretrained, 1)
            torch.nn.init.zeros_(student.classifier.weight)
            layers_stage(
                student, pretrained, small_splits, tokenizer, tmp_path / folder,
                callbacks=callbacks, resume=number > 0, load_best_model_at_end=False,
            )  # fmt: skip
        weights.append(fingerprint(student.distilbert))
    assert weights[0] == weights[1]


def test_the_teachers_bottleneck_stays_where_it_is(aligned, taught, tmp_path, monkeypatch):
    train, teacher = aligned
    moved, to = [], DiscreteKeyValueBottleneck.to

    def record(self, *args, **kwargs):
        moved.append((self, *args))
        return to(self, *args, **kwargs)

    monkeypatch.setattr(DiscreteKeyValueBottleneck, "to", record)
    args = arguments(tmp_path)
    trainer = DistillationTrainer(
        model=taught[2], args=args, train_dataset=train, alignment_weight=1.0, bottleneck=teacher.bottleneck
    )
    assert trainer.bottleneck is not teacher.bottleneck
    # a copy went to the device of training, and nothing else went anywhere
    assert [(module is trainer.bottleneck, device) for module, device in moved] == [(True, args.device)]
    assert fingerprint(trainer.bottleneck) == fingerprint(teacher.bottleneck)
    assert trainer.bottleneck.keys.data_ptr() != teacher.bottleneck.keys.data_ptr()


def test_kept_teacher_states_are_the_live_ones_in_the_order_of_the_rows(
    small_splits, small, tokenizer, pretrained, tmp_path
):
    train, held_out = small
    path = tmp_path / "states.safetensors"
    kept = cached_states(pretrained, train, path)
    assert torch.equal(kept, predict_states(pretrained, train))
    assert kept.shape == (train.lengths.sum(), 384)
    assert kept.dtype == torch.float16
    assert (train.lengths[1:] < train.lengths[:-1]).any()  # rows do not stand in the order of their lengths
    written = path.stat().st_mtime_ns
    again = cached_states(pretrained, train, path)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="current rows: delete it"):
        cached_states(pretrained, held_out, path)
    taught = CustomDataset(small_splits[0], tokenizer, "mrpc", teacher_states=again)
    batch = taught.collate([taught[row] for row in (11, 3, 40)])
    with torch.inference_mode():
        live = pretrained.bert(**{name: batch[name] for name in MODEL_INPUTS}).last_hidden_state
    live = live[batch["attention_mask"].bool()]
    # float16 rounds by at most 2**-11 of a number; other batches order float32 sums differently
    torch.testing.assert_close(batch["teacher_states"].float(), live, atol=2e-5, rtol=2**-10)


def test_key_indices_are_those_of_the_rows_whatever_else_comes_with_them(aligned, taught):
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
            alignment_weight=weight,
            bottleneck=teacher.bottleneck,
        ).train()
        agreement[name] = key_agreement(teacher, model.carry_keys(teacher), held_out)[0].mean()
    # 44 % before any training; after it 39 % without alignment, 48 % with: half of the difference is asked for
    assert agreement["aligned"] > agreement["none"] + 0.045
    assert agreement["aligned"] > agreement["start"] + 0.02


def test_collate_that_drops_the_teachers_logits_is_told(taught, tmp_path):
    train, held_out, student = taught

    class Dropping(CustomDataset):
        def collate(self, examples):
            return {name: column for name, column in super().collate(examples).items() if name != "teacher_logits"}

    spoiled = copy.copy(train)
    spoiled.__class__ = Dropping
    with pytest.raises(ValueError, match=r"alpha is 0.9 but there are no teacher_logits"):
        fine_tune(
            copy.deepcopy(student), spoiled, held_out, tmp_path,
            epochs=1, learning_rate=1e-4, trainer=DistillationTrainer,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["eval_strategy", "logging_strategy"])
def test_strategies_that_would_lose_the_history_are_refused_at_once(name, taught, tmp_path):
    train, held_out, student = taught
    with pytest.raises(ValueError, match=rf"{name} is 'steps', but the history"):
        fine_tune(
            student,
            train,
            held_out,
            tmp_path,
            epochs=1,
            learning_rate=1e-4,
            **{name: "steps", "load_best_model_at_end": False},
        )
