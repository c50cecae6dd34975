"""Sentences from small grammars: what photographs show, what pages say beside them, and what is no sentence at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from imagebert.demo.web.page import Subject
from imagebert.errors import UsageError


def listed(text: str, by: str = "|") -> list[str]:
    """The parts of a text, which are shorter to read than a list of texts."""
    return [part.strip() for part in text.split(by)]


class Grammar:
    """Phrases by name, a line each (and lines that are indented, which go on): `name: phrase|another with {name}`.

    Attributes:
        phrases: of each name, the alternatives
    """

    def __init__(self, text: str) -> None:
        lines = [" ".join(line.split()).partition(": ") for line in re.split(r"\n(?=\w)", text.strip())]
        self.phrases = {name: listed(phrases) for name, _, phrases in lines}
        self._parts = {
            name: [re.split(r"\{(\w+)\}", phrase) for phrase in phrases] for name, phrases in self.phrases.items()
        }

    def say(self, random: Random, name: str) -> str:
        """One of the phrases of a name."""
        parts = random.choice(self._parts[name])
        if len(parts) == 1:
            return parts[0]
        return "".join(self.say(random, part) if place % 2 else part for place, part in enumerate(parts))

    def sentence(self, random: Random, name: str) -> str:
        """The same with a capital first letter."""
        said = self.say(random, name)
        return said[:1].upper() + said[1:]


# ------------------------------------------------------------------------------------------------- what pictures show

SHOWN = Grammar(
    """
sentence: {person} {wearing} {acting} {outdoors}.|{person} {acting} {indoors}.|{person} and {person} {together}
    {outdoors}.|{animal} {beast} {outdoors}.|{animal} with {coat} {beast} {ground}.|{plate} {served}
    {table}.|{vehicle} {parked} {street}.|{street_view} {weather}.|{land} {weather}.|{land} with {far} in the
    distance.|{player} {plays} {crowd}.|{building} {standing} {weather}.|{child} {playing} {ground}.|{things} {lying}
    {table}.|{group} {gather} {outdoors} {weather}.|{vessel} {sailing} {weather}.|{animal} and {animal} {pl_acting}
    {ground}.|{worker} {working} {indoors}.|two {plural} {pl_acting} {ground}.|three {plural} {pl_acting} {outdoors}.
person: a man|a woman|an old man|a young woman|a teenager|a bearded man|a tall woman|a grandmother|a tourist|a
    farmer|a musician|a student|a nurse|a cyclist|a fisherman|a photographer|a bride|a jogger|an elderly couple|a
    street vendor
wearing: in a red coat|in a blue shirt|wearing a straw hat|in a yellow raincoat|with a backpack|in a green
    sweater|with an umbrella|wearing sunglasses|in a black suit|with a camera around the neck|in a white dress|wearing
    a woollen scarf|in rubber boots|with a walking stick
acting: is walking|is reading a newspaper|sits and drinks coffee|waits|is feeding pigeons|plays the guitar|talks on
    the phone|is eating ice cream|carries a basket of apples|is pushing a bicycle|looks at a map|is laughing|stands
    alone|paints a picture|holds a small dog|is selling flowers|ties his shoes|takes a photograph
together: dance|shake hands|are playing chess|share a sandwich|walk hand in hand|are having a picnic|argue|wait for a
    bus|carry a wooden boat|embrace|ride a tandem
outdoors: on a crowded beach|in a city park|at a bus stop|beside a river|on a wooden bridge|in front of a bakery|under
    a large tree|at a market|on a mountain path|in a wheat field|near a fountain|by the harbour|on the steps of a
    church|in a narrow alley|at the edge of a forest|on a station platform|along the canal|in a flower garden
indoors: in a small kitchen|at a wooden table|in a library|in a busy workshop|beside a window|in a hospital
    corridor|in a dark theatre|in a greenhouse|at a crowded bar|in a museum hall|on a leather sofa|in a barber shop|in
    an empty classroom
