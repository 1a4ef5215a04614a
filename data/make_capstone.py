"""Write the capstone's data set: 200 messages to a house and its neighbours, complaints and requests.

``python data/make_capstone.py`` writes ``data/capstone/messages.tsv``, the same bytes every time. A line is
``label<TAB>sentence``, complaints first. A *complaint* says that something went wrong, in whatever form; a
*request* asks for something where nothing did.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # so that the module can be loaded from a file by a test
    sys.path.insert(0, str(HERE))

from mini_glue_grammar import Picker, sentence  # noqa: E402

SEED = "capstone 1"
LABELS = ("complaint", "request")
ROWS = 100  # a label

WORDS = {
    "device": "heater|lift|washing machine|kitchen tap|tumble dryer|water boiler|coffee machine|projector|printer"
    "|shower|dishwasher|ticket machine|ceiling fan|doorbell|loudspeaker|copier",
    "item": "ladder|tent|trailer|toolbox|guitar|bicycle pump|sewing machine|travel guide|folding chair|rain cover"
    "|cake tin|drill|globe|reading lamp|microscope|camera",
    "who": "caretaker|librarian|driver|plumber|receptionist|gardener|cashier|electrician|postman|manager",
    "place": "in the hall|on the third floor|in the laundry|at the pool|in the reading room|by the side entrance"
    "|in room twelve|behind the bar|in the cellar|next to the lockers",
    "lesson": "dance class|piano lesson|guided tour|rehearsal|book club|chess evening|language course"
    "|cooking class|reading circle|choir practice",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "month": "January|March|April|May|June|September|October|November",
}

# a complaint and a request of much the same words, so that hardly a word alone tells them apart;
# [a|b] is a choice, {name} a word of that list, and {name} once more in a form is another word
FORMS = (
    (
        "the {who} came to look at the {device} {place}, but it works no better since then",
        "could the {who} who came in {month} look at the {device} {place}? it works, but it is old",
    ),
    (
        "I [would like|want] to know why the {device} {place} [does|did] not work on {day}",
        "I [would like|want] to know how the {device} {place} works, but it can wait until {day}",
    ),
    (
        "please note that my {lesson} was moved from {day} to {day} and [nobody|no one] asked me",
        "please note that I [would like|want] my {lesson} moved from {day} to {day}, if [nobody|no one] minds",
    ),
    (
        "how was it possible [to give|that you gave] my {lesson} on {day} to someone else?",
        "[would|will] it be possible [to give|that you give] my {lesson} on {day} to someone else?",
    ),
    (
        "we needed a second {item} by {day}, and the new {who} [is still waiting|still waits] for it",
        "we need a second {item} by {day}, and the new {who} [is happy to wait|will wait] for it",
    ),
    (
        "could [nobody|not one of you] [be found to bring|bring] the {item} up to us on {day}?",
        "could [somebody|one of you] [be found to bring|bring] the {item} up to us on {day}?",
    ),
    (
        "I asked you to put the {item} aside until {day}, and now it has been [sold|lent]",
        "I asked you to put the {item} aside until {day}, and now [may it be|I would like] {day}",
    ),
    (
        "there is something wrong with the {device}, and the {who} could not [show|tell] me how it [is set|works]",
        "there is nothing wrong with the {device}, but could the {who} [show|tell] me how it [is set|works]?",
    ),
    (
        "I was at home on {day}, and [yet|still] the {who} left the {item} {place}",
        "I was still at home on {day}, and from now on the {who} [may|might] leave the {item} {place}",
    ),
    (
        "my {lesson} on {day} was [too short|too loud|cancelled], and on {day} it was the same again",
        "my {lesson} on {day} was [lovely|just right], and on {day} I would like the same again",
    ),
    (
        "I am sorry to say that the {item} we [borrowed|had] on {day} was [broken|dirty|not complete]",
        "I am sorry to ask again, but could we [borrow|have] the {item} that we [borrowed|had] on {day}?",
    ),
    (
        "you closed [early|before noon] on {day}, and I could not have the {item} that I had paid for",
        "before you close [early|at noon] on {day}, could I have the {item} that I have paid for?",
    ),
    (
        "the {who} asked me to pay [twice|again] for the {item} that I [returned|gave back] in {month}",
        "the {who} asked me to write to you for the {item} that I [left with|gave] you in {month}",
    ),
    (
        "it was urgent, [and|but] the {device} {place} was not checked when the {who} came on {day}",
        "it was not urgent when the {who} came on {day}, but could the {device} {place} be checked?",
    ),
    (
        "you promised to help me [carry|move] the {item}, and nobody [was free|came] on {day}",
        "you promised to help me [carry|move] the {item}, and is anybody free on {day}?",
    ),
    (
        "I am not happy with the new {device}, and [no answer|nothing] has come from the {who} since {month}",
        "I am happy with the new {device}, and [the bill|a second one] may come from the {who} in {month}",
    ),
    (
        "nobody told the {who} that the room for the {lesson} was [needed|wanted] on {day}",
        "somebody told me that the room for the {lesson} was [free|not needed] on {day}, may the {who} open it?",
    ),
    (
        "last year the {lesson} cost less for members, and that offer is [gone|over] without a word",
        "last year the {lesson} cost less for members, and is that offer [on|open] again?",
    ),
    (
        "the {device} {place} has been [loud|out of order] since {month}, [however often|whatever] I write to you",
        "the {device} {place} has been a [joy|help] since {month}, and I write to you for the name of the maker",
    ),
    (
        "[still|once more] no {item}, no {who} and no word from you, although it is {day}",
        "no [hurry|rush], although a word from you about the {item} would help the {who} on {day}",
    ),
    (
        "the sign says that you are open for the {lesson} on {day}, and the door was [shut|locked]",
        "the sign does not say whether you are open for the {lesson} on {day}, [may|can] I know?",
    ),
    (
        "must your {who} be [rude|cold] to my mother when she asks for the {item} on {day}?",
        "would your {who} be [kind|so good as to talk] to my mother when she asks for the {item} on {day}?",
    ),
    (
        "as always, the {device} {place} is [taken|dirty] on {day} when it is our turn",
        "as always, [may|could] we have the {device} {place} on {day} when it is our turn?",
    ),
    (
        "must the {item} be left [outside|at the door] on {day} without a note to me?",
        "the {item} can be left [outside|at the door] on {day} with a note to me",
    ),
)

# stand before messages of both kinds
OPENERS = (
    "good morning, ",
    "we live on the third floor, and ",
    "I was away in {month}, and ",
    "it may be nothing, but ",
    "I have read your note of {day}, and ",
    "you will remember us from {month}: ",
    "nobody was in the office on {day}, so I write: ",
    "this could be one for the {who}: ",
    "it has been a long {month}, and ",
    "I will be brief: ",
)


def fill(p: Picker, form: str) -> str:
    """Choose among the choices of a form and put words into its places."""
    opener = p.choice(OPENERS) if p.chance(0.3) else ""
    text = opener + form
    text = re.sub(r"\[([^]]*)\]", lambda found: p.choice(found[1].split("|")), text)
    taken: list[str] = []

    def word(found: re.Match[str]) -> str:
        taken.append(p.other(WORDS[found[1]].split("|"), *taken))
        return taken[-1]

    text = re.sub(r"\{(\w+)\}", word, text)
    return sentence(text.removesuffix("?"), "?" if text.endswith("?") else ".")


def rows() -> list[tuple[str, str]]:
    """Make label and sentence of each line; no sentence stands twice."""
    p = Picker(SEED, with_held_out=False)
    made: list[tuple[str, str]] = []
    for number, label in enumerate(LABELS):
        sentences: dict[str, None] = {}
        while len(sentences) < ROWS:
            sentences[fill(p, FORMS[len(sentences) % len(FORMS)][number])] = None
        made += [(label, text) for text in p.shuffled(list(sentences))]
    return made


def main() -> None:
    """Write the data set next to this file."""
    (HERE / "capstone").mkdir(exist_ok=True)
    text = "label\tsentence\n" + "".join(f"{label}\t{text}\n" for label, text in rows())
    (HERE / "capstone" / "messages.tsv").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
