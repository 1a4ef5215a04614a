import notebook_settings

notebook_settings.apply()

import pytest  # noqa: E402

from kvlib import BERTbase, CustomDataset, hold_out, load_glue, load_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="session")
def mrpc():
    return load_glue("mrpc")


@pytest.fixture(scope="session")
def small_splits(mrpc):
    """48 real MRPC rows to train on and 16 held out: enough for a real step, small enough for seconds."""
    return hold_out(mrpc["train"].select(range(64)), fraction=0.25)


@pytest.fixture(scope="session")
def small(small_splits, tokenizer):
    """The rows of `small_splits`, tokenised."""
    return tuple(CustomDataset(split, tokenizer, "mrpc") for split in small_splits)


@pytest.fixture(scope="session")
def pretrained():
    """The real pretrained encoder under a new, untrained head. Copy before training it."""
    return BERTbase.for_task("mrpc").eval()
