"""A project's votes in figures: lists, and the whole report."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from accord.feedback.entities import ADJUDICATION
from accord.feedback.report import annotator_reports, describe_votes, disagreements
from tests.feedback.tables import simulated, table

pytest.importorskip("krippendorff", reason="the extra feedback is not installed")


def test_disagreements_come_most_divided_first() -> None:
    votes = table({"x": "aaa", "y": "abb", "z": "aa="})
    found = disagreements(votes)
    assert [d.pair for d in found] == [2, 1]
    assert found[0].entropy == pytest.approx(math.log(3))
    assert found[1].choices == {"a": 2, "b": 1}


def test_an_annotator_who_always_contradicts_stands_out() -> None:
    reports = {r.annotator: r for r in annotator_reports(table({"x": "abab", "y": "abab", "z": "baba", "w": "-..."}))}
    assert reports["x"].agreement == reports["y"].agreement == 0.5
    assert (reports["z"].agreement, reports["z"].compared) == (0.0, 8)
    assert (reports["w"].agreement, reports["w"].votes, reports["w"].skipped) == (None, 0, 1)


def test_a_project_without_votes_has_a_report() -> None:
    found = describe_votes([])
    assert (found.votes, found.alpha.value, found.noise_ceiling, found.by_annotator) == (0, None, None, ())


def test_the_report_recovers_the_accuracy_of_simulated_annotators() -> None:
    found = describe_votes(simulated(1500, 3, 0.85), resamples=20)
    assert found.noise_ceiling == pytest.approx(0.85, abs=0.015)
    assert found.decisive_agreement.value == found.agreement.value
    assert (found.votes, found.pairs, found.overlapping, found.annotators) == (4500, 1500, 1500, 3)
    assert found.choices["a"] + found.choices["b"] == 4500


def test_the_owners_decisions_are_in_no_figure() -> None:
    votes = table({"x": "aab=b", "y": "abb0b"}) + table({"x": "ab=ab"}, occasion=1)
    decisions = [replace(vote, annotator="owner", occasion=ADJUDICATION, left="b") for vote in table({"x": "bbaaa"})]
    assert describe_votes([*votes, *decisions], resamples=50) == describe_votes(votes, resamples=50)
