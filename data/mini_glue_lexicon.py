"""The words of the mini-GLUE data set and their inflection.

The tables below are written in a small notation, one entry per blank-separated token::

    couch            a lemma with regular forms
    mouse:mice       a lemma with its irregular forms (noun: plural; verb: past, past participle)
    sofa=couch       synonyms, which may stand for each other in the grammar of this data set
    big=large/small  antonyms after the slash (which may have synonyms too)
    *kite            held out: the whole entry occurs in validation splits only
    work~of~art      a tilde stands for a blank

An entry is held out as a whole, so that a synonym or an antonym of a seen word is always a seen word.
About a fifth of the nouns, the verbs and the adjectives carry the star.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# kind -> hypernym -> entries.  The kind decides which verbs and adjectives go with a noun.
NOUNS: dict[str, dict[str, str]] = {
    "person": {
        "musician": ("pianist drummer *violinist singer=vocalist guitarist organist *trumpeter cellist harpist"),
        "artist": "painter *sculptor potter photographer illustrator engraver",
        "scientist": "physicist biologist *geologist astronomer botanist chemist *zoologist",
        "doctor": "surgeon *cardiologist paediatrician dermatologist psychiatrist",
        "athlete": "swimmer boxer *gymnast cyclist rower wrestler skier *sprinter goalkeeper",
        "writer": "novelist poet *journalist=reporter playwright biographer columnist",
        "official": "mayor ambassador *governor senator councillor inspector",
        "craftsman:craftsmen": "carpenter weaver *blacksmith tailor cobbler saddler glassblower *watchmaker",
        "teacher": "tutor *professor lecturer governess headmaster",
        "relative": "uncle aunt *cousin nephew niece grandmother *grandfather",
        "worker": "plumber electrician *mechanic miner gardener bricklayer *welder",
        "employee": "clerk *cashier secretary receptionist accountant librarian",
        "officer": "sergeant detective *lieutenant colonel admiral",
        "traveller": "tourist pilgrim *explorer passenger hitchhiker",
        "entertainer": "clown juggler *magician=conjuror acrobat comedian dancer",
        "shopkeeper": "grocer butcher *florist baker jeweller fishmonger",
        "person:people": (
            "lawyer=attorney nurse farmer *pilot sailor=mariner judge waiter priest *neighbour student=pupil "
            "child:children woman:women man:men actor *thief:thieves=burglar cook=chef engineer architect "
            "guard=watchman:watchmen *hunter stranger widow orphan dentist *butler translator shepherd "
            "landlord"
        ),
    },
    "animal": {
        "bird": "sparrow pigeon *owl crow swan goose:geese duck *parrot heron eagle",
        "dog": "terrier poodle *beagle spaniel collie greyhound",
        "rodent": "rat squirrel *hamster beaver mouse:mice",
        "reptile": "lizard snake=serpent *tortoise crocodile gecko",
        "animal": (
            "fox wolf:wolves *bear rabbit=bunny goat cow *donkey pig otter badger camel *monkey tiger lion "
            "hedgehog pony kitten *lamb calf:calves"
        ),
    },
    "insect": {"insect": "bee *wasp beetle ant moth *grasshopper"},
    "fruit": {"fruit": "apple pear *plum peach banana mango *lemon fig melon apricot"},
    "vegetable": {"vegetable": "carrot onion *turnip cabbage leek cucumber *aubergine=eggplant"},
    "pastry": {"pastry:pastries": "croissant *muffin doughnut strudel scone"},
    "meal": {"meal": "stew omelette *salad curry casserole lasagne *pancake pie"},
    "tool": {"tool": "hammer chisel *spanner=wrench screwdriver axe rake shovel=spade *crowbar mallet ladder"},
    "vehicle": {
        "vehicle": (
            "car=automobile lorry:lorries=truck *bicycle=bike tractor motorbike=motorcycle van "
            "*tram taxi=cab "
            "wagon scooter"
        )
    },
    "boat": {"boat": "canoe ferry *yacht dinghy raft kayak"},
    "instrument": {"instrument": "piano violin *guitar flute trumpet cello *harp clarinet accordion banjo"},
    "furniture": {
        "piece~of~furniture:pieces~of~furniture": (
            "chair table *desk sofa=couch wardrobe cupboard *stool shelf:shelves armchair bookcase"
        )
    },
    "garment": {
        "garment": "coat jacket *shirt scarf:scarves skirt sweater=jumper *cloak waistcoat glove gown=robe"
    },
    "container": {"container": "basket bucket=pail *jar bottle barrel crate *suitcase jug"},
    "appliance": {
        "device": "kettle toaster *radio clock lamp camera telescope *laptop fridge=refrigerator printer"
    },
    "document": {
        "document": "letter report *contract map invoice diary:diaries=journal *brochure=leaflet certificate"
    },
    "text": {"text": "novel poem *essay article story:stories=tale biography speech *memoir fable"},
    "artwork": {
        "work~of~art:works~of~art": "portrait statue *figurine sketch=drawing "
        "engraving:engravings tapestry:tapestries"
    },
    "toy": {"toy": "doll *kite puppet puzzle balloon"},
    "jewel": {"piece~of~jewellery:pieces~of~jewellery": "ring *necklace bracelet brooch earring"},
    "flower": {"flower": "rose tulip *daisy lily orchid *daffodil poppy"},
    "building": {"building": "cottage barn *church=chapel tower castle palace *hut windmill lighthouse"},
    "indoors": {
        "room": (
            "kitchen office *library attic=loft cellar=basement studio classroom *laboratory corridor bedroom"
        ),
        "hall": "museum theatre *hotel hospital factory bakery *garage warehouse=storehouse "
        "prison=jail gallery "
        "tavern=pub *cathedral pharmacy",
    },
    "outdoors": {
        "place": "garden market *park harbour=port square courtyard *orchard meadow forest "
        "beach *stadium zoo "
        "vineyard farmyard quarry"
    },
    "abroad": {"place": "camp desert glacier *canyon island jungle embassy *oasis observatory airport lagoon"},
    "mass": {"mass": "rice butter *honey flour advice luggage furniture evidence *homework traffic"},
    "work": {
        "work": "film=movie thriller *drama comedy documentary sequel *musical play album concert opera "
        "*exhibition cartoon satire western"
    },
    "venue": {"venue": "restaurant *bistro guesthouse café diner *resort inn spa"},
    "story_aspect": {
        "aspect": "plot=storyline acting *dialogue script=screenplay ending=finale soundtrack *cast pacing "
        "photography=cinematography humour opening *staging direction narration"
    },
    "venue_aspect": {"aspect": "food service *menu decor wine atmosphere *breakfast view dessert lighting"},
    "praise": {"verdict": "triumph masterpiece *marvel treat gem joy *success pleasure wonder"},
    "blame": {"verdict": "disaster mess *fiasco failure chore disappointment *letdown flop embarrassment"},
}

# class -> entries.  ``VERB_FRAMES`` says what a class takes.
VERBS: dict[str, str] = {
    "act": (
        "laugh smile=grin *yawn sleep:slept wait cry=weep:wept sneeze *kneel:knelt dance "
        "whisper stumble=trip "
        "faint *snore wander=roam rest cough sigh *shiver=tremble hesitate blush giggle=chuckle doze=nap "
        "*pray sing:sang:sung complain=grumble"
    ),
    "creature_act": "escape=flee:fled *leap=jump starve limp vanish=disappear *drown swim:swam:swum",
    "trade": (
        "buy:bought=purchase/sell:sold steal:stole:stolen *borrow photograph inspect=examine admire "
        "find:found=discover/lose:lost *choose:chose:chosen measure"
    ),
    "fix": "mend=repair=fix/break:broke:broken damage *dismantle=disassemble/assemble test paint",
    "eating": "eat:ate:eaten *taste=sample order devour serve",
    "chopping": "*slice peel fry roast boil",
    "music": "tune *practise play:played",
    "literacy": "read:read translate *print copy write:wrote:written/erase edit=revise *memorise sign shred",
    "clothing": "wear:wore:worn sew:sewed:sewn *iron fold/unfold wash knit",
    "driving": "drive:drove:driven *rent=hire stop/start steer overtake:overtook:overtaken",
    "building_work": "build:built=construct/demolish=destroy design *decorate=adorn renovate",
    "handling": "carry lift/drop *polish hide:hid:hidden=conceal/reveal pack/unpack",
    "gardening": "gather=pick water *plant trim",
    "treating": (
        "visit help=assist/hinder=hamper *greet=welcome thank praise=commend/criticise=denounce interview "
        "employ/dismiss=sack *invite insult=offend rescue=save ignore *warn=alert interrupt "
        "comfort=console deceive=trick *pursue embrace=hug defeat=beat:beat:beaten trust/distrust "
        "forgive:forgave:forgiven *imitate teach:taught"
    ),
    "watching": "watch=observe *study draw:drew:drawn",
    "tending": "feed:fed train *stroke=pet groom catch:caught=capture/release=free:freed",
    "preying": "chase bite:bit:bitten *scratch frighten=scare follow",
    "giving": "give:gave:given send:sent=mail *lend:lent show:showed:shown hand=pass offer *bring:brought",
    "factive": "know:knew:known realise *regret notice",
    "claiming": "claim=assert=maintain believe=think:thought *suspect imagine",
    "succeeding": "manage remember *dare",
    "failing": "fail refuse=decline *neglect forget:forgot:forgotten",
    "intending": "want=wish plan=intend *hope promise attempt=try",
    "enjoying": "enjoy avoid finish *dislike",
    "relying": "rely listen wait look *object depend",
    "pleasing": "delight charm=enchant impress entertain dazzle=captivate thrill *amuse satisfy",
    "displeasing": "bore disappoint annoy=irritate *disgust confuse=bewilder frustrate *exhaust embarrass",
}

# kinds of subject and of object each class of verb selects
GOODS = "tool vehicle boat instrument furniture garment container appliance artwork toy jewel"
VERB_FRAMES: dict[str, tuple[str, str]] = {
    "act": ("person", ""),
    "creature_act": ("person animal", ""),
    "trade": ("person", GOODS),
    "fix": ("person", "vehicle boat instrument furniture appliance toy"),
    "eating": ("person", "fruit vegetable pastry meal"),
    "chopping": ("person", "fruit vegetable"),
    "music": ("person", "instrument"),
    "literacy": ("person", "document text"),
    "clothing": ("person", "garment"),
    "driving": ("person", "vehicle"),
    "building_work": ("person", "building"),
    "handling": ("person", "tool container appliance toy jewel artwork"),
    "gardening": ("person", "flower"),
    "treating": ("person", "person"),
    "watching": ("person", "animal insect flower building"),
    "tending": ("person", "animal"),
    "preying": ("animal", "person animal"),
    "giving": ("person", "tool garment document toy jewel artwork fruit pastry flower"),
}

# group -> entries; a group goes with the kinds of noun in ``ADJECTIVE_KINDS``
ADJECTIVES: dict[str, str] = {
    "thing_quality": (
        "big=large/small huge=enormous/tiny *heavy/light old/new "
        "expensive=costly/cheap=inexpensive clean/dirty=filthy "
        "wet=soaked/dry beautiful=pretty/ugly *fragile=delicate/sturdy=robust valuable/worthless rare/common "
        "*dusty plain/ornate modern=contemporary/antique"
    ),
    "colour_quality": "red blue green *yellow brown black white *purple grey pink",
    "text_quality": "long/short famous=renowned/obscure old/new serious/humorous difficult/easy *detailed",
    "person_quality": (
        "young/old=elderly tall/short *rich=wealthy/poor kind/cruel *cheerful/gloomy "
        "brave=courageous/cowardly "
        "clever=intelligent/stupid=foolish *honest/dishonest polite=courteous/rude=impolite "
        "generous/stingy patient/impatient famous=renowned/obscure tired=weary angry=furious/calm "
        "*lazy=idle/hardworking nervous=anxious/relaxed strong/weak healthy/ill=sick shy=timid/confident "
        "proud/ashamed *curious jealous=envious talkative/silent *lonely serious busy married/unmarried"
    ),
    "animal_quality": (
        "big=large/small wild/tame hungry *fierce=savage/gentle young/old=elderly fast/slow "
        "*playful brown black white thirsty"
    ),
    "food_quality": "fresh/stale *sour/sweet hot/cold big=large/small *frozen tasteless/tasty",
    "flower_quality": "red *yellow white pink beautiful=pretty/ugly fresh wild",
    "building_quality": (
        "old/new big=large/small beautiful=pretty/ugly *derelict famous=renowned/obscure white grey"
    ),
}
ADJECTIVE_KINDS: dict[str, str] = {
    "thing_quality": GOODS,
    "colour_quality": GOODS.replace("instrument ", "").replace("artwork ", ""),
    "text_quality": "text document",
    "person_quality": "person",
    "animal_quality": "animal insect",
    "food_quality": "fruit vegetable pastry meal",
    "flower_quality": "flower",
    "building_quality": "building",
}

# words of judgement for the reviews: (any, of stories only) for either polarity
GOOD_WORDS: dict[str, str] = {
    "any": (
        "charming=delightful brilliant=superb *elegant lively memorable=unforgettable "
        "stunning=breathtaking *refreshing "
        "satisfying=rewarding stylish enjoyable=entertaining wonderful=marvellous "
        "*excellent=outstanding impressive "
        "magical warm graceful splendid *terrific lovely fabulous exquisite *faultless admirable"
    ),
    "story": (
        "gripping=riveting *moving=touching funny=hilarious inventive=imaginative "
        "thrilling=exciting *heartfelt "
        "absorbing=engrossing witty insightful *poignant tender bold dazzling hypnotic "
        "*uplifting spirited original sincere"
    ),
}
BAD_WORDS: dict[str, str] = {
    "any": (
        "dull=boring dreadful=awful *bland=insipid mediocre=inferior annoying=irritating "
        "disappointing depressing=dreary "
        "tasteless shabby=shoddy *pretentious=pompous chaotic forgettable sloppy *lifeless "
        "unpleasant pathetic "
        "horrible=terrible *atrocious soulless appalling *dismal lousy *uninspired tacky"
    ),
    "story": (
        "predictable clumsy=awkward *tedious=tiresome shallow=superficial silly "
        "confusing=incoherent *contrived pointless "
        "wooden muddled *monotonous unfunny amateurish overlong *trite hollow ridiculous sentimental"
    ),
}

ADVERBS: dict[str, str] = {
    "manner": (
        "quickly=rapidly/slowly carefully=cautiously/carelessly "
        "quietly=silently/noisily=loudly secretly/openly "
        "*happily=cheerfully/sadly gently/roughly *eagerly/reluctantly calmly/nervously "
        "patiently/impatiently "
        "deliberately=intentionally/accidentally skilfully=expertly/clumsily proudly"
    )
}

MALE_NAMES = (
    "Adam Arthur Ben Carl Daniel David Edward Felix George Harry Hugo Ivan Jack Kevin Leo "
    "Martin Nathan Oliver Oscar "
    "Patrick Paul Ralph Samuel Simon Stephen Thomas Victor Walter"
).split()
FEMALE_NAMES = (
    "Alice Amelia Anna Bella Carol Clara Diana Edith Ella Emma Fiona Grace Hannah Helen "
    "Irene Julia Karen Laura Lucy "
    "Maria Martha Nancy Nora Olivia Paula Rachel Sarah Susan Vera"
).split()

# verbs whose action has a noun: "the repair of the lamp"
NOMINALS: dict[str, str] = {
    "repair": "repair", "purchase": "purchase", "sell": "sale", "steal": "theft", "inspect": "inspection",
    "translate": "translation", "build": "construction", "demolish": "demolition", "renovate": "renovation",
    "rescue": "rescue", "defeat": "defeat", "dismiss": "dismissal", "discover": "discovery",
    "capture": "capture", "release": "release",
}  # fmt: skip

# single consonants that double before -ed and -ing
_DOUBLING = frozenset(
    "stop drop hug pet grin shred regret forget trim knit trip nap begin run swim cut get plan".split()
)


@dataclass(frozen=True)
class Word:
    """A lemma with its forms, its synonyms and antonyms, and its place in the tables."""

    lemma: str
    pos: str
    group: str
    hypernym: str
    forms: tuple[str, ...]
    synonyms: tuple[str, ...]
    antonyms: tuple[str, ...]
    entry: int
    held_out: bool

    @property
    def plural(self) -> str:
        """The plural of a noun."""
        return self.forms[1]

    @property
    def third(self) -> str:
        """The third person singular present of a verb."""
        return self.forms[1]

    @property
    def past(self) -> str:
        """The past tense of a verb."""
        return self.forms[2]

    @property
    def participle(self) -> str:
        """The past participle of a verb."""
        return self.forms[3]

    @property
    def gerund(self) -> str:
        """The -ing form of a verb."""
        return self.forms[4]


def _s_form(lemma: str) -> str:
    """Add the regular -s of plural nouns and third person verbs."""
    if lemma.endswith(("s", "x", "z", "ch", "sh")) or lemma in {"potato", "echo"}:
        return lemma + "es"
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return lemma[:-1] + "ies"
    return lemma + "s"


def _verb_forms(parts: list[str]) -> tuple[str, ...]:
    """Inflect a verb: base, third person, past, participle, gerund."""
    base = parts[0]
    stem = base + base[-1] if base in _DOUBLING else base
    if base.endswith("e") and not base.endswith("ee"):
        regular, gerund = base + "d", base[:-1] + "ing"
    elif base.endswith("y") and base[-2] not in "aeiou":
        regular, gerund = base[:-1] + "ied", base + "ing"
    else:
        regular, gerund = (stem + "ed") if not base.endswith("ee") else base + "d", stem + "ing"
    past = parts[1] if len(parts) > 1 else regular
    participle = parts[2] if len(parts) > 2 else past
    return base, _s_form(base), past, participle, gerund


def _forms(token: str, pos: str) -> tuple[str, ...]:
    """Inflect the lemma of one token of the tables."""
    parts = token.replace("~", " ").split(":")
    if pos == "noun":
        return parts[0], parts[1] if len(parts) > 1 else _s_form(parts[0])
    if pos == "verb":
        return _verb_forms(parts)
    return (parts[0],)


def _entries(table: str, pos: str, group: str, hypernym: str, start: int) -> list[Word]:
    """Read one table into words; ``start`` numbers its first entry."""
    words = []
    for number, token in enumerate(table.split(), start):
        held_out = token.startswith("*")
        sides = [side.split("=") for side in token.lstrip("*").split("/")]
        lemmas = [[_forms(item, pos)[0] for item in side] for side in sides]
        for position, side in enumerate(sides):
            others = lemmas[1 - position] if len(sides) == 2 else []
            for item in side:
                forms = _forms(item, pos)
                synonyms = tuple(lemma for lemma in lemmas[position] if lemma != forms[0])
                words.append(
                    Word(forms[0], pos, group, hypernym, forms, synonyms, tuple(others), number, held_out)
                )
    return words


@cache
def words() -> tuple[Word, ...]:
    """Read all tables, in their order."""
    result: list[Word] = []
    for kind, table in NOUNS.items():
        for hypernym, entries in table.items():
            result += _entries(entries, "noun", kind, hypernym.replace("~", " "), len(result))
    for group, entries in VERBS.items():
        result += _entries(entries, "verb", group, "", len(result))
    for group, entries in ADJECTIVES.items():
        result += _entries(entries, "adjective", group, "", len(result))
    for prefix, table in (("good_", GOOD_WORDS), ("bad_", BAD_WORDS)):
        for group, entries in table.items():
            result += _entries(entries, "adjective", prefix + group, "", len(result))
    for group, entries in ADVERBS.items():
        result += _entries(entries, "adverb", group, "", len(result))
    return tuple(result)


@cache
def group(name: str) -> tuple[Word, ...]:
    """Words of one kind of noun, class of verbs or group of adjectives or adverbs."""
    return tuple(word for word in words() if word.group == name)


@cache
def find(lemma: str, group_name: str) -> Word:
    """Look a lemma up in its group."""
    return next(word for word in group(group_name) if word.lemma == lemma)


def lexicon() -> dict[str, list[dict[str, object]]]:
    """Give the content words by part of speech: lemma, all inflected forms, and whether it is held out.

    Returns
    -------
    dict
        ``noun``, ``verb``, ``adjective``, ``adverb`` and ``name``, each a list of records with the keys
        ``lemma``, ``forms`` (a list that includes the lemma) and ``held_out``. A lemma stands once in a list.
    """
    result: dict[str, dict[str, dict[str, object]]] = {}
    for word in words():
        record = {"lemma": word.lemma, "forms": sorted(set(word.forms)), "held_out": word.held_out}
        result.setdefault(word.pos, {}).setdefault(word.lemma, record)
    for table in NOUNS.values():
        for hypernym in table:
            forms = _forms(hypernym, "noun")
            if forms[0] not in {"mass", "work", "venue", "aspect", "verdict", "room", "hall"}:
                record = {"lemma": forms[0], "forms": sorted(set(forms)), "held_out": False}
                result["noun"].setdefault(forms[0], record)
    result["name"] = {
        name: {"lemma": name, "forms": [name], "held_out": False} for name in MALE_NAMES + FEMALE_NAMES
    }
    return {pos: list(records.values()) for pos, records in result.items()}


def held_out_forms() -> frozenset[str]:
    """All forms of the held-out nouns, verbs, adjectives and adverbs."""
    return frozenset(form for word in words() if word.held_out for form in word.forms)
