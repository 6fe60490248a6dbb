"""Which glyphs of the font are concepts, and what they are called. Words only: nothing is drawn here."""

from __future__ import annotations

import re
import unicodedata

RANGES = ((0x2600, 0x27C0), (0x2B50, 0x2B51), (0x1F300, 0x1F5FF + 1), (0x1F600, 0x1F650), (0x1F680, 0x1FB00))
"""Blocks of Unicode that hold pictures."""

DROPPED_WORDS = re.compile(
    r"\b(clock face|modifier|component|keycap|squared|arrows?|input symbol|button|heavy|exclamation|question"
    r"|asterisk|wave[sd]? with|triangle|square|large \w+ (circle|diamond)|medium|circle|sign of|stroke|yen|euro|pound"
    r"|mobile phones|japanese|cat face with|with overlay|symbol for|overlay|kissing|pedestrians|flags?|mailbox"
    r"|index|tray|quarter|gibbous|waxing|waning|new moon|globe (americas|asia)|wears|silhouette|with face"
    r"|men|women|man|woman|boy|girl|person|people|family|couple|older|adult|child|suits?|diamond shape"
    r"|loop|cancellation|brightness|sound wave|oncoming|check|cross mark|multiplication|emblem|vibration|compression"
    r"|passport|customs|baggage|left luggage|restroom|symbols|not|antenna with|envelope with|departure|arriving"
    r"|white (sun|smiling|frowning|square|flower)|post office|hand|hands|fist|weary|bubble)\b"
)
"""Names with these words are people, hands, text signs, flags, look-alikes, or hard to tell from another glyph."""

KEPT_ANYWAY = frozenset(
    """
    raised fist|victory hand|waving hand sign|thumbs up sign|thumbs down sign|handshake|speech balloon|man|woman
    large green circle|large yellow circle|large purple circle|pinched fingers|cross mark|heart with arrow|bubble tea
    """.replace("\n", "|").replace("  ", "").split("|")
)  # fmt: skip
"""Names that are kept for all that."""

