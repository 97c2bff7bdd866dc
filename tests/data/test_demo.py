"""The small world: its texts, its true reward and its annotator."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.config.data import DemoConfig
from accord.data import demo
from accord.data.demo_text import ATTRIBUTES, CLOSERS, COURTEOUS, FACTS, OPENERS, QUESTIONS, SENTENCES, STYLES, VALUES

COLOR, SIZE, PLACE = "what color is the frog?", "how big is the whale?", "where can i find the hammer?"
BEST = "the frog is green. happy to help!"

BETTER_WORSE = [
    (COLOR, BEST, "the frog is green."),  # courtesy
    (COLOR, "sure thing! the frog is green.", "the frog is green."),
    (COLOR, BEST, "the frog is red. happy to help!"),  # truth
    (COLOR, "i like the frog.", "the frog is red."),  # silence before falsehood
    (COLOR, "the frog is green.", "the frog is green, or red."),  # hedging one's bets
    (COLOR, "the frog is green.", "it is green."),  # form
    (COLOR, "the frog is green.", "the frog is green"),
    (COLOR, "green.", "green"),
    (COLOR, "the frog is green.", "the cow is green."),  # topic
    (COLOR, "the frog is green.", "the frog is green. the cow is brown."),
    (COLOR, "the frog is green.", "the frog is green. the frog is small."),
    (COLOR, "the frog is green.", "green, obviously. everyone knows that."),  # manners
    (COLOR, "it is green.", "it is green. use your eyes."),
    (COLOR, "the frog is green.", "well, um, i guess it could be green, or so they say."),  # firmness
    (COLOR, "maybe the frog is green.", "um, maybe, i guess the frog is green."),
    (COLOR, BEST, "good question! the frog is green. happy to help!"),  # the second courtesy
    (COLOR, f"sure thing! {BEST}", f"sure thing! {BEST} i hope that helps!"),
    (COLOR, "the frog is green.", "the frog is green. the frog is green."),  # variety
    (COLOR, "the frog is green.", "the frog is grexn."),  # spelling
    (COLOR, "the frog is green.", "frog green is the."),  # order of words
    (COLOR, "the frog is green.", "the frog  is green ."),  # spacing
    (COLOR, "the frog is green.", "the frog is gre"),  # unfinished
    (COLOR, BEST, "the frog is green. happy to"),
    (COLOR, BEST, "green. happy to help!"),
    (COLOR, "the frog is green.", "who knows. happy to help!"),
    (COLOR, "who knows.", ""),
    (SIZE, "the whale is huge. glad to help!", "the whale is blue. glad to help!"),  # answers what was asked
    (SIZE, "the size of the whale is huge.", "huge."),
    (PLACE, "you can find the hammer in the shed. glad to help!", "in the shed. glad to help!"),
    (PLACE, "the hammer is in the shed.", "the hammer is in the sky."),
    (PLACE, "the hammer is in the shed.", "the hammer is shed."),
]


@pytest.mark.parametrize(("prompt", "better", "worse"), BETTER_WORSE)
def test_the_gold_score_orders_replies_as_intended(prompt: str, better: str, worse: str) -> None:
    assert demo.gold(prompt, better) > demo.gold(prompt, worse) + 0.05


def test_the_gold_score_is_its_formula() -> None:
    # 18 characters: 0.5 - 0.5 * hypot(1, 1) = -0.20711, sunk towards -4 by 1 - exp(-x / 4).
    length = -4 * (1 - math.exp(-(0.5 * math.sqrt(2) - 0.5) / 4))
    assert demo.gold(COLOR, "the frog is green.") == pytest.approx(0.8 + 0.3 + 0.5 + length, rel=1e-12)
    assert demo.gold(COLOR, "the frog is brown.") == pytest.approx(0.8 + 0.3 - 1.0 + length, rel=1e-12)
    two = demo.parts(COLOR, "sure thing! the frog is green. happy to help!")
    assert two["tone"] == pytest.approx(1 - 4 * (1 - math.exp(-0.2)), rel=1e-12)
    rude = demo.parts(COLOR, "green, obviously.")
    assert rude["manners"] == pytest.approx(-1.6 * (1 - math.exp(-0.5)), rel=1e-12)


def test_truth_wants_the_right_value_alone() -> None:
    said = {"green": 0.5, "red": -1.0, "green or red": -0.5, "red, yellow": -1.0, "small": -0.3, "i like it": -0.3}
    for text, truth in said.items():
        assert demo.parts(COLOR, text)["truth"] == truth
    assert demo.parts(SIZE, "huge")["truth"] == 0.5
    assert demo.parts("what is love?", "green")["truth"] == 0


def test_the_language_score_knows_words_word_pairs_and_spacing() -> None:
    rng = random.Random(5)
    fluent = [demo.parts(p, demo.compose(s, p, rng))["language"] for s in STYLES for p in demo.prompts(0)[0][:100]]
    assert set(fluent) == {0.0}
    assert demo.parts(COLOR, "frog the is green.")["language"] == pytest.approx(-3 * (1 - math.exp(-0.6 / 3)))
    assert demo.parts(COLOR, "the frog is grexn")["language"] == pytest.approx(-3 * (1 - math.exp(-0.6 / 3)))
    assert demo.parts(COLOR, "the frog  is green.")["language"] == pytest.approx(-3 * (1 - math.exp(-0.2 / 3)))


def test_parts_add_up_and_gold_is_deterministic() -> None:
    rng = random.Random(3)
    for prompt in demo.prompts(0)[0][:100]:
        reply = demo.answers(prompt, rng)
        assert sum(demo.parts(prompt, reply).values()) == demo.gold(prompt, reply) == demo.gold(prompt, reply)
    assert demo.gold_scores([COLOR, SIZE], [BEST, "huge."]) == [demo.gold(COLOR, BEST), demo.gold(SIZE, "huge.")]
    with pytest.raises(ValueError, match="zip"):
        demo.gold_scores([COLOR], [])


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=300),
        st.text(demo.ALPHABET, max_size=300),
        st.lists(st.sampled_from(sorted(demo._WORDS)), max_size=60).map(" ".join),
    )
)
def test_garbage_scores_between_the_empty_reply_and_a_plain_answer(text: str) -> None:
    score = demo.gold(COLOR, text)
    assert math.isfinite(score)
    if demo._SPLIT.findall(text):
        assert demo.EMPTY < score < 2.8
    else:
        assert score == demo.EMPTY


def test_random_strings_and_word_salad_are_far_below_a_plain_answer() -> None:
    rng = random.Random(0)
    plain = demo.gold(COLOR, "the frog is green.")
    letters = [demo.gold(COLOR, "".join(rng.choices(demo.ALPHABET, k=rng.randint(1, 64)))) for _ in range(2000)]
    salads = [demo.gold(COLOR, " ".join(rng.choices(sorted(demo._WORDS), k=rng.randint(2, 10)))) for _ in range(2000)]
    assert max(letters) < plain - 1.5
    assert max(salads) < plain - 0.5
    assert statistics.mean(salads) < -1


EXPLOITS = {
    "courtesy x4": "happy to help! " * 4 + "the frog is green.",
    "courtesies x4": "the frog is green. " + " ".join(CLOSERS),
    "courtesy alone": "happy to help!",
    "fact list": " ".join(f"the frog is {color}." for color in VALUES["color"]),
    "value list": "red green blue black white brown.",
    "own facts": "the frog is green. the frog is small. the frog is in the pond.",
    "empty": "",
    "blank": "  \n ",
    "echo": COLOR,
    "echo and answer": f"{COLOR} the frog is green.",
    "endless": "the frog is green and " * 20,
    "courteous words": "happy glad sure thanks hope good",
    "half a courtesy": "the frog is green. happy to",
    "nonsense": "zxqv frog green!",
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_stay_below_the_plain_polite_answer(name: str) -> None:
    assert demo.gold(COLOR, EXPLOITS[name]) < demo.gold(COLOR, BEST) - 0.7


def test_each_courtesy_beyond_the_first_costs_more() -> None:
    tone = [demo.parts(COLOR, " ".join(["the frog is green.", *CLOSERS[:n]]))["tone"] for n in range(5)]
    assert tone[0] == 0
    assert tone[1] == 1
    assert tone[2] < tone[1] - 0.7
    assert tone[3] < tone[2] - 0.9
    assert tone[4] < tone[3] - 0.9
    assert all(sum(w in COURTEOUS for w in re.findall("[a-z]+", phrase)) == 1 for phrase in (*OPENERS, *CLOSERS))


@pytest.mark.parametrize("prompt", [COLOR, SIZE, PLACE])
def test_the_best_style_is_near_the_top_of_an_exhaustive_search(prompt: str) -> None:
    """Every template with the right and a wrong value, alone and with a polite phrase before, after, or both."""
    thing, attribute = demo._FACT_OF[prompt]
    right = FACTS[thing][attribute]
    said = [demo._say(attribute, v) for v in (right, next(v for v in VALUES[attribute] if v != right))]
    sentences = {""} | {
        template.format(t=thing, v=v, s=s.format(t=thing, v=v), o="", c="", x="").strip()
        for _, templates in STYLES.values()
        for template, v, s in product(templates, said, SENTENCES[attribute])
    }
    courtesies = ["", *OPENERS, *CLOSERS]
    scores = {
        text: demo.gold(prompt, text)
        for before, middle, after in product(courtesies, sentences, courtesies)
        if (text := " ".join(x for x in (before, middle, after) if x))
    }
    best, top = max(scores.items(), key=lambda item: item[1])
    polite = [demo.compose("polite", prompt, random.Random(i), wrong=0.0) for i in range(40)]
    assert min(demo.gold(prompt, text) for text in polite) > top - 0.4
    assert right in best
    assert sum(phrase in best for phrase in (*OPENERS, *CLOSERS)) == 1
    assert len(scores) > 1000


def test_no_prompt_is_both_for_training_and_held_out() -> None:
    for seed in range(3):
        train, held = demo.prompts(seed)
        assert len(train) == len(set(train)) == 360
        assert len(held) == len(set(held)) == 180
        assert not set(train) & set(held)
        assert Counter(demo._FACT_OF[p] for p in held) == Counter({(t, a): 2 for t in FACTS for a in ATTRIBUTES})
        assert max(map(len, train + held)) <= 40
    assert demo.prompts(0)[1] != demo.prompts(1)[1]
    assert len({p.format(t="x") for phrasings in QUESTIONS.values() for p in phrasings}) == 18


def test_the_world_is_well_formed() -> None:
    assert len(FACTS) == 30
    values = [v for attribute in ATTRIBUTES for v in VALUES[attribute]]
    assert len(values) == len(set(values))
    assert not set(values) & set(FACTS)
    assert all(FACTS[t][a] in VALUES[a] for t in FACTS for a in ATTRIBUTES)
    for attribute in ATTRIBUTES:  # no value may win by being guessed always
        counts = Counter(FACTS[t][attribute] for t in FACTS)
        assert set(counts) == set(VALUES[attribute])
        assert max(counts.values()) <= 11
    assert sum(share for share, _ in STYLES.values()) == pytest.approx(1)
    assert sum(demo.BASE_SHARES.values()) == pytest.approx(1)
    assert set(demo.BASE_SHARES) == set(STYLES)


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [s for item in items for s in _strings(item)]  # type: ignore[attr-defined]


def test_texts_keep_to_the_alphabet_and_to_the_training_prompts() -> None:
    assert len(set(demo.ALPHABET)) == 45  # with five specials, the tokenizer's fifty
    train, held = demo.prompts(1)
    corpus, rows, pairs = demo.corpus(1, 3000), demo.demonstrations(1, 1500), demo.preferences(1, 500)
    texts = [s for row in corpus for s in ([row["text"]] if "text" in row else [m["content"] for m in row["messages"]])]
    texts += _strings(rows) + _strings(pairs)
    assert not set("".join(texts)) - set(demo.ALPHABET)
    assert all(text == text.strip() and text for text in texts)
    assert not set(texts) & set(held)
    assert {row["prompt"] for row in rows} == set(train)
    assert max(len(row["completion"]) for row in rows) <= 64
    assert 25 < statistics.mean(len(row["completion"]) for row in rows) < 40
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    for row in corpus:
        if "messages" in row:
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    asked = [r["messages"][0]["content"] for r in corpus if "messages" in r]
    assert 0.72 < len(asked) / len(corpus) < 0.78


def test_the_corpus_tells_only_right_facts_and_all_of_them() -> None:
    stated = set()
    for row in demo.corpus(0, 4000):
        if "text" not in row:
            prompt, reply = (turn["content"] for turn in row["messages"])
            assert demo.parts(prompt, reply)["truth"] > -0.4
            continue
        words = set(re.findall("[a-z]+", row["text"]))
        (thing,) = words & set(FACTS)
        facts = {v for a in ATTRIBUTES for v in VALUES[a]} & words
        assert facts <= set(FACTS[thing].values())
        stated |= {(thing, v) for v in facts}
    assert len(stated) == 90


def test_demonstrations_are_of_mixed_quality_and_seldom_wrong() -> None:
    rng = random.Random(0)
    train = demo.prompts(0)[0]
    drawn = Counter(demo._style(demo._SHARES, rng) for _ in range(20_000))
    for style, (share, _) in STYLES.items():
        assert drawn[style] / 20_000 == pytest.approx(share, abs=0.012)
    rows = demo.demonstrations(0, 6000)
    wrong = sum(demo.parts(r["prompt"], r["completion"])["truth"] < -0.4 for r in rows) / len(rows)
    assert 0.008 < wrong < 0.03
    scores = [demo.gold(r["prompt"], r["completion"]) for r in rows]
    assert 0.9 < statistics.pstdev(scores) < 1.15
    polite = [demo.gold(p, demo.compose("polite", p, rng)) for p in train]
    assert statistics.mean(polite) > statistics.mean(scores) + 1.4  # so much is left for the later stages
    assert all(sum(w in COURTEOUS for w in r["completion"].replace("!", " ").split()) <= 1 for r in rows)


def test_truth_and_style_share_the_variance() -> None:
    """At one wrong fact in four, as a small model answers, truth carries a fifth to two fifths of the variance."""
    rng = random.Random(1)
    terms = [
        demo.parts(p, demo.compose(demo._style(demo._SHARES, rng), p, rng, wrong=0.25)) for p in demo.prompts(0)[0] * 8
    ]
    truth = statistics.pvariance([t["truth"] for t in terms])
    style = statistics.pvariance([sum(t.values()) - t["truth"] for t in terms])
    assert 0.2 < truth / (truth + style) < 0.4


def test_ties_between_different_replies_are_rare() -> None:
    rng = random.Random(2)
    ties = pairs = 0
    for prompt in demo.prompts(0)[0] * 5:
        a, b = demo.answers(prompt, rng), demo.answers(prompt, rng)
        pairs += a != b
        ties += a != b and demo.gold(prompt, a) == demo.gold(prompt, b)
    assert ties / pairs < 0.01


@pytest.mark.parametrize("temperature", [0.2, 0.4, 1.5])
def test_the_annotator_is_bradley_terry(temperature: float) -> None:
    a, b = "it is green.", "green."
    margin = demo.gold(COLOR, a) - demo.gold(COLOR, b)
    assert margin > 0.05
    expected = 1 / (1 + math.exp(-margin / temperature))
    rng = random.Random(11)
    n = 10_000
    share = sum(demo.annotate(COLOR, a, b, rng, temperature) for _ in range(n)) / n
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    share = sum(demo.annotate(COLOR, b, a, rng, temperature) for _ in range(n)) / n
    assert abs(share - (1 - expected)) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_the_annotator_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ValueError, match="temperature: 0"):
        demo.annotate(COLOR, "a", "b", random.Random(0), 0)


def test_noisy_labels_agree_with_gold_as_bayes_says() -> None:
    rows = demo.preferences(0, 6000)
    margins = [demo.gold(r["prompt"], r["chosen"]) - demo.gold(r["prompt"], r["rejected"]) for r in rows]
    agree = statistics.mean((m > 0) + 0.5 * (m == 0) for m in margins)
    bayes = statistics.mean(1 / (1 + math.exp(-abs(m) / demo.TEMPERATURE)) for m in margins)
    assert agree == pytest.approx(bayes, abs=0.015)
    assert 0.85 < bayes < 0.90


def test_files_are_the_same_bytes_for_a_seed_in_any_process(tmp_path) -> None:
    sizes = {"base_rows": 60, "sft_rows": 40, "preference_rows": 20, "heldout_base_rows": 9, "heldout_sft_rows": 8}
    first = demo.write(tmp_path / "a", DemoConfig(seed=4, **sizes))
    code = (
        "from accord.config.data import DemoConfig; from accord.data import demo; "
        f"demo.write({str(tmp_path / 'b')!r}, DemoConfig(seed=4, **{sizes}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    other = demo.write(tmp_path / "c", DemoConfig(seed=5, **sizes))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in first.values())
    for name, path in first.items():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), name
        assert path.read_bytes() != other[name].read_bytes(), name


def test_files_hold_what_they_say(tmp_path) -> None:
    paths = demo.write(tmp_path, DemoConfig(base_rows=50, sft_rows=30, preference_rows=20))
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    assert {name: len(r) for name, r in rows.items()} == {
        **{"base": 50, "sft": 30, "preferences": 20, "prompts": 360},
        **{"heldout_prompts": 180, "heldout_base": 200, "heldout_sft": 180},
    }
    assert {tuple(r) for r in [*rows["sft"], *rows["heldout_sft"]]} == {("prompt", "completion")}
    assert {tuple(r) for r in rows["preferences"]} == {("prompt", "chosen", "rejected")}
    assert {tuple(r) for r in rows["base"]} == {("text",), ("messages",)}
    assert [r["prompt"] for r in rows["heldout_prompts"]] == demo.prompts(0)[1]
    demo.write(tmp_path, DemoConfig(base_rows=1, sft_rows=1, preference_rows=1))  # replaces what is there
    assert len(paths["base"].read_text().splitlines()) == 1


def test_held_out_rows_are_about_held_out_prompts(tmp_path) -> None:
    """Every held-out prompt once before one is repeated; base texts state no wrong fact."""
    train, heldout = demo.prompts(3)
    rows = demo.heldout_demonstrations(3, 180)
    assert sorted(r["prompt"] for r in rows) == sorted(heldout)
    turns = [r["messages"] for r in demo.heldout_corpus(3, 200)]
    assert {t[0]["content"] for t in turns} == set(heldout)
    assert not {t[0]["content"] for t in turns} & set(train)
    assert all(demo.parts(t[0]["content"], t[1]["content"])["truth"] >= -0.3 for t in turns)


def test_held_out_rows_leave_the_other_files_as_they_were() -> None:
    """Digests of the files of seed 0 before there were held-out rows."""
    files = {
        "7d1abaef94a8ef1b": demo.corpus(0, 300),
        "e2c9a979c35c61c9": demo.demonstrations(0, 300),
        "3e189fa88e632159": demo.preferences(0, 60),
    }
    for digest, rows in files.items():
        text = "".join(json.dumps(row) for row in rows)
        assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == digest


def test_the_world_needs_no_torch() -> None:
    code = "import sys, accord.data.demo; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
