"""The two tasks about single sentences: acceptability (CoLA) and sentiment (SST-2)."""

from __future__ import annotations

from collections.abc import Callable

from mini_glue_grammar import (
    NP,
    NUMBERS,
    TRANSITIVE,
    Picker,
    Scene,
    adjective_for,
    clause,
    forms,
    furnish,
    pick_time,
    place_phrase,
    predicate,
    scene,
    sentence,
    with_article,
)
from mini_glue_lexicon import FEMALE_NAMES, MALE_NAMES, group

# --- CoLA ------------------------------------------------------------------------------------------------
# Every function below gives one sentence of its construction: the good one if ``ok``, else one in which
# exactly one rule is broken.  The words are drawn afresh for each, so that no good twin of a bad sentence
# is in the data.


def _someone(p: Picker, plural: bool = False, adjective: float = 0.3) -> str:
    """Give a definite noun phrase for a person."""
    noun = p.word("person", lambda w: w.lemma not in {"man", "woman"})
    words = (adjective_for(p, noun),) if p.chance(adjective) else ()
    return NP(noun, plural=plural, adjectives=words).text


def _tail(p: Picker) -> str:
    """Give an adjunct of place or of time, or nothing."""
    kind = p.below(4)
    if kind == 0:
        return " " + place_phrase(p.word("indoors outdoors"))
    return " " + pick_time(p) if kind == 1 else ""


def _word_order(p: Picker, ok: bool) -> str:
    """Subject, verb, object; the determiner before its noun, the preposition before its phrase."""
    s = furnish(p, scene(p, TRANSITIVE), ["place"] if p.chance(0.6) else ["time"])
    if ok:
        return clause(s, p.choice(forms(s)), manner_last=p.chance(0.5))
    agent, verb, theme, rest = s.agent.text, s.verb.past, s.theme.text, s.where or s.time
    swapped = " ".join(reversed(theme.split()))
    wrong = (
        f"{agent} {theme} {verb} {rest}",
        f"{verb} {agent} {theme} {rest}",
        f"{agent} {verb} {swapped} {rest}",
        f"{' '.join(reversed(agent.split()))} {verb} {theme} {rest}",
        f"{theme} {agent} {rest} {verb}",
    )
    return p.choice(wrong)


def _agreement(p: Picker, ok: bool) -> str:
    """Present tense agreement of subject and verb, with an intransitive verb."""
    plural = p.chance(0.5)
    verb = p.word("act")
    form = verb.lemma if plural == ok else verb.third
    often = p.choice(("often ", "rarely ", "always ", "never ", ""))
    return f"{_someone(p, plural)} {often}{form}{_tail_place(p)}"


def _tail_place(p: Picker) -> str:
    """Give an adjunct of place that goes with a habit."""
    return f" {place_phrase(p.word('indoors outdoors'))}"


def _attractor_thing(p: Picker, ok: bool) -> str:
    """Agreement across a phrase, with things for subjects."""
    plural = p.chance(0.5)
    noun = p.word("tool container garment toy jewel document")
    other = NP(p.word("furniture container person"), plural=not plural).text
    be = p.choice((("are", "is"), ("were", "was"), ("look", "looks"), ("seem", "seems")))
    form = be[0] if plural == ok else be[1]
    adjective = adjective_for(p, noun).lemma
    return f"{NP(noun, plural=plural).text} {p.choice(('beside', 'near', 'behind'))} {other} {form} {adjective}"


def _relative_attractor(p: Picker, ok: bool) -> str:
    """Agreement of the main verb across a relative clause."""
    plural = p.chance(0.5)
    verb = p.word("treating").past
    act = p.word("act")
    form = act.lemma if plural == ok else act.third
    often = p.choice(("often", "rarely", "always"))
    return f"{_someone(p, plural, 0)} who {verb} {_someone(p, not plural, 0)} {often} {form}"


