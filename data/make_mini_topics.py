"""Write mini-topics: 1,500 sentences about ten topics, for learning one class after another.

``python data/make_mini_topics.py`` writes ``data/mini_topics/train.tsv`` and ``validation.tsv``, the same bytes
every time. A line is ``sentence<TAB>label``. All topics share the frames, so only the words put into them tell the
topic. Those of a validation sentence are held out: no training sentence has them. Where it has two, one is not, so
that counting words is of some use, but not of much.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # so that the module can be loaded from a file by a test
    sys.path.insert(0, str(HERE))

from mini_glue_grammar import Picker, sentence, with_article  # noqa: E402

SEED = "mini-topics 1"
ROWS = {"train": 120, "validation": 30}  # a topic

# before the semicolon: words of the training sentences; behind it: held out for validation. A plural that is not
# made with -s stands behind a slash. Some topics lie close on purpose: a sprain is medicine's, a pulled muscle
# sport's; carrots are sown in gardening and peeled in cooking
TOPICS: dict[str, dict[str, str]] = {
    "astronomy": {
        "thing": "comet|telescope|galaxy/galaxies|asteroid|lunar eclipse|constellation|supernova|pulsar|meteorite"
        "|black hole|space probe|red giant|sky atlas/sky atlases|crater|solar flare|rocket launch/rocket launches"
        "|quasar|light year|moon landing|satellite"
        ";nebula|planet|orbit|equinox/equinoxes|sunspot|brown dwarf|cosmic ray|solstice|gravitational wave"
        "|spacecraft/spacecraft",
        "person": "astronomer|astronaut|shuttle pilot|rocket engineer|cosmologist"
        ";astrophysicist|cosmonaut|planetary scientist",
        "place": "observatory|planetarium|space museum|space centre;spaceport|cosmodrome",
        "doing": "measuring the brightness of a distant star|photographing the rings of Saturn"
        "|counting meteors in August|predicting the next transit of Venus|mapping the far side of the moon"
        "|steering a rover on Mars|waiting for the northern lights|grinding a mirror for a reflector"
        "|working out the age of the universe|listening for signals from deep space"
        ";following Jupiter across the heavens|watching the Perseids fall|calculating when Neptune rises"
        "|searching for aliens beyond the Milky Way|naming new exoplanets",
    },
    "cooking": {
        "thing": "saucepan|whisk|recipe|casserole|rolling pin|omelette|gravy boat|dumpling|wooden spoon"
        "|cheese grater|pancake|chopping board|soup ladle|oven tray|marinade|waffle|stew|frying pan|cake tin"
        "|spice rack;skillet|toaster|sieve|meatball|peppermill|muffin|vinaigrette|colander|custard"
        "|garlic press/garlic presses",
        "person": "chef|pastry cook|baker|food critic|caterer;confectioner|cookery writer|pizza maker",
        "place": "canteen|bakery|restaurant|snack bar;pizzeria|bistro",
        "doing": "kneading dough by hand|frying onions in butter|rolling out noodles|baking bread without yeast"
        "|peeling carrots|thickening sauces with flour|stirring a risotto|roasting a chicken|whipping cream"
        "|chopping parsley;poaching salmon|caramelising sugar|boiling potatoes|seasoning a curry|glazing a ham",
    },
    "gardening": {
        "thing": "wheelbarrow|flower bed|watering can|rose bush/rose bushes|compost heap|hedge|seedling|rake|lawn"
        "|tulip|trowel|flowerpot|spade|apple tree|weed|bean pole|hosepipe|vegetable patch/vegetable patches"
        "|tomato plant|garden gnome"
        ";shrub|daffodil|lawnmower|marigold|sprinkler|orchard|perennial|sapling|pumpkin|trellis/trellises",
        "person": "gardener|florist|tree surgeon|seed merchant|landscaper;horticulturist|botanist|fruit grower",
        "place": "greenhouse|allotment|garden centre|palm house;arboretum|orangery",
        "doing": "pruning the roses|digging over the soil|sowing carrots in rows|mowing the grass"
        "|pulling up dandelions|spreading manure|planting out lettuces|keeping slugs off the cabbages"
        "|repotting ferns|raking leaves"
        ";trimming the ivy|mulching the borders|deadheading dahlias|staking sweet peas|thinning out radishes",
    },
    "law": {
        "thing": "court order|contract|witness statement|verdict|lawsuit|alibi|search warrant|prison sentence"
        "|appeal|gavel|jury/juries|statute|plea bargain|custody battle|trial|legal loophole|speeding fine"
        "|patent dispute|trademark|deposition;summons/summonses|acquittal|injunction|affidavit|subpoena"
        "|testimony/testimonies|felony/felonies|tenancy agreement|indictment|precedent",
        "person": "judge|barrister|defence lawyer|bailiff|prosecutor;solicitor|magistrate|notary",
        "place": "courthouse|law library|police station|lawyer's office;courtroom|tribunal",
        "doing": "preparing a closing argument|questioning a hostile witness|defending burglars|drafting wills"
        "|suing landlords|reading through the small print|weighing the evidence|taking down statements"
        "|choosing jurors|filing complaints;exposing forgeries|contesting evictions"
        "|interpreting the constitution|drawing up deeds|proving negligence",
    },
    "medicine": {
        "thing": "stethoscope|scalpel|vaccine|blood test|prescription|thermometer|wheelchair|bandage|syringe"
        "|rash/rashes|migraine|antibiotic|heart attack|painkiller|stretcher|virus/viruses|stomach ulcer"
        "|sore throat|cough|allergy/allergies;fever|inhaler|diagnosis/diagnoses|kidney stone|ointment|infection"
        "|hearing aid|plaster cast|symptom|fracture",
        "person": "surgeon|nurse|pharmacist|heart specialist|paramedic;midwife|anaesthetist|physician",
        "place": "hospital|clinic|pharmacy|emergency ward;maternity unit|dispensary",
        "doing": "stitching wounds|taking patients' pulses|setting broken bones|curing pneumonia|treating burns"
        "|listening to the lungs|giving injections|lowering blood pressure|removing tonsils|caring for the sick"
        ";healing sprains|delivering babies|dressing blisters|examining swollen knees|relieving toothache",
    },
    "money": {
        "thing": "mortgage|bank account|tax return|credit card|pension fund|interest rate|loan|banknote"
        "|cheque book|share price|piggy bank|budget deficit|invoice|receipt|savings plan|coin|overdraft"
        "|salary/salaries|exchange rate|dividend;debt|wallet|bond|refund|currency/currencies|payslip|investment"
        "|instalment|bonus/bonuses|donation",
        "person": "banker|accountant|stockbroker|tax adviser|fund manager;auditor|investor|treasurer",
        "place": "savings bank|stock exchange|tax office|auction house;pawnshop|treasury",
        "doing": "saving for old age|paying the bills|balancing a budget|haggling over the price"
        "|counting the takings|trading in shares|borrowing from a bank|cutting household costs"
        "|filling in tax forms|comparing insurance premiums"
        ";lending at a profit|transferring lump sums|withdrawing cash|hoarding gold|auditing the ledgers",
    },
    "music": {
        "thing": "violin|symphony/symphonies|drum kit|choir|melody/melodies|grand piano|trumpet|string quartet"
        "|opera|metronome|brass band|chord|lullaby/lullabies|concerto|harp|flute|waltz/waltzes|love song"
        "|record player|church organ;cello|sonata|saxophone|anthem|accordion|orchestra|ballad"
        "|clarinet|hymn|overture",
        "person": "pianist|composer|jazz singer|bandleader|organist;cellist|soprano|bassoonist",
        "place": "concert hall|music shop|recording studio|bandstand;conservatoire|ballroom",
        "doing": "singing in tune|playing a duet|rehearsing the encore|practising scales|composing for strings"
        "|learning the banjo|whistling arias|keeping time with the drums|improvising over a bass line"
        "|reading a score"
        ";humming a refrain|strumming a ukulele|harmonising in thirds|plucking a mandolin|transposing nocturnes",
    },
    "sailing": {
        "thing": "mast|rudder|lifeboat|anchor|lighthouse|keel|spinnaker|life jacket|tide table|reef knot|yacht"
        "|ship's log/ships' logs|dinghy/dinghies|buoy|compass/compasses|galleon|sea chart|headwind|gangway"
        "|flagship;catamaran|oar|sextant|regatta|schooner|porthole|squall|shipwreck|mooring|hull",
        "person": "sailor|ship's captain|navigator|deckhand|harbour master;skipper|coxswain|bosun",
        "place": "marina|boathouse|shipyard|sailing club;jetty|dry dock",
        "doing": "mending the mainsail|steering by the stars|crossing the bay|rowing against the tide"
        "|tying up at the quay|rounding the cape|tacking into the wind|scrubbing the deck|bailing out water"
        "|navigating in fog"
        ";plotting a course through the islands|riding out a gale|hauling in the sails|reefing the foresail"
        "|drifting across the strait",
    },
    "school": {
        "thing": "exercise book|school bell|blackboard|spelling test|satchel|report card|timetable|maths lesson"
        "|textbook|exam paper|school uniform|pencil case|reading list|detention|grammar rule|multiplication table"
        "|essay|field trip|class register|parents' evening;diploma|syllabus/syllabuses|dictation|semester"
        "|curriculum/curricula|lecture|scholarship|quiz/quizzes|sharpener|worksheet",
        "person": "head teacher|school inspector|language teacher|maths tutor|nursery teacher"
        ";professor|lecturer|dean",
        "place": "playground|classroom|staff room|boarding school;kindergarten|campus",
        "doing": "marking essays|learning to spell|cramming for an exam|copying from the blackboard"
        "|teaching fractions|memorising irregular verbs|doing long division|handing in homework"
        "|taking notes in class|keeping the pupils quiet"
        ";reciting the alphabet|adding up decimals|tutoring first-graders|grading coursework|explaining algebra",
    },
    "sport": {
        "thing": "tennis racket|penalty kick|goalpost|marathon|relay race|silver medal|football boot|free throw"
        "|boxing glove|swimming cap|hurdle|javelin|ski jump|yellow card|world record|finishing line|offside trap"
        "|ice hockey stick|volleyball net|pulled muscle;trophy/trophies|sprint|shuttlecock|rugby scrum"
        "|championship|golf swing|somersault|decathlon|skateboard|knockout",
        "person": "goalkeeper|football coach|boxer|referee|long-distance runner;umpire|gymnast|cyclist",
        "place": "stadium|gym|swimming pool|tennis club;velodrome|racetrack",
        "doing": "shooting at goal|lifting weights|running ten kilometres|stretching before a match"
        "|swimming the butterfly|serving aces|coaching the under-twelves|returning serves|saving penalties"
        "|skiing downhill;jogging uphill|heading the ball|wrestling heavyweights|bowling strikes|doing push-ups",
    },
}

# each is used equally often by each topic; [a|b] is a choice, {thing} a word of the topic, {a_thing} one with its
# article, {things} a plural, {other_place} a training word of another topic
FRAMES = (
    "the book has a [long|short] chapter on {things}",
    "nobody at our table knew the [French|Spanish] word for {a_thing}",
    "my [niece|nephew] wants to know what {a_thing} is",
    "what I remember best of the [film|play] is the {thing}",
    "the [article|report] mentions {a_thing} and, further down, {a_thing}",
    "it all began with a [question|remark] about {a_thing}",
    "he can talk about {things} for hours",
    "last night I [dreamed|had a dream] about {a_thing}",
    "there is more to {things} than [people|you might] think",
    "they met outside the {place} and have [talked|argued] about {things} ever since",
    "you can always [ask|write to] the {person} about the {thing}",
    "[an old|a young] {person} told us about the {thing}",
    "her letters are all about {things} and {things}",
    "every {person} has a [favourite|funny] story about {a_thing}",
    "my [neighbour|aunt] used to be {a_person}, and I know all about {things} from her",
    "as a child [she|my brother] wanted to be {a_person}",
    "my sister [thinks|talks] of nothing but {doing} these days",
    "{doing} is [harder|easier] than it looks",
    "nobody in the family is [better|worse] at {doing}",
    "it took me [years|months] to get the hang of {doing}",
    "according to the {person}, {doing} takes [patience|practice]",
    "on the [way to|way back from] the {other_place}, we talked about {things}",
    "at the {other_place} I [found|picked up] a leaflet about {doing}",
    "while we [queued|waited] outside the {other_place}, he told us about {doing}",
    "between the {other_place} and the station I listened to a [podcast|programme] about {things}",
    "I left the {other_place} with a [book|magazine] about {things} under my arm",
    "my cousin, who is {a_other_person}, has just [read|finished] a novel about {a_person}",
    "even the {other_person} had [heard|asked] about the {thing}",
    "the {other_person} turned out to know [a lot|next to nothing] about {doing}",
    "the {other_person} next door wants to know [all|more] about {things}",
)
SLOT = re.compile(r"\{(?P<article>a_)?(?P<other>other_)?(?P<kind>thing|person|place|doing)(?P<plural>s)?\}")


def words(topic: str, kind: str, held_out: bool) -> list[str]:
    """Give the words of a kind that a topic has, for training or held out."""
    return TOPICS[topic][kind].split(";")[held_out].split("|")


def form(word: str, plural: bool) -> str:
    """Give the singular or the plural of a word."""
    singular, _, irregular = word.partition("/")
    return (irregular or singular + "s") if plural else singular


def fill(p: Picker, frame: str, topic: str, validation: bool) -> str:
    """Choose among the choices of a frame and put words into its places."""
    text = re.sub(r"\[([^]]*)\]", lambda found: p.choice(found[1].split("|")), frame)
    own = [found.start() for found in SLOT.finditer(text) if not found["other"]]
    seen = p.choice(own) if len(own) > 1 else None
    taken: list[str] = []

    def word(found: re.Match[str]) -> str:
        about = p.other(list(TOPICS), topic) if found["other"] else topic
        held_out = validation and not found["other"] and found.start() != seen
        taken.append(p.other(words(about, found["kind"], held_out), *taken))
        put = form(taken[-1], bool(found["plural"]))
        return with_article(put) if found["article"] else put

    return sentence(SLOT.sub(word, text))


def rows(split: str) -> list[tuple[str, str]]:
    """Make sentence and label of each line of a split; no sentence stands twice."""
    p = Picker(f"{SEED} {split}", with_held_out=split == "validation")
    made: dict[str, str] = {}
    for number, topic in enumerate(TOPICS):
        while len(made) < (number + 1) * ROWS[split]:
            made[fill(p, FRAMES[len(made) % len(FRAMES)], topic, p.with_held_out)] = topic
    return p.shuffled(list(made.items()))


def main() -> None:
    """Write the data set next to this file."""
    (HERE / "mini_topics").mkdir(exist_ok=True)
    for split in ROWS:
        text = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows(split))
        (HERE / "mini_topics" / f"{split}.tsv").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
