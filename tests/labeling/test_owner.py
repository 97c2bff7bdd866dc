"""The owner's page: figures against hand-computed ones, people, disagreements to decide."""

from __future__ import annotations

import time
from typing import Any

import pytest

from accord.feedback.adjudication import ADJUDICATION
from accord.feedback.store import ProjectSettings
from accord.feedback.vote_rows import read_votes
from tests.labeling.visitors import NewPage, Page, Person, new_pair, try_token

OVERLAP = ProjectSettings(overlap=2, repeat_share=0, gold_share=0)


def vote_all(person: Person, choices: dict[str, str]) -> None:
    """Votes on every question; ``choices``: for a prompt the text of the better reply, or tie, both_bad, skip."""
    while found := person.questions():
        question = found[0]
        wanted = choices[question["messages"][0]["html"][3:-5]]
        sides = [side for side in ("left", "right") if question[side]["text"] == wanted]
        assert person.vote(question["id"], sides[0] if sides else wanted).status_code == 200


@pytest.fixture
def voted(new_page: NewPage) -> Page:
    """Ann and Bob agree on three of four pairs."""
    page = new_page([new_pair(f"q{i}", f"x{i}", f"y{i}") for i in range(4)], settings=OVERLAP)
    vote_all(page.annotator("ann"), {"q0": "x0", "q1": "y1", "q2": "tie", "q3": "x3"})
    vote_all(page.annotator("bob"), {"q0": "x0", "q1": "y1", "q2": "tie", "q3": "y3"})
    return page