def _there(p: Picker, ok: bool) -> str:
    """Agreement after *there*."""
    plural = p.chance(0.5)
    noun = p.word("tool vehicle furniture container animal person")
    be = p.choice((("are", "is"), ("were", "was")))
    form = be[0] if plural == ok else be[1]
    what = NP(noun, p.choice((*NUMBERS, "several", "some")) if plural else "a", plural).text
    return f"there {form} {what} {place_phrase(p.word('indoors outdoors'))}"


def _demonstrative(p: Picker, ok: bool) -> str:
    """Agreement of determiner and noun."""
    s = scene(p, TRANSITIVE)
    plural = p.chance(0.5)
    det = (
        p.choice(("these", "those", "many", "both", "several"))
        if plural
        else p.choice(("this", "that", "every", "each", "another"))
    )
    theme = NP(s.theme.noun, det, plural if ok else not plural).text
    return f"{s.agent.text} {s.verb.past} {theme}{_tail(p)}"


def _mass(p: Picker, ok: bool) -> str:
    """Choose a determiner for a mass noun."""
    noun = p.word("mass").lemma
    good = p.choice(("some", "much of the", "a lot of", "a little", "too much"))
    bad = p.choice(("many", "three", "several", "every", "these"))
    verb = p.choice(("gave us", "found", "wanted", "mentioned", "asked for", "complained about"))
    return f"{_someone(p)} {verb} {good if ok else bad} {noun}{_tail(p)}"


def _reflexive(p: Picker, ok: bool) -> str:
    """Gender and number of reflexives."""
    female = p.chance(0.5)
    name = p.choice(FEMALE_NAMES if female else MALE_NAMES)
    verb = p.word("treating").past
    own, wrong = ("herself", "himself") if female else ("himself", "herself")
    if p.chance(0.4):
        return f"{_someone(p, True)} {verb} {'themselves' if ok else own}{_tail(p)}"
    if p.chance(0.5):
        wrong = p.choice(("themselves", "ourselves", "itself"))
    return f"{name} {verb} {own if ok else wrong}{_tail(p)}"


def _reflexive_subject(p: Picker, ok: bool) -> str:
    """Keep reflexives out of the place of the subject and bound in their own clause."""
    female = p.chance(0.5)
    name = p.choice(FEMALE_NAMES if female else MALE_NAMES)
    own, she = ("herself", "she") if female else ("himself", "he")
    verb, think = p.word("treating").past, p.word("claiming factive").past
    if p.chance(0.5):
        return f"{name} {think} that {she if ok else own} {verb} {_someone(p)}"
    return f"{she if ok else own} {verb} {_someone(p)}{_tail(p)}"


def _case(p: Picker, ok: bool) -> str:
    """Case of pronouns."""
    good, bad = p.choice((("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"), ("I", "me")))
    s = scene(p, TRANSITIVE)
    if p.chance(0.5):
        return f"{good if ok else bad} {predicate(s)}{_tail(p)}"
    return f"{_someone(p)} {p.word('treating').past} {bad if ok else good}{_tail(p)}"


def _intransitive(p: Picker, ok: bool) -> str:
    """Intransitive verbs take no object."""
    verb = p.word(
        "act", lambda w: w.lemma not in {"sing", "dance", "wander", "roam", "cry", "weep", "whisper"}
    ).past
    preposition = p.choice(("near", "behind", "beside", "in front of")) + " " if ok else ""
    return f"{_someone(p)} {verb} {preposition}{NP(p.word('person furniture vehicle')).text}{_tail(p)}"


# verbs that sound unfinished without their object
_NEEDS_OBJECT = frozenset(
    (
        "mend damage devour lose buy steal hide find conceal borrow choose repair greet thank "
        "praise visit rescue insult comfort deceive warn ignore invite dismiss distrust trust "
        "admire examine fix purchase discover offend welcome destroy demolish construct reveal "
        "unpack wear catch capture frighten"
    ).split()
)


