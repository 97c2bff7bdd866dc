"""The registry: names, versions, aliases and tags of artifacts in one SQLite file, safe for concurrent writers.

A reference is ``NAME`` (the newest version of the current run), ``NAME@3``, ``NAME@ALIAS``, or at least six digits of a
digest.  A run is the folder ``out`` that a version's stage wrote to.  Paths in the file are relative to its folder, so
that a project can be moved.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from accord.config.common import Stage
from accord.errors import UserError
from accord.io.atomic import set_aside
from accord.io.digests import read_manifest
from accord.io.records import RegistryRow, check, check_json
from accord.registry import artifact_files, migrations, schema
from accord.registry.family import Family, Record, from_json, of_manifest, of_path, to_json
from accord.registry.schema import aliases, models, names, parents, reading, runs, tags, writing

PATH_VARIABLE = "ACCORD_REGISTRY"
DEFAULT = Path("checkpoints/registry.sqlite")
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a named model."""

    id: int
    name: str
    version: int
    kind: str
    digest: str
    created: str
    code: str
    seed: int | None
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    parents: Mapping[str, str]  # config key: digest
    aliases: tuple[str, ...]  # including "latest" for the version that the name alone means
    tags: Mapping[str, str]
    manifest: Mapping[str, Any]
    ancestors: Family
    folder: Path  # opens with transformers
    outs: tuple[str, ...] = ()  # the runs that it comes from, the newest first; none where it was imported
    damage: str = ""  # what is wrong with its row; then only label, aliases and tags are right

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def record(self) -> Record:
        """This version as a record of a lineage."""
        own = {"name": self.name, "digest": self.digest, "parents": dict(self.parents)}
        return of_manifest({**self.manifest, **own, "metrics": dict(self.metrics), "settings": dict(self.settings)})


def open_store(path: Path | None = None, *outs: str | Path) -> Store:
    """The registry at ``path``, else at ACCORD_REGISTRY, else at ``checkpoints/registry.sqlite``.

    ``outs``: the runs whose versions a name alone means, the first one first; by default that of the stages, else the only
    one there is.  The file is created by the first write.  Raises UserError for a newer format, and for a file that is not
    a registry or cannot be read.
    """
    place = Path(path or os.environ.get(PATH_VARIABLE) or DEFAULT)
    try:
        return Store(place, tuple(map(Path, outs)))
    except OSError as error:
        raise UserError(f"{place}: the registry cannot be opened ({error.strerror}).") from None


def default_out() -> Path:
    """The folder that stages write to by default."""
    return Path(Stage.model_fields["out"].default)


