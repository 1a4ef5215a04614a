"""Time, memory and growth of the bottleneck, each beside what it is compared with; see README.md.

Whatever is compared runs in one process and in turn, so that a slow moment of the machine meets both; a ratio is
the median of the ratios of neighbours.
"""

import ctypes
import gc
import operator
import os
import sys
from math import log
from pathlib import Path
from statistics import linear_regression, median
from time import perf_counter

import pytest
import torch
import torch.nn.functional as F
from discrete_key_value_bottleneck_pytorch import DiscreteKeyValueBottleneck as PeerBottleneck
from sklearn.cluster import MiniBatchKMeans
from vector_quantize_pytorch import VectorQuantize

from kvlib import CustomDataset, DiscreteKeyValueBottleneck, DistilBERTwithBottleNeck
from kvlib.search import full_precision, nearest_keys
from kvlib.training import KeyIndexDataset

# the unit tests hide GPUs
os.environ.pop("CUDA_VISIBLE_DEVICES", None)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS, CODEBOOKS, KEYS, DIM_KEY = 4096, 64, 4096, 12
ROUNDS = 5


def synchronize():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(run):
    """Time one call."""
    synchronize()
    start = perf_counter()
    run()
    synchronize()
    return perf_counter() - start


def compare(benchmark, ours, other, rounds=ROUNDS):
    """Time both in turn, after a first time that does not count.

    Returns the median seconds of ours and of the other, and the median of other / ours.
    """
    others = []

    def finished():
        ours()
        synchronize()

    # pytest-benchmark calls `setup` before each round and does not time it
    benchmark.pedantic(finished, setup=lambda: others.append(seconds(other)), rounds=rounds, warmup_rounds=1)
    times = benchmark.stats.stats.data
    ratios = [slow / fast for slow, fast in zip(others[1:], times, strict=True)]
    return median(times), median(others[1:]), median(ratios)


def extra_mib(run):
    """Measure the peak memory of a call beyond what was held before it and what it returns, in MiB."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        peak = torch.cuda.max_memory_allocated()
    elif sys.platform == "linux":
        gc.collect()
        # what the allocator has kept of freed memory would hide what the call needs
        ctypes.CDLL(None).malloc_trim(0)
        # lowers the high-water mark to what is held now
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = run()
        peak = _status("VmHWM")
    else:
        return float("nan")
    returned = result if isinstance(result, tuple) else (result,)
    return (peak - before - sum(part.nbytes for part in returned if part is not None)) / 2**20


def _status(field):
    """Read a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def judge(value, *targets):
    """Say of each target, for example ``("<=", 1.5)``, whether it is met."""
    signs = {"<=": operator.le, ">=": operator.ge}
    verdicts = ("met" if signs[sign](value, bound) else "missed" for sign, bound in targets)
    return ", ".join(
        f"{sign} {bound:g} {verdict}" for (sign, bound), verdict in zip(targets, verdicts, strict=True)
    )


def milliseconds(time):
    return f"{1000 * time:,.1f}" if time < 1 else f"{1000 * time:,.0f}"


def add(table, what, size, times, other, ratio, target, runs):
    """Add a row; `times` and `runs` are ours and the other's."""
    ours, its = map(milliseconds, times)
    memory = [f"{extra_mib(run):,.1f}" for run in runs]
    table.append(
        {
            "what": what,
            "size": size,
            "ours ms": ours,
            "compared with": other,
            "its ms": its,
            "ratio": ratio,
            "target": target,
            "extra MiB": memory[0],
            "its extra MiB": memory[1],
        }
    )


def frozen(codebooks=CODEBOOKS, codebook_size=KEYS, **options):
    """Make a layer with random keys."""
    torch.manual_seed(0)
    options = {"dim": codebooks * DIM_KEY} | options
    bottleneck = DiscreteKeyValueBottleneck(num_codebooks=codebooks, codebook_size=codebook_size, **options)
    bottleneck.keys.normal_()
    bottleneck.counts.fill_(1)
    bottleneck.freeze_keys()
    return bottleneck.to(DEVICE)