def _transitive(p: Picker, ok: bool) -> str:
    """Transitive verbs need their object."""
    s = scene(p, TRANSITIVE)
    while s.verb.lemma not in _NEEDS_OBJECT:
        s = scene(p, TRANSITIVE)
    adverb = p.word("manner").lemma
    return f"{s.agent.text} {s.verb.past}{' ' + s.theme.text if ok else ''} {p.choice((adverb, pick_time(p)))}"


def _dative(p: Picker, ok: bool) -> str:
    """Verbs with two objects, and those that allow none."""
    theme = NP(p.word("document jewel text toy"), "a").text
    if p.chance(0.5):
        verb = p.choice(("explained", "described", "mentioned", "donated", "demonstrated"))
        to = f"{theme} to {_someone(p)}" if ok else f"{_someone(p)} {theme}"
        return f"{_someone(p)} {verb} {to}"
    verb = p.word("giving").past
    if ok:
        to = p.choice((f"{_someone(p)} {theme}", f"{theme} to {_someone(p)}"))
    else:
        to = p.choice((f"to {_someone(p)} to {theme}", f"{theme} {_someone(p)}", f"{theme} at {_someone(p)}"))
    return f"{_someone(p)} {verb} {to}"


_TO_VERBS = "want wish plan intend hope refuse manage promise decline fail neglect"


def _complement(p: Picker, ok: bool) -> str:
    """Infinitive or gerund after a verb."""
    s = scene(p, TRANSITIVE)
    while s.agent.noun.group != "person":
        s = scene(p, TRANSITIVE)
    to = f"to {s.verb.lemma} {s.theme.text}"
    ing = f"{s.verb.gerund} {s.theme.text}"
    if p.chance(0.5):
        verb = p.word("intending failing succeeding", lambda w: w.lemma in _TO_VERBS.split()).past
        return f"{s.agent.text} {verb} {to if ok else ing}{_tail(p)}"
    return f"{s.agent.text} {p.word('enjoying').past} {ing if ok else to}{_tail(p)}"


def _bare(p: Picker, ok: bool) -> str:
    """Bare infinitive or infinitive with *to* after verb and object."""
    s = scene(p, TRANSITIVE)
    bare, to = f"{s.verb.lemma} {s.theme.text}", f"to {s.verb.lemma} {s.theme.text}"
    someone = _someone(p)
    if p.chance(0.5):
        let = p.choice(("let", "made", "saw", "heard", "watched"))
        return f"{someone} {let} {s.agent.text} {bare if ok else to}"
    verb = p.choice(("forced", "allowed", "persuaded", "ordered", "asked", "told", "encouraged"))
    return f"{someone} {verb} {s.agent.text} {to if ok else bare}"


def _auxiliary(p: Picker, ok: bool) -> str:
    """Form of the verb after an auxiliary."""
    s = scene(p)
    v = s.verb
    auxiliary, good = p.choice(
        (
            ("has", v.participle),
            ("is", v.gerund),
            ("will", v.lemma),
            ("did not", v.lemma),
            ("must", v.lemma),
            ("can", v.lemma),
        )
    )
    bad = p.choice(
        [form for form in {f: 0 for f in (v.lemma, v.third, v.gerund, f"to {v.lemma}")} if form != good]
    )
    if auxiliary in {"did not", "will"} and v.past != v.lemma and p.chance(0.5):
        bad = v.past
    rest = _scene_object(s)
    return f"{s.agent.text} {auxiliary} {good if ok else bad}{rest}"


def _scene_object(s: Scene) -> str:
    """Give the objects of a scene after a blank."""
    text = s.theme.text if s.theme else ""
    text += f" to {s.recipient.text}" if s.recipient else ""
    return " " + text if text else ""


def _question(p: Picker, ok: bool) -> str:
    """Question about the object: a gap, the auxiliary in front, the bare verb."""
    s = scene(p, TRANSITIVE)
    who = "who" if s.theme.noun.group == "person" else "what"
    tail = _tail(p)
    if ok:
        return f"{who} did {s.agent.text} {s.verb.lemma}{tail}?"
    kind = p.below(3)
    if kind == 0:
        return f"{who} did {s.agent.text} {s.verb.lemma} {s.theme.text}{tail}?"
    if kind == 1 and s.verb.past != s.verb.lemma:
        return f"{who} did {s.agent.text} {s.verb.past}{tail}?"
    return f"{who} {s.agent.text} did {s.verb.lemma}{tail}?"


