"""Key initialisation over two real processes that talk through gloo on the loopback address."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kvlib import DiscreteKeyValueBottleneck


def stream():
    """Most vectors in one spot, a few far away: keys die and get replaced."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 12, generator=generator) * 0.01
    vectors[::50] += 10 * torch.randn(60, 12, generator=generator)
    weights = torch.randint(0, 3, (3000,), generator=generator).float()
    return vectors, weights


def fitted(batches, start):
    bottleneck = DiscreteKeyValueBottleneck(12, num_codebooks=3, codebook_size=64)
    # fewer vectors kept than there are; 150 steps, after 16 of which a key without hits is dead
    history = bottleneck.init_keys(batches, passes=6, batch_size=60, decay=0.8, max_vectors=1500, start=start)
    return bottleneck, history


def worker(rank, cut, start, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    vectors, weights = (part[:cut] if rank == 0 else part[cut:] for part in stream())
    batches = zip(vectors.split(170), weights.split(170), strict=True) if len(vectors) else []
    bottleneck, history = fitted(batches, start)
    torch.save(
        {**bottleneck.state_dict(), "error": torch.tensor(history["quantization_error"])}, folder / f"{rank}"
    )
    dist.destroy_process_group()


@pytest.mark.parametrize(("cut", "start"), [(1500, "sample"), (1000, "k-means++"), (3000, "sample")])
def test_two_processes_end_with_the_keys_of_one(cut, start, tmp_path):
    mp.spawn(worker, (cut, start, tmp_path), nprocs=2)
    found, other = (torch.load(tmp_path / f"{rank}", weights_only=True) for rank in range(2))
    assert all(torch.equal(found[name], other[name]) for name in found)
    one, history = fitted([stream()], start)
    for name in ("mean", "std", "counts", "keys"):
        # float32 sums in another order, over 150 steps
        torch.testing.assert_close(found[name], getattr(one, name), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["error"], torch.tensor(history["quantization_error"]), rtol=1e-4, atol=0)


def test_keys_die_and_are_replaced_in_this_stream(monkeypatch):
    kept, _ = fitted([stream()], "sample")
    monkeypatch.setattr("kvlib.bottleneck._DEAD_SHARE", 0.0)
    never_replaced, _ = fitted([stream()], "sample")
    assert not torch.equal(kept.keys, never_replaced.keys)