class Store:
    """A registry; every method is one transaction.  One that cannot be written is read as a copy in memory."""

    def __init__(self, path: Path, outs: tuple[Path, ...]) -> None:
        self.path, self.outs = path, outs
        try:
            path.stat()
            exists = True
        except (FileNotFoundError, NotADirectoryError):
            exists = False
        if path.is_dir():
            raise UserError(f"{path}: is a folder; set ACCORD_REGISTRY to a file.")
        self._read_only = exists and not schema.is_writable(path)
        self._engine = schema.engine_of_copy(path) if self._read_only else schema.engine_of(path)
        if exists:
            migrations.upgrade(path, self._engine)

    @property
    def root(self) -> Path:
        return self.path.parent

    # -------------------------------------------------------------- writing
    def add(self, folder: Path, name: str = "", out: Path | None = None) -> Version:
        """Registers an artifact and keeps its files.  The same name and content is the same version, with updated
        metrics.  ``out``: the run that it comes from.  Raises UserError where the folder is not an artifact.
        """
        manifest = read_manifest(folder)
        if not manifest:
            raise UserError(f"{folder}: no manifest.json, so this is not an artifact of accord; give a stage's model/.")
        name = _valid_name(name or str(manifest.get("name") or folder.name), "name")
        digest = str(manifest["digest"])
        place = Path(artifact_files.FOLDER) / _valid_digest(digest, folder)
        family = of_path(folder, digest)
        own = family.pop(digest)
        values = {
            "kind": str(manifest.get("kind", "model")),
            "created": str(manifest.get("created", "")),
            "code": str(manifest.get("versions", {}).get("accord", "")),
            "seed": manifest.get("seed"),
            "metrics": manifest.get("metrics", {}),
            "settings": dict(own.settings),
            "manifest": {**manifest, "name": name},
            "lineage": to_json(family),
            "folder": place.as_posix(),
        }
        self._require_writable()
        if not self.path.exists():
            schema.create(self.path)
        with artifact_files.link_folder(folder, self.root) as aside, writing(self._engine) as c:
            key = _put(c, name, digest, values)
            _put_run(c, key, _relative(self.root, out) if out else "")
            c.execute(sa.delete(parents).where(parents.c.model == key))
            for role, parent in manifest.get("parents", {}).items():
                known = family[parent].name if parent in family else None
                c.execute(sa.insert(parents).values(model=key, role=role, digest=parent, name=known))
            artifact_files.place(aside, self.root / place)
            return _versions(c, self, models.c.id == key)[0]

    def alias(self, text: str, alias: str) -> tuple[Version, Version | None]:
        """Points an alias at a version; returns this version and the former one."""
        _require_alias(alias)
        with self._writing() as c:
            return self._point(c, self._find(c, text), alias)

    def unalias(self, name: str, alias: str) -> None:
        """Removes an alias.  Raises UserError where there is no such alias."""
        with self._writing() as c:
            found = self._find(c, f"{name}@{alias}")
            done = c.execute(sa.delete(aliases).where((aliases.c.name == found.name) & (aliases.c.alias == alias)))
            if not done.rowcount:
                raise UserError(f"{name}@{alias}: {alias!r} is not an alias that can be removed.")

    def promote(self, text: str, alias: str = "champion") -> tuple[Version, Version | None]:
        """As ``alias``, and the former version becomes ``previous``, which can be promoted to undo this."""
        _require_alias(alias)
        with self._writing() as c:
            found, former = self._point(c, self._find(c, text), alias)
            if former is not None:
                self._point(c, former, "previous")
            return found, former

    def tag(self, text: str, tag: str, value: str | None = "") -> Version:
        """Sets a tag, with or without a value; None removes it."""
        _valid_name(tag, "tag")
        with self._writing() as c:
            found = self._find(c, text)
            c.execute(sa.delete(tags).where((tags.c.model == found.id) & (tags.c.tag == tag)))
            if value is not None:
                c.execute(sa.insert(tags).values(model=found.id, tag=tag, value=value))
            return _versions(c, self, models.c.id == found.id)[0]

    def remove(self, text: str, force: bool = False) -> Version:
        """Removes a version, and its files where no other version has them.

        Raises UserError where it has an alias or other versions were made from it, unless ``force``.
        """
        with self._writing() as c:
            found = self._find(c, text)
            named = [a for a in found.aliases if a != LATEST]
            same = (models.c.digest == found.digest) & (models.c.id != found.id)
            shared = bool(c.execute(sa.select(models.c.id).where(same)).first())
            made = sa.select(models.c.name, models.c.version).join(parents).where(parents.c.digest == found.digest)
            children = [] if shared else [f"{n}@{v}" for n, v in c.execute(made.distinct())]
            if named and not force:
                raise UserError(f"{found.label}: has the alias {', '.join(named)}; remove it first, or add --force.")
            if children and not force:
                raise UserError(
                    f"{found.label}: other models were made from it ({', '.join(children)}); add --force to remove it anyway."
                )
            c.execute(sa.delete(models).where(models.c.id == found.id))
            owned = found.folder.parent == self.root / artifact_files.FOLDER and not found.damage
            rest = set_aside(found.folder) if owned and not shared else None
        if rest is not None:
            shutil.rmtree(rest, ignore_errors=True)
        return found

    # -------------------------------------------------------------- reading
    def find(self, text: str, *, damaged: bool = False) -> Version:
        """The version of a reference.

        Raises UserError with the closest known name, and for a damaged row unless ``damaged``.
        """
        if not self.path.exists():
            raise UserError(f"{text}: there is no model in the registry yet ({self.path}).")
        with reading(self._engine) as c:
            found = self._find(c, text)
        if found.damage and not damaged:
            raise UserError(found.damage)
        return found

    def list(self, name: str = "", kind: str = "") -> list[Version]:
        """All versions, or those of a name or kind, sorted by name and version."""
        if not self.path.exists():
            return []
        wanted = [models.c.name == name] * bool(name) + [models.c.kind == kind] * bool(kind)
        with reading(self._engine) as c:
            return _versions(c, self, sa.and_(sa.true(), *wanted))

    def lineage(self, found: Version) -> Family:
        """The version and its ancestors by digest; missing records are taken from the registry."""
        family = {**found.ancestors, found.digest: found.record}
        known = {v.digest: v for v in self.list() if not v.damage}
        missing = [d for r in family.values() for d in r.parents.values()]
        while missing:
            digest = missing.pop()
            if (digest not in family or not family[digest].versions) and digest in known:
                record = known.pop(digest).record
                family[digest] = record
                missing += record.parents.values()
        return family

    # -------------------------------------------------------------- within a transaction
    def _point(self, c: sa.Connection, found: Version, alias: str) -> tuple[Version, Version | None]:
        same = (aliases.c.name == found.name) & (aliases.c.alias == alias)
        before = c.execute(sa.select(aliases.c.model).where(same)).scalar()
        c.execute(sa.delete(aliases).where(same))
        c.execute(sa.insert(aliases).values(name=found.name, alias=alias, model=found.id))
        former = _versions(c, self, models.c.id == before) if before not in (None, found.id) else []
        return _versions(c, self, models.c.id == found.id)[0], former[0] if former else None

    def _require_writable(self) -> None:
        if self._read_only:
            raise UserError(
                f"{self.path}: the registry is read-only; make it and its folder writable, or set ACCORD_REGISTRY to another"
                " file."
            )

    def _writing(self) -> Any:
        self._require_writable()
        if not self.path.exists():
            raise UserError(f"there is no model in the registry yet ({self.path}).")
        return writing(self._engine)

    def _find(self, c: sa.Connection, text: str) -> Version:
        name, at, which = text.partition("@")
        mine = _versions(c, self, models.c.name == name)
        if not mine:
            return self._by_digest(c, text)
        which = which if at else LATEST
        for version in mine:
            if which == str(version.version) or which in version.aliases:
                return version
        if which == LATEST:
            known = ", ".join(f"{v.label} ({', '.join(v.outs)})" for v in mine)
            wanted = " or ".join(map(str, self.outs or (default_out(),)))
            raise UserError(
                f"{text}: no version of {name} comes from {wanted}; there are {known}: name a version, or give --out."
            )
        choices = [str(v.version) for v in mine] + [a for v in mine for a in v.aliases]
        near = difflib.get_close_matches(which, choices, 1)
        hint = f"did you mean {name}@{near[0]}?" if near else f"{name} has {', '.join(dict.fromkeys(choices))}."
        raise UserError(f"{text}: no such version or alias; {hint}")

    def _by_digest(self, c: sa.Connection, text: str) -> Version:
        if re.fullmatch(r"[0-9a-f]{6,32}", text):
            found = _versions(c, self, models.c.digest.startswith(text))
            if len({v.digest for v in found}) > 1:
                raise UserError(
                    f"{text}: matches the digests of {', '.join(v.label for v in found)}; give more digits."
                )
            if found:
                return found[-1]
        known = list(c.execute(sa.select(models.c.name).distinct()).scalars())
        name, at, which = text.partition("@")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}{at}{which}?" if near else f"there are {', '.join(sorted(known)) or 'none'}."
        raise UserError(f"{text}: no model of this name in the registry ({self.path}); {hint}")


