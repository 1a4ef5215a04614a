"""Where do quantize, a small forward pass and init_keys spend their time? Shares by operation, on one thread.

``python tests/benchmarks/profile_bottleneck.py`` prints, for the three sizes of `bench_bottleneck.py` that miss a
target, the operations that take the most, as torch's profiler counts their own time.
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from kvlib import DiscreteKeyValueBottleneck


def with_keys(dim: int, codebooks: int, size: int, **options: object) -> DiscreteKeyValueBottleneck:
    """Build a bottleneck with random, frozen keys."""
    bottleneck = DiscreteKeyValueBottleneck(dim, num_codebooks=codebooks, codebook_size=size, **options)
    bottleneck.keys.normal_()
    bottleneck.counts.fill_(1.0)
    bottleneck.freeze_keys()
    return bottleneck


def show(name: str, call: Callable[[], object]) -> None:
    """Profile the second of two calls and print its eight largest shares."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    operations = sorted(recorded.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in operations)
    shares = ", ".join(
        f"{one.key.removeprefix('aten::')} {one.self_cpu_time_total / total:.0%}" for one in operations[:8]
    )
    print(f"- {name}: {shares}")


def main() -> None:
    """Profile the three."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    states = torch.randn(8192, 768)
    whole, small = with_keys(768, 64, 4096), with_keys(768, 64, 4096, projection="random", dim_key=12)

    def fit() -> None:
        fitted = DiscreteKeyValueBottleneck(384, num_codebooks=32, codebook_size=1024)
        fitted.init_keys([states[:, :384]], passes=1, batch_size=1024)

    with torch.no_grad():
        show("`quantize`, 4,096 tokens x 64 x 4,096 keys x 12", lambda: whole.quantize(states[:4096]))
        show("forward, 256 tokens, random projection", lambda: small(states[:256]))
        show("`init_keys`, 8,192 tokens x 32 x 1,024 keys x 12", fit)


if __name__ == "__main__":
    main()
