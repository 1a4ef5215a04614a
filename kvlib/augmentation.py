"""Text that nobody has labelled, made from a task's own: a teacher answers it."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from kvlib.data import CustomDataset, Task, get_task


def changed_copy(split: Dataset, task: str | Task, seed: int | Sequence[int] = 0) -> Dataset:
    """Return as many rows again: a seventh of the words others of the split's, half of the pairs paired anew.

    Words are drawn as often as they occur in `split`. All labels are hidden (-1).
    """
    task, generator = get_task(task), np.random.default_rng(seed)
    columns = {name: [text.split() for text in split[name][:]] for name in task.text_columns}
    words = [word for texts in columns.values() for text in texts for word in text]
    for number, texts in enumerate(columns.values()):
        for text in texts:
            exchanged = np.flatnonzero(generator.random(len(text)) < 1 / 7)
            for place, other in zip(exchanged, generator.integers(len(words), size=len(exchanged)), strict=True):
                text[place] = words[other]
        if number:
            moved = np.flatnonzero(generator.random(len(texts)) < 0.5)
            others = [texts[row] for row in generator.permutation(moved)]
            for place, other in zip(moved, others, strict=True):
                texts[place] = other
    texts = {name: [" ".join(text) for text in texts] for name, texts in columns.items()}
    return Dataset.from_dict(texts | {"label": [-1] * len(split), "idx": split["idx"][:]}, split.features)


class FreshTextDataset(CustomDataset):
    """The rows of a split and a `changed_copy` of them, another one in each epoch; all labels are hidden (-1).

    The copy of an epoch depends on `seed` and the epoch's number alone, so training can be resumed. Parameters and
    errors as of `CustomDataset`.
    """

    def __init__(
        self,
        split: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        task: str | Task,
        max_length: int = 128,
        seed: int = 0,
    ) -> None:
        hidden = Dataset.from_dict(split.to_dict() | {"label": [-1] * len(split)}, split.features)
        self._arguments, self._split, self._seed, self._epoch = (tokenizer, task, max_length), hidden, seed, -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Put the copy of an epoch in the place of the last one."""
        if epoch != self._epoch:
            copy = changed_copy(self._split, self._arguments[1], [self._seed, epoch])
            super().__init__(concatenate_datasets([self._split, copy]), *self._arguments)
            self._epoch = epoch
