"""The tasks about what follows from a text: MNLI and RTE (entailment), QNLI (answers)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mini_glue_grammar import (
    NP,
    NUMBERS,
    TIMES,
    Domain,
    Picker,
    Scene,
    adjective_for,
    clause,
    forms,
    furnish,
    hypernym,
    is_general,
    other_time,
    person,
    pick_place,
    pick_time,
    place_phrase,
    predicate,
    reword,
    scene,
    sentence,
)
from mini_glue_lexicon import VERB_FRAMES

ENTAILED, NEUTRAL, CONTRADICTED = 0, 1, 2

# --- genres ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Genre:
    """A domain of scenes, and openings that belong to its way of speaking."""

    domain: Domain
    openings: tuple[str, ...] = ("",)
    open_share: float = 0.0

    def premise(self, p: Picker, text: str) -> str:
        """Put an opening before some of the premises."""
        return f"{p.choice(self.openings)} {text}" if p.chance(self.open_share) else text


TOWN = Genre(
    Domain(
        people=(
            "musician artist athlete writer craftsman teacher relative worker employee entertainer "
            "shopkeeper doctor person"
        ),
        classes="trade fix eating music clothing driving handling treating treating treating tending giving",
        kinds=(
            "tool vehicle instrument furniture garment container artwork toy jewel flower fruit "
            "vegetable pastry meal animal"
        ),
        places="indoors outdoors",
    ),
    ("in fact,", "of course,", "to be precise,"),
    0.2,
)
EXPEDITION = Genre(
    Domain(
        people="scientist officer traveller official",
        classes="trade trade fix handling literacy treating treating giving",
        kinds="boat appliance container document text",
        places="abroad",
    ),
    ("well,", "you know,", "oh yes,", "let me see:", "as I said,", "honestly,"),
    0.4,
)
ANYWHERE = Genre(Domain())

_DISJOINT_TIMES = TIMES["weekday"] + TIMES["month"]


def _scene(p: Picker, g: Genre, parts: str = "", classes: str = "") -> Scene:
    """Pick a scene of the genre with a person for its agent."""
    usual = " ".join(c for c in (classes or g.domain.classes).split() if VERB_FRAMES[c][0].startswith("person"))
    usual = " ".join(c for c in usual.split() if VERB_FRAMES[c][1]) if not classes else usual
    while True:
        s = scene(p, usual, g.domain)
        if s.agent.noun.group == "person":
            return furnish(p, s, parts.split(), g.domain)


def _say(p: Picker, s: Scene, plain: bool = False) -> str:
    """Say a scene in some form."""
    usable = [form for form in forms(s) if form in {"active", "passive"} or not plain]
    return clause(s, p.choice(usable), p.choice(("to", "double")), p.chance(0.5))


# --- kinds of inference ----------------------------------------------------------------------------------
# Every function gives premise and hypothesis for the wanted label.  A hypothesis of each function looks the
# same for all three labels, so that nothing but the premise decides.


def _circumstance(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Time or place: said, not said, or another one."""
    s = _scene(p, g)
    if p.chance(0.5):
        time = p.choice(_DISJOINT_TIMES)
        full = replace(s, time=time)
        hypothesis = {ENTAILED: time, NEUTRAL: time, CONTRADICTED: other_time(p, time)}[label]
        told = replace(s, time=hypothesis)
        premise = full if label != NEUTRAL else furnish(p, s, [p.choice(("place", "purpose", "manner"))], g.domain)
        if label != NEUTRAL and p.chance(0.4):
            premise = furnish(p, premise, ["place"], g.domain)
    else:
        place = pick_place(p, s, g.domain)
        told = replace(s, place=place if label != CONTRADICTED else p.sibling(place))
        premise = (
            replace(s, place=place)
            if label != NEUTRAL
            else furnish(p, s, [p.choice(("time", "purpose", "manner"))])
        )
        if label != NEUTRAL and p.chance(0.4):
            premise = furnish(p, premise, ["time"], g.domain)
    return _say(p, premise), _say(p, reword(p, told, 0.25))


