"""People as the judge: adds the pairs to a project of the store, and waits until they have voted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accord.config.feedback import People
from accord.data.samples import Sample
from accord.data.turns import inputs_of
from accord.errors import UserError, Waiting
from accord.feedback.connect import place_of
from accord.feedback.entities import Choice, Project, VoteRow
from accord.feedback.pairs_file import messages, new_candidate
from accord.feedback.snapshot import take_snapshot
from accord.feedback.store import NewPair, ProjectSettings, Store, digest_of, open_store
from accord.feedback.vote_rows import read_votes
from accord.feedback.waiting import WAITING, wait_in_words
from accord.feedback.wanted import answers_to
from accord.io.atomic import write_json
from accord.runtime.run import Run
from accord.stage_kinds.judges.judgment import Comparison, Judgment
from accord.stage_kinds.judges.matching import Matching, draw_pairs

SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class PeopleJudge:
    """Asks a project's annotators; every vote on the drawn pairs is a judgment."""

    project: str
    settings: People
    matching: Matching
    run: Run

    def __post_init__(self) -> None:
        """Raises UserError where the store that ACCORD_FEEDBACK names is there and cannot be used; creates none."""
        place = place_of(None)
        if "://" in place or Path(place).exists():
            open_store()

    def judge(self, samples: Sequence[Sample]) -> list[Judgment]:
        """Raises Waiting while votes are missing, after the pairs were added to the project."""
        pairs = draw_pairs(samples, self.matching, random.Random(self.run.derive("pairs for people")))
        new = [new_pair(samples, pair, self.run.name) for pair in pairs]
        asked = dict(zip(map(digest_of, new), pairs, strict=True))
        store = open_store()
        self._add(store, new)
        self._require_votes(store, list(asked))
        snapshot = take_snapshot(store, self.project, self.run.directory / SNAPSHOT)
        self.run.read[f"votes of {self.project}"] = snapshot.digest
        votes = read_votes(store, self.project, snapshot.until)
        return [judgment(samples, asked[vote.digest], vote) for vote in votes if vote.digest in asked]

    def _add(self, store: Store, pairs: Sequence[NewPair]) -> None:
        project = self._project(store)
        if self.settings.overlap not in (0, project.settings.overlap):
            settings = replace(project.settings, overlap=self.settings.overlap)
            store.change_project(self.project, settings)
        added = store.add_pairs(self.project, pairs)
        if added:
            self.run.say(f"added {added:,} pairs to project {self.project} in {store.address}")

    def _project(self, store: Store) -> Project:
        """The project, created where it is missing."""
        if self.project not in {project.name for project in store.projects()}:
            try:
                store.create_project(self.project, ProjectSettings(overlap=self.settings.overlap or 1))
            except UserError:  # another process may have created it in the meantime
                return store.project(self.project)
        return store.project(self.project)

    def _require_votes(self, store: Store, digests: list[str]) -> None:
        """Raises Waiting, and UserError where more votes are wanted than can be given."""
        answers, wanted = answers_to(store, self.project, digests), self.settings.votes
        if wanted > answers.possible:
            raise UserError(
                f"people.votes: {wanted:,}, but {len(digests):,} pairs with an overlap of {answers.possible // len(digests)}"
                f" give {answers.possible:,} at most; lower it, raise people.overlap, or sample more."
            )
        if missing := answers.missing(wanted):
            record = {"project": self.project, "missing": missing, "votes": wanted, "pairs": digests}
            write_json(self.run.directory / WAITING, {"key": self.run.key, **record, "page": self.settings.page})
            raise Waiting(f"{self.run.name}: {wait_in_words(missing, self.project, self.settings.page)}.")


def new_pair(samples: Sequence[Sample], pair: Comparison, source: str) -> NewPair:
    """A pair as the store takes it."""
    sample = samples[pair.prompt]
    a, b = (new_candidate(sample.candidates[i]) for i in (pair.a, pair.b))
    return NewPair(messages(sample.prompt), a, b, pair.asked_with, None, source, inputs_of(sample.prompt))


def judgment(samples: Sequence[Sample], pair: Comparison, vote: VoteRow) -> Judgment:
    """A vote as a judgment of the drawn pair, whose replies the store may hold in the other order."""
    same = samples[pair.prompt].candidates[pair.a].text == vote.a.text
    flipped: dict[Choice, Choice] = {"a": "b", "b": "a"}
    choice: Choice = vote.choice if same else flipped.get(vote.choice, vote.choice)
    shown = {"strength": vote.strength, "seconds": vote.seconds, "left": vote.left if same else flipped[vote.left]}
    details = {**shown, "occasion": vote.occasion, "created": vote.created.isoformat(), "pair": vote.digest}
    return Judgment(replace(pair, asked_with=vote.probability), choice, vote.annotator, vote.occasion > 0, details)
