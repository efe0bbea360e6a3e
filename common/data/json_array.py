"""JSON with messages for people: a value, or a file that is one long list, parsed a piece at a time."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tunebook.common.errors import Part, RowErrors

CHUNK = 1 << 20  # bytes read at once
LONGEST = 64 << 20  # characters of one row
ONE_A_LINE = "in .jsonl each row is one line: `jq -c . FILE > NEW.jsonl` writes them so"
WITHOUT_MARKS = "`sed -i 's/\\xef\\xbb\\xbf//g' FILE` removes such marks"
NEAR = 16  # a fault this close to the end of what was read may be a value that is not all there yet


class Wrong(ValueError):
    """Why a text is no JSON value that can be kept."""


class _Kept(Wrong):
    """A fault in a value whose end is known: the values after it can still be read."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):  # the json module keeps the last one and says nothing
        names = [name for name, _ in pairs]
        raise _Kept(f"duplicate key {next(name for name in names if names.count(name) > 1)!r} in one object")
    return mapping


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN = json.JSONDecoder()
DEEPEST = 500  # objects and lists in each other
_SPACE = re.compile(r"[ \t\n\r]*")


def _shallow(found: Any) -> Any:
    """The value; raises RecursionError where it is nested deeper than what handles it later takes: Python 3.13 reads
    any depth."""
    level, depth = [found] if isinstance(found, (dict, list)) else [], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        inner = (part for one in level for part in (one.values() if isinstance(one, dict) else one))
        level = [part for part in inner if isinstance(part, (dict, list))]
    return found


def value(text: str) -> Any:
    """The value of a whole text.

    Raises:
        Wrong: not JSON, a key twice in one object, nested too deeply, a number with thousands of digits.
    """
    try:
        return _shallow(_STRICT.decode(text))
    except json.JSONDecodeError as error:
        follows = error.msg == "Extra data" and text[error.pos :].lstrip()[:1] == "{"
        more = f"; a second object follows the first; {ONE_A_LINE}" if follows else ""
        raise Wrong(f"not JSON ({error.msg} at character {error.pos + 1}){more}") from None
    except RecursionError:
        raise Wrong("nested too deeply") from None
    except Wrong:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise Wrong(str(error)) from None


class _Window:
    """The part of a UTF-8 stream that is being looked at, and where that is."""

    def __init__(self, binary: BinaryIO):
        if binary.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):  # type: ignore[attr-defined]  it is buffered
            raise Wrong("the file is UTF-16; save it as UTF-8")
        self.binary, self.text, self.at, self.ended = binary, "", 0, False
        self.line, self.column = 1, 0  # of self.text[0]
        self.stream = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")

    def more(self) -> bool:
        """Reads on, and forgets what lies before `at`. False at the end of the file."""
        done, self.text, self.at = self.text[: self.at], self.text[self.at :], 0
        if newlines := done.count("\n"):
            self.line, self.column = self.line + newlines, len(done) - done.rindex("\n") - 1
        else:
            self.column += len(done)
        try:  # as much again as there is: a long row is not scanned once for each small piece of it
            read = self.stream.read(max(CHUNK, len(self.text)))
        except UnicodeDecodeError as error:
            byte = self.binary.tell() - len(error.object) + error.start
            raise Wrong(f"not UTF-8: byte {byte} is {error.object[error.start]:#x}") from None
        self.text, self.ended = self.text + read, not read
        return not self.ended

    def peek(self) -> str:
        """The next character that is no space, or '' at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, decoder: json.JSONDecoder) -> tuple[Any, str]:
        """The value at `at`, which is then behind it, and its text.

        Raises:
            ValueError, RecursionError: of the decoder, once it has all that there is.
            Wrong: the value is longer than a row may be.
        """
        while True:
            try:
                found, end = decoder.raw_decode(self.text, self.at)
                # A bare number may go on: of -1.5e-7 the start -1 is one, too.
                if self.ended or isinstance(found, (dict, list, str)) or end + NEAR < len(self.text):
                    begin, self.at = self.at, end
                    return found, self.text[begin:end]
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos + NEAR > len(self.text)
                if not unfinished or self.ended:
                    raise
            if len(self.text) - self.at > LONGEST:
                raise Wrong(f"is longer than {LONGEST >> 20} MB; is a quote missing?")
            self.more()

    def where(self, at: int | None = None) -> str:
        before = self.text[: self.at if at is None else at]
        line = self.line + before.count("\n")
        column = len(before) - before.rindex("\n") if "\n" in before else self.column + len(before) + 1
        return f"line {line}, column {column}"


def array(binary: BinaryIO, problems: RowErrors | Part) -> Iterator[Any]:
    """The values of the list that a JSON file is. One fault in its syntax ends it; where that is goes to `problems`."""
    try:
        yield from _values(_Window(binary), problems)
    except Wrong as error:
        problems.add(str(error))


def _values(window: _Window, problems: RowErrors | Part) -> Iterator[Any]:
    first = window.peek()
    if first != "[":
        raise Wrong(_not_a_list(window, first))
    window.at += 1
    number, expected = 0, "a row or ]"
    while True:
        character = window.peek()
        if character == "]" and expected != "a row":
            break
        if not character:
            raise Wrong(f"the file ends in the middle of the list, after row {number} ({window.where()})")
        if expected == ", or ]":
            if character != ",":
                reason = _unseen(character) or "expected , or ]"
                raise Wrong(f"not JSON at {window.where()}, after row {number}: {reason}")
            window.at, expected = window.at + 1, "a row"
            continue
        number += 1
        try:
            yield _next(window, number)
        except _Kept as error:
            problems.skip(f"row {number}: {error}")
        expected = ", or ]"
    window.at += 1
    if more := window.peek():
        reason = _unseen(more) or "there is more after the end of the list"
        if more == "[" or (more == "\ufeff" and window.text[window.at + 1 :].lstrip()[:1] == "["):
            reason += "; lists that were joined become one by `jq -s add FILE > NEW.json`"
        raise Wrong(f"not JSON at {window.where()}: {reason}")


def _unseen(character: str) -> str:
    """What a character is that no editor shows, or nothing."""
    if character == "\ufeff":
        return f"a byte order mark, as where files were joined; {WITHOUT_MARKS}"
    return "a NUL byte, as in UTF-16 text or a damaged file" if character == "\0" else ""


def _next(window: _Window, number: int) -> Any:
    """The value at the window's place, which is then behind it."""
    row, fault = None, None
    for decoder in (_STRICT, _PLAIN):  # after a key twice, what remains is to find the row's end
        try:
            row, _ = window.take(decoder)
            _shallow(row)
            break
        except _Kept as error:
            fault = error
        except json.JSONDecodeError as error:
            reason = _unseen(window.text[error.pos : error.pos + 1]) or error.msg
            raise Wrong(f"not JSON at {window.where(error.pos)}, in row {number}: {reason}") from None
        except Wrong as error:
            raise Wrong(f"row {number} ({window.where()}) {error}") from None
        except RecursionError:
            raise Wrong(f"row {number} ({window.where()}): nested too deeply") from None
        except ValueError as error:  # an integer of more digits than Python converts
            raise Wrong(f"row {number} ({window.where()}): {error}") from None
    if fault:
        raise fault
    return row