def _inversion(p: Picker, ok: bool) -> str:
    """Subject and auxiliary in questions."""
    s = scene(p, TRANSITIVE)
    when = p.choice(("when", "why", "where", "how"))
    modal = p.choice(("will", "should", "can", "did", "must", "would"))
    order = f"{modal} {s.agent.text}" if ok else f"{s.agent.text} {modal}"
    return f"{when} {order} {s.verb.lemma} {s.theme.text}?"


def _island(p: Picker, ok: bool) -> str:
    """Questions out of a complement clause, and out of islands."""
    s = scene(p, TRANSITIVE)
    who = "who" if s.theme.noun.group == "person" else "what"
    one, past = _someone(p, adjective=0), s.verb.past
    if ok:
        think = p.choice(("say", "think", "claim", "believe", "hear"))
        return f"{who} did {one} {think} {p.choice(('that ', ''))}{s.agent.text} {past}?"
    kind = p.below(3)
    if kind == 0:
        noun = p.choice(("rumour", "story", "claim", "report"))
        return f"{who} did {one} hear the {noun} that {s.agent.text} {past}?"
    if kind == 1:
        word = p.choice(("because", "after", "although", "before"))
        return f"{who} did {one} {p.word('act').lemma} {word} {s.agent.text} {past}?"
    return f"{who} did {s.agent.text} {s.verb.lemma} {s.theme.text} and?"


def _relative(p: Picker, ok: bool) -> str:
    """Relative clauses: a gap, and the pronoun that suits the head."""
    s = scene(p, "trade fix music literacy clothing handling driving tending")
    thing = NP(s.theme.noun).text
    adjective = adjective_for(p, s.theme.noun).lemma
    if ok:
        return f"{thing} {p.choice(('which ', 'that ', ''))}{s.agent.text} {s.verb.past} was {adjective}"
    if p.chance(0.5):
        return f"{thing} that {s.agent.text} {s.verb.past} {p.choice(('it', 'him', 'them'))} was {adjective}"
    return f"{thing} {p.choice(('who', 'what', 'where', 'whose'))} {s.agent.text} {s.verb.past} was {adjective}"


def _relative_subject(p: Picker, ok: bool) -> str:
    """Relative clauses about the subject need their pronoun."""
    verb = p.word("treating").past
    who = p.choice(("who ", "that ")) if ok else p.choice(("", "which ", "whom ", "who she "))
    return f"{_someone(p)} {who}{verb} {_someone(p)} {p.word('act').past}{_tail(p)}"


def _adjective_order(p: Picker, ok: bool) -> str:
    """Put the adjective between determiner and noun."""
    s = scene(p, TRANSITIVE)
    noun = s.theme.noun.lemma
    adjective = adjective_for(p, s.theme.noun).lemma
    if ok:
        return f"{s.agent.text} {s.verb.past} the {adjective} {noun}{_tail(p)}"
    wrong = p.choice((f"the {noun} {adjective}", f"{adjective} the {noun}", f"{noun} the {adjective}"))
    return f"{s.agent.text} {s.verb.past} {wrong}{_tail(p)}"


def _adverb_order(p: Picker, ok: bool) -> str:
    """No adverb between verb and object."""
    s = scene(p, TRANSITIVE)
    adverb = p.word("manner").lemma
    agent, verb, theme = s.agent.text, s.verb.past, s.theme.text
    if ok:
        return p.choice((f"{agent} {adverb} {verb} {theme}", f"{agent} {verb} {theme} {adverb}")) + _tail(p)
    return p.choice(
        (f"{agent} {verb} {adverb} {theme}", f"{s.agent.text.replace('the ', f'the {adverb} ')} {verb} {theme}")
    ) + _tail(p)


