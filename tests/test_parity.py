import pytest
import torch

from kvlib import DiscreteKeyValueBottleneck

PACKAGE = "discrete_key_value_bottleneck_pytorch"
peer_package = pytest.importorskip(PACKAGE, reason=f"parity needs {PACKAGE.replace('_', '-')}==0.1.1")

DIM, DIM_KEY, DIM_VALUE, KEYS = 24, 6, 5, 128
# The package takes distances as |x|² + |k|² - 2 x·k in float32, projected by a product whose order of summation is
# not ours: both round by some 1e-6 of |x|² + |k|². Inputs whose two best keys are closer than that may differ.
CLEAR = 1e-4


def build_peer(codebooks, seed):
    """A bottleneck of the package, in evaluation mode, whose keys lie among the inputs it will see."""
    torch.manual_seed(seed)
    peer = peer_package.DiscreteKeyValueBottleneck(
        DIM_KEY,
        dim_embed=DIM,
        num_memories=KEYS,
        num_memory_codebooks=codebooks,
        dim_memory=DIM_VALUE,
        # without it, several codebooks share a trained linear layer before the search
        codebook_dim=DIM_KEY,
    )
    peer.vq._codebook.embed.copy_(torch.einsum("kd,cde->cke", torch.randn(KEYS, DIM), peer.rand_proj))
    return peer.eval()


def ours_from(peer):
    """Our bottleneck with the package's projections, keys and values."""
    codebooks = len(peer.rand_proj)
    bottleneck = DiscreteKeyValueBottleneck(DIM, codebooks, KEYS, DIM_VALUE, "random", DIM_KEY)
    with torch.no_grad():
        bottleneck.projections.copy_(peer.rand_proj.transpose(0, 1).flatten(1))  # (C, D, d) to (D, C·d)
        bottleneck.keys.copy_(peer.vq._codebook.embed)
        bottleneck.values.copy_(peer.values)
        bottleneck.counts.fill_(1.0)
    bottleneck.freeze_keys()
    return bottleneck.eval()


def clear_inputs(peer, seed):
    """Random inputs ``(2, 40, DIM)`` without a near tie, measured in float64."""
    inputs = torch.randn(320, DIM, generator=torch.Generator().manual_seed(seed))
    vectors = torch.einsum("nd,cde->cne", inputs.double(), peer.rand_proj.double())
    keys = peer.vq._codebook.embed.double()
    distances = (vectors.unsqueeze(2) - keys.unsqueeze(1)).square().sum(-1)  # (C, N, K)
    best, second = distances.topk(2, largest=False).values.unbind(-1)
    size = vectors.square().sum(-1) + keys.square().sum(-1).amax(-1, keepdim=True)
    clear = (second - best > CLEAR * size).all(0)
    assert clear.sum() >= 80, "too few inputs without a near tie: draw more"
    return inputs[clear][:80].view(2, 40, DIM)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("codebooks", [1, 4])
@torch.no_grad()
def test_indices_and_mean_values_are_those_of_the_package(codebooks, seed):
    peer = build_peer(codebooks, seed)
    inputs = clear_inputs(peer, seed + 100)
    memories, (_, expected, _) = peer(inputs, return_intermediates=True)
    values, key_indices = ours_from(peer)(inputs)
    assert expected.unique().numel() > KEYS / 4, "keys that few inputs choose would show little"
    assert torch.equal(key_indices, expected.view(2, 40, codebooks))
    # the same numbers in the same order, but a mean may sum them in another: some roundings of 1e-7
    torch.testing.assert_close(values.mean(-2), memories, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_values_of_each_codebook_are_those_of_the_package():
    peer = build_peer(4, 2)
    inputs = clear_inputs(peer, 102)
    memories = peer(inputs, average_pool_memories=False)  # (2, C, 40, DIM_VALUE)
    values, _ = ours_from(peer)(inputs)
    assert torch.equal(values, memories.transpose(1, 2))