def _not_a_list(window: _Window, first: str) -> str:
    if not first:
        return "the file is empty"
    if unseen := _unseen(first):
        return f"not JSON at {window.where()}: {unseen}"
    try:
        found, text = window.take(_PLAIN)
    except (ValueError, RecursionError):
        return f"expected a list of rows, found {'an object' if first == '{' else 'something else'} at {window.where()}"
    beside = window.text[window.at : window.at + 1] == "{"
    if more := window.peek():
        remedy = f"objects follow each other; {ONE_A_LINE}"
        if "\n" not in text and not beside:
            remedy = "one object a line is .jsonl: rename the file"
        if more == ",":
            remedy = "a list of rows begins with [ and ends with ]"
        return f"not JSON at {window.where()}: there is more after the first value; {remedy}"
    if isinstance(found, dict):
        keys = ", ".join(list(found)[:10])
        return f"expected a list of rows, found an object ({keys or 'empty'}); {_unwrapped(found)}"
    return "expected a list of rows, found one value"


def _unwrapped(found: dict[str, Any]) -> str:
    """How to get at the rows of a file that is one object."""
    values = list(found.values())
    by_place = all(isinstance(column, (dict, list)) and len(column) == len(values[0]) for column in values)
    orient = 'orient="split", ' if {"columns", "data"} <= found.keys() else ""
    rows = [name for name, value in found.items() if isinstance(value, list) and _is_row((value or [None])[0])]
    if orient or (len(values) > 1 and by_place and isinstance(values[0], (dict, list)) and not rows):
        written = 'to_json("NEW.jsonl", orient="records", lines=True, force_ascii=False)'
        plain = "dtype=False, convert_dates=False"  # text that looks like a number stays text
        command = f"pandas.read_json(FILE, {orient}{plain}).{written}"
        return f"it is a table by columns, as pandas writes it: `{command}` gives rows"
    if len(rows) == 1:
        return f"its rows are in `{rows[0]}`: `jq '.[\"{rows[0]}\"]' FILE > NEW.json` writes that list alone"
    return "put [ and ] around a single row"


def _is_row(value: Any) -> bool:
    """Whether a value is an object, and no turn of a conversation."""
    return isinstance(value, dict) and not {"role", "from"} & value.keys()
