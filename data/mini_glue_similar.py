"""The tasks about sameness of meaning: MRPC (sentences), QQP (questions), STS-B (degrees)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

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
    other_time,
    pick_time,
    reword,
    scene,
    sentence,
    with_article,
)
from mini_glue_lexicon import VERB_FRAMES, Word

# --- changes of what a scene tells ---------------------------------------------------------------------


def _sibling_np(p: Picker, np: NP, *taken: NP | None) -> NP:
    """Put another noun of the same kind, and drop adjectives, which need not suit it."""
    entries = {other.noun.entry for other in taken if other and other.noun}
    noun = p.sibling(np.noun, lambda w: w.entry not in entries)
    return replace(np, noun=noun)


def change_agent(p: Picker, s: Scene) -> Scene:
    """Let someone else do it."""
    return replace(s, agent=_sibling_np(p, s.agent, s.theme, s.recipient))


def change_theme(p: Picker, s: Scene) -> Scene | None:
    """Let it be done to something else."""
    return replace(s, theme=_sibling_np(p, s.theme, s.agent, s.recipient)) if s.theme else None


def change_verb(p: Picker, s: Scene) -> Scene:
    """Let something else be done."""
    return replace(s, verb=p.sibling(s.verb))


def oppose_verb(p: Picker, s: Scene) -> Scene | None:
    """Let the opposite be done."""
    return replace(s, verb=p.antonym(s.verb)) if s.verb.antonyms else None


def oppose_modifier(p: Picker, s: Scene) -> Scene | None:
    """Turn an adjective or the adverb into its opposite."""
    if s.manner and s.manner.antonyms:
        return replace(s, manner=p.antonym(s.manner))
    for part in ("agent", "theme"):
        np = getattr(s, part)
        if np and np.adjectives and np.adjectives[0].antonyms:
            return replace(s, **{part: replace(np, adjectives=(p.antonym(np.adjectives[0]),))})
    return None


def change_number(p: Picker, s: Scene) -> Scene | None:
    """Say another number."""
    for part in ("agent", "theme"):
        np = getattr(s, part)
        if np and np.det in NUMBERS:
            return replace(s, **{part: replace(np, det=p.other(NUMBERS, np.det))})
    return None


def change_time(p: Picker, s: Scene) -> Scene | None:
    """Say another time."""
    return replace(s, time=other_time(p, s.time)) if s.time else None


def change_place(p: Picker, s: Scene) -> Scene | None:
    """Say another place."""
    return replace(s, place=p.sibling(s.place)) if s.place else None


def negate(p: Picker, s: Scene) -> Scene:
    """Deny it."""
    return replace(s, negated=not s.negated)


def swap_roles(p: Picker, s: Scene) -> Scene | None:
    """Exchange who does it and who undergoes or gets it."""
    if s.recipient and s.agent.det == s.recipient.det:
        return replace(s, agent=s.recipient, recipient=s.agent)
    if s.theme and s.theme.noun.group == s.agent.noun.group:
        det = s.theme.det if s.theme.plural or s.agent.plural else "the"
        return replace(s, agent=replace(s.theme, det=det), theme=s.agent)
    return None


Change = Callable[[Picker, Scene], "Scene | None"]


def change_some(p: Picker, s: Scene, changes: Sequence[Change], count: int) -> Scene | None:
    """Make some of the changes, as many as ``count`` where they are possible; None if none was."""
    result: Scene | None = None
    done: set[Change] = set()
    for change in p.shuffled(changes)[:count]:
        clash = (change in _VERB_CHANGES and done & _VERB_CHANGES) or (change is swap_roles and done)
        changed = None if clash else change(p, result or s)
        if changed is not None:
            result = changed
            done.add(change)
        if change is swap_roles and changed is not None:
            break
    return result


_VERB_CHANGES = {change_verb, oppose_verb, negate}

# --- MRPC ------------------------------------------------------------------------------------------------

MRPC_CHANGES: tuple[Change, ...] = (
    change_agent,
    change_theme,
    change_verb,
    oppose_verb,
    oppose_modifier,
    change_number,
    change_time,
    change_place,
    negate,
    swap_roles,
)
_PARTS = (
    "place",
    "time",
    "manner",
    "purpose",
    "agent_adjective",
    "theme_adjective",
    "agent_number",
    "theme_number",
)


def _full_scene(p: Picker, parts: int, classes: str = "") -> Scene:
    """Pick a scene with some of the parts that can be added."""
    classes = classes or p.choice((TRANSITIVE, TRANSITIVE, "treating", "giving"))
    chosen = p.shuffled(_PARTS)[:parts]
    if {"agent_number", "theme_number"} <= set(chosen):
        chosen.remove("theme_number")
    if "purpose" in chosen and "time" in chosen:
        chosen.remove("purpose")
    # some are negated from the start, so that a negation alone says nothing about the label
    return replace(furnish(p, scene(p, classes), chosen), negated=p.chance(0.1))


def _say(p: Picker, s: Scene, *avoid: str) -> tuple[str, str]:
    """Say a scene in a form that is not among those to avoid; give the form too."""
    usable = [form for form in forms(s) if form not in avoid] or ["active"]
    form = p.choice(usable)
    return clause(s, form, p.choice(("to", "double")), p.chance(0.5)), form


def mrpc(p: Picker, label: int) -> tuple[str, str]:
    """Make two sentences that tell the same (1) or differ in one point (0)."""
    while True:
        s = _full_scene(p, 1 if p.chance(0.6) else 2)
        changed = s if label else change_some(p, s, MRPC_CHANGES, p.choice((1, 2, 2, 3)))
        if changed is None:
            continue
        one, form = _say(p, s)
        two, _ = _say(p, reword(p, changed, 0.5), *([form] if p.chance(0.7) else []))
        if one != two:
            return sentence(one), sentence(two)


# --- QQP -------------------------------------------------------------------------------------------------

# questions by what is asked; those of one list ask the same
_INTENTS: tuple[tuple[str, ...], ...] = (
    ("How can I {v}?", "What is the best way to {v}?", "How does one {v}?", "What should I do to {v}?"),
    ("Why should I {v}?", "What are good reasons to {v}?", "Why would anyone want to {v}?"),
    ("Where can I {v}?", "What is a good place to {v}?", "Which place would you recommend to {v}?"),
    (
        "How long does it take to {v}?",
        "How much time do I need to {v}?",
        "Can you tell me how many hours it takes to {v}?",
    ),
    ("How much does it cost to {v}?", "What is the price if I want to {v}?", "How much money do I need to {v}?"),
    ("Is it dangerous to {v}?", "Are there any risks when you {v}?", "Could I get hurt if I {v}?"),
    ("When should I {v}?", "What is the right time to {v}?", "At what time is it best to {v}?"),
    ("Am I allowed to {v}?", "Does the law permit me to {v}?", "Is it legal to {v}?"),
)
_SETTINGS = (
    "in summer",
    "in winter",
    "at night",
    "during the day",
    "in a small town",
    "in a big city",
    "on my own",
    "with a friend",
)
_HOW_CLASSES = "trade fix eating chopping music literacy clothing driving building_work handling gardening tending"


def _how_to(p: Picker, label: int) -> tuple[str, str]:
    """Ask how, why, where ... to do a thing."""
    s = scene(p, _HOW_CLASSES)
    while s.verb.lemma in {"find", "discover", "lose", "reveal"}:
        s = scene(p, _HOW_CLASSES)
    adjectives = (
        (adjective_for(p, s.theme.noun, lambda w: bool(w.antonyms)),)
        if p.chance(0.4) and s.theme.noun.group not in {"instrument"}
        else ()
    )
    s = replace(s, theme=replace(s.theme, det="a", adjectives=adjectives))
    setting = p.choice(_SETTINGS) if p.chance(0.4) else ""
    intent = p.below(len(_INTENTS))
    other, other_setting, other_intent = s, setting, intent
    if label == 0:
        kind = p.below(6)
        if p.chance(0.55):
            other_intent = p.other(range(len(_INTENTS)), intent)
        elif kind <= 1 and setting:
            other_setting = p.other(_SETTINGS, setting)
        elif kind == 2 and adjectives:
            other = oppose_modifier(p, s) or change_theme(p, s)
        elif kind == 3:
            other = oppose_verb(p, s) or change_verb(p, s)
        elif kind == 4:
            other = change_verb(p, s)
        else:
            other = change_theme(p, s)
        if other is not s and p.chance(0.4):
            other = change_theme(p, other)
    other = reword(p, other, 0.5)
    first = p.choice(_INTENTS[intent])
    second = p.choice([frame for frame in _INTENTS[other_intent] if frame != first])
    return first.format(v=_infinitive(s, setting)), second.format(v=_infinitive(other, other_setting))


def _infinitive(s: Scene, setting: str) -> str:
    """Give verb, object and setting."""
    return f"{s.verb.lemma} {s.theme.text} {setting}".strip()


def _scene_question(p: Picker, label: int) -> tuple[str, str]:
    """Ask about a scene: who, why, when or where."""
    while True:
        s = _full_scene(p, 1, p.choice((TRANSITIVE, "treating", "treating")))
        s = replace(s, purpose="", negated=False)
        changes = (change_theme, change_verb, oppose_verb, change_time, change_place, change_number)
        changes = (*changes, swap_roles) if p.chance(0.4) else changes
        changed = s if label else change_some(p, s, changes, p.choice((1, 2, 2, 3)))
        asked = p.choice(("who", "why", "when", "where"))
        if changed is None or (asked == "when" and s.time) or (asked == "where" and s.place):
            continue
        one = p.choice(_questions(s, asked))
        two = p.choice([q for q in _questions(reword(p, changed), asked) if q.split()[:2] != one.split()[:2]])
        if asked == "who" and not label and changed.theme == s.theme and changed.agent != s.agent:
            continue
        return one, two


def _questions(s: Scene, asked: str) -> list[str]:
    """Give the ways of asking for one part of a scene."""
    agent, theme = s.agent.text, s.theme.text
    rest = " ".join(part for part in (s.where, s.time) if part)
    rest = f" {rest}" if rest else ""
    be, manner = s.theme.be, f"{s.manner.lemma} " if s.manner else ""
    active = f"{agent} {manner}{s.verb.lemma} {theme}{rest}"
    passive = f"{theme} {manner}{s.verb.participle} by {agent}{rest}"
    told = f"{agent} {manner}{s.verb.past} {theme}{rest}"
    if asked == "who":
        return [
            f"Who {manner}{s.verb.past} {theme}{rest}?",
            f"By whom {be} {theme} {manner}{s.verb.participle}{rest}?",
            f"Who was it that {manner}{s.verb.past} {theme}{rest}?",
        ]
    if asked == "why":
        return [
            f"Why did {active}?",
            f"Why {be} {passive}?",
            f"What was the reason why {told}?",
            f"What made {active}?",
        ]
    if asked == "when":
        return [f"When did {active}?", f"When {be} {passive}?", f"Do you know at what time {told}?"]
    return [f"Where did {active}?", f"Where {be} {passive}?", f"Can anyone tell me in which place {told}?"]


def _choice_question(p: Picker, label: int) -> tuple[str, str]:
    """Ask which of two things is better."""
    kind = p.choice("tool vehicle boat instrument furniture garment appliance container fruit vegetable".split())
    noun = p.word(kind)
    other = p.sibling(noun)
    # the opposite quality would ask for much the same, so the near miss takes one of another scale
    scales = (("cheaper", "more expensive"), ("heavier", "lighter"), ("bigger", "smaller"), ("better", "worse"))
    scale = p.choice(scales)
    quality = p.choice(scale)
    frames = (
        "Which is {q}, {x} or {y}?",
        "Is {x} {q} than {y}?",
        "What is {q}: {x} or {y}?",
        "Would you say that {x} is {q} than {y}?",
    )
    one, two = p.shuffled(frames)[:2]
    x, y, q = noun, other, quality
    if label == 0:
        if p.chance(0.5):
            y = p.word(kind, lambda w: w.entry not in {noun.entry, other.entry})
        else:
            q = p.choice(p.other(scales, scale))
    x2, y2 = p.synonym(x), p.synonym(y)

    def fill(frame: str, one: Word, two: Word, quality: str) -> str:
        return frame.format(q=quality, x=with_article(one.lemma), y=with_article(two.lemma))

    return fill(one, noun, other, quality), fill(two, x2, y2, q)


def qqp(p: Picker, label: int) -> tuple[str, str]:
    """Make two questions that ask the same (1) or not (0)."""
    make = p.choice((_how_to, _how_to, _scene_question, _scene_question, _choice_question))
    return make(p, label)


# --- STS-B -----------------------------------------------------------------------------------------------


def _general_agent(p: Picker, s: Scene) -> Scene | None:
    """Name only the kind of the one who does it."""
    return replace(s, agent=replace(s.agent.general, det=s.agent.det, plural=s.agent.plural))


def _general_theme(p: Picker, s: Scene) -> Scene | None:
    """Name only the kind of the thing."""
    return replace(s, theme=replace(s.theme.general, det=s.theme.det, plural=s.theme.plural)) if s.theme else None


def _drop_place(p: Picker, s: Scene) -> Scene | None:
    """Leave the place out."""
    return replace(s, place=None) if s.place else None


def _drop_time(p: Picker, s: Scene) -> Scene | None:
    """Leave the time out."""
    return replace(s, time="") if s.time else None


def _drop_modifier(p: Picker, s: Scene) -> Scene | None:
    """Leave an adjective or the adverb out."""
    if s.manner:
        return replace(s, manner=None)
    if s.agent.adjectives:
        return replace(s, agent=replace(s.agent, adjectives=()))
    return None


# what a change costs of the five points; changes of one row touch the same part of the scene
STS_CHANGES: tuple[tuple[tuple[Change, float], ...], ...] = (
    ((change_verb, 1.4), (oppose_verb, 1.6), (negate, 1.4)),
    ((change_theme, 1.4), (_general_theme, 0.6)),
    ((change_agent, 1.2), (_general_agent, 0.6), (swap_roles, 1.4)),
    ((change_place, 0.6), (_drop_place, 0.4)),
    ((change_time, 0.6), (_drop_time, 0.4)),
    ((oppose_modifier, 0.6), (_drop_modifier, 0.2)),
    ((change_number, 0.6),),
)


def _graded(p: Picker) -> tuple[str, str, float]:
    """Change a scene at some points and count what that costs."""
    s = _full_scene(p, 2)
    s = replace(s, purpose="")
    changed, score = s, 5.0
    rows = p.shuffled(STS_CHANGES)[: p.below(7)]
    swapped = False
    for row in rows:
        change, cost = p.choice(row)
        if swapped and change in (change_agent, change_theme, _general_agent, _general_theme):
            continue
        result = change(p, changed)
        if result is not None:
            changed, score = result, score - cost
            swapped = swapped or change is swap_roles
    one, _ = _say(p, s)
    two, _ = _say(p, reword(p, changed, 0.5))
    return one, two, score


def _unrelated(p: Picker) -> tuple[str, str, float]:
    """Tell two scenes that share a time, a place or the one who acts, or nothing."""
    one, two = replace(_full_scene(p, 1), purpose=""), replace(_full_scene(p, 1), purpose="")
    kind, score = p.below(5), 0.0
    if one.agent.noun.entry == two.agent.noun.entry or one.verb.entry == two.verb.entry:
        return _unrelated(p)
    if kind == 0 and one.agent.noun.group == "person" and VERB_FRAMES[two.verb.group][0] == "person":
        people = {np.noun.entry for np in (two.theme, two.recipient) if np}
        if one.agent.noun.entry not in people:
            two, score = replace(two, agent=one.agent), 0.8
    elif kind == 1:
        time = pick_time(p)
        one, two, score = replace(one, time=time), replace(two, time=time), 0.4
    elif kind == 2:
        place = p.word("indoors outdoors")
        one, two, score = replace(one, place=place), replace(two, place=place), 0.4
    return _say(p, one)[0], _say(p, two)[0], score


def stsb(p: Picker, band: int) -> tuple[str, str, float]:
    """Make two sentences whose likeness lies in one of five bands: 0-1, 1-2, ... 4-5."""
    while True:
        one, two, score = _unrelated(p) if band == 0 and p.chance(0.6) else _graded(p)
        score = round(max(score, 0.0), 1)
        if min(int(score), 4) == band and one != two:
            return sentence(one), sentence(two), score