DROPPED = frozenset(
    """
    black sun with rays|umbrella on ground|aries|taurus|gemini|cancer|leo|virgo|libra|scorpius|sagittarius|capricorn
    aquarius|pisces|ophiuchus|female sign|male sign|orthodox cross|star and crescent|peace symbol|wheel of dharma
    hot springs|black universal recycling symbol|permanent paper sign|wheelchair symbol|staff of aesculapius
    atom symbol|fleur-de-lis|skull and crossbones|latin cross|star of david|sparkle|eight pointed black star
    person with ball|family|coffin|funeral urn|skier|black nib|cyclone|foggy|night with stars|sunrise
    cityscape at dusk|sunset over buildings|bridge at night|milky way|full moon symbol|full moon with face
    first quarter moon with face|last quarter moon with face|new moon with face|white sun behind cloud
    white sun behind cloud with rain|wind blowing face|fog|ear of rice|rice cracker|cooked rice|curry and rice
    oden|tanabata tree|pine decoration|moon viewing ceremony|school satchel|reminder ribbon|level slider
    control knobs|admission tickets|cinema|billiards|bowling|flower playing cards|multiple musical notes
    snowboarder|runner|surfer|horse racing|swimmer|weight lifter|golfer|sports medal|house buildings|cityscape
    derelict house building|national park|office building|bank|automated teller machine|hotel|love hotel
    convenience store|department store|rosette|water buffalo|dromedary camel|front-facing baby chick|baby chick
    mouth|nose|tongue|footprints|womans clothes|bikini|womans sandal|pouch|purse|bride with veil|police officer
    baby angel|princess|information desk person|dancer|face massage|haircut|kiss|wedding|beating heart|two hearts
    sparkling heart|growing heart|revolving hearts|heart decoration|anger symbol|sleeping symbol|dash symbol
    dizzy symbol|thought balloon|left speech bubble|right anger bubble|currency exchange|chart with upwards trend
    chart with downwards trend|minidisc|dvd|open file folder|page with curl|page facing up|tear-off calendar
    card index|round pushpin|bookmark tabs|ledger|notebook|orange book|name badge|memo|pager|fax machine
    cheering megaphone|e-mail symbol|incoming envelope|open lock|lock with ink pen|link symbol|mobile phone off
    right-pointing magnifying glass|no one under eighteen symbol|six pointed star with middle dot|om symbol
    kaaba|mosque|synagogue|menorah with nine branches|hole|sleuth or spy|man dancing|linked paperclips
    lower left fountain pen|lower left crayon|card index dividers|card file box|file cabinet|spiral calendar pad
    old key|rolled-up newspaper|ballot box with ballot|ballot box with check|high-speed train|metro|light rail|station
    tram car|trolleybus|bus stop|minibus|articulated lorry|railway car|train|monorail|mountain railway
    suspension railway|mountain cableway|rowboat|ferry|passenger ship|motor boat|no entry sign|smoking symbol
    no smoking symbol|put litter in its place symbol|do not litter symbol|potable water symbol|non-potable water symbol
    no bicycles|bicyclist|mountain bicyclist|pedestrian|children crossing|mens symbol|womens symbol|baby symbol
    water closet|bath|sleeping accommodation|place of worship|elevator|motorway|railway track|auto rickshaw
    police car|horse face|tiger face|mouse face|cow face|rabbit face|dragon face|monkey face|whale|ram|sheep|boar
    guide dog|poodle|mammoth|beaver|badger|otter|bison|ox|speaker|speaker with one sound wave|closed lock with key
    clinking glasses|clinking beer mugs|flat shoe|mans shoe|one-piece swimsuit|briefs|thong sandal|sari|lab coat
    pregnant woman|breast-feeding|palms up together|selfie|prince|mother christmas|shrug|juggling|fencer|wrestlers
    water polo|handball|goal net|second place medal|third place medal|martial arts uniform|lacrosse stick and ball
    softball|shallow pan of food|stuffed flatbread|cut of meat|canned food|moon cake|face palm|superhero|supervillain
    probing cane|leg|foot|ear with hearing aid|motorized wheelchair|manual wheelchair|mechanical leg|salt shaker
    falafel|mate drink|troll|mage|fairy|vampire|merperson|elf|genie|zombie|red gift envelope|petri dish|receipt
    nazar amulet|drop of blood|crutch|nesting dolls|hook|plunger|placard|identification card|low battery|hamsa
    empty nest|flatbread|tamale|fondue|pouring liquid|biting lip|long drum|military helmet|imp|bearded person
    grinning face with smiling eyes|smiling face with open mouth|smiling face with open mouth and smiling eyes
    smiling face with open mouth and tightly-closed eyes|smiling face with open mouth and cold sweat
    face savouring delicious food|relieved face|smirking face|expressionless face|unamused face|face with cold sweat
    pensive face|confounded face|face with stuck-out tongue and winking eye|face with look of triumph
    face with stuck-out tongue and tightly-closed eyes|disappointed face|worried face|pouting face|persevering face
    disappointed but relieved face|frowning face with open mouth|anguished face|tired face|sleepy face|hushed face
    face with open mouth and cold sweat|astonished face|flushed face|dizzy face|slightly frowning face|grinning face
    slightly smiling face|face with no good gesture|face with ok gesture|hear-no-evil monkey|speak-no-evil monkey
    face with thermometer|hugging face|rolling on the floor laughing|drooling face|face with one eyebrow raised
    grinning face with one large and one small eye|face with finger covering closed lips|face throwing a kiss
    smiling face with smiling eyes and hand covering mouth|face with head-bandage|face with uneven eyes and wavy mouth
    smiling face with smiling eyes and three hearts|yawning face|smiling face with tear|disguised face
    face holding back tears|face with pleading eyes|saluting face|face with open eyes and hand over mouth
    face with peeking eye|face with diagonal mouth|lying face|sneezing face|face with open mouth vomiting
    serious face with symbols covering mouth|confused face|fearful face|face without mouth|neutral face
    double curly loop|white heart|silhouette of japan|dango|rice ball|bento box|fish cake with swirl design
    bellhop bell|construction worker|guardsman|baby|optical disc|pine decoration|trackball|bookmark|radio button
    snow capped mountain|orange heart|brown heart|zipper-mouth face|winking face|crying cat face
    pouting cat face|weary cat face
    sauropod|chipmunk|spiral note pad|closed umbrella|umbrella with rain drops|headstone|roll of paper|socks
    chinese lantern|shallow pan|black question mark ornament|crossed swords|no entry|currency|bank note
    female|male|radioactive sign|biohazard sign|hammer and pick|helmet with white cross|thunder cloud and rain
    cloud with lightning|sun behind cloud|black club suit|black diamond suit|snowman without snow|cricket
    postal horn|prayer beads|money bag|speaking head in silhouette|upside-down face|face with medical mask
    """.replace("\n", "|").replace("  ", "").split("|")
)  # fmt: skip
"""Names that are text, people, faces too alike, or the lesser of two glyphs that look alike."""