def random_states(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.fixture(scope="module")
def full_size():
    """The layer of BERT's size, and hidden states for it."""
    return frozen(), random_states(TOKENS, CODEBOOKS * DIM_KEY)


def shape(tokens=TOKENS, codebooks=CODEBOOKS, keys=KEYS):
    return f"{tokens:,} tokens x {codebooks} x {keys:,} keys x {DIM_KEY}"


def products_of(bottleneck, states):
    """Record the matrix products of `quantize`, cut as it cuts them, to repeat them and nothing else."""
    multiply, products = torch.mm, []

    def record(left, right, out):
        products.append((left, right, out))
        return multiply(left, right, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", record)
        bottleneck.quantize(states)

    def run():
        with full_precision(DEVICE):
            for left, right, out in products:
                multiply(left, right, out=out)

    return run


def test_quantize_and_its_products(benchmark, table, full_size):
    bottleneck, states = full_size
    runs = lambda: bottleneck.quantize(states), products_of(bottleneck, states)
    *times, ratio = compare(benchmark, *runs)
    target = judge(1 / ratio, ("<=", 1.5), ("<=", 2.2))
    add(
        table, "quantize", shape(), times, "its matrix products alone", f"{1 / ratio:.2f} x its time", target, runs
    )


def test_quantize_and_cdist(benchmark, table, full_size):
    bottleneck, states = full_size

    def by_cdist():
        # codebook by codebook: the fastest way to write it, and the one that needs least memory
        vectors = zip(bottleneck.split(states).unbind(1), bottleneck.keys, strict=True)
        return torch.stack([torch.cdist(*pair).argmin(-1) for pair in vectors], 1)

    runs = lambda: bottleneck.quantize(states), by_cdist
    *times, ratio = compare(benchmark, *runs)
    target = judge(ratio, (">=", 3))
    add(
        table,
        "quantize",
        shape(),
        times,
        "cdist + argmin, codebook by codebook",
        f"{ratio:.1f} x faster",
        target,
        runs,
    )


def test_quantize_and_the_matrix_rate(benchmark, table, full_size):
    bottleneck, states = full_size
    square = random_states(4096, 4096)
    # a product has d + 1 terms: the last is |k|²/2
    share = TOKENS * CODEBOOKS * KEYS * (DIM_KEY + 1) / 4096**3

    def squares():
        with full_precision(DEVICE):
            return square @ square

    runs = lambda: bottleneck.quantize(states), squares
    ours, its, ratio = compare(benchmark, *runs)
    rate = 2 * 4096**3 / its / 1e9
    other = f"as many operations in a product of 4,096 x 4,096 ({rate:,.0f} Gflop/s)"
    add(
        table,
        "quantize",
        shape(),
        (ours, its * share),
        other,
        f"{ratio * share:.0%} of the matrix rate",
        "-",
        runs,
    )


@pytest.mark.parametrize("freeze", [False, True], ids=["running means", "frozen"])
def test_forward_and_the_peer(benchmark, table, freeze):
    states = random_states(8, 32, CODEBOOKS * DIM_KEY)
    bottleneck = frozen(projection="random", dim_key=DIM_KEY).train()
    peer = PeerBottleneck(
        dim=DIM_KEY,
        dim_embed=states.shape[-1],
        num_memories=KEYS,
        num_memory_codebooks=CODEBOOKS,
        dim_memory=DIM_KEY,
        average_pool_memories=False,
        # by default its keys have C times as many dimensions, behind a trained projection: slower still
        codebook_dim=DIM_KEY,
        freeze_codebook=freeze,
    )
    peer.to(DEVICE).train()
    runs = lambda: bottleneck(states), lambda: peer(states)
    *times, ratio = compare(benchmark, *runs)
    other = f"discrete-key-value-bottleneck-pytorch, train mode{', keys frozen' if freeze else ''}"
    target = "-" if freeze else judge(ratio, (">=", 40))
    what = "forward of 8 x 32 tokens, random projection"
    add(table, what, shape(tokens=8 * 32), times, other, f"{ratio:.1f} x faster", target, runs)


def test_forward_and_backward(benchmark, table, full_size):
    bottleneck, states = full_size
    bottleneck.train()

    def step():
        values, _ = bottleneck(states)
        values.sum().backward()
        bottleneck.values.grad = None

    runs = step, lambda: bottleneck.quantize(states)
    *times, ratio = compare(benchmark, *runs)
    add(
        table,
        "forward + backward",
        shape(),
        times,
        "quantize alone",
        f"{ratio:.0%} of it is the search",
        "-",
        runs,
    )


# key initialisation: all with the same decay, and as many vectors a step
DECAY, STEP = 0.95, 2048
FITTED_CODEBOOKS, FITTED_KEYS = 32, 1024


def test_a_step_of_key_initialisation(benchmark, table):
    bottleneck = frozen()
    bottleneck.frozen.fill_(False)
    peer = running_means(bottleneck.keys)
    # more would take the peer more than 5 GiB
    vectors = random_states(1024, CODEBOOKS, DIM_KEY)
    generator = torch.Generator().manual_seed(0)

    def update():
        bottleneck.update_keys(vectors, DECAY, generator)

    runs = update, torch.no_grad()(lambda: peer(vectors.flatten(1).unsqueeze(0)))
    *times, ratio = compare(benchmark, *runs, rounds=3)
    methods = zip(("update_keys", "vector-quantize-pytorch's running means"), times, strict=True)
    what, other = (f"{method}: {len(vectors) / time:,.0f} vectors/s" for method, time in methods)
    target = judge(ratio, (">=", 20))
    add(table, what, shape(tokens=len(vectors)), times, other, f"{ratio:.1f} x faster", target, runs)


@pytest.fixture(scope="module")
def train_split(mrpc, tokenizer):
    return CustomDataset(mrpc["train"], tokenizer, "mrpc")


@pytest.fixture(scope="module")
def plain_student(pretrained):
    return DistilBERTwithBottleNeck.from_teacher(pretrained).eval().to(DEVICE)


@pytest.fixture(scope="module")
def token_states(plain_student, train_split):
    """Real hidden states, one a token, in random order."""
    states = torch.cat(list(plain_student.hidden_states(train_split)))
    return states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))]


