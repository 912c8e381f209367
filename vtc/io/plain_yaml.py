"""YAML that users give, in files and on the command line: plain data, or one line that says what is wrong with it."""

from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import Reader
from yaml.scanner import ScannerError

from vtc.core.errors import ConfigError, reason, shown

LARGEST = 200_000  # characters of a text
MOST = 20_000  # values in it, those of an alias counted each time
DEEPEST = 40  # levels
BELOW = 2**63  # every whole number
TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Null, true and false, 64-bit numbers, text, lists, and mappings with each key once; no other tag has a meaning.

    SafeLoader also makes dates, sets and bytes, builds aliases without end, and takes the last of equal keys.
    """

    levels = 0

    def fetch_flow_collection_start(self, token: type) -> None:
        """A bracket; PyYAML looks far ahead, in a time that grows with the square of the brackets."""
        if self.flow_level > DEEPEST:
            raise ScannerError(None, None, f"more than {DEEPEST} levels", self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """A node with all below it."""
        self.levels += 1
        if self.levels > DEEPEST:
            raise _wrong(self.peek_event(), f"more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """The text's one document, small enough to be built."""
        node = super().get_single_node()
        if node is not None:
            self._measure(node, {})
        return node

    def _measure(self, node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """The values at and below a node, and their levels, as they would be with every alias written out.

        known: what was found for nodes by id, zeros while it is being counted. Raises for too many values or levels,
        for a circle, and for a key that stands twice.
        """
        if id(node) not in known:
            known[id(node)] = 0, 0
            below = node.value if isinstance(node, yaml.SequenceNode) else ()
            if isinstance(node, yaml.MappingNode):
                self._check_keys([key for key, _ in node.value])
                below = [n for pair in node.value for n in pair]
            sizes = [self._measure(n, known) for n in below]
            known[id(node)] = 1 + sum(n for n, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
        values, levels = known[id(node)]
        if not values:
            raise _wrong(node, "an alias inside of what it stands for")
        if values > MOST or levels > DEEPEST:
            raise _wrong(node, f"more than {MOST} values or {DEEPEST} levels, aliases written out")
        return values, levels

    def _check_keys(self, nodes: Sequence[yaml.Node]) -> None:
        keys = set()
        for node in nodes:
            if not isinstance(node, yaml.ScalarNode):
                raise _wrong(node, "a key that is a list or a mapping")
            key = "<<" if node.tag == f"{TAG}merge" else self.construct_object(node)
            if key in keys:
                raise _wrong(node, f"the key {shown(key)} stands twice")
            keys.add(key)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A number; a whole one has 64 bits."""
        if len(node.value) > 100:
            raise _wrong(node, f"a number of {len(node.value)} characters")
        value = self.construct_yaml_int(node) if node.tag == f"{TAG}int" else self.construct_yaml_float(node)
        if isinstance(value, int) and abs(value) >= BELOW:
            raise _wrong(node, f"{shown(node.value)} is no number below 2**63")
        return value

    def text(self, node: yaml.ScalarNode) -> str:
        """Text that can be written anywhere."""
        value = self.construct_yaml_str(node)
        if wrong := Reader.NON_PRINTABLE.search(value):
            raise _wrong(node, f"the character {wrong[0]!r} in a text")
        return value

    def refuse(self, node: yaml.Node) -> None:
        """Any other tag."""
        raise _wrong(node, f"{shown(node.tag.removeprefix(TAG))} is no plain value (text needs quotes)")


_Loader.yaml_constructors = {
    **{TAG + kind: yaml.SafeLoader.yaml_constructors[TAG + kind] for kind in ("null", "bool", "seq", "map")},
    **{TAG + "int": _Loader.number, TAG + "float": _Loader.number, TAG + "str": _Loader.text, None: _Loader.refuse},
}


def _wrong(node: yaml.Node | yaml.Event, what: str) -> ConstructorError:
    return ConstructorError(None, None, what, node.start_mark)


def parse(text: str, what: str) -> object:
    """The plain data that a YAML text describes; raises ConfigError in one line, which begins with `what`."""
    if len(text) > LARGEST:
        raise ConfigError(f"{what} has {len(text)} characters; possible: {LARGEST} at most")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader that knows less
    except Exception as error:  # on wrong text PyYAML also raises whatever its own code stumbles over
        raise ConfigError(f"{what} is not valid (safe) YAML: {_problem(error)}") from None


def _problem(error: Exception) -> str:
    """What is wrong and in which line, without the text around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{reason(error.problem)} (line {error.problem_mark.line + 1})"
    return reason(error) if isinstance(error, yaml.YAMLError) else f"a value is not what its tag says: {reason(error)}"


def load(file: Path | Traversable, what: str, possible: str) -> object:
    """The plain data of a YAML file, a user's or a shipped one; as `parse`, and the error for a file that cannot be
    read says what is `possible`."""
    return parse(read_text(file, what, possible), what)


def read_text(file: Path | Traversable, what: str, possible: str) -> str:
    """The text of a file for `parse`; raises ConfigError in one line, which begins with `what`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(4 * LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist; possible: {possible}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise ConfigError(f"{what} cannot be read ({why}); possible: {possible}") from None
    if len(data) > 4 * LARGEST:
        raise ConfigError(f"{what} is too large; possible: {LARGEST} characters at most")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not valid (safe) YAML: no UTF-8 text ({reason(error)})") from None
