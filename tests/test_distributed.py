"""Keys for a real encoder: fitted by one process and by two that talk through gloo on the loopback address."""

import os
import socket
import sys

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState

from kvlib import CustomDataset, DiscreteKeyValueBottleneck, DistilBERTwithBottleNeck
from kvlib.bottleneck import draw_positions
from kvlib.machine import process_state

ROWS, MAX_VECTORS, BATCH_SIZES = 64, 600, (16, 64)
SHAPE = {"num_codebooks": 16, "codebook_size": 32}
# In another batch the encoder's float32 sums are ordered differently: 2e-6 was found, in states of up to 10 and in
# keys. Where a vector is equally near to two keys to within that, it can move the other one: one vector in some
# hundred thousand, by which a key moved by 0.03. Another seed moves keys by 0.9 on average.
ROUNDING, OTHER_KEY = 1e-5, 0.2


@pytest.fixture(scope="module")
def rows(mrpc, tokenizer):
    return CustomDataset(mrpc["train"].select(range(ROWS)), tokenizer, "mrpc")


def fitted(folder, rows):
    """Sample and keys for each batch size, and what `discretize` makes of all tokens."""
    student, found, encoded = DistilBERTwithBottleNeck.from_pretrained(folder).eval(), {}, []
    encode = student.encode
    student.encode = lambda input_ids, *args, **kwargs: (
        encoded.append(len(input_ids)) or encode(input_ids, *args, **kwargs)
    )
    for batch_size in BATCH_SIZES:
        sample = student.sample_states(rows, MAX_VECTORS, seed=0, batch_size=batch_size)
        bottleneck = DiscreteKeyValueBottleneck(student.config.dim, **SHAPE)
        bottleneck.init_keys([sample], seed=0)
        found |= {f"sample {batch_size}": sample, f"keys {batch_size}": bottleneck.keys}
    found["rows encoded"] = torch.tensor(sum(encoded))
    return found | dict(student.discretize(rows, **SHAPE).bottleneck.named_buffers())


def worker(rank, port, folder, rows):
    torch.set_num_threads(1)
    PartialState._reset_state()  # forked, it would be the one process of the tests
    # what a launcher sets
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in launched.items()}
    assert process_state().num_processes == 2
    if rank == 1:
        # as if this process rounded otherwise: only the first one's keys may count
        init_keys = DiscreteKeyValueBottleneck.init_keys
        DiscreteKeyValueBottleneck.init_keys = lambda self, batches, seed: init_keys(
            self, [batch + 1e-6 for batch in batches], seed=seed
        )
    torch.save(fitted(folder, rows), folder / f"process {rank}")
    process_state().destroy_process_group()


@pytest.fixture(scope="module")
def found(pretrained, rows, tmp_path_factory):
    """The student's hidden states, row by row, and what one process and each of two have found."""
    folder = tmp_path_factory.mktemp("distributed")
    student = DistilBERTwithBottleNeck.from_teacher(pretrained).eval()
    student.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked where that is safe: they need not import everything again
    start_method = "fork" if sys.platform == "linux" else "spawn"
    mp.start_processes(worker, (port, folder, rows), nprocs=2, start_method=start_method)
    two = [torch.load(folder / f"process {rank}", weights_only=True) for rank in range(2)]
    states = torch.cat(list(student.hidden_states(rows, batch_size=1)))
    return states, fitted(folder, rows), *two


@pytest.fixture(scope="module")
def positions(rows):
    return np.sort(draw_positions(int(rows.lengths.sum()), MAX_VECTORS, seed=0))


def test_the_same_positions_are_drawn_whatever_the_batches_and_processes(found, positions):
    states, *processes = found
    expected = states[positions]
    # next to one another in the sample, but further apart than rounding could move them
    assert (expected[1:] - expected[:-1]).abs().amax(1).min() > 1000 * ROUNDING
    for process in processes:
        for batch_size in BATCH_SIZES:
            torch.testing.assert_close(process[f"sample {batch_size}"], expected, atol=ROUNDING, rtol=0)


def test_two_processes_hold_the_same_sample_and_the_keys_of_the_first_bit_for_bit(found):
    _, one, first, second = found
    for batch_size in BATCH_SIZES:
        assert torch.equal(first[f"sample {batch_size}"], second[f"sample {batch_size}"])
    buffers = [name for name in one if " " not in name]
    assert set(buffers) == {"keys", "counts", "mean", "std", "frozen"}
    assert all(torch.equal(first[name], second[name]) for name in buffers)
    assert first["frozen"]


def test_keys_agree_to_the_encoders_rounding(found):
    _, one, first, _ = found
    pairs = [(one["keys 16"], one["keys 64"]), (one["keys"], first["keys"])]
    pairs += [(one[f"keys {batch_size}"], first[f"keys {batch_size}"]) for batch_size in BATCH_SIZES]
    for expected, keys in pairs:
        difference = (keys - expected).abs().amax(-1)
        assert (difference > ROUNDING).double().mean() < 0.01
        assert difference.max() < OTHER_KEY
    for name in ("mean", "std"):
        torch.testing.assert_close(first[name], one[name], atol=ROUNDING, rtol=0)


def test_each_process_encodes_its_share_of_the_rows_that_are_drawn(found, rows, positions):
    _, one, first, second = found
    drawn = len(set(rows.lengths.cumsum().searchsorted(positions, side="right")))
    assert one["rows encoded"] == len(BATCH_SIZES) * drawn
    shares = [int(process["rows encoded"]) for process in (first, second)]
    assert sum(shares) == len(BATCH_SIZES) * drawn
    assert max(shares) - min(shares) <= len(BATCH_SIZES)
