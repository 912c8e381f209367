"""Names to objects: a registry that refuses duplicates, scans one folder lazily and proposes near names."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vtc.errors import ConfigError, cut, shown

T = TypeVar("T")


def unknown(kind: str, name: object, known: list[str]) -> str:
    """One line for an unknown `name`: near names first, then everything that exists."""
    near = difflib.get_close_matches(cut(name, 100) if isinstance(name, str) else shown(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(shown(n) for n in near)}? " if near else ""
    return f"unknown {kind} {shown(name)}: {hint}possible: {', '.join(known)}"


def module_names(package: str) -> list[str]:
    """The public modules of a package, by file name and without importing them."""
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


class Registry(Generic[T]):
    """Maps names to objects of one kind; the modules of `package` register themselves when first asked for."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._items: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; raises ConfigError when the name is taken."""

        def add(item: T) -> T:
            if name in self._items:
                raise ConfigError(f"{self.kind} {name!r} is already registered by {self._items[name]!r}")
            self._items[name] = item
            return item

        return add

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for module in module_names(self.package):
            importlib.import_module(f"{self.package}.{module}")

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        return sorted(self._items)

    def __getitem__(self, name: str) -> T:
        self._scan()
        if not isinstance(name, str) or name not in self._items:
            raise ConfigError(unknown(self.kind, name, self.names()))
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
