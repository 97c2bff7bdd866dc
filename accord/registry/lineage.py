"""A lineage as a tree in the terminal and as Mermaid text, and the text of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from accord.io.finite_json import shown
from accord.registry.family import Family, Record, short
from accord.registry.headline import headline

if TYPE_CHECKING:
    from rich.tree import Tree

KEY_SETTINGS: dict[str, tuple[str, ...]] = {
    "demo": ("seed",),
    "pretrained": ("source",),
    "base": ("model.base_model", "model.d_model", "model.n_layers", "training.learning_rate", "training.num_epochs"),
    "sft": ("training.learning_rate", "training.num_epochs", "training.batch_size"),
    "pairs": ("annotator", "noise", "replies", "pairs"),
    "sample": ("replies", "temperatures", "max_new_tokens", "limit"),
    "judge": ("judge", "openai.model", "pairs", "matching", "ties"),
    "reward": ("model.kind", "training.learning_rate", "training.num_epochs", "training.batch_size"),
    "ppo": ("kl.beta", "training.iterations", "training.replies", "training.learning_rate", "training.clip_range"),
    "dpo": ("training.beta", "training.learning_rate", "training.num_epochs"),
}
"""Settings to show first, by stage kind.  Listed here and not in the stage table, which is in a higher layer: the registry
also opens artifacts of kinds that the table of this version does not have."""
SHOWN = 5
COLORS = {"model": ("#e8effa", "#3b6fb5"), "data": ("#eaf5ea", "#3f8f4f"), "function": ("#fbf3df", "#a97f1d")}
"""Fill and line of a node, by the form of its record."""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values, without None."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:  # None where the setting names an input, which is shown separately
            yield f"{prefix}{key}", value


def key_settings(record: Record) -> dict[str, str]:
    """At most five settings by short name; of an unknown kind the first plain ones that are not inputs."""
    values = dict(flat(record.settings))
    wanted = list(KEY_SETTINGS.get(record.kind, ())) or [
        k for k, v in values.items() if isinstance(v, (int, float, str)) and v != "" and k not in record.parents
    ]
    short = ("training.", "model.")
    return {_without(k, short): str(values[k]) for k in wanted[:SHOWN] if k in values}


def _without(key: str, prefixes: tuple[str, ...]) -> str:
    return next((key.removeprefix(p) for p in prefixes if key.startswith(p)), key)


def title(record: Record, labels: Mapping[str, str]) -> str:
    """``sft@2`` where it is in the registry, else its name; for a data file the stage's and the file's name."""
    return labels.get(record.digest, record.name) if record.form == "model" else record.name


def lines(record: Record) -> list[str]:
    """The text below the title: kind and digest, key settings, headline."""
    if record.form == "function":
        return ["function"]
    found = [f"{'data' if record.form == 'data' else record.kind} · {short(record.digest, 8)}"]
    found += [f"{key} {value}" for key, value in key_settings(record).items()]
    if record.form == "model" and (figures := headline(record.kind, record.metrics)):
        found.append(f"→ {figures[0].label} {shown(figures[0].value)}")
    return found


def tree(root: str, family: Family, labels: Mapping[str, str]) -> Tree:
    """The tree from the model with digest ``root`` to its base model and data; a shared ancestor is described once."""
    from rich.text import Text
    from rich.tree import Tree

    seen: set[str] = set()

    def describe(digest: str, role: str) -> Text:
        record = family.get(digest, Record(digest[:8], "unknown", digest))
        text = Text(f"{role}  " if role else "", "dim")
        text.append(title(record, labels), "bold" if record.form == "model" else "cyan")
        if digest in seen:
            return text.append("  (see above)", "dim")
        first, *rest = lines(record)
        return text.append(f"  {first}").append("   " + ", ".join(rest).replace(", →", " →") if rest else "", "dim")

    def grow(branch: Tree, digest: str) -> None:
        if digest in seen:
            return
        seen.add(digest)
        for role, parent in (family[digest].parents if digest in family else {}).items():
            node = branch.add(describe(parent, role))
            grow(node, parent)

    top = Tree(describe(root, ""), guide_style="dim")
    grow(top, root)
    return top


def mermaid(root: str, family: Family, labels: Mapping[str, str]) -> str:
    """The same tree as a Mermaid flowchart, ancestors above: https://mermaid.js.org/syntax/flowchart.html."""
    nodes: dict[str, str] = {}
    drawn, edges = [], []

    def visit(digest: str) -> str:
        if digest in nodes:
            return nodes[digest]
        nodes[digest] = node = f"n{len(nodes)}"
        record = family.get(digest, Record(digest[:8], "unknown", digest))
        words = "<br>".join(map(_mermaid_text, [title(record, labels), *lines(record)]))
        drawn.append(f'  {node}["{words}"]:::{record.form}')
        for role, parent in (family[digest].parents if digest in family else {}).items():
            edges.append(f'  {visit(parent)} -->|"{_mermaid_text(role)}"| {node}')
        return node

    visit(root)
    styles = [f"  classDef {form} fill:{fill},stroke:{line}" for form, (fill, line) in COLORS.items()]
    return "\n".join(["flowchart TD", *drawn, *edges, *styles])


def _mermaid_text(text: str) -> str:
    """Text as itself within quotes: a character that could end or format it as its number."""
    return "".join(c if c.isalnum() or c in " .,:+-_@/=→·" else f"#{ord(c)};" for c in text)