def _determiner(p: Picker, ok: bool) -> str:
    """Singular count nouns need one determiner, not none and not two."""
    s = scene(p, TRANSITIVE)
    noun = s.theme.noun.lemma
    if ok:
        det = p.choice(("my ", "the ", "her ", "our ", "that "))
    else:
        det = p.choice(("", "", "the my ", "a the ", "this the ", "her the "))
    return f"{s.agent.text} {s.verb.past} {det}{noun}{_tail(p)}"


def _article(p: Picker, ok: bool) -> str:
    """Choose between *a* and *an*, and keep either from plurals."""
    s = scene(p, TRANSITIVE)
    if ok:
        return f"{s.agent.text} {s.verb.past} {with_article(s.theme.noun.lemma)}{_tail(p)}"
    return f"{s.agent.text} {s.verb.past} {with_article(s.theme.noun.plural)}{_tail(p)}"


def _comparison(p: Picker, ok: bool) -> str:
    """Compare with *than* and *as*."""
    short = p.choice(("tall", "old", "strong", "young", "fast", "short", "kind", "slow"))
    long = p.choice(("talkative", "patient", "impatient", "generous", "careful", "polite", "nervous", "jealous"))
    one, two = _someone(p, adjective=0), _someone(p, adjective=0)
    good = (f"{short}er than", f"as {short} as", f"more {long} than", f"as {long} as", f"less {long} than")
    bad = (
        f"more {short}er than",
        f"{short} than",
        f"as {short}er as",
        f"as {long} than",
        f"{long} than",
        f"more {long} as",
    )
    return f"{one} {p.choice(('is', 'was', 'seems'))} {p.choice(good if ok else bad)} {two}"


def _polarity(p: Picker, ok: bool) -> str:
    """Words like *ever* and *anything* need a negation."""
    s = scene(p, TRANSITIVE)
    people = s.agent.noun.plural
    good, bad = p.choice((("no", "some"), ("few", "many"), ("none of the", "most of the"), ("no", "several")))
    if p.chance(0.5):
        return f"{good if ok else bad} {people} have ever {s.verb.participle} {s.theme.text}"
    verb = f"did not {s.verb.lemma}" if ok else s.verb.past
    noun = NP(s.theme.noun, "any", True).text
    return f"{s.agent.text} {verb} {noun}{p.choice((' at all', ' yet' if ok else ' at all', ''))}"


def _preposition(p: Picker, ok: bool) -> str:
    """Verbs that choose their preposition."""
    rules = {"rely": "on", "listen": "to", "wait": "for", "look": "at", "object": "to", "depend": "on"}
    verb = p.word("relying", lambda w: w.lemma in rules)
    good = rules[verb.lemma]
    bad = p.choice(("", "of"))
    return " ".join(
        f"{_someone(p)} {p.choice((verb.past, 'had to ' + verb.lemma, 'would not ' + verb.lemma))} "
        f"{good if ok else bad} {_someone(p)}{_tail(p)}".split()
    )


def _passive(p: Picker, ok: bool) -> str:
    """Only transitive verbs have a passive, with a participle."""
    s = furnish(p, scene(p, TRANSITIVE), ["time"] if p.chance(0.3) else [])
    if ok:
        return clause(s, "passive")
    if p.chance(0.5):
        return f"{_someone(p)} was {p.word('act').participle} by {_someone(p)}{_tail(p)}"
    return f"{s.theme.text} was {p.choice((s.verb.lemma, s.verb.third))} by {s.agent.text}{_tail(p)}"


def _tag(p: Picker, ok: bool) -> str:
    """Tag questions mirror their clause."""
    female = p.chance(0.5)
    name = p.choice(FEMALE_NAMES if female else MALE_NAMES)
    he = "she" if female else "he"
    auxiliary, negative = p.choice(
        (("can", "can't"), ("will", "won't"), ("should", "shouldn't"), ("must", "mustn't"))
    )
    other = p.other(("isn't", "hasn't", "won't", "can't", "didn't"), negative)
    s = scene(p, TRANSITIVE)
    return f"{name} {auxiliary} {s.verb.lemma} {s.theme.text}, {negative if ok else other} {he}?"


