"""The grammar of the mini-GLUE data set: chance, noun phrases, scenes, and the forms a scene can take.

A *scene* is what a sentence tells: who did what to whom, where, when and how.  It is kept apart from the
sentence itself, so that the pair tasks can change either the form and keep what is told (a paraphrase) or
change what is told and keep the form (a near miss).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mini_glue_lexicon import ADJECTIVE_KINDS, FEMALE_NAMES, MALE_NAMES, NOMINALS, VERB_FRAMES, Word, find, group

T = TypeVar("T")

NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
TIMES: dict[str, tuple[str, ...]] = {
    "weekday": tuple(f"on {day}" for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "month": tuple(
        f"in {month}"
        for month in "January February March April June July August September October November".split()
    ),
    "hour": ("at dawn", "at noon", "at midnight", "in the evening", "in the morning", "in the afternoon"),
    "past": ("yesterday", "last week", "last month", "last year", "two days ago", "three weeks ago"),
}
PLACE_PREPOSITIONS = {
    "market": "at",
    "harbour": "at",
    "port": "at",
    "beach": "on",
    "stadium": "at",
    "zoo": "at",
    "square": "in",
    "farmyard": "in",
    "pharmacy": "at",
    "bakery": "at",
    "glacier": "on",
    "island": "on",
    "observatory": "at",
    "airport": "at",
    "oasis": "at",
    "embassy": "at",
    "lagoon": "by",
}
PURPOSES = (
    "for a bet",
    "for fun",
    "out of boredom",
    "out of curiosity",
    "as a favour",
    "by mistake",
    "for charity",
    "to please {}",
    "to impress {}",
    "to annoy {}",
    "because {} insisted",
    "because {} was ill",
    "because {} was late",
    "because {} had no time",
    "at the request of {}",
)
# things and animals that one does not expect under a roof, and verbs that name no deliberate act
OUTDOOR_KINDS = frozenset("vehicle boat building flower animal insect".split())
NO_ACT = frozenset(
    ("trust distrust lose find discover admire know employ ignore defeat beat frighten scare bite scratch").split()
)
TRANSITIVE = " ".join(name for name, (_, objects) in VERB_FRAMES.items() if objects and name != "giving")


class Picker:
    """Chance with a fixed stream, which gives out the words that its split may use.

    Only ``random.Random.random`` is called, whose stream Python promises to keep.

    Parameters
    ----------
    seed : str
        Names the stream.
    with_held_out : bool
        Whether held-out words may be picked (validation splits).
    """

    HELD_OUT_RATE = 0.3

    def __init__(self, seed: str, with_held_out: bool) -> None:
        self._random = random.Random(seed).random
        self.with_held_out = with_held_out

    def chance(self, probability: float) -> bool:
        """Say yes with the given probability."""
        return self._random() < probability

    def below(self, bound: int) -> int:
        """Pick a whole number from 0 to ``bound`` - 1."""
        return int(self._random() * bound)

    def choice(self, items: Sequence[T]) -> T:
        """Pick one of the items."""
        return items[self.below(len(items))]

    def other(self, items: Sequence[T], *taken: T) -> T:
        """Pick one of the items that is not among those taken."""
        return self.choice([item for item in items if item not in taken])

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Give the items in a random order."""
        keyed = [(self._random(), number) for number in range(len(items))]
        return [items[number] for _, number in sorted(keyed)]

    def word(self, groups: str, allow: Callable[[Word], bool] | None = None) -> Word:
        """Pick a word of one of the groups (blank-separated) for which ``allow`` holds."""
        pool = [w for name in groups.split() for w in group(name) if allow is None or allow(w)]
        kept = [w for w in pool if w.held_out]
        seen = [w for w in pool if not w.held_out]
        if self.with_held_out and kept and (not seen or self.chance(self.HELD_OUT_RATE)):
            return self.choice(kept)
        return self.choice(seen)

    def sibling(self, word: Word, allow: Callable[[Word], bool] | None = None) -> Word:
        """Pick another word of the same group that is neither a synonym nor an antonym."""
        return self.word(word.group, lambda w: w.entry != word.entry and (allow is None or allow(w)))

    def synonym(self, word: Word) -> Word:
        """Give a synonym of the word, or the word itself where it has none."""
        return find(self.choice(word.synonyms), word.group) if word.synonyms else word

    def antonym(self, word: Word) -> Word:
        """Give an antonym of a word that has one."""
        return find(self.choice(word.antonyms), word.group)

    def name(self, *taken: str) -> str:
        """Pick a first name."""
        return self.other(MALE_NAMES + FEMALE_NAMES, *taken)


