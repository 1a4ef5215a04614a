"""A short real run of the three stages in a process of its own, which can be made to fail at a given moment.

``python tests/short_run.py SOURCE TEACHER RUNS LAST_STAGE [MOMENT ...]`` runs the stages once for each moment,
each time in a new process, and then once more, undisturbed. The last line it prints is JSON: how every process
ended, at which step each of its trainings began and with which weights it ended, what it announced, and what it has
found. With ``meet`` for a moment two processes run at the same time: the first waits in the middle of its first stage
until the second says that it waits, too. Under a launcher (no moments) it runs in the launched processes.
"""

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from shared_stages import tiny_profile
from transformers import BertConfig, TrainerCallback

import kvlib.cache
import kvlib.recipe.experiment
import kvlib.training
from kvlib import Experiment, FineTuningTrainer, predict_logits
from kvlib.cache import fingerprint

STAGES = ("teacher", "distilbert", "bottleneck")
MEGABYTE = 2**20
# the optimiser keeps two numbers a weight, so its state takes twice the megabytes of the weights
OPTIMIZER_MEGABYTES = 35


def profile(teacher):
    epochs = {"teacher_epochs": 2, "student_epochs": 3, "bottleneck_epochs": 3}
    return tiny_profile(teacher, max_length=16, **epochs)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path, seconds=120):
    """Return when a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"there is no {path}")
        time.sleep(0.01)


def before(owner, name, action: Callable):
    """Call `action` with the arguments of ``owner.name`` before each call of it."""
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def arm(stage, what, number="0"):
    """Prepare one failure of this process: `what` happens in `stage`, if it has a step then in that `number`."""

    def at_step(action):
        def check(trainer, *args, **kwargs):
            if f"-{stage}-" in trainer.args.output_dir and trainer.state.global_step == int(number):
                action(trainer)

        return check

    def die_in_optimizer(trainer):
        content = io.BytesIO()
        torch.save(trainer.optimizer.state_dict(), content)
        folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        (folder / "optimizer.pt").write_bytes(content.getvalue()[:MEGABYTE])
        die()

    def fill_disk(trainer):
        folder = Path(trainer.args.output_dir)
        # the weights fit, the optimiser's state does not
        free = shutil.disk_usage(folder).free - OPTIMIZER_MEGABYTES * MEGABYTE
        with (folder / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free)

    def limit_files(megabytes):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * MEGABYTE, hard))

    def hold(trainer):
        runs = Path(trainer.args.output_dir).parents[1]
        (runs / "held").touch()
        wait_for(runs / "met")

    if what == "step":
        before(FineTuningTrainer, "training_step", at_step(lambda trainer: die()))
    elif what == "checkpoint":
        before(FineTuningTrainer, "_save_optimizer_and_scheduler", at_step(die_in_optimizer))
    elif what == "unmarked":
        before(kvlib.training, "mark_complete", lambda path: path.name == f"checkpoint-{number}" and die())
    elif what == "full":
        before(FineTuningTrainer, "training_step", at_step(fill_disk))
    elif what == "hold":
        before(FineTuningTrainer, "training_step", at_step(hold))
    elif what.startswith("limit"):
        megabytes = int(what.removeprefix("limit"))
        before(FineTuningTrainer, "training_step", at_step(lambda trainer: limit_files(megabytes)))
    elif what == "cache":

        def die_half_written(tensors, path, metadata):
            if f"-{stage}-" in path.name:
                content = save(tensors, metadata)
                path.write_bytes(content[: len(content) // 2])
                die()

        before(kvlib.cache, "save_file", die_half_written)
    elif what == "finish":
        before(pd.DataFrame, "to_csv", lambda frame, path, **options: f"-{stage}-" in str(path) and die())
    elif what == "cleanup":

        def die_after_rename(path, **options):
            # transformers removes old checkpoints with the same function
            if str(path).endswith(".training") and f"-{stage}-" in str(path):
                die()

        before(shutil, "rmtree", die_after_rename)
    else:
        raise ValueError(what)


def run(source, teacher, runs, last, tell):
    """Run the stages up to `last`; `tell` each training's first step, at last what was found."""

    class Tell(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            stage = Path(args.output_dir).parent.name.split("-")[1]
            tell({"began": [stage, state.global_step]})

        def on_epoch_end(self, args, state, control, model, **kwargs):
            # the stage may end with the weights of an earlier, better epoch
            if state.global_step == state.max_steps:
                tell({"trained": [Path(args.output_dir).parent.name.split("-")[1], fingerprint(model)]})

    def announced(message):
        tell({"announced": message})
        (Path(runs) / "met").touch()

    if BertConfig.from_pretrained(teacher).hidden_dropout_prob == 0:
        # the student's head has one of its own
        torch.nn.Dropout.forward = lambda self, states: states
    original = FineTuningTrainer.__init__
    FineTuningTrainer.__init__ = lambda self, *args, **kwargs: original(self, *args, callbacks=[Tell()], **kwargs)
    before(kvlib.recipe.experiment, "announce", announced)
    experiment = Experiment("sst2", source, profile(teacher), runs=runs)
    found = {"fingerprints": {}, "resumed": {}, "processes": {}, "histories": {}, "logits": {}}
    for stage in STAGES[: STAGES.index(last) + 1]:
        model = experiment.model(stage)
        found["fingerprints"][stage] = fingerprint(model)
        found["resumed"][stage] = experiment.records[stage]["resumed"]
        found["processes"][stage] = experiment.records[stage]["processes"]
        found["histories"][stage] = experiment.histories[stage].to_dict("list")
        found["logits"][stage] = predict_logits(model, experiment.validation["validation"]).tolist()
    tell({"found": found})


def start(moment, arguments):
    """Run in a forked process, so that the imports are paid once: what it tells is read with `ending`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)

        def tell(what):
            os.write(writer, (json.dumps(what) + "\n").encode())

        try:
            if moment:
                arm(*moment.split())
            run(*arguments, tell)
        except BaseException as error:
            tell({"error": [type(error).__name__, str(error)]})
        os._exit(0)
    os.close(writer)
    return moment, child, reader


def ending(moment, child, reader):
    """Wait for the end of a process that `start` has started, and collect what it told."""
    with open(reader) as stream:
        told = [json.loads(line) for line in stream]
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    lists = {name: [line[name] for line in told if name in line] for name in ("began", "trained", "announced")}
    last = {name: line[name] for line in told for name in ("error", "found") if name in line}
    return {"moment": moment, "killed": killed} | lists | last


def main():
    *arguments, last = sys.argv[1:5]
    moments, runs = sys.argv[5:], Path(arguments[2])
    if "RANK" in os.environ:
        told = []
        run(*arguments, last, told.append)
        if os.environ["RANK"] == "0":
            print(json.dumps([told[-1]]))
        return
    endings = []
    if moments == ["meet"]:
        first = start(f"{last} hold 2", (*arguments, last))
        wait_for(runs / "held")
        endings = [ending(*process) for process in (first, start(None, (*arguments, last)))]
    else:
        for moment in [*moments, None]:
            endings.append(ending(*start(moment, (*arguments, last))))
            for filler in runs.rglob("filler"):
                filler.unlink()
    print(json.dumps(endings))


if __name__ == "__main__":
    main()