def _quality(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Adjective of the agent or the theme: said, not said, or its opposite."""
    s = _scene(p, g, "time" if p.chance(0.5) else "place")
    part = p.choice(("agent", "theme"))
    np = getattr(s, part)
    word = adjective_for(p, np.noun, lambda w: bool(w.antonyms) and w.lemma not in {"new", "old"})
    told = p.antonym(word) if label == CONTRADICTED else word
    premise = s if label == NEUTRAL else replace(s, **{part: replace(np, adjectives=(word,))})
    if part == "agent":
        bare = replace(s, time="", place=None)
        hypothesis = f"{np.text} who {predicate(bare)} was {p.synonym(told).lemma}"
    else:
        rest = f" to {s.recipient.text}" if s.recipient else ""
        that = "who" if np.noun.group == "person" else "that"
        told_of = f"{replace(np, det='the').text} {that} {s.agent.text} {s.verb.past}{rest}"
        hypothesis = f"{told_of} was {p.synonym(told).lemma}"
    return _say(p, premise, plain=True), hypothesis


def _number(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Numbers and their bounds."""
    s = _scene(p, g)
    n = 3 + p.below(7)
    agents = replace(s.agent, plural=True)

    def told(det: str) -> Scene:
        return replace(s, agent=replace(agents, det=det))

    more, fewer = NUMBERS[min(n + p.below(3), 10)], NUMBERS[max(n - 4, 0)]
    word = NUMBERS[n - 2]
    if label == ENTAILED:
        det, hyp = p.choice(
            (
                (word, f"at least {fewer}"),
                (f"exactly {word}", f"fewer than {more}"),
                (f"at least {word}", f"more than {NUMBERS[max(n - 5, 0)]}"),
            )
        )
        hyp = hyp.replace("more than two", "at least two") if n <= 5 else hyp
    elif label == CONTRADICTED:
        det, hyp = p.choice(
            (
                (f"only {fewer}", f"at least {word}"),
                (word, f"fewer than {fewer}") if n > 4 else (word, "no"),
                (f"exactly {word}", f"more than {more}"),
            )
        )
    else:
        det, hyp = p.choice(
            (
                (f"at least {fewer}", f"more than {more}"),
                ("several", f"at least {more}"),
                (f"fewer than {more}", f"at least {fewer}"),
                ("some", f"fewer than {more}"),
            )
        )
    return _say(p, furnish(p, told(det), [p.choice(("time", "place"))], g.domain), plain=True), _say(
        p, reword(p, told(hyp), 0.4), plain=True
    )


def _implicative(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Verbs that imply, deny or leave open what follows them."""
    s = _scene(p, g)
    if label != NEUTRAL and p.chance(0.35):
        return _intention(p, g, s, label)
    denied = p.chance(0.5)
    wanted = {ENTAILED: "succeeding", CONTRADICTED: "failing", NEUTRAL: "intending"}[label]
    if denied and label != NEUTRAL:
        wanted = "failing" if label == ENTAILED else "succeeding"
    verb = p.word(wanted).past
    rest = predicate(s).replace(s.verb.past, s.verb.lemma, 1)
    tail = f" {pick_time(p)}" if p.chance(0.5) else f" {place_phrase(pick_place(p, s, g.domain))}"
    return f"{s.agent.text} {verb} to {rest}{tail}", _say(
        p, reword(p, replace(s, negated=denied), 0.3), plain=True
    )


def _intention(p: Picker, g: Genre, s: Scene, label: int) -> tuple[str, str]:
    """Ask after the intention itself, so that an intention in the premise does not give the label away."""
    verb = p.word("intending")
    rest = predicate(s).replace(s.verb.past, s.verb.lemma, 1)
    told = p.synonym(verb)
    denied = p.chance(0.5)
    one = f"did not {verb.lemma}" if denied else verb.past
    two = f"did not {told.lemma}" if denied == (label == ENTAILED) else told.past
    where = place_phrase(pick_place(p, s, g.domain))
    return f"{s.agent.text} {one} to {rest} {where}", f"{s.agent.text} {two} to {rest}"


def _embedded(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Clauses under verbs of knowing, of claiming and of error."""
    s = replace(_scene(p, g), negated=p.chance(0.5))
    someone = NP(p.word("person", g.domain.allows)).text
    flipped = label != NEUTRAL and p.chance(0.4)
    told = replace(s, negated=s.negated != flipped)
    if label != NEUTRAL and p.chance(0.35):
        claim, content = p.word("claiming"), _say(p, s, plain=True)
        again = p.synonym(claim)
        denial = f"did not {again.lemma}" if label == CONTRADICTED else again.past
        return (
            f"{someone} {claim.past} that {content}",
            f"{someone} {denial} that {_say(p, reword(p, s, 0.25), plain=True)}",
        )
    if (label == CONTRADICTED) == flipped and label != NEUTRAL:
        frame = p.choice((f"{someone} {p.word('factive').past} that {{}}", f"it surprised {someone} that {{}}"))
    elif label == NEUTRAL:
        frame = p.choice((f"{someone} {p.word('claiming').past} that {{}}", f"{someone} asked whether {{}}"))
    else:
        frame = p.choice(
            (
                f"{someone} wrongly {p.word('claiming').past} that {{}}",
                f"{someone} pretended that {{}}",
                "it is not true that {}",
            )
        )
    return frame.format(_say(p, s, plain=True)), _say(p, reword(p, told, 0.25), plain=True)


def _kind(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Go up or down between a kind and what belongs to it."""
    s = _scene(p, g, "time" if p.chance(0.5) else "")
    part = "agent" if not is_general(s.agent.noun) else "theme"
    np = getattr(s, part)
    if np is None or is_general(np.noun):
        return _kind(p, g, label)
    special, general = replace(np, det="a"), NP(hypernym(np.noun), "a")
    if part == "theme" or p.chance(0.6):
        one, two = (special, general) if label != NEUTRAL else (general, special)
        two = replace(two, det="no") if label == CONTRADICTED else two
    else:
        one, two = (replace(general, det="no"), replace(special, det="no"))
        if label == NEUTRAL:
            one, two = two, one
        elif label == CONTRADICTED:
            one, two = special, replace(general, det="no")
    premise, hypothesis = replace(s, **{part: one}), replace(s, time="", **{part: two})
    hypothesis = reword(p, hypothesis, 0.3)
    return _say(p, premise, plain=True), _say(p, hypothesis, plain=True)


def _roles(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Who did it to whom."""
    s = _scene(p, g, classes="treating")
    s = replace(s, theme=replace(s.theme, det="the"))
    full = furnish(p, s, [p.choice(("time", "place", "manner"))], g.domain)
    told = reword(p, s, 0.5)
    if label == NEUTRAL:
        told = replace(told, agent=told.theme, theme=told.agent)
    elif label == CONTRADICTED:
        told = p.choice((replace(told, negated=True), replace(told, agent=NP(None, name="nobody"))))
    elif p.chance(0.3):
        told = replace(told, agent=NP(None, name="somebody"))
    return _say(p, full), _say(p, told, plain=True)


def _together(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Coordination of agents: both, either, only one."""
    s = _scene(p, g)
    other = NP(p.word("person", lambda w: g.domain.allows(w) and w.entry != s.agent.noun.entry))
    rest = predicate(s)
    one, two = p.shuffled((s.agent.text, other.text))
    base = predicate(s).replace(s.verb.past, s.verb.lemma, 1)
    if label != NEUTRAL and p.chance(0.3):
        premise = f"{p.choice(('either ', ''))}{one} or {two} {rest}"
        return premise, f"{'somebody' if label == ENTAILED else 'nobody'} {predicate(reword(p, s, 0.5))}"
    if label == ENTAILED:
        premise = p.choice(
            (
                f"{one} and {two} {rest}",
                f"both {one} and {two} {rest}",
                f"{one}, but not {two}, {rest}",
                f"not only {two} but also {one} {rest}",
            )
        )
    elif label == NEUTRAL:
        premise = p.choice(
            (
                f"either {one} or {two} {rest}",
                f"{one} or {two} {rest}",
                f"{two} expected {one} to {base}",
                f"{two} asked {one} to {base}",
            )
        )
    else:
        premise = p.choice(
            (
                f"neither {one} nor {two} {rest}",
                f"{two}, but not {one}, {rest}",
                f"{two} {rest}, but {one} did not",
            )
        )
    return premise, f"{one} {predicate(reword(p, s, 0.5))}"


def _relative(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Facts told in a relative clause."""
    s = _scene(p, g)
    t = replace(_scene(p, g, classes="treating"), agent=s.agent)
    if t.theme.noun.entry == s.agent.noun.entry or (s.theme.noun.entry == t.theme.noun.entry):
        return _relative(p, g, label)
    t = replace(t, theme=replace(t.theme, det="the"))
    if label != NEUTRAL and p.chance(0.5):
        s, t = t, s
    if label == CONTRADICTED:
        told = replace(p.choice((s, t)), negated=True)
        if p.chance(0.5):
            s, told = replace(s, negated=True), s
    elif label == ENTAILED:
        told = p.choice((s, t))
        if p.chance(0.3):
            s = told = replace(s, negated=True)
    else:
        told = replace(s, agent=t.theme) if p.chance(0.7) else replace(s, agent=t.theme, negated=True)
        if told.recipient and told.recipient.noun.entry == told.agent.noun.entry:
            return _relative(p, g, label)
    return f"{s.agent.text} who {predicate(t)} {predicate(s)}", _say(p, told, plain=True)


def _quantity(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Quantifiers."""
    s = _scene(p, g, "time" if p.chance(0.5) else "place")
    pairs = {
        ENTAILED: (
            ("all the", "some"),
            ("most", "some"),
            ("all the", "most of the"),
            ("no", "not all the"),
            ("none of the", "fewer than three"),
            ("all the", "many of the"),
        ),
        NEUTRAL: (
            ("some", "all the"),
            ("many", "most of the"),
            ("not all the", "no"),
            ("some", "fewer than three"),
            ("not all the", "some"),
            ("few", "no"),
        ),
        CONTRADICTED: (
            ("no", "some"),
            ("all the", "not all the"),
            ("some", "no"),
            ("none of the", "all the"),
            ("all the", "few of the"),
            ("most", "no"),
        ),
    }
    one, two = p.choice(pairs[label])

    def say(det: str, t: Scene) -> str:
        return f"{det} {t.agent.noun.plural} {predicate(t)}"

    return say(one, s), say(two, reword(p, replace(s, time="", place=None), 0.4))


def _transfer(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Tell the same event from either side: give and get, sell and buy."""
    s = _scene(p, g, "time" if p.chance(0.5) else "", classes="giving")
    one, two, thing = s.agent.text, s.recipient.text, s.theme.text
    give, get = p.choice((("gave", "got"), ("sold", "bought"), ("handed", "received"), ("sent", "received")))
    to_from = (f"{one} {give} {thing} to {two}", f"{two} {get} {thing} from {one}")
    premise, hypothesis = to_from if p.chance(0.5) else to_from[::-1]
    if label == NEUTRAL:
        hypothesis = p.choice((f"{two} {give} {thing} to {one}", f"{one} {get} {thing} from {two}"))
        if premise.startswith(two):
            hypothesis = p.choice((f"{one} {give} {thing} to {two} twice", hypothesis))
    elif label == CONTRADICTED:
        hypothesis = p.choice(
            (
                f"{two} {get} nothing from {one}",
                f"nobody {give} {thing} to {two}",
                f"{one} {give} nothing to {two}",
            )
        )
    return f"{premise} {s.time}".strip(), hypothesis


def _compare(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Compare people, and turn the comparison round."""
    pairs = (
        ("taller", "shorter"),
        ("older", "younger"),
        ("happier", "sadder"),
        ("stronger", "weaker"),
        ("kinder", "crueller"),
        ("braver", "more cowardly"),
    )
    more, less = p.choice(pairs)
    if p.chance(0.5):
        more, less = less, more
    people = [person(p, g.domain) for _ in range(4)]
    if len({np.noun.entry for np in people}) < 4:
        return _compare(p, g, label)
    a, b, c, d = (np.text for np in people)
    if p.chance(0.5):
        premise = f"{a} was {more} than {b} and {c}"
        hyp = {
            ENTAILED: (f"{c} was {less} than {a}", f"{a} was {more} than {c}"),
            NEUTRAL: (f"{c} was {less} than {b}", f"{b} was {more} than {c}"),
            CONTRADICTED: (f"{c} was {more} than {a}", f"{a} was {less} than {b}"),
        }
    else:
        premise = f"{a} was {more} than {b}, and {b} was {more} than {c}"
        hyp = {
            ENTAILED: (f"{c} was {less} than {a}", f"{a} was {more} than {c}"),
            CONTRADICTED: (f"{c} was {more} than {a}", f"{a} was {less} than {c}"),
            NEUTRAL: (f"{d} was {less} than {a}", f"{b} was {more} than {d}"),
        }
    return premise, p.choice(hyp[label])


def _reason(p: Picker, g: Genre, label: int) -> tuple[str, str]:
    """Clauses under *because*, *if*, *although*, *unless*."""
    s, t = _scene(p, g), _scene(p, g, classes="act")
    if s.agent.noun.entry == t.agent.noun.entry or (s.theme and s.theme.noun.entry == t.agent.noun.entry):
        return _reason(p, g, label)
    negated = p.chance(0.4)
    s = replace(s, negated=negated)
    word = {
        ENTAILED: ("because", "although", "when", "after"),
        NEUTRAL: ("if", "perhaps because", "unless"),
        CONTRADICTED: ("because", "although"),
    }[label]
    inner = replace(s, negated=not negated) if label == CONTRADICTED else s
    conjunction = p.choice(word)
    outer = clause(t)
    if conjunction in {"if", "unless"}:
        outer = f"{t.agent.text} always {t.verb.past}"
    return f"{outer} {conjunction} {clause(inner)}", _say(p, reword(p, s, 0.25), plain=True)


# the kinds that need two steps of reasoning stand once, the others more often
_PLAIN = (_circumstance, _circumstance, _quality, _implicative, _embedded, _quantity, _reason)
_HARD = (_together, _number, _kind, _roles, _relative, _transfer, _compare)
KINDS: tuple[Callable[[Picker, Genre, int], tuple[str, str]], ...] = _PLAIN * 4 + _HARD


def mnli(p: Picker, label: int, mismatched: bool) -> tuple[str, str]:
    """Make premise and hypothesis: entailment (0), neutral (1) or contradiction (2)."""
    genre = EXPEDITION if mismatched else TOWN
    premise, hypothesis = p.choice(KINDS)(p, genre, label)
    return sentence(genre.premise(p, premise)), sentence(hypothesis)


def rte(p: Picker, label: int) -> tuple[str, str]:
    """Make a text of one or two sentences and a hypothesis: entailment (0) or not (1)."""
    wanted = ENTAILED if label == 0 else p.choice((NEUTRAL, CONTRADICTED))
    premise, hypothesis = p.choice(KINDS)(p, ANYWHERE, wanted)
    text = sentence(premise)
    if p.chance(0.25):
        extra = sentence(_say(p, _scene(p, ANYWHERE, classes="act"), plain=True))
        text = f"{extra} {text}" if p.chance(0.5) else f"{text} {extra}"
    return text, sentence(hypothesis)


# --- QNLI ------------------------------------------------------------------------------------------------


def _asked(p: Picker, s: Scene, part: str) -> str:
    """Ask for one part of a scene."""
    agent, theme, verb = s.agent.text, s.theme.text, s.verb
    be = s.theme.be
    if part == "agent":
        return p.choice((f"Who {verb.past} {theme}", f"By whom {be} {theme} {verb.participle}"))
    if part == "theme":
        what = "Whom" if s.theme.noun.group == "person" else "What"
        return f"{what} did {agent} {verb.lemma}"
    word = {
        "time": p.choice(("When", "On what occasion")),
        "place": p.choice(("Where", "In what place")),
        "purpose": p.choice(("Why", "For what reason")),
    }
    if part == "number":
        kinds = s.theme.noun.plural
        return p.choice(
            (f"How many {kinds} did {agent} {verb.lemma}", f"How many {kinds} were {verb.participle} by {agent}")
        )
    question = word[part].replace("On what occasion", "When")
    return p.choice(
        (f"{question} did {agent} {verb.lemma} {theme}", f"{question} {be} {theme} {verb.participle} by {agent}")
    )


def qnli(p: Picker, label: int) -> tuple[str, str]:
    """Make a question and a sentence that answers it (0) or only speaks of the same things (1)."""
    part = p.choice(("time", "place", "purpose") * 3 + ("number", "number", "agent", "theme"))
    s = _scene(
        p,
        ANYWHERE,
        classes=(
            "trade fix eating chopping music literacy clothing driving building_work handling gardening "
            "treating tending watching"
        ),
    )
    if part == "number" and s.theme.noun.group == "person":
        return qnli(p, label)
    s = replace(s, theme=replace(s.theme, det="the"))
    if part == "number":
        s = replace(s, theme=replace(s.theme, plural=True, det=p.choice(NUMBERS)))
    full = furnish(
        p, s, [part] if part in {"time", "place", "purpose"} else [p.choice(("time", "place", "purpose"))]
    )
    question = _asked(p, s, part) + "?"
    answer = full if label == 0 else _wrong(p, s, full, part)
    text = _say(p, reword(p, answer, 0.15))
    other = _scene(p, ANYWHERE, classes="act")
    if p.chance(0.15) and other.agent.noun.entry not in {s.agent.noun.entry, s.theme.noun.entry}:
        extra = p.choice(("time", "place")) if p.chance(0.4) else ""
        rest = clause(furnish(p, other, [extra] if extra else []))
        text = f"{text}, while {rest}"
    return question, sentence(text)


def _wrong(p: Picker, s: Scene, full: Scene, part: str) -> Scene:
    """Change or drop what the question needs."""
    if part in {"time", "place", "purpose"}:
        if p.chance(0.85):
            rest = [x for x in ("time", "place", "purpose") if x != part]
            return furnish(p, s, [p.choice(rest)])
        full = _other_theme(p, full) if p.chance(0.7) else full
        return _other_agent(p, full)
    if s.theme.noun.group == "person" and p.chance(0.3):
        return replace(full, agent=s.theme, theme=s.agent)
    if part == "number" and p.chance(0.8):
        return replace(full, theme=replace(s.theme, det="the"))
    wrong = _other_theme(p, full) if part == "agent" else _other_agent(p, full)
    return replace(wrong, verb=p.sibling(s.verb)) if p.chance(0.8) else wrong


def _other_agent(p: Picker, s: Scene) -> Scene:
    """Let someone else do it."""
    return replace(s, agent=NP(p.sibling(s.agent.noun, lambda w: w.entry != s.theme.noun.entry)))


def _other_theme(p: Picker, s: Scene) -> Scene:
    """Let it be done to something else."""
    noun = p.sibling(s.theme.noun, lambda w: w.entry != s.agent.noun.entry)
    return replace(s, theme=replace(s.theme, noun=noun))