animal: a brown dog|a black cat|a white horse|a grey donkey|a red fox|an elephant|a flock of sheep|a herd of cows|a
    swan|a young deer|an owl|a polar bear|a parrot|two zebras|a tortoise|a goat|a lion|a pair of ducks|a squirrel
coat: wet fur|a long tail|a red collar|spotted skin|bright feathers|a bell around its neck|muddy legs|big ears
beast: sleeps|is running|stands still|is drinking water|looks into the camera|jumps over a fence|is looking for
    food|rests|chases a ball|rolls over|hides
ground: in the grass|in deep snow|on wet sand|in the mud|on a gravel road|on a lawn|in shallow water|on dry leaves|on
    a rocky slope|in the shade|on a stone wall
plate: a bowl of noodle soup|a slice of chocolate cake|a grilled fish with lemon|a pizza with tomatoes and basil|fresh
    bread and butter|a plate of pancakes|a salad with olives and cheese|roast chicken with potatoes|strawberries and
    cream|a burger with onions|rice with vegetables|a cup of tea with biscuits
served: is served|lies|stands beside a glass of wine|waits beside a knife and a fork|is arranged|cools
table: on a wooden table|on a white plate|on a checked tablecloth|on a marble counter|on a silver tray|on an old
    newspaper|on a picnic blanket|on a shelf beside the window
vehicle: a yellow taxi|an old red truck|a police car|a green tractor|a double-decker bus|a motorcycle with a sidecar|a
    rusty van|a blue tram|a fire engine|a silver sports car|a steam locomotive
parked: is parked|drives slowly|waits|has broken down|turns|is being washed|passes a cyclist
street: on a cobbled street|at a traffic light|in front of a brick house|on a wet road at night|between tall office
    buildings|outside a petrol station|on a country lane|near the town hall|under a railway bridge
street_view: a narrow street with colourful houses|a busy crossing full of people|a row of shops with striped
    awnings|a market square with stalls|a quiet lane between stone walls|an avenue lined with plane trees|a steep
    stairway between white houses|a tram line along the river
land: a snow-covered mountain above a lake|a sandy bay with turquoise water|rolling green hills|a waterfall in a
    forest|a desert with high dunes|a field of sunflowers|a rocky coast with a lighthouse|a frozen river|a vineyard on
    a slope|a foggy valley|a meadow full of poppies|a canyon of red rock
far: a castle|a village church|wind turbines|a sailing boat|grazing cattle|high peaks|a small cabin|an old bridge
weather: at sunset|under a cloudy sky|on a rainy day|in bright sunshine|in the early morning|on a winter afternoon|at
    night|during a thunderstorm|in thick fog|under a clear blue sky|after fresh snow|in autumn
player: a football player in white|a tennis player|a young gymnast|a surfer|a basketball player|a skier in an orange
    jacket|a goalkeeper|a runner with number twelve|a boxer|a rider on a brown horse|a swimmer
plays: jumps for the ball|celebrates a victory|falls to the ground|stretches both arms|concentrates before the
    start|crosses the finish line|takes off|raises a trophy
crowd: in front of a cheering crowd|in an empty stadium|while the referee watches|during the final|under
    floodlights|while a coach shouts|on a muddy pitch|at an indoor arena
building: a stone church with two towers|an old wooden barn|a glass office tower|a lighthouse|a half-timbered house|a
    railway station with a big clock|a ruined castle|a mosque with a blue dome|a red windmill|a concrete apartment
    block
standing: stands by a lake|rises above the roofs|is reflected in a puddle|is covered with ivy|is being repaired
child: a little girl|a small boy|a baby in a striped shirt|a child with curly hair|a boy with freckles|a girl on
    roller skates
playing: with a kite runs|builds a tower of blocks|holding a balloon sits|is splashing with both feet|with a toy truck
    plays|is looking for shells|blows soap bubbles|draws with chalk
things: leather boots|an open book and reading glasses|rusty keys|old tools|a violin and its bow|coloured
    towels|tulips and roses|three ripe pears|broken typewriters|tubes of paint|a folded map and a compass
