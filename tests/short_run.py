"""Short real runs of the three stages in processes of their own, which can be made to fail at a given moment.

``python tests/short_run.py SOURCE TEACHER PLANS`` carries out the plans, a JSON object, one after another.
The last line that it prints says, in JSON, how their processes ended. A plan names the folder of finished stages,
``runs``, and the ``last`` stage. The stages are run once for each of its ``moments``, each time in a new process,
and then once more, undisturbed. With ``after`` they start from what the teacher of another plan has left in its
folder. With ``at_once`` two processes run together: the first waits in the middle of its first stage until the
second says that it waits.
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
from transformers import TrainerCallback

import kvlib.cache
import kvlib.recipe.experiment
import kvlib.training
from kvlib import (
    BERTbase,
    CustomDataset,
    Experiment,
    FineTuningTrainer,
    fine_tune,
    load_glue,
    load_tokenizer,
    predict_logits,
)
from kvlib.cache import fingerprint
from kvlib.teacher import BERTbaseConfig

STAGES = ("teacher", "layers", "distilbert", "bottleneck")
MEGABYTE = 2**20
# the student's weights take 18, the optimiser's state takes twice that
TOO_FEW_MEGABYTES = 30


def profile(teacher):
    epochs = {"teacher_epochs": 2, "layer_epochs": 2, "student_epochs": 3, "bottleneck_epochs": 3}
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
        free = shutil.disk_usage(folder).free - TOO_FEW_MEGABYTES * MEGABYTE
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

    original = FineTuningTrainer.__init__
    FineTuningTrainer.__init__ = lambda self, *args, **kwargs: original(self, *args, callbacks=[Tell()], **kwargs)
    before(kvlib.recipe.experiment, "announce", announced)
    experiment = Experiment("sst2", source, profile(teacher), runs=runs)
    found = {"fingerprints": {}, "resumed": {}, "histories": {}, "logits": {}}
    for stage in STAGES[: STAGES.index(last) + 1]:
        model = experiment.model(stage)
        found["fingerprints"][stage] = fingerprint(model)
        found["resumed"][stage] = experiment.records[stage]["resumed"]
        found["histories"][stage] = experiment.histories[stage].to_dict("list")
        found["logits"][stage] = predict_logits(model, experiment.validation["validation"]).tolist()
    tell({"found": found})


def start(moment, what, arguments):
    """Call `what` in a forked process, so that the imports are paid once: what it tells is read with `ending`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)

        def tell(what):
            os.write(writer, (json.dumps(what) + "\n").encode())

        try:
            if moment:
                arm(*moment.split())
            what(*arguments, tell)
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


def carry_out(source, teacher, runs, last, moments=(), after=None, at_once=False):
    """Carry out one plan: how each of its processes ended."""
    arguments, runs = (source, teacher, runs, last), Path(runs)
    runs.mkdir(exist_ok=True)
    if after:
        names = ("sst2-teacher-*[!k]", "sst2-layers-*[!k]", "sst2-logits-*")
        for path in (path for name in names for path in Path(after).glob(name)):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, runs / path.name)
    if at_once:
        first = start(f"{last} hold 2", run, arguments)
        wait_for(runs / "held")
        return [ending(*process) for process in (first, start(None, run, arguments))]
    endings = []
    for moment in [*moments, None]:
        endings.append(ending(*start(moment, run, arguments)))
        for filler in runs.rglob("filler"):
            filler.unlink()
    return endings


def out_of_memory(folder, tell):
    """Let one step need more memory than this process may have."""
    rows = load_glue("rte")["train"].select(range(256))
    data = CustomDataset(rows, load_tokenizer(), "rte")
    shape = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 12, "vocab_size": 30522}
    model = BERTbase(BERTbaseConfig(**shape))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 220 * MEGABYTE,) * 2)
    fine_tune(model, data, data, folder, epochs=1, learning_rate=1e-4, batch_size=256)
    tell({"found": "enough memory"})


def main():
    source, teacher, plans = sys.argv[1:]
    told = {}
    for name, plan in json.loads(plans).items():
        if name == "out of memory":
            told[name] = ending(*start(None, out_of_memory, (plan["runs"],)))
        else:
            told[name] = carry_out(source, teacher, **plan)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