def test_the_figures_are_those_of_the_votes(voted: Page) -> None:
    owner = voted.annotator("boss", "owner")
    found = owner.get("/api/owner").json()
    assert (found["project"], found["overlap"]) == ("demo", 2)
    assert found["coverage"] == {"pairs": 4, "votes": 8, "missing": 0}
    assert (found["votes"], found["pairs"], found["overlapping"], found["skipped"]) == (8, 4, 4, 0)
    assert found["choices"] == {"a": 3, "b": 3, "tie": 2, "both_bad": 0, "skip": 0}
    # alpha = 1 - (N - 1) * disagreeing / (N² - sum n²) * ..., with n = 3, 3, 2: one of four pairs disagrees
    assert found["alpha"]["value"] == pytest.approx(1 - (2 / 8) / ((3 * 3 + 3 * 2 + 3 * 2) * 2 / (8 * 7)))
    assert found["alpha"]["low"] <= found["alpha"]["value"] <= found["alpha"]["high"]
    assert found["agreement"]["value"] == pytest.approx(3 / 4)
    assert found["decisive_agreement"]["value"] == pytest.approx(2 / 3)
    assert found["noise_ceiling"] == pytest.approx((1 + (2 * 2 / 3 - 1) ** 0.5) / 2)
    assert found["tie_share"] == pytest.approx(2 / 8)
    assert found["seconds"] == 1.5
    (kappa,) = found["kappas"]
    assert {kappa["first"], kappa["second"]} == {"ann", "bob"}
    assert kappa["kappa"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    people = {person["name"]: person for person in found["annotators"]}
    assert set(people) == {"ann", "bob", "boss"}
    assert people["ann"]["votes"] == 4
    assert people["ann"]["agreement"] == pytest.approx(3 / 4)
    assert people["boss"] | {"annotator": ""} == {
        "votes": 0,
        "skipped": 0,
        "annotator": "",
        "name": "boss",
        "role": "owner",
        "active": True,
    }
    (divided,) = found["disagreements"]
    assert (divided["choices"], divided["decided"]) == ({"a": 1, "b": 1}, None)
    assert found["reward"] == {"state": "none"}


def test_a_project_without_votes_has_figures_too(page: Page) -> None:
    found = page.annotator("boss", "owner").get("/api/owner").json()
    assert found["votes"] == 0
    assert found["alpha"]["value"] is None
    assert found["disagreements"] == []


def test_the_owner_decides_a_disagreement_apart_from_the_figures_of_agreement(voted: Page) -> None:
    owner = voted.annotator("boss", "owner")
    before = owner.get("/api/owner").json()
    pair = before["disagreements"][0]["pair"]
    found = owner.post("/api/owner/disagreement", {"pair": pair}).json()
    question = found["question"]
    chosen = {vote["name"]: question[vote["choice"]]["text"] for vote in found["votes"]}
    assert chosen == {"ann": "x3", "bob": "y3"}
    assert found["decided"] is None
    side = "left" if question["left"]["text"] == "x3" else "right"
    body = {"request": "d", "question": question["id"], "choice": side}
    assert owner.post("/api/owner/votes", body).status_code == 200
    again = owner.post("/api/owner/disagreement", {"pair": pair}).json()
    assert (again["question"], again["decided"]) == (question, side)
    after = owner.get("/api/owner").json()
    assert after["disagreements"][0]["decided"] == "a"
    for figure in ("alpha", "agreement", "votes", "coverage", "kappas"):
        assert after[figure] == before[figure], figure
    (decision,) = [row for row in read_votes(voted.store, "demo") if row.occasion == ADJUDICATION]
    assert decision.choice == "a"


def test_a_pair_of_another_project_cannot_be_decided(page: Page) -> None:
    page.store.create_project("other")
    page.store.add_pairs("other", [new_pair("secret", "x", "y")])
    owner = page.annotator("boss", "owner")
    for pair in (6, 4711):
        answer = owner.post("/api/owner/disagreement", {"pair": pair})
        assert (answer.status_code, answer.json()) == (
            400,
            {"error": f"pair {pair}: not in project 'demo'; reload the page."},
        )


def test_annotators_are_added_given_a_new_token_and_revoked(page: Page) -> None:
    owner = page.annotator("boss", "owner")
    made = owner.post("/api/owner/annotators", {"name": "Zoë"}).json()
    ann = page.sign_in(made["token"])
    assert ann.questions()
    assert owner.post("/api/owner/annotators", {"name": "Zoë"}).status_code == 400
    new = owner.post("/api/owner/annotators/token", {"name": "Zoë"}).json()["token"]
    assert ann.get("/api/questions").status_code == 401
    assert try_token(page.browser(), made["token"]).status_code == 401
    ann = page.sign_in(new)
    assert owner.post("/api/owner/annotators/revoke", {"name": "Zoë"}).json() == {"name": "Zoë", "active": False}
    assert ann.get("/api/questions").status_code == 401
    people = {person["name"]: person for person in owner.get("/api/owner").json()["annotators"]}
    assert people["Zoë"]["active"] is False


@pytest.mark.parametrize("name", ["", " x", "x" * 81, "a\nb", "a\u202eb", "\ud800", None, 7])
def test_a_name_that_is_none_is_refused_in_a_sentence(page: Page, name: Any) -> None:
    answer = page.annotator("boss", "owner").post("/api/owner/annotators", {"name": name})
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()) == {"error"}


def test_owners_cannot_lock_themselves_out(page: Page) -> None:
    owner = page.annotator("boss", "owner")
    for path in ("/api/owner/annotators/revoke", "/api/owner/annotators/token"):
        assert owner.post(path, {"name": "boss"}).status_code == 400
    assert owner.get("/api/owner").status_code == 200


def test_the_reward_model_is_compared_while_the_page_answers(voted: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    import accord.labeling.reward_check as reward_check

    asked = []

    def slow(rows: Any, model: str) -> dict[str, Any]:
        asked.append((len(rows), model))
        time.sleep(0.2)
        return {"model": "reward@1"}

    monkeypatch.setattr(reward_check, "compare", slow)
    voted.start(reward_model="mine")
    owner = voted.annotator("boss", "owner")
    assert owner.post("/api/owner/reward").json() == {"reward": {"state": "running"}}
    assert owner.post("/api/owner/reward").json() == {"reward": {"state": "running"}}
    deadline = time.monotonic() + 20
    while (state := owner.get("/api/owner").json()["reward"]) == {"state": "running"} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state == {"state": "done", "model": "reward@1"}
    assert asked == [(8, "mine")]


def test_there_is_nothing_to_compare_before_the_first_vote(page: Page) -> None:
    answer = page.annotator("boss", "owner").post("/api/owner/reward")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("no vote for one side yet")
