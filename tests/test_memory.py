"""No big intermediates: peaks of resident memory, measured by the kernel in a process of their own."""

import json
import subprocess
import sys

import pytest

MIB = 2**20

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
    values, key_indices = bottleneck(hidden_states)
    values.square().mean().backward()
    return values.detach(), key_indices, bottleneck.values.grad


# threads, libraries and kernels once
step(*build(2, 300, 24, 100))
nearest_keys(torch.ones(100, 2, 12), torch.ones(2, 300, 12))

full = build(64, 4096, 768, 16384)
measure("quantize", quantize, *full)
measure("step", step, *full)
bottleneck, hidden_states = build(8, 4096, 96, 2048)
measure("clear", quantize, bottleneck, hidden_states)
bottleneck.keys.fill_(0.5)
measure("all equal", quantize, bottleneck, hidden_states)
for size in (256, 16384):
    bottleneck, hidden_states = build(2, size, 24, 4096)
    vectors = bottleneck.split(hidden_states)
    measure(f"{size} keys", lambda: [nearest_keys(vectors, bottleneck.keys)])
for tokens in (4096, 65536):
    measure(f"{tokens} tokens", quantize, *build(8, 256, 96, tokens))
for codebooks in (2, 256):
    measure(f"{codebooks} codebooks", quantize, *build(codebooks, 64, codebooks * 8, 512))
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
    assert_below(extra["quantize"], 256)
    # one codebook's index for every token is more than nothing: the peak was seen
    assert extra["quantize"] > MIB


def test_forward_and_backward_at_full_size_need_less_than_512_mib(extra):
    assert_below(extra["step"], 512)
    assert extra["step"] > MIB


def test_ties_of_all_keys_need_no_more_than_the_bound(extra):
    assert_below(extra["all equal"], 256)


@pytest.mark.parametrize("counted", [("256 keys", "16384 keys"), ("4096 tokens", "65536 tokens")])
def test_memory_does_not_grow(extra, counted):
    few, many = (extra[name] for name in counted)
    # less than a matrix of 65536 float32 distances for each of 256 vectors
    assert_below(many - few, 64)


def test_memory_does_not_grow_with_codebooks(extra):
    assert_below(extra["256 codebooks"] - extra["2 codebooks"], 64)