lying: lie|are spread out|rest in the sunlight|are seen from above|stand among crumbs|are displayed
group: tourists with cameras|schoolchildren in uniform|several soldiers|members of a brass band|protesters with
    banners|wedding guests|dancers in traditional costumes|five sisters|firefighters|hikers with heavy packs
gather: gather|are waiting|pose for a picture|march|are singing|rest|listen to a guide|line up
vessel: a small fishing boat|a white ferry|a sailing ship|a red kayak|a cargo ship with containers|a rubber dinghy|a
    rowing boat
sailing: leaves the harbour|drifts on a calm lake|crosses the bay|lies at anchor|fights against high waves
worker: a carpenter|a baker|a welder with a mask|a chef|a mechanic|a potter|a gardener|a tailor|a scientist in a white
    coat
working: is sawing a plank|kneads dough|repairs an engine|measures a piece of cloth|is cutting onions|sweeps the
    floor|holds a glass tube|is sharpening a knife|explains a drawing
plural: boys|women|dogs|horses|cyclists|monks|children|sailors|cats|police officers|goats|hikers
pl_acting: are playing|are running|rest side by side|look in the same direction|are crossing|stand close together
"""
)

_MOST = 50_000  # subjects; there are some more, which are found too slowly


def some_subjects(count: int, seed: int) -> list[Subject]:
    """Makes photographs up: descriptions of 6 to 18 words, each another one; both sides longer than 300 pixels.

    Raises:
        UsageError: the grammar has not as many descriptions.
    """
    random = Random(f"subjects {seed}")
    sentences: dict[str, None] = {}
    for _ in range(4 * count + 100 if count <= _MOST else 0):
        if len(sentences) == count:
            break
        sentence = SHOWN.sentence(random, "sentence")
        if 6 <= len(sentence.split()) <= 18 and not re.search(r"\b(\w+ \w+) and \1\b", sentence, re.IGNORECASE):
            sentences[sentence] = None
    if len(sentences) < count:
        raise UsageError(f"{count:,} subjects are more than can be told apart: ask for fewer")
    return [_subject(random, number, sentence) for number, sentence in enumerate(sentences)]


def _subject(random: Random, number: int, sentence: str) -> Subject:
    words = [word for word in re.findall("[a-z]+", sentence.lower()) if len(word) > 4] or ["picture"]
    width = random.randrange(640, 2400, 8)
    aspect = random.choice([3 / 2, 4 / 3, 1, 16 / 9, 3 / 4, 2 / 3])
    return Subject("-".join([*words[:2], f"{number:05d}"]), sentence, width, round(width / aspect))


# ----------------------------------------------------------------------------------------------- what pages say beside

PROSE = Grammar(
    """
prose: {who} {said} that {claim}.|{who} {said} that {claim} {when}.|{when}, {who} {decided}.|{claim}, {but}
    {claim}.|{people} {want} {goods} {because} {claim}.|{most} of {people} {want} {goods} {nowadays}.|it {took} {span}
    to {plan} {goods}, {but} {claim}.|{if}, {claim}.|{who} {decided} {because} {claim}.|there {was} {little} {trouble}
    {inplace} {when}.|we {tried} {goods} {inplace}, {but} {claim}.|"{claim}," {said} {who}, who {lived} {inplace}.|I
    {tried} {goods} {when}, and {claim}.|{few} of {people} {tried} {goods} {inplace} {when}.
headline: {who} {decided} {when}|why {people} {want} {goods}|{trouble} {inplace}: what we know so far|{who} and the
    {trouble} {inplace}|how to {plan} {goods} {inplace}|{goods}: a guide for {people}|{span} {inplace}|the truth about
    {goods}|ten reasons to {plan} {goods}|{claim}
comment: thanks for this!|I do not agree, {claim}.|great post, {claim}.|does anybody know how to {plan}
    {goods}?|{claim}, at least {inplace}.|my brother {tried} {goods} {when}.|first!|+1|well said. {claim}.|{claim} :-)
