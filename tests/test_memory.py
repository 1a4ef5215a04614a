"""No big intermediates: peaks of resident memory, measured by the kernel in a process of their own."""

import json
import subprocess
import sys

import pytest

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from Linux's /proc")

SCRIPT = """
import ctypes
import json

import torch

from kvlib import DiscreteKeyValueBottleneck, nearest_keys

release = ctypes.CDLL(None).malloc_trim
results = {}


def memory(entry):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(entry))


def measure(name, run, *arguments):
    # what the allocator keeps of earlier runs would hide what this one needs
    release(0)
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")
    before = memory("VmRSS")
    kept = run(*arguments)
    peak = memory("VmHWM")
    results[name] = peak - before - sum(tensor.nbytes for tensor in kept)


def build(codebooks, size, dim, tokens):
    generator = torch.Generator().manual_seed(0)
    bottleneck = DiscreteKeyValueBottleneck(dim, codebooks, size)
    bottleneck.keys.copy_(torch.randn(bottleneck.keys.shape, generator=generator))
    bottleneck.counts.fill_(1.0)
    bottleneck.freeze_keys()
    return bottleneck, torch.randn(tokens, dim, generator=generator)


def quantize(bottleneck, hidden_states):
    return [bottleneck.quantize(hidden_states)]


def step(bottleneck, hidden_states):
    # random keys in place of a search that would take a quarter of a minute
    shape = (len(hidden_states), bottleneck.num_codebooks)
    bottleneck.quantize = lambda states: torch.randint(bottleneck.codebook_size, shape)
    values, key_indices = bottleneck(hidden_states)
    values.square().mean().backward()
    return values.detach(), key_indices, bottleneck.values.grad


# threads, libraries and kernels once
step(*build(2, 300, 24, 100))
nearest_keys(torch.ones(100, 2, 12), torch.ones(2, 300, 12))

measure("step", step, *build(64, 4096, 768, 16384))
# a quarter of the tokens, which are taken in parts: their number adds seconds and no memory, see below
measure("quantize", quantize, *build(64, 4096, 768, 4096))
for size in (256, 16384):
    bottleneck, hidden_states = build(2, size, 24, 2048)
    vectors = bottleneck.split(hidden_states)
    measure(f"{size} keys", lambda: [nearest_keys(vectors, bottleneck.keys)])
measure("all equal", lambda: [nearest_keys(torch.randn(2048, 1, 384), torch.full((1, 4096, 384), 0.5))])
for tokens in (8192, 65536):
    measure(f"{tokens} tokens", quantize, *build(8, 64, 768, tokens))
for codebooks in (64, 768):
    measure(f"{codebooks} codebooks", quantize, *build(codebooks, 64, 8 * codebooks, 512))
measure("one token", quantize, *build(256, 4096, 3072, 1))


def fit(batches):
    bottleneck = DiscreteKeyValueBottleneck(64, 4, 16)
    bottleneck.init_keys((torch.randn(4096, 64) for _ in range(batches)), passes=1, max_vectors=4096)
    return [bottleneck.keys]


for batches in (16, 256):
    measure(f"{batches} batches", fit, batches)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def extra():
    """Extra bytes at the peak of each run, beyond inputs and outputs."""
    try:
        with open("/proc/self/clear_refs", "w") as marks:
            marks.write("5")
    except OSError as error:
        pytest.skip(f"this system cannot reset its mark of peak memory: {error}")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    measured = json.loads(done.stdout)
    print({name: f"{size / MIB:.1f} MiB" for name, size in measured.items()})
    return measured


def assert_below(size, limit):
    assert size < limit * MIB, f"{size / MIB:.1f} MiB at the peak, beyond inputs and outputs; at most {limit} MiB"


def test_quantize_at_full_size_needs_less_than_256_mib(extra):
    # it may fit into what the allocator still held: -2 MiB were seen
    assert_below(extra["quantize"], 256)


def test_forward_and_backward_at_full_size_need_less_than_512_mib(extra):
    assert_below(extra["step"], 512)
    # a step without any memory was not measured
    assert extra["step"] > MIB


def test_ties_of_all_keys_need_no_more_than_the_bound(extra):
    # to compare each vector's key with all keys at once would take 800 MiB
    assert_below(extra["all equal"], 256)


def test_one_token_for_many_codebooks_needs_no_copy_of_all_keys(extra):
    # the keys are 48 MiB
    assert_below(extra["one token"], 32)


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ("256 keys", "16384 keys"),
        ("8192 tokens", "65536 tokens"),
        ("64 codebooks", "768 codebooks"),
        ("16 batches", "256 batches"),
    ],
)
def test_memory_does_not_grow(extra, few, many):
    # all distances would take 88 MiB more at least, as float32: 2 · 2048 · 16128, 8 · 57344 · 64, 704 · 512 · 64;
    # the stream that keys are fitted on, 240 MiB more
    growth = extra[many] - extra[few]
    assert growth < 64 * MIB, f"from {few} to {many} the peak grows by {growth / MIB:.1f} MiB"