def _put(c: sa.Connection, name: str, digest: str, values: Mapping[str, Any]) -> int:
    """Inserts or updates the row of a name and digest; returns its id."""
    same = (models.c.name == name) & (models.c.digest == digest)
    row = c.execute(sa.select(models.c.id).where(same)).first()
    if row is not None:
        c.execute(sa.update(models).where(models.c.id == row.id).values(**values))
        return int(row.id)
    last = c.execute(sa.select(names.c.last).where(names.c.name == name)).scalar()
    number = (last or 0) + 1
    if last is None:
        c.execute(sa.insert(names).values(name=name, last=number))
    else:
        c.execute(sa.update(names).where(names.c.name == name).values(last=number))
    made = c.execute(sa.insert(models).values(name=name, version=number, digest=digest, **values))
    return int(made.inserted_primary_key[0])  # type: ignore[index]


def _put_run(c: sa.Connection, model: int, out: str) -> None:
    """Makes a version the newest of a run."""
    c.execute(sa.delete(runs).where((runs.c.model == model) & (runs.c.out == out)))
    newest = c.execute(sa.select(sa.func.max(runs.c.number))).scalar() or 0
    c.execute(sa.insert(runs).values(model=model, out=out, number=newest + 1))


def _versions(c: sa.Connection, store: Store, wanted: sa.ColumnElement[bool]) -> list[Version]:
    columns = [sa.type_coerce(x, sa.String) if isinstance(x.type, sa.JSON) else x for x in models.c]  # parsed below
    rows = c.execute(sa.select(*columns).where(wanted).order_by(models.c.name, models.c.version)).mappings().all()
    ids = [row["id"] for row in rows]
    of: dict[str, dict[int, list[tuple[str, str]]]] = {}
    for table, key, value in ((parents, "role", "digest"), (aliases, "alias", "alias"), (tags, "tag", "value")):
        of[table.name] = defaultdict(list)
        pairs = sa.select(table.c.model, table.c[key], table.c[value]).where(table.c.model.in_(ids))
        for model, *pair in c.execute(pairs):
            of[table.name][model].append((pair[0], pair[1]))
    latest, outs = _latest(c, store, [row["name"] for row in rows])
    return [
        Version(
            **_checked(dict(row), store.root),
            parents=dict(of["parents"][row["id"]]),
            aliases=tuple(sorted(a for a, _ in of["aliases"][row["id"]])) + (LATEST,) * (row["id"] in latest),
            tags=dict(sorted(of["tags"][row["id"]])),
            outs=tuple(_readable(store.root, out) for out in outs[row["id"]] if out),
        )
        for row in rows
    ]


