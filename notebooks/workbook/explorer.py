"""The explorer: type a sentence, see which keys fire and what they push, change a value, see the logits follow.

Every number comes from `kvlib.explore` or `workbook.keys`; here are the controls, and the tables as HTML.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from kvlib.data import CustomDataset
from kvlib.explore import (
    compare_logits,
    edit,
    explain,
    longest_input,
    push_by_token,
    push_columns,
    require_bottleneck,
    similar_by_key,
)
from kvlib.student import EncoderWithBottleNeck
from kvlib.training import KeyIndexDataset
from workbook.bench import Bench, html_table, signed, style_sheet
from workbook.keys import strongest_keys

_OFF = -1  # in the menu of values
# the pair that all chapters follow
_PAIR = (
    "The young nurse thanked the old teacher on Monday.",
    "On Monday, the old teacher was thanked by the young nurse.",
)


class Explorer(Bench):
    """Controls and tables around `explain`, `similar_by_key` and `edit`; as a cell's last line it shows itself.

    It starts with the pair that all chapters follow.

    Parameters
    ----------
    student : BERTwithBottleNeck or DistilBERTwithBottleNeck
        With a bottleneck. It is put into evaluation mode; its weights stay as they are.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    training : CustomDataset, optional
        Sentences among which to look for those that fire the same key.
    fired : KeyIndexDataset, optional
        Their key indices; by default made here, once.
    keys_only : bool
        Show which keys fire, and nothing of their values: while all of these are zero, they say nothing.

    Attributes
    ----------
    text, text_pair, token, codebook, value, strength : ipywidgets.Widget
        The controls, from top to bottom.
    frame, edited : pandas.DataFrame or None
        What the tables show: the sentence as `explain` gives it, and with the chosen key's other value, as
        `edit` gives it. None while there is no sentence.

    Raises
    ------
    ValueError
        If the model has no bottleneck.
    """

    hint = "type a sentence, press Enter"

    def __init__(
        self,
        student: EncoderWithBottleNeck,
        tokenizer: PreTrainedTokenizerBase,
        training: CustomDataset | None = None,
        fired: KeyIndexDataset | None = None,
        keys_only: bool = False,
    ) -> None:
        require_bottleneck(student)
        self._keys_only = keys_only
        self.student, self.tokenizer, self.training = student.eval(), tokenizer, training
        if training is not None:
            self._fired = fired or KeyIndexDataset(student, training)
            self._hits = student.bottleneck.hits(self._fired.key_indices)  # (C, K)
        self.frame: pd.DataFrame | None = None
        self.edited: pd.DataFrame | None = None

        wide = {"style": {"description_width": "140px"}, "layout": widgets.Layout(width="min(660px, 98%)")}
        line = {"continuous_update": False, "placeholder": "type and press Enter", **wide}
        self.text = widgets.Text(description="Sentence", **line)
        self.text_pair = widgets.Text(description="Second, for a pair", **line)
        self.token = widgets.Dropdown(description="Token", **wide)
        self.codebook = widgets.Dropdown(description="Codebook", **wide)
        self.value = widgets.Dropdown(description="Value of its key", **wide)
        self.strength = widgets.FloatSlider(
            1.0, description="Value times", min=0.0, max=2.0, step=0.1, readout_format=".1f", **wide
        )
        self._controls = (self.token, self.codebook, self.value, self.strength)
        self._says, self._logits, self._similar = (widgets.HTML() for _ in range(3))
        # scrolls by itself, so that a new content leaves the place as it is
        long = {
            "tabbable": True,
            "layout": widgets.Layout(max_height="760px", overflow="auto", margin="0 16px 0 0"),
        }
        self._tokens, self._codebooks = widgets.HTML(**long), widgets.HTML(**long)
        self._views = (self._says, self._logits, self._tokens, self._codebooks, self._similar)
        row = widgets.Layout(flex_flow="row wrap", width="100%")
        pushes = widgets.HBox([self._codebooks] if keys_only else [self._tokens, self._codebooks], layout=row)
        inputs = [style_sheet(), self.text, self.text_pair, self._says]
        inputs += [self.token, self.codebook] if keys_only else [self._logits, *self._controls]
        self.view = widgets.VBox([*inputs, pushes, self._similar])

        self._filling = False
        for controls, follow in (
            ((self.text, self.text_pair), self._read),
            ((self.token,), self._choose_token),
            ((self.codebook,), self._choose_key),
            ((self.value, self.strength), self._show),
        ):
            for control in controls:
                control.observe(self._unless_filling(follow), "value")
        self.open(*_PAIR)

    def open(self, text: str, text_pair: str = "") -> None:
        """Fill in a sentence, or a pair, and explain it: what typing it does."""
        with self._fill():
            self.text.value, self.text_pair.value = text, text_pair
        self._read()

    def _unless_filling(self, follow: Callable[[], None]) -> Callable[[Any], None]:
        return lambda _: None if self._filling else follow()

    @contextmanager
    def _fill(self) -> Iterator[None]:
        """Set controls without following each single change."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    def _clear(self, message: str) -> None:
        self.frame = self.edited = None
        for view in self._views:
            view.value = ""
        for control in self._controls:
            control.disabled = True
        self._says.value = f'<p class="kv-says" role="alert">{escape(message)}</p>'

    def _read(self) -> None:
        """Explain a new sentence and choose its strongest push."""
        pair = self.text_pair.value.strip() or None
        try:
            self.frame = explain(self.student, self.tokenizer, self.text.value, pair)
        except ValueError as error:
            return self._clear(str(error))
        self._says.value = "".join(f'<p class="kv-says">{escape(line)}</p>' for line in self._remarks(pair))
        strongest = self.frame.loc[self.frame[push_columns(self.frame)].abs().max(axis=1).idxmax()]
        tokens = self.frame.drop_duplicates("position")
        with self._fill():
            self.token.options = [
                (f"{position} {token}", position) for position, token in tokens[["position", "token"]].to_numpy()
            ]
            self.token.value = strongest["position"]
            for control in self._controls:
                control.disabled = False
        self._choose_token(strongest["codebook"])

    def _remarks(self, pair: str | None) -> list[str]:
        """Check that the pushes sum to the logits, and tell if the text was cut."""
        lines = [] if self._keys_only else [self._check_sums()]
        limit = longest_input(self.student, self.tokenizer)
        length = len(self.tokenizer(self.text.value, pair, verbose=False)["input_ids"])
        if length > limit:
            lines.append(f"The text has {length} tokens; the model reads {limit}, the rest is cut off.")
        return lines

    def _check_sums(self) -> str:
        """Say whether the pushes sum to the logits that the model computes from the same keys."""
        keys = self.frame["key"].to_numpy().reshape(1, -1, self.student.bottleneck.num_codebooks)
        with torch.inference_mode():
            logits = self.student(key_indices=torch.tensor(keys, device=self.student.device)).logits[0].tolist()
        sums = compare_logits(self.frame, self.frame)
        equal = torch.allclose(torch.tensor(sums["before"]), torch.tensor(logits).double(), atol=1e-4, rtol=1e-4)
        shown = ", ".join(
            f"{label}: {signed(total)} and {signed(logit)}"
            for label, total, logit in zip(sums["label"], sums["before"], logits, strict=True)
        )
        verb = "sum" if equal else "DO NOT SUM"
        return f"Checked: the pushes {verb} to the model's logits. Sum and logit of {shown}."

    def _choose_token(self, codebook: int | None = None) -> None:
        """List the codebooks with the keys that the token fired."""
        here = self.frame[self.frame["position"] == self.token.value]
        chosen = self.codebook.value if codebook is None else codebook
        with self._fill():
            self.codebook.options = [
                (f"{book}, key {key} fired", book) for book, key in here[["codebook", "key"]].to_numpy().tolist()
            ]
            self.codebook.value = chosen
        self._choose_key()

    def _choose_key(self) -> None:
        """Take up the key that the token fired in the codebook, with its own value."""
        fired = self.frame[self.frame["codebook"] == self.codebook.value]
        key = self._key = int(fired.loc[fired["position"] == self.token.value, "key"].iloc[0])
        options = {key: f"its own (key {key})", _OFF: "none: switch the key off"}
        for other, tokens in fired.groupby("key", sort=False)["token"]:
            options.setdefault(int(other), f"that of key {other}, fired by {' '.join(dict.fromkeys(tokens))}")
        for _, strongest in strongest_keys(self.student, self.codebook.value).iterrows():
            if strongest["push"] > 0:
                most = f"that of key {strongest['key']}, most towards {strongest['label']}"
                options.setdefault(strongest["key"], most)
        with self._fill():
            self.value.options = [(text, other) for other, text in options.items()]
            self.value.value = key
            self.strength.value = 1.0
        if self.training is not None:
            self._similar.value = self._similar_table()
        self._show()

    def _show(self) -> None:
        """Compute the logits with the chosen value and draw the tables that hold pushes, or the keys alone."""
        codebook, key, value = self.codebook.value, self._key, self.value.value
        if self._keys_only:
            fired = self.frame[self.frame["position"] == self.token.value]
            caption = f"Keys that {fired['token'].iloc[0]} fired, and how much farther away the second nearest was"
            columns = ["codebook", "key", "distance", "runner_up_gap"]
            chosen = fired["codebook"] == codebook
            self._codebooks.value = html_table(fired[columns], caption, chosen=chosen, live=True)
            return
        self.strength.disabled = value == _OFF
        strength = 0.0 if value == _OFF else self.strength.value
        swapped = None if value in (_OFF, key) else value
        self.edited = edit(self.student, self.frame, codebook, key, strength, swapped)
        pushes = push_columns(self.frame)

        state = "as it is" if swapped is None else f"replaced by that of key {swapped}"
        state = "switched off" if strength == 0 else state if strength == 1 else f"{state}, times {strength:.1f}"
        by_token = push_by_token(self.edited)
        by_token["token"] = by_token["position"].astype(str) + " " + by_token["token"]
        here = self.frame[(self.frame["codebook"] == codebook) & (self.frame["key"] == key)]
        tokens = by_token.loc[by_token["position"].isin(here["position"]), "token"].tolist()
        tokens = ", ".join(tokens[:8]) + (f" and {len(tokens) - 8} more" if len(tokens) > 8 else "")
        caption = f"Logits, with the value of key {key} of codebook {codebook} {state} (fired by tokens {tokens})"
        logits = compare_logits(self.frame, self.edited)
        logits = logits.rename(columns=lambda name: name.replace("_", " "))
        self._logits.value = html_table(logits, caption, ["before", "after", "change"], live=True)

        chosen = by_token["position"] == self.token.value
        caption = "Push of each token; the sums are the logits"
        self._tokens.value = html_table(by_token[["token", *pushes]], caption, pushes, chosen, sums=True)

        fired = self.edited[self.edited["position"] == self.token.value]
        caption = f"Keys of token {by_token.loc[chosen, 'token'].iloc[0]}; their pushes sum to the token's"
        columns = ["codebook", "key", "distance", "runner_up_gap", *pushes]
        chosen = fired["codebook"] == codebook
        self._codebooks.value = html_table(fired[columns], caption, pushes, chosen, sums=True)

    def _similar_table(self) -> str:
        codebook, key = self.codebook.value, self._key
        found = similar_by_key(self.training, self._fired, codebook, key)
        times, tokens = int(self._hits[codebook, key]), int(self._hits[codebook].sum())
        caption = (
            f"Training sentences that fire key {key} of codebook {codebook}, most such tokens first. "
            f"In all {times:,} of {tokens:,} tokens in {len(self.training):,} sentences fire it"
        )
        return html_table(found, caption)