CALLED = {
    "heavy black heart": "heart|red heart",
    "white medium star": "star|yellow star",
    "sun with face": "sun",
    "crescent moon": "moon|crescent moon",
    "black spade suit": "spade",
    "deciduous tree": "tree",
    "evergreen tree": "pine tree|evergreen tree",
    "house building": "house|home",
    "house with garden": "house with a garden",
    "automobile": "car|red car|automobile",
    "sailboat": "boat|sailboat",
    "recreational vehicle": "blue car|camper",
    "red apple": "red apple|apple",
    "earth globe europe-africa": "earth|globe",
    "black scissors": "scissors",
    "black telephone": "telephone",
    "hot beverage": "hot drink|coffee|hot beverage",
    "aubergine": "eggplant|aubergine",
    "ear of maize": "corn|maize",
    "tangerine": "tangerine|mandarin",
    "slice of pizza": "pizza|slice of pizza",
    "poultry leg": "chicken leg",
    "steaming bowl": "noodle soup",
    "soft ice cream": "ice cream cone",
    "doughnut": "donut|doughnut",
    "shortcake": "slice of cake|cake",
    "teacup without handle": "cup of tea",
    "wine glass": "glass of wine|wine glass",
    "jack-o-lantern": "pumpkin",
    "wrapped present": "gift|present",
    "father christmas": "santa claus|santa",
    "top hat": "magic hat|top hat",
    "direct hit": "target",
    "game die": "dice|die",
    "musical keyboard": "piano|keyboard",
    "eyeglasses": "glasses",
    "european castle": "castle",
    "classical building": "temple|greek temple",
    "spouting whale": "whale",
    "honeybee": "bee|honeybee",
    "lady beetle": "ladybug",
    "blowfish": "puffer fish|blowfish",
    "bactrian camel": "camel",
    "electric light bulb": "light bulb|lamp",
    "pile of poo": "poo|poop",
    "droplet": "water drop",
    "collision symbol": "explosion",
    "splashing sweat symbol": "splash",
    "hundred points symbol": "hundred points",
    "personal computer": "laptop|computer",
    "television": "tv|television",
    "electric torch": "flashlight|torch",
    "left-pointing magnifying glass": "magnifying glass",
    "hocho": "kitchen knife|knife",
    "dove of peace": "dove",
    "dark sunglasses": "sunglasses",
    "lower left ballpoint pen": "pen|ballpoint pen",
    "flying saucer": "ufo|flying saucer",
    "lower left paintbrush": "paintbrush",
    "three button mouse": "computer mouse",
    "frame with picture": "picture frame",
    "wastebasket": "trash can",
    "moyai": "stone head|moai",
    "steam locomotive": "steam train|locomotive",
    "high-speed train with bullet nose": "train|bullet train",
    "fire engine": "fire truck|fire engine",
    "taxi": "taxi|cab",
    "delivery truck": "truck|delivery truck",
    "vertical traffic light": "traffic light",
    "horizontal traffic light": "wide traffic light",
    "construction sign": "road barrier",
    "shopping trolley": "shopping cart",
    "police cars revolving light": "siren",
    "couch and lamp": "sofa|couch",
    "bathtub": "bath|bathtub",
    "ring buoy": "life ring",
    "extraterrestrial alien": "alien",
    "alien monster": "space invader",
    "t-rex": "dinosaur|t rex",
    "fire": "fire|flame",
    "carpentry saw": "saw",
    "spool of thread": "thread",
    "ball of yarn": "yarn",
    "cheese wedge": "cheese",
    "beverage box": "juice box",
    "leafy green": "lettuce",
    "kiwifruit": "kiwi|kiwifruit",
    "military medal": "medal",
    "first place medal": "gold medal",
    "video game": "game controller",
    "headphone": "headphones",
    "hamburger": "burger|hamburger",
    "chicken": "hen|chicken",
    "smiling face with sunglasses": "cool face|face with sunglasses",
    "smiling face with halo": "angel face",
    "smiling face with horns": "devil face",
    "shrimp": "shrimp|prawn",
    "smiling face with heart-shaped eyes": "love face|face with heart eyes",
    "smiling face with smiling eyes": "smiling face|smiley|happy face",
    "face with tears of joy": "laughing face",
    "loudly crying face": "sobbing face",
    "face screaming in fear": "screaming face",
    "grinning face with star eyes": "star eyes face",
    "face with cowboy hat": "cowboy face|cowboy",
    "face with open mouth": "surprised face",
    "shocked face with exploding head": "exploding head",
    "face with party horn and party hat": "party face",
    "crying face": "crying face|sad face",
    "face with monocle": "monocle face",
    "face with stuck-out tongue": "tongue face",
    "face with rolling eyes": "rolling eyes face",
    "see-no-evil monkey": "monkey covering its eyes",
    "public address loudspeaker": "loudspeaker",
    "speaker with three sound waves": "speaker",
    "closed book": "red book|book",
    "notebook with decorative cover": "notebook",
    "white heavy check mark": "check mark",
    "large red circle": "red circle",
    "large blue circle": "blue circle",
    "large green circle": "green circle",
    "large yellow circle": "yellow circle",
    "large purple circle": "purple circle",
    "white sun with small cloud": "sun behind a cloud",
    "water wave": "wave|ocean wave",
    "money with wings": "flying money",
    "banknote with dollar sign": "dollar bill|banknote",
    "tennis racquet and ball": "tennis racket",
    "fisted hand sign": "fist",
    "badminton racquet and shuttlecock": "badminton racket",
    "small airplane": "small plane",
    "airplane": "airplane|plane",
    "cup with straw": "soda cup",
    "bowl with spoon": "bowl of cereal",
    "high-heeled shoe": "high heel shoe",
    "athletic shoe": "sneaker|running shoe",
    "womans boots": "boot",
    "womans hat": "sun hat",
    "mantelpiece clock": "clock",
    "billed cap": "cap|baseball cap",
    "potted plant": "plant|potted plant",
    "gem stone": "diamond|gem",
    "brick": "bricks",
    "basketball and hoop": "basketball",
    "clapping hands sign": "clapping hands",
    "flag in hole": "golf flag",
    "chequered flag": "race flag",
    "spiral shell": "shell|seashell",
    "four leaf clover": "clover|four leaf clover",
    "hot pepper": "chili pepper|pepper",
    "mobile phone": "phone|smartphone",
    "cooking": "fried egg",
    "performing arts": "theater masks",
    "film frames": "film strip",
    "custard": "pudding",
    "peanuts": "peanut|peanuts",
    "cherries": "cherries|cherry",
    "pancakes": "pancakes|pancake stack",
    "grapes": "grapes|bunch of grapes",
}
"""Unicode name → what we call it, then what else one may call it, with bars between."""

