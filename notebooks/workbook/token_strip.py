"""The token strip: a pair above its near miss, tokens shaded by their push, and strong keys switched off."""

from html import escape

import ipywidgets as widgets
import pandas as pd
from transformers import PreTrainedTokenizerBase

from kvlib.explore import compare_logits, explain, push_columns
from kvlib.student import EncoderWithBottleNeck
from workbook.bench import Bench, html_table, style_sheet
from workbook.keys import align_keys, align_tokens, keys_by_lead, switch_off

_NAMES = ("pair", "near miss")
# blue pushes towards, orange away, as the bars of the explorer do; the sign below the token says the same
_SHADES = {True: "0, 114, 178", False: "213, 94, 0"}
_STYLE = """
.kv-strip {overflow-x: auto}
.kv-strip .kv-table {font-size: 12px}
.kv-strip .kv-table td {text-align: center; padding: 2px 3px}
.kv-strip .kv-table th {text-align: left; padding-right: 8px}
.kv-strip .kv-differs {font-weight: 700; text-decoration: underline}
"""


class TokenStrip(Bench):
    """Two inputs token under token, a slider for `switch_off` and a menu for `align_keys`; it shows itself.

    Parameters
    ----------
    student : BERTwithBottleNeck or DistilBERTwithBottleNeck
        With a bottleneck, and two labels or more; its weights stay as they are.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    text, text_pair, near_miss : str
        The pair is `text` and `text_pair`, its near miss `text` and `near_miss`.

    Attributes
    ----------
    off : ipywidgets.IntSlider
        How many of the strongest keys are switched off, in each of the two inputs.
    token : ipywidgets.Dropdown
        The token whose differing keys are listed.
    answers, tokens : pandas.DataFrame
        What is shown: one row an input, and one row a token with its lead in both and the ``differing`` keys.
    """

    hint = "move the slider"

    def __init__(
        self,
        student: EncoderWithBottleNeck,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        text_pair: str,
        near_miss: str,
    ) -> None:
        self._frames = [explain(student, tokenizer, text, second) for second in (text_pair, near_miss)]
        self._ranked = [keys_by_lead(frame) for frame in self._frames]
        # one label for both, that of the pair: so their leads can be compared
        self._labels = self._frames[0][push_columns(self._frames[0])].sum().nlargest(2).index
        differing = align_keys(*self._frames).groupby("position")["differs"].sum()
        self.tokens = align_tokens(*self._frames).merge(differing.rename("differing"), "left", on="position")
        steps = -(-max(map(len, self._ranked)) // 5)
        long = {"style": {"description_width": "200px"}, "layout": widgets.Layout(width="min(760px, 98%)")}
        self.off = widgets.IntSlider(description="Strongest keys switched off", max=5 * steps, step=5, **long)
        shared = self.tokens.dropna().itertuples()
        options = [
            (f"{row.position} {row.token}: {row.differing:.0f} keys differ", row.position) for row in shared
        ]
        most = self.tokens.loc[self.tokens["differing"].idxmax(), "position"]
        self.token = widgets.Dropdown(description="Keys of token", options=options, value=int(most), **long)
        self._answers, self._strip, self._keys = (widgets.HTML() for _ in range(3))
        for control in (self.off, self.token):
            control.observe(lambda _: self._show(), "value")
        style = style_sheet(_STYLE)
        self.view = widgets.VBox([style, self.off, self._answers, self._strip, self.token, self._keys])
        self._show()

    def _show(self) -> None:
        frames, rows = [], []
        for name, frame, ranked in zip(_NAMES, self._frames, self._ranked, strict=True):
            off = ranked.head(self.off.value)
            edited = switch_off(frame, off)
            frames.append(edited.assign(lead=edited[self._labels[0]] - edited[self._labels[1]]))
            after = compare_logits(frame, edited).set_index("label")["probability_after"]
            row = {"input": name, "switched off": f"{len(off)} of {len(ranked)} keys"}
            rows.append(row | {"lead": frames[-1]["lead"].sum(), **after.add_prefix("probability of ")})
        self.answers = pd.DataFrame(rows)
        wanted, other = (label.removeprefix("push_") for label in self._labels)
        caption = f"Answers; the lead is the logit of {wanted} minus that of {other}"
        self._answers.value = html_table(self.answers, caption, live=True)

        for column, place, frame in zip(
            ("lead", "lead_other"), ("position", "position_other"), frames, strict=True
        ):
            self.tokens[column] = self.tokens[place].map(frame.groupby("position")["lead"].sum())
        self._strip.value = _strip(self.tokens, frames[0]["codebook"].max() + 1)
        keys = align_keys(*frames)
        keys = keys[keys["differs"] & (keys["position"] == self.token.value)]
        keys = keys[["codebook", "key", "lead", "key_other", "lead_other"]]
        keys.columns = ["codebook", *(f"{name}: {what}" for name in _NAMES for what in ("key", "lead"))]
        token = self.tokens.set_index("position").loc[self.token.value, "token"]
        caption = f"Codebooks in which {token} fires another key in the near miss"
        self._keys.value = html_table(keys, caption, [f"{name}: lead" for name in _NAMES]) if len(keys) else ""


def _strip(tokens: pd.DataFrame, codebooks: int) -> str:
    """Write the two inputs as a table for each of the two texts, a token a column."""
    longest = tokens[["lead", "lead_other"]].abs().max(axis=None) or 1.0  # all zero: nothing to shade
    second = int((tokens["token"] == "[SEP]").to_numpy().argmax()) + 1
    tables = []
    for number, part in enumerate((tokens.iloc[:second], tokens.iloc[second:])):
        rows = []
        for name, column in zip(_NAMES, ("lead", "lead_other"), strict=True):
            cells = "".join(
                _token(row.token, getattr(row, column), longest, row.differing > 0) for row in part.itertuples()
            )
            rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
        counts = "".join("<td>–</td>" if n != n else f"<td>{n:.0f}</td>" for n in part["differing"])
        rows.append(f'<tr><th scope="row">differ, of {codebooks}</th>{counts}</tr>')
        caption = (
            f"{('First', 'Second')[number]} text: the lead of each token (logits), and how many of its keys differ"
        )
        tables.append(
            f'<table class="kv-table"><caption>{caption}</caption><tbody>{"".join(rows)}</tbody></table>'
        )
    return f'<div class="kv-strip">{"".join(tables)}</div>'


def _token(token: str, lead: float, longest: float, differs: bool) -> str:
    if lead != lead:
        return "<td>–</td>"
    shade = f"rgba({_SHADES[lead >= 0]}, {0.6 * abs(lead) / longest:.2f})"
    mark = ' class="kv-differs"' if differs else ""
    number = f"{lead:+.3f}".replace("-", "−")
    return f'<td style="background-color: {shade}"><span{mark}>{escape(token)}</span><br>{number}</td>'