def _checked(row: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The columns of a version; those of a damaged row are empty, with the damage in words."""
    label = f"{row['name']}@{row['version']}"
    remedy = f"remove it (accord models rm {label} --force) and import its folder again"
    try:
        plain = {c.name: row[c.name] for c in models.c if not isinstance(c.type, sa.JSON)}
        json = {
            c.name: check_json(row[c.name], f"{label}: its {c.name}", remedy) for c in models.c if c.name not in plain
        }
        found = check({**plain, **json}, RegistryRow, label, remedy)
        lineage, folder = found.pop("lineage"), found.pop("folder")
        ancestors = from_json(lineage, f"{label}: its lineage") if lineage else {}
        return {**found, "ancestors": ancestors, "folder": root / folder}
    except UserError as error:
        empty: dict[str, Any] = {
            "metrics": {},
            "settings": {},
            "manifest": {},
            "ancestors": {},
            "seed": None,
            "created": "",
            "code": "",
        }
        known = {"id": row["id"], "name": str(row["name"]), "version": row["version"], "digest": str(row["digest"])}
        folder = root / artifact_files.FOLDER / "damaged"
        return {**empty, **known, "kind": str(row["kind"]), "folder": folder, "damage": str(error)}


def _latest(c: sa.Connection, store: Store, of_names: Sequence[str]) -> tuple[set[int], Mapping[int, list[str]]]:
    """The ids of the versions that the names alone mean, and the outs of every version, the newest first.

    A name means its newest version among those of the first of ``store.outs`` that has one, and those of no run.
    """
    found = sa.select(models.c.name, runs.c.model, runs.c.out).join(models)
    rows = c.execute(found.where(models.c.name.in_(of_names)).order_by(runs.c.number.desc())).all()
    wanted = [_relative(store.root, out) for out in store.outs or (default_out(),)]
    latest, outs = set[int](), defaultdict[int, list[str]](list)
    for _, model, out in rows:
        outs[model].append(out)
    for name in dict.fromkeys(of_names):
        mine = [(model, out) for other, model, out in rows if other == name]
        theirs = list(dict.fromkeys(out for _, out in mine if out))
        first = next((out for out in wanted if out in theirs), "")
        if not first and not store.outs and len(theirs) == 1:
            first = theirs[0]
        latest.update([model for model, out in mine if out in (first, "")][:1])
    return latest, outs


def _readable(root: Path, out: str) -> str:
    """A run as a path from here, where it is below the working directory."""
    place = Path(os.path.normpath(root / out))
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)


def _relative(root: Path, out: Path) -> str:
    return Path(os.path.relpath(out.resolve(), root.resolve())).as_posix()


def _valid_name(name: str, what: str) -> str:
    if not re.fullmatch(r"[^\s@/\\]+", name):
        raise UserError(f"{what} {name!r}: {'an' if what == 'alias' else 'a'} {what} has no spaces, '@' or slashes.")
    return name


def _require_alias(alias: str) -> None:
    if _valid_name(alias, "alias") == LATEST or alias.isdigit():
        raise UserError(f"alias {alias!r}: numbers are versions, and 'latest' is always the newest version of a run.")


def _valid_digest(digest: str, folder: Path) -> str:
    if not re.fullmatch(r"[0-9a-f]{6,64}", digest):
        raise UserError(
            f"{folder}: its manifest holds {digest!r}, which is not a digest; run the stage that wrote it again."
        )
    return digest