_TAILS = (" face", " sign", " symbol", " building")


def unicode_name(code: int) -> str | None:
    """The lower-case Unicode name of a code point that may be a concept, else None."""
    name = unicodedata.name(chr(code), "").lower()
    wanted = name in CALLED or name in KEPT_ANYWAY
    dropped = name in DROPPED or DROPPED_WORDS.search(name)
    return name if name and (wanted or not dropped) else None


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9 ]+", " ", name.replace("'", "")).split())


def captions_of(names: list[str]) -> list[list[str]]:
    """What each concept is called, the usual name first. No two concepts share a name; words are a-z and 0-9 only.

    A tail such as "face" may be left out where that does not name another concept: "fox face" is also "fox".
    """
    called = [[_plain(part) for part in CALLED.get(name, name).split("|")] for name in names]
    taken = {name for group in called for name in group[:1]}
    unique: list[list[str]] = []
    given = {group[0]: index for index, group in enumerate(called)}
    for index, group in enumerate(called):
        shorts = [group[0].removesuffix(tail) for tail in _TAILS if group[0].endswith(tail)]
        shorts = [short for short in shorts if short and short not in taken] if not MOODS.match(group[0]) else []
        taken.update(shorts)
        others = [name for name in group[1:] if given.setdefault(name, index) == index]
        taken.update(others)
        unique.append(list(dict.fromkeys([*shorts, group[0], *others])))
    return unique


MOODS = re.compile(
    "(cool|angel|devil|love|smiling|laughing|sobbing|screaming|surprised|party|crying|monocle|tongue|grimacing|sleeping"
    "|winking|angry|nerd|thinking|money|zipper|nauseated|star|rolling|happy|overheated|freezing|melting) face"
)
"""Faces that are a mood, not an animal: "angry" alone names nothing."""