blurb: made for {people} who {want} {goods}.|delivered within {span}.|easy to clean, easy to store, and {claim}.|a
    favourite of {people} {nowadays}.|made of {stuff} and {stuff}.|every piece is checked by {who}.|goes well with
    {goods}.
step: heat {stuff} until it is warm, then add {stuff}.|mix {stuff} with {stuff} for {span}.|cover and leave for
    {span}.|cut {stuff} into small pieces.|season with {stuff} and taste.|stir {stuff} slowly {when}.
product: {grade} {item}|{grade} {grade} {item}|{item} with {stuff}|{item} for {people}|{grade} {item} made of {stuff}
who: the mayor|a spokesman for the ministry|the committee|the new owner|a former teacher|the chairwoman|our
    neighbour|the head of the department|an expert|the author|the company|a judge|the union|her brother|the local
    council|a young engineer|the director|an officer of the customs
said: said|explained|believes|told reporters|wrote|admitted|insisted|announced|replied|suggested|warned
claim: prices have risen again|the work will take longer than planned|nothing has changed|the results were better than
    expected|nobody knows the reason|the old rules still apply|it was the right decision|the numbers are wrong|a
    second meeting is needed|the road stays closed|everybody was surprised|the money has been spent|it depends on the
    weather|the quality is excellent|the service was slow|the law is not clear|many tickets were sold|most people
    never noticed|the story is not finished|it is worth the effort|the network failed twice|the first attempt did not
    work|the museum opens earlier|costs could double
when: last week|in the spring of that year|on Tuesday|two days later|yesterday evening|at the end of the month|after
    the election|before the holidays|in March|at noon|during the strike|this morning|in the meantime|once a year
decided: decided to leave|asked for more time|cancelled the plan|signed the contract|refused to answer|won the
    prize|lost the case|published a report|changed the timetable|moved to another office|opened the second branch|paid
    the fine
but: but|although|while|because|and yet|so that
because: because|since|although|now that
people: parents|readers|members of the club|commuters|shop owners|beginners|students|visitors|customers|volunteers|the
    residents|voters|taxpayers|doctors
want: want|prefer|expect|buy|recommend|need|ask for|complain about|forget about|save money for
goods: cheaper tickets|a better connection|longer opening hours|local products|new software|a second opinion|simple
    recipes|a season ticket|lighter equipment|free advice|used furniture|an honest answer|fewer meetings|a safer
    route|a good dictionary|the annual report
most: most|many|some|nearly all|half|at least a third
few: few|a dozen|several|hardly any|two
nowadays: these days|in this region|at the moment|without asking twice|for good reasons|more than ever
took: took|has taken|will take|may take|should not take
span: three weeks|ten minutes|a whole year|half an hour|four days|an afternoon|several months|a decade
plan: plan|find|compare|choose|organise|pay for|test|repair|write about|review
if: if all goes well|whatever happens|as far as we know|according to the latest figures|in our experience|for the
    third time|contrary to what was reported|to be honest|in theory|compared with other towns
was: was|is|has been|will be|may be
little: little|some|no|hardly any|a lot of|less
trouble: trouble|traffic|interest|noise|debate|hope|competition|unemployment|research|delay|damage|support
inplace: in the capital|in our department|in the north|abroad|at the headquarters|in the suburbs|at home|in the
    region|in most countries|at the regional court|in the old quarter|online
tried: tried|compared|ordered|tested|discussed|found|missed|enjoyed|studied
lived: lives|has worked|grew up|studied|teaches|votes|owns a business
stuff: butter|the flour|olive oil|two onions|garlic|cotton|steel|salt and pepper|milk|brown sugar|the
    beans|oak|leather|lemon juice|rice|glass|yeast