def with_article(phrase: str) -> str:
    """Put the indefinite article before a phrase."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("one", "use", "unique"))
    return ("an " if vowel or phrase.startswith(("honest", "hour")) else "a ") + phrase


def sentence(text: str, mark: str = ".") -> str:
    """Make a sentence of a clause: a capital at the start, a mark at the end."""
    return text[0].upper() + text[1:] + mark


@dataclass(frozen=True)
class NP:
    """A noun phrase: a name, or determiner, adjectives, noun and what follows it."""

    noun: Word | None
    det: str = "the"
    plural: bool = False
    adjectives: tuple[Word, ...] = ()
    after: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The words of the phrase."""
        if self.noun is None:
            return self.name
        head = self.noun.plural if self.plural else self.noun.lemma
        body = " ".join([*(word.lemma for word in self.adjectives), head])
        body = with_article(body) if self.det == "a" else f"{self.det} {body}".strip()
        return f"{body} {self.after}".strip()

    @property
    def general(self) -> NP:
        """The same phrase with the hypernym for its noun, indefinite and without modifiers."""
        assert self.noun is not None
        return NP(hypernym(self.noun), "some" if self.plural else "a", self.plural)

    @property
    def be(self) -> str:
        """The past tense of *be* that agrees with the phrase."""
        return "were" if self.plural else "was"


def hypernym(noun: Word) -> Word:
    """Give the word for the kind of thing a noun names."""
    name, _, plural = noun.hypernym.partition(":")
    return Word(name, "noun", noun.group, name, (name, plural or name + "s"), (), (), -1, False)


def is_general(noun: Word) -> bool:
    """Whether the noun has no kind above it but *person* or *animal*."""
    return noun.hypernym.split(":")[0] in {"person", "animal", "place", "hall"}


@dataclass(frozen=True)
class Scene:
    """What a sentence tells."""

    agent: NP
    verb: Word
    theme: NP | None = None
    recipient: NP | None = None
    place: Word | None = None
    time: str = ""
    manner: Word | None = None
    purpose: str = ""
    negated: bool = False

    @property
    def where(self) -> str:
        """The place as a prepositional phrase."""
        return place_phrase(self.place) if self.place else ""


def place_phrase(place: Word) -> str:
    """Say where something happens."""
    return f"{PLACE_PREPOSITIONS.get(place.lemma, 'in')} the {place.lemma}"


@dataclass(frozen=True)
class Domain:
    """What the scenes of a genre are about: people, classes of verbs, kinds of objects and of places."""

    people: str = ""
    classes: str = " ".join(VERB_FRAMES)
    kinds: str = ""
    places: str = "indoors outdoors"

    def allows(self, noun: Word) -> bool:
        """Whether a noun belongs to the domain."""
        if noun.group == "person":
            return not self.people or noun.hypernym.split(":")[0] in self.people.split()
        return not self.kinds or noun.group in self.kinds.split()


EVERYTHING = Domain()


def person(p: Picker, domain: Domain = EVERYTHING, det: str = "the") -> NP:
    """Pick someone."""
    return NP(p.word("person", domain.allows), det)


def adjective_for(p: Picker, noun: Word, allow: Callable[[Word], bool] | None = None) -> Word:
    """Pick an adjective that goes with a noun."""
    groups = [name for name, kinds in ADJECTIVE_KINDS.items() if noun.group in kinds.split()]
    return p.word(p.choice(groups) if allow is None else " ".join(groups), allow)


def _theme(p: Picker, kinds: str, domain: Domain) -> NP:
    """Pick an object of one of the kinds."""
    noun = p.word(p.choice(kinds.split()), domain.allows)
    return NP(noun, "the" if p.chance(0.6) else "a")