def fit_ours(states, passes):
    bottleneck = DiscreteKeyValueBottleneck(states.shape[-1], FITTED_CODEBOOKS, FITTED_KEYS).to(DEVICE)
    bottleneck.init_keys([states], passes=passes, batch_size=STEP, decay=DECAY)
    return bottleneck.keys


def running_means(keys):
    """Make the peer of keys ``(C, K, d)``; its own start, near zero, would give a few keys all vectors."""
    C, K, d = keys.shape
    peer = VectorQuantize(C * d, K, d, heads=C, separate_codebook_per_head=True, decay=DECAY).to(DEVICE)
    for start in (peer._codebook.embed, peer._codebook.embed_avg):
        start.copy_(keys)
    return peer.train()


@torch.no_grad()
def fit_running_means(vectors, passes):
    peer = running_means(vectors[:FITTED_KEYS].transpose(0, 1))
    for _ in range(passes):
        for part in vectors[torch.randperm(len(vectors))].split(STEP):
            peer(part.flatten(1).unsqueeze(0))
    return peer.codebook


def fit_mini_batches(vectors, passes):
    found = []
    for book in vectors.transpose(0, 1).cpu().numpy():
        fit = MiniBatchKMeans(
            FITTED_KEYS,
            init=book[:FITTED_KEYS],
            n_init=1,
            max_iter=passes,
            batch_size=STEP,
            max_no_improvement=None,
            compute_labels=False,
            random_state=0,
        )
        found.append(torch.from_numpy(fit.fit(book).cluster_centers_))
    return torch.stack(found).to(vectors)


def quantization_error(vectors, keys):
    """Mean squared distance to the nearest key, over the variance."""
    nearest = keys[torch.arange(len(keys), device=keys.device), nearest_keys(vectors, keys)]  # (N, C, d)
    return float((vectors - nearest).square().sum() / (vectors - vectors.mean(0)).square().sum())


