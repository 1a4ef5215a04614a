import notebook_settings

notebook_settings.apply()

import ctypes  # noqa: E402
import gc  # noqa: E402
import sys  # noqa: E402

import pytest  # noqa: E402

# Two processes take file after file. Chapters that need the same stages would wait for each other if both ran at
# once: 05 needs what 04 trains last, 07 what it trains first. So files that train nothing of theirs stand between
# them. Then come the longest, the browser when no chapter is trained beside it: it needs the most memory. What is
# not named comes last.
ORDER = (
    "02_teacher", "01_data", "00_start_here", "03_bottleneck", "09_capstone", "test_command_line", "04_loss",
    "test_recipe", "test_evidence", "test_continual", "07_carried_keys", "05_training", "06_evaluation",
    "08_continual_learning", "test_survival", "test_hub", "test_two_processes", "test_browser", "test_machine",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER))


# kvlib is imported where it is needed: the process that hands out the tests needs it nowhere, and it takes 400 MB


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """What a module has freed goes back to the system: the two processes would keep a gigabyte each."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """MiniLM's six layers and its most frequent words."""
    from shared_stages import small_minilm

    return str(small_minilm(tmp_path_factory.mktemp("checkpoint"), layers=6))


@pytest.fixture(scope="session")
def tokenizer(small_checkpoint):
    from kvlib import load_tokenizer

    return load_tokenizer(small_checkpoint)


@pytest.fixture(scope="session")
def mrpc():
    from kvlib import load_glue

    return load_glue("mrpc")


@pytest.fixture(scope="session")
def small_splits(mrpc):
    """48 real MRPC rows to train on and 16 held out: enough for a real step, small enough for seconds."""
    from kvlib import hold_out

    return hold_out(mrpc["train"].select(range(64)), fraction=0.25)


@pytest.fixture(scope="session")
def small(small_splits, tokenizer):
    """The rows of `small_splits`, tokenised."""
    from kvlib import CustomDataset

    return tuple(CustomDataset(split, tokenizer, "mrpc") for split in small_splits)


@pytest.fixture(scope="session")
def pretrained(small_checkpoint):
    """The pretrained encoder with its most frequent words, under a new head. Copy before training it."""
    from kvlib import BERTbase

    return BERTbase.for_task("mrpc", small_checkpoint).eval()