def scene(p: Picker, classes: str = "", domain: Domain = EVERYTHING) -> Scene:
    """Pick who did what to whom; place, time and the rest are left to the caller."""
    usable = [name for name in (classes or domain.classes).split() if _usable(name, domain)]
    verb_class = p.choice(usable)
    subjects, objects = VERB_FRAMES[verb_class]
    verb = p.word(verb_class)
    agent_kind = p.choice(subjects.split())
    agent = NP(p.word(agent_kind, domain.allows if agent_kind == "person" else None))
    kinds = " ".join(k for k in objects.split() if not domain.kinds or k in (domain.kinds + " person").split())
    theme = None
    while objects and (theme is None or theme.noun.entry == agent.noun.entry):
        theme = _theme(p, kinds, domain)
    recipient = None
    while verb_class == "giving" and (recipient is None or recipient.noun.entry == agent.noun.entry):
        recipient = person(p, domain)
    return Scene(agent, verb, theme, recipient)


def _usable(verb_class: str, domain: Domain) -> bool:
    """Whether a class of verbs finds an object in the domain."""
    objects = VERB_FRAMES[verb_class][1].split()
    return not objects or not domain.kinds or any(k in (domain.kinds + " person").split() for k in objects)


def pick_place(p: Picker, s: Scene, domain: Domain = EVERYTHING) -> Word:
    """Pick a place that suits what is done there."""
    outdoors = s.theme is not None and s.theme.noun.group in OUTDOOR_KINDS
    return p.word("outdoors" if outdoors and "outdoors" in domain.places else domain.places)


def pick_time(p: Picker, kinds: Sequence[str] = tuple(TIMES)) -> str:
    """Pick a phrase of time."""
    return p.choice(TIMES[p.choice(kinds)])


def other_time(p: Picker, time: str) -> str:
    """Pick a phrase of the same kind that says another time."""
    phrases = next(phrases for phrases in TIMES.values() if time in phrases)
    return p.other(phrases, time)


def pick_purpose(p: Picker, taken: Sequence[NP] = ()) -> str:
    """Pick a reason."""
    entries = {np.noun.entry for np in taken if np.noun}
    return p.choice(PURPOSES).format(NP(p.word("person", lambda w: w.entry not in entries)).text)


def furnish(p: Picker, s: Scene, parts: Sequence[str], domain: Domain = EVERYTHING) -> Scene:
    """Add the named parts to a scene.

    Parameters
    ----------
    p : Picker
        Where the words come from.
    s : Scene
        What is told so far.
    parts : sequence of str
        Some of ``place``, ``time``, ``manner``, ``purpose``, ``agent_adjective``, ``theme_adjective``,
        ``agent_number`` and ``theme_number``.
    domain : Domain
        Where the places come from.

    Returns
    -------
    Scene
        The scene with the parts, as far as they suit it.
    """
    for part in parts:
        if part in {"manner", "purpose"} and (s.verb.lemma in NO_ACT or s.agent.noun.group != "person"):
            part = "time" if s.place else "place"
        if part == "place":
            s = replace(s, place=pick_place(p, s, domain))
        elif part == "time":
            s = replace(s, time=pick_time(p))
        elif part == "manner":
            s = replace(s, manner=p.word("manner"))
        elif part == "purpose":
            s = replace(s, purpose=pick_purpose(p, [np for np in (s.agent, s.theme, s.recipient) if np]))
        elif part == "agent_adjective":
            s = replace(s, agent=replace(s.agent, adjectives=(adjective_for(p, s.agent.noun),)))
        elif part == "theme_adjective" and s.theme:
            s = replace(s, theme=replace(s.theme, adjectives=(adjective_for(p, s.theme.noun),)))
        elif part == "agent_number":
            s = replace(s, agent=replace(s.agent, det=p.choice(NUMBERS), plural=True))
        elif part == "theme_number" and s.theme:
            s = replace(s, theme=replace(s.theme, det=p.choice(NUMBERS), plural=True))
    return s


def _join(*parts: str) -> str:
    """Join the parts that are not empty with blanks."""
    return " ".join(part for part in parts if part)


def _complements(s: Scene, dative: str) -> str:
    """Give the objects of an active clause; ``dative`` is *to* or *double*."""
    if s.recipient is None:
        return s.theme.text if s.theme else ""
    if dative == "double":
        return f"{s.recipient.text} {s.theme.text}"
    return f"{s.theme.text} to {s.recipient.text}"


