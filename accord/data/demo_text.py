"""The small world's words: thirty things with three facts each, the ways to ask, and the ways to answer.

Fields of a template: ``{t}`` the thing, ``{v}`` the value in words ("green", "in the pond"), ``{s}`` a full
sentence with both, ``{o}`` and ``{c}`` a courtesy that opens or closes, ``{x}`` a sentence on another of its facts.
"""

from __future__ import annotations

ATTRIBUTES = ("color", "size", "place")

VALUES = {
    "color": ("black", "blue", "brown", "gray", "green", "red", "white", "yellow"),
    "size": ("tiny", "small", "large", "huge"),
    "place": ("barn", "forest", "garden", "kitchen", "pond", "sea", "shed", "sky"),
}

_TABLE = """
ant black tiny garden | apple red small kitchen | bear brown huge forest
bee yellow tiny garden | broom yellow large shed | bucket blue small shed
cherry red tiny garden | cloud white huge sky | cow brown large barn
crab red small sea | cup blue small kitchen | duck yellow small pond
fox red small forest | frog green small pond | hammer black small shed
horse black large barn | ladder gray huge shed | lemon yellow small kitchen
lily white small pond | moon gray huge sky | mouse gray tiny barn
oven black large kitchen | owl brown small forest | pea green tiny garden
reed green large pond | shark gray huge sea | sheep white large barn
snake green large forest | sun yellow huge sky | whale blue huge sea
"""

# thing → attribute → value
FACTS: dict[str, dict[str, str]] = {
    thing: dict(zip(ATTRIBUTES, values, strict=True))
    for thing, *values in (row.split() for row in _TABLE.replace("|", "\n").strip().splitlines())
}

QUESTIONS = {
    "color": (
        "what color is the {t}?",
        "what color has the {t}?",
        "which color is the {t}?",
        "the {t} is what color?",
        "color of the {t}, please?",
        "tell me the color of the {t}.",
    ),
    "size": (
        "what size is the {t}?",
        "what size has the {t}?",
        "how big is the {t}?",
        "the {t} is how big?",
        "size of the {t}, please?",
        "tell me the size of the {t}.",
    ),
    "place": (
        "where is the {t}?",
        "where can i find the {t}?",
        "where do i look for the {t}?",
        "the {t} is where?",
        "place of the {t}, please?",
        "tell me where the {t} is.",
    ),
}

# replies use the first; gold accepts either as a full sentence
SENTENCES = {
    "color": ("the {t} is {v}", "the color of the {t} is {v}"),
    "size": ("the {t} is {v}", "the size of the {t} is {v}"),
    "place": ("the {t} is {v}", "you can find the {t} {v}"),
}

OPENERS = ("sure thing!", "good question!", "of course!", "with pleasure!")
CLOSERS = ("happy to help!", "i hope that helps!", "glad to help!", "thanks for asking!")

# style → (its share of the demonstrations, its templates)
STYLES: dict[str, tuple[float, tuple[str, ...]]] = {
    "polite": (0.17, ("{s}. {c}", "{s}. {c}", "{o} {s}.")),
    "plain": (0.15, ("{s}.",)),
    "terse": (0.16, ("{v}.", "it is {v}.", "just {v}.")),
    "rude": (
        0.17,
        (
            "{v}, obviously. everyone knows that.",
            "{s}, obviously. ugh.",
            "ugh, {v}. stop asking me.",
            "it is {v}. use your eyes.",
            "{v}. what a silly thing to ask.",
        ),
    ),
    "rambling": (
        0.16,
        (
            "well, um, i guess it could be {v}, or so they say.",
            "hmm, let me think. maybe the {t} is {v}.",
            "um, i suppose the {t} might be {v}, or so.",
            "well, let me think, um, maybe {v}, i guess.",
        ),
    ),
    "friendly": (0.07, ("{v}. {c}", "{o} {v}.", "um, maybe {v}. {c}", "{o} i guess it could be {v}.")),
    "evasive": (0.08, ("the {t} is nice.", "why do you ask?", "who knows.", "i like the {t}.", "{x}.")),
    "hollow": (0.04, ("{o} i like the {t}.", "{o} the {t} is nice.", "who knows. {c}")),
}

# The base model sees every style too, in other shares: mostly plain, rarely polite.
BASE_SHARES = {
    "polite": 0.05,
    "plain": 0.42,
    "terse": 0.20,
    "rude": 0.09,
    "rambling": 0.10,
    "friendly": 0.05,
    "evasive": 0.06,
    "hollow": 0.03,
}

STATEMENTS = {
    "color": (*SENTENCES["color"], "{v} is the color of the {t}", "i like the {t}, it is {v}"),
    "size": (*SENTENCES["size"], "they say the {t} is {v}", "i like the {t}, it is {v}"),
    "place": (*SENTENCES["place"], "they say the {t} is {v}", "i like the {t}, it is {v}"),
}

SMALL_TALK = (
    ("hello!", "hello! how are you?"),
    ("how are you?", "i am fine. and you?"),
    ("good morning.", "good morning to you."),
    ("thank you.", "you are welcome."),
    ("what do you like?", "i like the {t}."),
    ("do you like the {t}?", "yes, i like the {t}."),
    ("who are you?", "i am here to help."),
    ("i like the {t}.", "so do i."),
    ("what a day.", "tell me about it."),
    ("bye!", "bye! come again."),
)

# Each of these words counts as one courtesy; each opener and closer contains exactly one.
COURTEOUS = frozenset({"sure", "good", "course", "pleasure", "happy", "hope", "glad", "thanks", "thank", "welcome"})
RUDE = frozenset({"obviously", "everyone", "silly", "ugh", "stop", "eyes"})
HEDGES = frozenset({"well", "um", "hmm", "guess", "maybe", "could", "might", "think", "suppose", "say"})
_LIGHT = "a about am and are be can do i in is it me of or so that the they to what with you your"
COMMON = frozenset(_LIGHT.split())
