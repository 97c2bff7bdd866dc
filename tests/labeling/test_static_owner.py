"""The owner's page in a browser: figures, annotators, decisions."""

from __future__ import annotations

import re
from typing import Any

import pytest

from accord.feedback.queue import next_questions
from accord.feedback.votes import cast
from tests.labeling.browsers import NUMBERED, PROJECT, Site

expect = getattr(
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)"), "expect", None
)


def answer(site: Site, name: str, choices: str) -> None:
    """Votes of a new annotator, one per pair in their order: a, b, t(ie) or n(either)."""
    site.store.add_annotator(PROJECT, name)
    annotator = site.store.annotator(PROJECT, name)
    for n, wanted in enumerate(choices):
        (question,) = next_questions(site.store, annotator, 1)
        left = "left" if question.left.startswith("First") == (wanted == "a") else "right"
        shown: Any = {"t": "tie", "n": "both_bad"}.get(wanted, left)
        cast(
            site.store,
            annotator,
            question.id,
            shown,
            request=f"{name}{n}",
            strength=2,
            seconds=5.0 + n,
            comment=f"<b>{name}</b>",
        )


def open_owner(site, sign_in) -> tuple[Site, Any]:
    here = site(NUMBERED[:6], overlap=2)
    answer(here, "Bo", "aabbt")
    answer(here, "<i>Cy</i>", "aabat")
    return here, sign_in(here, "Olga", "owner", ready=".tile >> nth=0")


def test_the_figures_are_those_of_the_votes(site, sign_in) -> None:
    _, page = open_owner(site, sign_in)
    words = [re.sub(r"\n+", "\n", tile.inner_text()) for tile in page.locator(".tile").all()]
    tiles = dict(text.strip().split("\n", 1) for text in words)
    assert tiles["Votes"].startswith("10\n")
    assert "2 votes missing on 6 pairs, 2 each" in tiles["Votes"]
    assert tiles["Agreement"].split()[0:2] == ["80", "%"]  # four of five pairs
    assert tiles["Pace"].startswith("7.0 s")
    assert tiles["Self-agreement"].startswith("–")
    assert re.match(r"0\.\d\d\n95 %: −?[\d.]+ to [\d.]+", tiles["Krippendorff’s α"])
    expect(page.locator(".legend")).to_contain_text("one is better")
    assert [item.inner_text().split()[-1] for item in page.locator(".legend li").all()] == ["8", "2", "0", "0"]
    expect(page.locator("#kappas tbody tr")).to_have_count(1)
    assert page.locator("#people tbody th").all_inner_texts() == ["Bo", "<i>Cy</i>", "Olga"]
    assert page.locator("main i, main b script").count() == 0
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390  # wide tables scroll in their own frame


def test_a_disagreement_is_decided_beside_the_votes(site, sign_in) -> None:
    here, page = open_owner(site, sign_in)
    before = sorted(vote.choice for vote in here.votes())
    expect(page.locator("#disagreements button")).to_have_count(1)
    page.locator("#disagreements button").click()
    expect(page.locator("#messages")).to_contain_text("Question 3?")
    expect(page.locator("#given li")).to_have_count(2)
    expect(page.locator("#given")).to_contain_text("<b>Bo</b>")
    page.locator("#decide").get_by_role("button", name="Both bad").click()
    expect(page.locator("#disagreements")).to_contain_text("decided")
    after = [vote.choice for vote in here.votes()]
    assert sorted(after) == sorted([*before, "both_bad"])
    expect(page.locator(".tile >> nth=0")).to_contain_text("10")


def test_the_owner_adds_annotators_and_revokes_their_tokens(site, sign_in, visit) -> None:
    here, page = open_owner(site, sign_in)
    page.get_by_label("Name of a new annotator").fill("Dee")
    page.get_by_role("button", name="Add").click()
    page.locator("#token").wait_for()
    token = page.locator("#token-value").inner_text()
    assert here.store.authenticate(token).name == "Dee"
    page.get_by_role("button", name="I have passed it on").click()
    expect(page.locator("#token-value")).to_be_empty()
    page.get_by_label("Name of a new annotator").fill("Dee")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#people-error")).to_contain_text("already")
    page.get_by_role("button", name="Revoke for Dee").click()
    page.get_by_role("button", name="Cancel").click()
    assert here.store.authenticate(token) is not None
    page.get_by_role("button", name="Revoke for Dee").click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#people tbody tr", has_text="Dee")).to_contain_text("no token")
    assert here.store.authenticate(token) is None


def test_a_reward_model_is_compared_on_demand(site, sign_in, monkeypatch) -> None:
    from accord.labeling import reward_check

    def compare(rows, model):
        accuracy = {"value": 0.625, "low": 0.3, "high": 0.86, "count": len(rows)}
        return {"model": "reward@3", "accuracy": accuracy, "noise_ceiling": 0.81, "agreement": 0.7}

    monkeypatch.setattr(reward_check, "compare", compare)
    _, page = open_owner(site, sign_in)
    expect(page.locator("#reward")).to_contain_text("No reward model has been compared")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#reward")).to_contain_text("reward@3, on the newest 10 votes")
    expect(page.locator("#reward")).to_contain_text("95 %: 30 % to 86 %")
    expect(page.locator("#reward")).to_contain_text("81 %")


def test_an_annotator_does_not_get_the_owners_page(site, sign_in) -> None:
    here = site()
    page = sign_in(here)
    page.goto(here.url + "/owner")
    page.wait_for_url("**/label")
    assert page.request.get(here.url + "/api/owner").status == 403