def predicate(s: Scene, dative: str = "to", manner_last: bool = False, with_time: bool = True) -> str:
    """Give the verb phrase of an active clause in the past."""
    manner = s.manner.lemma if s.manner else ""
    early, late = ("", manner) if manner_last else (manner, "")
    verb = f"did not {s.verb.lemma}" if s.negated else s.verb.past
    if s.negated:
        early, late = "", manner
    time = s.time if with_time else ""
    return _join(early, verb, _complements(s, dative), late, s.where, time, s.purpose)


def passive_predicate(s: Scene, with_agent: bool = True, with_time: bool = True) -> str:
    """Give the verb phrase of a passive clause in the past."""
    manner = s.manner.lemma if s.manner else ""
    to = f"to {s.recipient.text}" if s.recipient else ""
    by = f"by {s.agent.text}" if with_agent else ""
    time = s.time if with_time else ""
    be = s.theme.be + (" not" if s.negated else "")
    return _join(be, manner, s.verb.participle, to, by, s.where, time, s.purpose)


def clause(s: Scene, form: str = "active", dative: str = "to", manner_last: bool = False) -> str:
    """Say a scene.

    Parameters
    ----------
    s : Scene
        What to say.
    form : str
        ``active``, ``passive``, ``fronted`` (time or place first), ``passive_fronted``, ``agent_cleft``,
        ``theme_cleft`` or ``nominal``; see ``forms`` for those that suit a scene.
    dative : str
        ``to`` or ``double``.
    manner_last : bool
        Whether the adverb stands after the object.

    Returns
    -------
    str
        The clause without capital and full stop.
    """
    subject = s.agent.text
    if form == "active":
        return f"{subject} {predicate(s, dative, manner_last)}"
    if form == "fronted":
        if s.time:
            return f"{s.time}, {subject} {predicate(s, dative, manner_last, with_time=False)}"
        return f"{s.where}, {subject} {predicate(replace(s, place=None), dative, manner_last)}"
    if form == "passive":
        return f"{s.theme.text} {passive_predicate(s)}"
    if form == "passive_fronted":
        return f"{s.time}, {s.theme.text} {passive_predicate(s, with_time=False)}"
    if form == "agent_cleft":
        who = "who" if s.agent.noun is None or s.agent.noun.group == "person" else "that"
        return f"it was {subject} {who} {predicate(s, dative, manner_last)}"
    if form == "theme_cleft":
        return f"it was {s.theme.text} that {subject} {predicate(replace(s, theme=NP(None)))}"
    noun = NOMINALS[s.verb.lemma]
    return _join("the", noun, "of", s.theme.text, "by", subject, "took place", s.where, s.time)


def forms(s: Scene) -> list[str]:
    """Give the forms that suit a scene; the plain ones stand twice, as they are to be more frequent."""
    result = ["active", "active"]
    if s.time or s.place:
        result.append("fronted")
    if not s.negated:
        result.append("agent_cleft")
    if s.theme is None:
        return result
    result += ["passive", "passive"]
    if s.time:
        result.append("passive_fronted")
    if not s.negated and s.recipient is None:
        result.append("theme_cleft")
    if s.verb.lemma in NOMINALS and not (s.manner or s.purpose or s.negated) and (s.place or s.time):
        result.append("nominal")
    return result


def reword_np(p: Picker, np: NP | None, rate: float) -> NP | None:
    """Put synonyms for some words of a noun phrase."""
    if np is None or np.noun is None:
        return np
    noun = p.synonym(np.noun) if p.chance(rate) else np.noun
    adjectives = tuple(p.synonym(word) if p.chance(rate) else word for word in np.adjectives)
    return replace(np, noun=noun, adjectives=adjectives)


def reword(p: Picker, s: Scene, rate: float = 0.7) -> Scene:
    """Put synonyms for some words of a scene, which stays the same scene."""
    return replace(
        s,
        agent=reword_np(p, s.agent, rate),
        theme=reword_np(p, s.theme, rate),
        recipient=reword_np(p, s.recipient, rate),
        verb=p.synonym(s.verb) if p.chance(rate) else s.verb,
        place=p.synonym(s.place) if s.place and p.chance(rate) else s.place,
        manner=p.synonym(s.manner) if s.manner and p.chance(rate) else s.manner,
    )
