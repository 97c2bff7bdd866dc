"""Checked reading of YAML, JSON and JSON Lines; each error is one sentence naming file and place.

Every file is opened by ``read_text`` or ``read_jsonl``, which refuse what is not a regular file of UTF-8 text (a pipe
would be waited for, a device never ends), and parsed by ``parse_json`` or ``parse_yaml``, which bound depth and size.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml
from yaml.reader import ReaderError

from accord.errors import UserError
from accord.io.installation import located

MAX_DEPTH = 64
"""Levels of nesting in a YAML or JSON file; what reads them later is recursive."""
MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 20_000
"""Keys and values of a YAML file, those of each alias counted again."""
MAX_JSON_BYTES = 512 << 20
MAX_ROW_BYTES = 64 << 20
MAX_INT_BITS = 1024
"""Size of a whole number; larger ones cannot even become a float."""
NO_TEXT = {
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
    b"\x1f\x8b": "is compressed by gzip; decompress it",
    b"(\xb5/\xfd": "is compressed by Zstandard; decompress it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; save its rows as JSON Lines",
}
"""Files that are often given for text, by their first bytes."""
UTF8_MARK = b"\xef\xbb\xbf"

_MISSING = (FileNotFoundError, NotADirectoryError)
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


# ------------------------------------------------------------------ files
def require_file(path: Path) -> int:
    """The size in bytes of a regular file that may be read.

    Raises UserError for a folder, a pipe, a device, a loop of links; FileNotFoundError or NotADirectoryError where there
    is none.
    """
    try:
        found = path.stat()
    except _MISSING:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{shorten(path)}: {_cause(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "a device")
        raise UserError(f"{path}: {kind}, expected a file")
    return found.st_size


def _cause(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a loop of symbolic links, expected a file"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def read_text(path: Path, most: int = MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises UserError as ``require_file``, for another encoding, and for more than ``most`` bytes; FileNotFoundError or
    NotADirectoryError where there is none.
    """
    size = require_file(path)
    if size > most:
        raise UserError(f"{path}: {size:,} bytes, expected at most {most:,}; is it another kind of file?")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except _MISSING:
        raise
    except OSError as error:
        raise UserError(f"{path}: {_cause(error)}") from None
    return _decoded(content, str(path))