def _partitive(p: Picker, ok: bool) -> str:
    """Partitives take a definite plural and keep their own number."""
    noun = p.word("person animal furniture vehicle tool")
    adjective = adjective_for(p, noun).lemma
    word = p.choice(("each", "one", "neither"))
    if ok:
        return f"{word} of the {noun.plural} was {adjective}"
    return p.choice(
        (
            f"{word} of the {noun.lemma} was {adjective}",
            f"{word} of {noun.plural} were {adjective}",
            f"{word} the {noun.plural} was {adjective}",
        )
    )


def _raising(p: Picker, ok: bool) -> str:
    """*Seem* and its subjects."""
    s = scene(p)
    seem = p.choice(("seems", "appears"))
    rest = _scene_object(s)
    if ok:
        return p.choice(
            (
                f"it {seem} that {s.agent.text} {s.verb.past}{rest}",
                f"{s.agent.text} {seem} to have {s.verb.participle}{rest}",
            )
        )
    return p.choice(
        (f"{s.agent.text} {seem} that {s.verb.past}{rest}", f"it {seem} {s.agent.text} to {s.verb.lemma}{rest}")
    )


def _conjunction(p: Picker, ok: bool) -> str:
    """Two clauses and one conjunction between them."""
    one, two = scene(p, TRANSITIVE), scene(p)
    word = p.choice(("because", "although", "while", "before", "after"))
    first, second = clause(one), clause(two)
    if ok:
        return p.choice((f"{first} {word} {second}", f"{word} {second}, {first}"))
    return p.choice(
        (f"{first} {second} {word}", f"{first} {word} and {second}", f"{word} {first}, but because {second}")
    )


def _particle(p: Picker, ok: bool) -> str:
    """Put a pronoun before the particle."""
    verb, particle = p.choice(
        (
            ("picked", "up"),
            ("threw", "away"),
            ("put", "down"),
            ("took", "off"),
            ("gave", "back"),
            ("turned", "over"),
        )
    )
    noun = NP(p.word("tool garment container toy jewel")).text
    if p.chance(0.5):
        return f"{_someone(p)} {verb} {f'it {particle}' if ok else f'{particle} it'}{_tail(p)}"
    return f"{_someone(p)} {verb} {f'{particle} {noun}' if ok else f'{particle} {noun} {particle}'}{_tail(p)}"


# weights: the rules that show within a few words stand more often than those that span a clause
_COMMON = (
    _agreement,
    _auxiliary,
    _demonstrative,
    _case,
    _adjective_order,
    _determiner,
    _inversion,
    _reflexive,
    _bare,
    _article,
    _mass,
    _comparison,
    _question,
    _complement,
    _there,
    _passive,
)
_RARE = (
    _attractor_thing,
    _relative_attractor,
    _reflexive_subject,
    _intransitive,
    _transitive,
    _dative,
    _island,
    _relative,
    _relative_subject,
    _adverb_order,
    _polarity,
    _preposition,
    _tag,
    _partitive,
    _raising,
    _conjunction,
    _particle,
)
COLA: tuple[Callable[[Picker, bool], str], ...] = _COMMON * 2 + _RARE + (_word_order,) * 70


def cola(p: Picker, label: int) -> tuple[str]:
    """Make a sentence that is acceptable (1) or not (0)."""
    text = p.choice(COLA)(p, label == 1)
    return (sentence(text.rstrip("?"), "?" if text.endswith("?") else "."),)


# --- SST-2 -----------------------------------------------------------------------------------------------
# Every function gives a judgement of the wanted polarity.  ``_word`` picks words of either polarity, so that
# the same words stand in praise and, negated or conceded, in blame.

_KINDS = {"story": "work", "venue": "venue"}