grade: classic|large|compact|organic|premium|folding|vintage|waterproof|handmade|extra strong|light|everyday
item: lamp|jacket|chair|kettle|rucksack|blanket|watch|bowl|tent|poster|bicycle bag|mug|toolbox|print
"""
)

FIRST = listed("Jane John Maria Peter Anna David Laura Tom Elena Paul Ruth Ali Mei Carlos Ingrid Ben Olga Kate", " ")
LAST = listed("Doe Smith Miller Rossi Novak Brown Garcia Lee Jensen Weber Khan Martin Sato Moore Petrov Hill Fox", " ")
AGENCIES = listed("Reuters|AP Photo|Getty Images|AFP|Courtesy of the artist|Wikimedia Commons|Handout|Shutterstock")
SHARED = (  # said of pictures that have nothing in common
    "A beautiful picture from our collection of the finest photographs.",
    "This picture is for illustration only and may differ from the real thing.",
    "One of the many photographs that our readers have sent to us.",
    "Visit our website to see many more pictures like this one.",
)
SHOUTS = listed("What a day!|Just wow|Me again :)|Summer!!!|No comment.|Love this one|Throwback Thursday|Finally there")
BOILERPLATE = listed(  # stands around pictures and says nothing of them
    "Click to enlarge.|Click image for larger version|Advertisement|Read more|Continue reading the main story|"
    "View gallery (12 photos)|Share this on Facebook|Tweet|Pin it|Image may be subject to copyright|Hide caption|"
    "Enlarge this image toggle caption|Loading...|Tap to zoom|Follow us on Instagram|Slide 1 of 9"
)
_SPAM = listed("cheap hotels best price flights buy online free download hd wallpaper deals discount 2019 top", " ")
_CREDITS = listed(
    "Photo: {who} / {agency}|(Credit: {agency})|Photograph by {who}|({who}/{agency})|Image credit: {who}|"
    "\N{COPYRIGHT SIGN} {year} {who}. All rights reserved.|[Photo courtesy of {who}]|PHOTO BY {who}|Picture: {agency}"
)
_NAMES = listed(  # that cameras, programs and hurried people give
    "DSC_{number:04}.JPG|IMG_{number:04}|P100{number:04}.jpg|Screenshot_{year}-04-12|Canon EOS 5D Mark II|image|photo|"
    "OLYMPUS DIGITAL CAMERA|Nikon D{number}|{day} May {year}|{year}-03-{day:02}|Photo of|picture 1|featured image|"
    "untitled|thumbnail|image{number}.png|null|alt text|{year}{day:02}03_142{day:02}1"
)


def name_of(random: Random) -> str:
    """A person's name."""
    return f"{random.choice(FIRST)} {random.choice(LAST)}"


def credit(random: Random) -> str:
    """Whose picture it is, as captions say."""
    year = random.randrange(1998, 2024)
    return random.choice(_CREDITS).format(who=name_of(random), agency=random.choice(AGENCIES), year=year)


def no_description(random: Random) -> str:
    """What stands in alt and title where nobody has described the picture."""
    match random.randrange(12):
        case 0 | 1:  # for search engines
            return random.choice([", ", " ", " | "]).join(random.choices(_SPAM, k=random.randrange(6, 25)))
        case 2:
            return random.choice(BOILERPLATE)
        case _:
            number, day, year = random.randrange(1, 9999), random.randrange(1, 29), random.randrange(2004, 2024)
            return random.choice(_NAMES).format(number=number, day=day, year=year)


def with_noise(random: Random, sentence: str) -> str:
    """A description as captions have it: with a credit or a notice before or behind, often as it is."""
    match random.randrange(10):
        case 0 | 1:
            return f"{sentence} {credit(random)}"
        case 2:
            return f"{sentence} {random.choice(BOILERPLATE)}"
        case 3:
            return f"{random.choice(['Photo: ', 'Above: ', 'Pictured: ', 'Figure 1. ', 'Image: '])}{sentence}"
        case 4:
            return f"{credit(random)} \N{EN DASH} {sentence}"
        case _:
            return sentence


def paragraphs(random: Random, grammar: Grammar, count: int, between: str = " ") -> Sequence[str]:
    """Paragraphs of two to seven sentences that have nothing to do with any picture."""
    return [
        between.join(grammar.sentence(random, "prose") for _ in range(random.randrange(2, 8))) for _ in range(count)
    ]