def _decoded(content: bytes, where: str, row: int = 0) -> str:
    """``content`` as text; ``row`` is its line in the file, 0 where it is the whole file."""
    for start, words in NO_TEXT.items() if row <= 1 else ():
        if content.startswith(start):
            raise UserError(f"{where}: {words}")
    try:
        return content.removeprefix(UTF8_MARK).decode("utf-8") if row <= 1 else content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = "" if row else f", line {content.count(10, 0, error.start) + 1}"
        raise UserError(f"{where}{line}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def shorten(value: object, most: int = 160) -> str:
    """A value in a message: its beginning, without line breaks and characters that no terminal shows."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, Path) else _repr(value)
    text = text[: most + 1].encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[:most]}…"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a {type(value).__name__}"


# ------------------------------------------------------------------ JSON
def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises UserError naming the file and ending with ``remedy`` where it is missing, or not a JSON object in UTF-8.
    """
    found = read_json_if_present(path, remedy)
    if found is None:
        raise UserError(f"{path}: no such file; {remedy}")
    return found


def read_json_if_present(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file.  Raises UserError as ``read_json``."""
    try:
        found = parse_json(read_text(path), str(path))
    except _MISSING:
        return None
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON {json_kind(found)}, expected an object; {remedy}")
    return found


def parse_json(text: str, where: str, *, constants: bool = True, halves: bool = False) -> Any:
    """The value of a JSON text; ``constants``: whether NaN and Infinity, which are not JSON, are numbers; ``halves``: whether
    half of a surrogate pair, which a vote's text may hold, is let through.

    Raises UserError, beginning with ``where``, for text that is not JSON, nested deeper than ``MAX_DEPTH``, with a key
    twice in an object, with a number of thousands of digits, or with half of a surrogate pair, which is no character.
    """

    def refuse(name: str) -> NoReturn:
        raise UserError(f"{where}: {name} is not JSON; write null, or leave the key out")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{where}: the key {shorten(twice)!r} occurs twice in one object; remove one")
        return made

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=None if constants else refuse)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise UserError(f"{where}: not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply, at most {MAX_DEPTH} levels are read") from None
    except ValueError:  # of int(), which refuses thousands of digits
        raise UserError(f"{where}: a number has too many digits to be read") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(found) > MAX_DEPTH:
        raise UserError(f"{where}: nested too deeply, at most {MAX_DEPTH} levels are read")
    if not halves and re.search(r"\\u[dD][89a-fA-F]", text):
        _require_characters(json.dumps(found, ensure_ascii=False), where)
    return found


def _depth(value: Any) -> int:
    level, found = [value], 0
    while level := [inner for outer in level if isinstance(outer, (dict, list)) for inner in _items(outer)]:
        found += 1
        if found > MAX_DEPTH:
            break
    return found


def _items(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _require_characters(text: str, where: str) -> None:
    """Raises UserError for half of a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{where}: {half} is half of a surrogate pair, not a character; remove it") from None


def as_characters(text: str) -> str:
    """Text with U+FFFD for each half of a surrogate pair, which is no character and no tokenizer reads."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_kind(value: Any) -> str:
    """The name of a value's type in JSON."""
    kinds = {list: "array", str: "string", bool: "boolean", dict: "object", type(None): "null"}
    return kinds.get(type(value), "number")


# ------------------------------------------------------------------ JSON Lines
def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line that is not blank.

    Raises UserError, naming file and row: no such file, bad JSON, not an object, not UTF-8, no rows at all.
    """
    try:
        require_file(Path(path))
        with open(path, "rb") as file:
            yield from rows_of_lines(file, path)
    except _MISSING:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {_cause(error)}") from None


def rows_of_lines(file: BinaryIO, path: str | Path, *, halves: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of an open file of JSON Lines, as ``read_jsonl``; ``path`` names it in messages, ``halves`` as ``parse_json``."""
    found = False
    for number, line in enumerate(_lines(file, path), 1):
        text = _decoded(line, f"{path}, row {number}", number)
        if not text.strip():
            continue
        found = True
        yield number, parse_row(text, f"{path}, row {number}", halves=halves)
    if not found:
        raise UserError(f"{path}: no rows; expected one JSON object per line")


def _lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise UserError(f"{path}, row {number}: longer than {MAX_ROW_BYTES:,} bytes; write one object per line")
        yield line


def parse_row(line: str, where: str, *, halves: bool = False) -> dict[str, Any]:
    """The object of one row's JSON text.  Raises UserError, beginning with ``where``, for another value."""
    try:
        value = parse_json(line, where, constants=False, halves=halves)
    except UserError as error:
        array = line.lstrip().startswith("[") and "not valid JSON" in str(error)
        raise UserError(f"{error}{' (one object per line, not one array)' if array else ''}") from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: a JSON {json_kind(value)}, expected an object such as {{"prompt": …}}')
    return value


def read_appended_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that a run appends to, without a last line truncated by a kill; none where it is missing.

    Raises UserError naming the row where an earlier line is damaged.
    """
    try:
        lines = read_text(path).split("\n")
    except _MISSING:
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, row {number}"
        try:
            found = parse_json(line, where) if line.strip() else {}
            if not isinstance(found, dict):
                raise UserError(f"{where}: a JSON {json_kind(found)}, expected an object")
        except UserError as error:
            if number == len(lines):
                break
            raise UserError(f"{error}; repair or remove this line") from None
        rows += [found] if found else []
    return rows


# ------------------------------------------------------------------ YAML
def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file and the line of every dotted key.  Raises UserError naming file and line."""
    try:
        text = read_text(located(path), MAX_YAML_BYTES)
    except _MISSING:
        near = difflib.get_close_matches(
            Path(path).name, [p.name for p in located(Path(path).parent).glob("*.y*ml")], 1
        )
        raise UserError(f"{path}: no such config file" + (f"; did you mean {near[0]!r}?" if near else ".")) from None
    except UserError as error:
        raise UserError(f"{error}.") from None
    values, places = _parse_yaml(text, str(path))
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines at the top level, found {type(values).__name__}.")
    lines: dict[str, int] = {}
    for key, line in places:
        if key in lines:
            raise UserError(
                f"{path} line {line}: the key {shorten(key)!r} occurs twice (first on line {lines[key]}); remove one."
            )
        lines[key] = line
    return values, lines


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text of plain values.

    Raises UserError, beginning with ``where``, for text that is not YAML, for tags and keys that are not plain, and for
    values that are nested or repeated without end.
    """
    return _parse_yaml(text, where)[0]


def _parse_yaml(text: str, where: str) -> tuple[Any, list[tuple[str, int]]]:
    """The value, and the line of every dotted key as it is written."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _require_bounds(node, where)
        lines = list(_key_lines(node, ""))  # before merges (<<) are put in place
        values: Any = loader.construct_document(node)
        return values, lines
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise UserError(f"{where} line {line}: the character U+{code:04X} is not allowed in YAML; remove it.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line_words = f" line {mark.line + 1}" if mark and "\n" in text else ""
        raise UserError(f"{where}{line_words}: not valid YAML: {shorten(_problem(error), 300)}.") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply, at most {MAX_DEPTH} levels are read.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _problem(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or error)
    if problem == "but found another document":
        return "a second document begins here ('---'); keep one"
    return problem


class _Loader(yaml.SafeLoader):
    """Plain values only: null, booleans, numbers, text, lists, and mappings by text; a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's interface)
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":value"))]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    level = count = 0
    """Of the node that is read: its depth, and how many were before it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.level += 1
        self.count += 1
        if self.level > MAX_DEPTH + 2:  # before PyYAML, which is slow there, has read all of it
            problem = f"nested too deeply, at most {MAX_DEPTH} levels are read"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        if self.count > MAX_YAML_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_YAML_NODES:,} values", problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        short = node.tag.removeprefix("tag:yaml.org,2002:")
        if short not in ("null", "bool", "int", "float", "str", "seq", "map", "merge"):
            raise yaml.MarkedYAMLError(
                problem=f"the tag {node.tag!r} is not read here; write a plain value", problem_mark=node.start_mark
            )
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, int) and found.bit_length() > MAX_INT_BITS:
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            value = shorten(getattr(node, "value", ""), 40)
            raise yaml.MarkedYAMLError(
                problem=f"{value!r} cannot be read as {short}", problem_mark=node.start_mark
            ) from None
        if isinstance(found, str) and any("\ud800" <= c <= "\udfff" or c == "\0" for c in found):
            raise yaml.MarkedYAMLError(
                problem=f"{shorten(found, 40)!r} holds a character that no text has", problem_mark=node.start_mark
            )
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shorten(shown, 40)} is not text; put it in quotes", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


def _require_bounds(node: yaml.Node, where: str) -> None:
    """Raises UserError for aliases that repeat without end or too often, and for deep nesting."""
    waiting, count = [(node, 0)], 0
    while waiting:
        here, depth = waiting.pop()
        count += 1
        line = f"{where} line {here.start_mark.line + 1}"
        if depth > MAX_DEPTH:
            raise UserError(
                f"{line}: nested too deeply, or an alias (*name) inside its own value; at most {MAX_DEPTH} levels are read."
            )
        if count > MAX_YAML_NODES:
            raise UserError(f"{line}: more than {MAX_YAML_NODES:,} values, aliases (*name) counted; remove some.")
        if isinstance(here, yaml.MappingNode):
            waiting += [(inner, depth + 1) for pair in here.value for inner in pair]
        elif isinstance(here, yaml.SequenceNode):
            waiting += [(inner, depth + 1) for inner in here.value]


def _key_lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _key_lines(value, f"{dotted}.")
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _key_lines(value, f"{prefix}{i}.")