class _Review:
    """What a review is about, and where its words of judgement come from."""

    def __init__(self, p: Picker) -> None:
        self.p = p
        self.kind = p.choice(("story", "story", "venue"))
        self.item = p.word(_KINDS[self.kind]).lemma

    def aspect(self, *taken: str) -> str:
        """Pick a part or side of the thing reviewed."""
        return self.p.word(f"{self.kind}_aspect", lambda w: w.lemma not in taken).lemma

    def word(self, good: bool, *taken: str) -> str:
        """Pick an adjective of judgement."""
        prefix = "good" if good else "bad"
        groups = f"{prefix}_any {prefix}_story" if self.kind == "story" else f"{prefix}_any"
        return self.p.word(groups, lambda w: w.lemma not in taken).lemma

    def verdict(self, good: bool) -> str:
        """Pick a noun of judgement."""
        return self.p.word("praise" if good else "blame").lemma

    def verb(self, good: bool) -> str:
        """Pick a verb for the effect on the audience."""
        return self.p.word("pleasing" if good else "displeasing").lemma

    def degree(self) -> str:
        """Pick an intensifier, or none."""
        return self.p.choice(("", "", "", "really ", "thoroughly ", "truly ", "rather ", "utterly ", "quite "))


def _fragment(r: _Review, good: bool) -> str:
    """Give a noun phrase of praise or blame."""
    p = r.p
    first = r.word(good)
    if p.chance(0.4):
        phrase = f"{first} and {r.word(good, first)} {r.item}"
    else:
        phrase = f"{r.degree()}{first} {r.item}"
    return with_article(phrase) + p.choice(("", f" whose {r.aspect()} is {r.word(good)}", " from start to finish"))


def _statement(r: _Review, good: bool) -> str:
    """Give a plain statement."""
    p = r.p
    who = p.choice((f"the {r.aspect()}", f"this {r.item}", f"the {r.item}"))
    return f"{who} is {r.degree()}{r.word(good)}" + p.choice(("", " throughout", " from beginning to end"))


def _negated(r: _Review, good: bool) -> str:
    """Give a statement whose word of judgement is negated."""
    p = r.p
    frame = p.choice(
        (
            "the {a} is never {w}",
            "the {a} is not {w} at all",
            "there is nothing {w} about the {a}",
            "the {a} is anything but {w}",
            "this {i} is far from {w}",
            "nobody could call the {a} {w}",
            "the {i} is hardly {w}",
            "not one minute of this {i} is {w}",
            "the {a} is by no means {w}",
        )
    )
    return frame.format(a=r.aspect(), i=r.item, w=r.word(not good))


def _effect(r: _Review, good: bool) -> str:
    """Tell the effect on the audience, with or without a negation."""
    p = r.p
    crowd = p.choice(("its audience", "the crowd", "everyone", "even its fans", "us", "the critics"))
    if r.kind == "venue":
        crowd = p.choice(("its guests", "every visitor", "us", "the regulars", "everyone"))
    frame = p.choice(("the {a} never fails to {v} {c}", "this {i} will {v} {c}", "the {a} manages to {v} {c}"))
    if p.chance(0.5):
        good = not good
        frame = p.choice(
            (
                "the {a} fails to {v} {c}",
                "this {i} does not {v} {c}",
                "the {a} never {v}s {c}",
                "this {i} will not {v} {c}",
            )
        )
        frame = frame.replace("never {v}s", "can hardly {v}")
    return frame.format(a=r.aspect(), i=r.item, v=r.verb(good), c=crowd)


def _contrast(r: _Review, good: bool) -> str:
    """Concede one thing and conclude the other."""
    p = r.p
    aspect = r.aspect()
    concession, verdict = r.word(not good), r.word(good)
    frame = p.choice(
        (
            "although the {a} is {x}, the {i} is {d}{y}",
            "the {a} is {x}, but the {i} as a whole is {d}{y}",
            "despite its {x} {a}, this is {ay} {i}",
            "the {i} is {d}{y}, even if the {a} is {x}",
            "in spite of its {x} {a}, the {i} is {av}",
            "the {a} may be {x}, but this {i} is {av}",
            "the {x} {a} cannot change the fact that this is {ay} {i}",
            "it is {ay} {i}, the {x} {a} notwithstanding",
        )
    )
    return frame.format(
        a=aspect,
        i=r.item,
        x=concession,
        y=verdict,
        d=r.degree(),
        ay=with_article(verdict),
        av=with_article(r.verdict(good)),
    )