@pytest.mark.parametrize(
    "name, fit, codebooks, rows, passes",
    [
        ("vector-quantize-pytorch's running means", fit_running_means, FITTED_CODEBOOKS, 8192, 1),
        # a few codebooks and their time multiplied: it fits one after another
        ("scikit-learn's MiniBatchKMeans", fit_mini_batches, 4, 16384, 5),
    ],
)
def test_key_initialisation(benchmark, table, token_states, name, fit, codebooks, rows, passes):
    states = token_states[:rows]
    standard = (states - states.mean(0)) / states.std(0, correction=0)
    vectors = standard.unflatten(-1, (FITTED_CODEBOOKS, -1))[:, :codebooks]
    runs = lambda: fit_ours(states, passes), lambda: fit(vectors, passes)
    ours, its, ratio = compare(benchmark, *runs, rounds=3)
    its, ratio = (value * FITTED_CODEBOOKS / codebooks for value in (its, ratio))
    errors = [quantization_error(vectors, run()[:codebooks]) for run in runs]
    what, other = (
        f"{method}: {passes * rows / time:,.0f} vectors/s, error {error:.3f}"
        for method, time, error in zip(("init_keys", name), (ours, its), errors, strict=True)
    )
    target = judge(ratio, (">=", 20)) if fit is fit_running_means else "-"
    where = f"{shape(rows, FITTED_CODEBOOKS, FITTED_KEYS)}, passes: {passes}"
    add(table, what, where, (ours, its), other, f"{ratio:.1f} x faster", target, runs)


@pytest.mark.parametrize("pool", ["before", "after"])
def test_an_epoch_of_stage_3(benchmark, table, plain_student, train_split, pool):
    student = plain_student.discretize(train_split, num_codebooks=32, codebook_size=256, pool=pool).train()
    cached = KeyIndexDataset(student, train_split)
    optimizer = torch.optim.AdamW([student.bottleneck.values], weight_decay=0)

    def epoch(dataset, *inputs):
        for start in range(0, len(dataset), 16):
            batch = dataset.collate([dataset[row] for row in range(start, min(start + 16, len(dataset)))])
            logits = student(**{name: batch[name].to(DEVICE) for name in inputs}).logits
            F.cross_entropy(logits, batch["labels"].to(DEVICE)).backward()
            optimizer.step()
            optimizer.zero_grad()

    runs = lambda: epoch(cached, "key_indices"), lambda: epoch(train_split, "input_ids", "attention_mask")
    *times, ratio = compare(benchmark, *runs, rounds=3)
    what = f"epoch of stage 3, pooled {pool} the search"
    target = judge(ratio, (">=", 50)) if pool == "before" else "-"
    where = f"{len(train_split):,} rows by 16, 32 x 256 keys x 12"
    add(table, what, where, times, "the same, encoding again", f"{ratio:.1f} x faster", target, runs)


def exponent(sizes, values):
    """Fit that of a power law."""
    return linear_regression([log(size) for size in sizes], [log(value) for value in values]).slope


@pytest.mark.parametrize(
    "axis, sizes",
    [
        ("keys", [256, 1024, 4096, 16384, 65536]),
        ("codebooks", [8, 16, 32, 64, 128, 256]),
        ("tokens", [256, 1024, 4096, 16384, 65536]),
    ],
)
def test_growth(benchmark, table, axis, sizes):
    """The other two stay at full size: a call takes tens of milliseconds even at the small end."""

    def prepare(tokens=TOKENS, codebooks=CODEBOOKS, keys=KEYS):
        bottleneck, states = frozen(codebooks, keys, dim_value=1), random_states(tokens, codebooks * DIM_KEY)
        return lambda: bottleneck.quantize(states)

    runs = [prepare(**{axis: size}) for size in sizes]
    runs[0]()
    memory = [extra_mib(run) for run in runs]
    times = [[] for _ in sizes]

    def sweep():
        for run, own in zip(runs, times, strict=True):
            own.append(seconds(run))

    benchmark.pedantic(sweep, rounds=3)
    medians = [median(own) for own in times]
    growth, targets = [], []
    for name, values, bound in (("time", medians, 1.05), ("memory", memory, 0.1)):
        fitted = exponent(sizes, values)
        growth.append(f"{name} ^{fitted:.2f} (last step ^{exponent(sizes[-2:], values[-2:]):.2f})")
        targets.append(judge(fitted, ("<=", bound)))
    table.append(
        {
            "what": f"quantize over {axis}",
            "size": f"{sizes[0]:,} ... {sizes[-1]:,} {axis}",
            "ours ms": f"{milliseconds(medians[0])} ... {milliseconds(medians[-1])}",
            "ratio": ", ".join(growth),
            "target": "; ".join(targets),
            "extra MiB": f"{memory[0]:,.1f} ... {memory[-1]:,.1f}",
        }
    )