def _counterfactual(r: _Review, good: bool) -> str:
    """Say what might have been."""
    p = r.p
    frames = (
        "it could have been {ax} {i}, but it turns out {y}",
        "what might have been {ax} {i} is in fact {y}",
        "we expected {ax} {i} and got {ay} one",
        "the {i} could so easily have been {x}, yet it is not",
        "people told us this {i} was {x}, and they were wrong",
        "those who call the {a} {x} are mistaken",
        "the {i} should have been {x}, and it is the opposite",
    )
    other, verdict = r.word(not good), r.word(good)
    return p.choice(frames).format(
        a=r.aspect(), i=r.item, x=other, y=verdict, ax=with_article(other), ay=with_article(verdict)
    )


def _comparative(r: _Review, good: bool) -> str:
    """Compare with another work or place."""
    p = r.p
    aspect = r.aspect()
    word = r.word(p.chance(0.5) == good)
    positive = word in _positive_words()
    if positive == good:
        frame = p.choice(
            (
                "the {a} is just as {w} as in {o}",
                "no other {i} this year is as {w} as this one",
                "rarely has a {i} been so {w}",
            )
        )
    else:
        frame = p.choice(
            ("the {a} is far less {w} than one would expect", "the {i} is not half as {w} as people say")
        )
    other = (
        p.choice(("the first season", "earlier years", "the original")) if r.kind == "story" else "earlier years"
    )
    text = frame.format(a=aspect, i=r.item, w=word, o=other)
    return text.replace("has a " + r.item, "has " + with_article(r.item))


def _positive_words() -> frozenset[str]:
    """All adjectives of praise."""
    return frozenset(w.lemma for name in ("good_any", "good_story") for w in group(name))


def _advice(r: _Review, good: bool) -> str:
    """Give advice, or tell what people did."""
    p = r.p
    item = with_article(f"{r.word(good)} {r.item}")
    if good:
        frame = p.choice(
            (
                "{s}: do not miss it",
                "go and see for yourself how {w} the {a} is",
                "i would gladly come back for the {w} {a}",
                "{s} that deserves every award",
                "the {a} alone is worth the price, and so is the {w} {b}",
            )
        )
    else:
        frame = p.choice(
            (
                "{s}: save your money",
                "go elsewhere unless you like your {a} {w}",
                "i will not come back for the {w} {a}",
                "{s} that deserves no award",
                "not even the {a} is worth the price, let alone the {w} {b}",
            )
        )
    aspect = r.aspect()
    word = r.word(good)
    return frame.format(s=item, w=word, aw=with_article(word), a=aspect, b=r.aspect(aspect))


def _mixed_noun(r: _Review, good: bool) -> str:
    """Use the nouns of judgement."""
    p = r.p
    frame = p.choice(
        (
            "the {a} is {av}",
            "calling this {i} {an} would be wrong",
            "not {an} by any means: the {a} is {w}",
            "what {av} this {i} is",
            "the {i} is {av}, and the {a} is {w}",
            "hardly {an}, this {i}",
        )
    )
    return frame.format(
        a=r.aspect(),
        i=r.item,
        av=with_article(r.verdict(good)),
        an=with_article(r.verdict(not good)),
        w=r.word(good),
    )


SST2: tuple[Callable[[_Review, bool], str], ...] = (
    _fragment,
    _statement,
    _negated,
    _negated,
    _effect,
    _contrast,
    _contrast,
    _counterfactual,
    _comparative,
    _advice,
    _mixed_noun,
)


def sst2(p: Picker, label: int) -> tuple[str]:
    """Make a piece of a review that is positive (1) or negative (0)."""
    return (p.choice(SST2)(_Review(p), label == 1),)
