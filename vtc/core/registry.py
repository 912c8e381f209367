"""Registries map names to classes: those of vtc, those of installed packages, and those that a user registers.

A registry imports one folder of vtc on first use, refuses a name that is already taken and suggests similar names.
Packages add classes through entry points (groups `vtc.strategies`, `vtc.families`, `vtc.tasks`), modules outside of any
package through `load_module`.
"""

import difflib
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Container, Iterator
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from vtc.core.errors import ConfigError, cut, reason, shown

T = TypeVar("T")

MODULES = "VTC_IMPORT"
"""Environment variable: comma-separated modules that register something; child processes import them, too."""

FORMER = {"todre_encoder": "todre_projector", "visiondrop_encoder": "visiondrop_projector"}
"""Methods by the names that they had in files which earlier versions wrote."""

_REGISTRIES: dict[str, "Registry"] = {}
_SAID: set[str] = set()


def unknown(kind: str, name: object, known: list[str]) -> str:
    """One line for an unknown `name`: similar names first, then all that exist."""
    near = difflib.get_close_matches(cut(name, 100) if isinstance(name, str) else shown(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(shown(n) for n in near)}? " if near else ""
    return f"unknown {kind} {shown(name)}: {hint}possible: {', '.join(known)}"


def current(key: object) -> object:
    """A method's name, or METHOD.KEY, with the name that the method has now; each former name is logged once."""
    name, dot, rest = key.partition(".") if isinstance(key, str) else ("", "", "")
    if name not in FORMER:
        return key
    if name not in _SAID:
        _SAID.add(name)
        logging.getLogger("vtc").warning("vtc: method %s is called %s now", name, FORMER[name])
    return f"{FORMER[name]}{dot}{rest}"


def names_in(package: str) -> list[str]:
    """The names in the registry of a package of vtc, sorted; its own are read from file names, without any import."""
    importlib.import_module(package)
    return sorted({*_module_names(package), *_REGISTRIES[package].outside()})


def load_module(name: str) -> None:
    """Imports a module that registers something, here and in every child process; raises ConfigError."""
    _imported(name, f"--import {shown(name)}")
    modules = _modules()
    if name not in modules:
        os.environ[MODULES] = ",".join([*modules, name])


def _modules() -> list[str]:
    return [name.strip() for name in os.environ.get(MODULES, "").split(",") if name.strip()]


def _imported(name: str, what: str) -> ModuleType:
    """Imports a module, also from the working directory; raises ConfigError for any error in it."""
    try:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script may raise SystemExit, which would end vtc
        kind = type(error).__name__
        raise ConfigError(f"{what} cannot be imported: {kind}: {reason(error)}; possible: a Python module") from None


def located(place: str, what: str) -> object:
    """Imports the object at MODULE:CLASS; raises a ConfigError that begins with `what`."""
    module, _, path = place.partition(":")
    item = _imported(module, what)
    for part in path.split("."):
        if not hasattr(item, part):
            raise ConfigError(f"{what}: {module} has no {shown(path)}; possible: MODULE:CLASS")
        item = getattr(item, part)
    return item


def _module_names(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))


def _place(item: object) -> str:
    """The MODULE:CLASS of a class."""
    return f"{getattr(item, '__module__', None)}:{getattr(item, '__qualname__', item)}"


class Registry(Generic[T]):
    """Maps names to classes of one kind. Those in `package` are imported on first use and register themselves; `group`
    is the entry-point group of other packages. bases, reserved: functions that return the bases that a class must
    derive from, and names that vtc uses for something else."""

    def __init__(
        self,
        kind: str,
        package: str,
        group: str,
        bases: Callable[[], tuple[type, ...]],
        reserved: Callable[[], Container[str]] = tuple,
    ):
        self.kind, self.package, self.group, self._bases, self._reserved = kind, package, group, bases, reserved
        self._items: dict[str, T] = {}
        self._unnamed: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._scanned = self._looked = False
        _REGISTRIES[package] = self

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class under `name`. The same class of the same module (a notebook cell run again)
        replaces the earlier one; raises ConfigError if another class has the name."""

        def add(item: T) -> T:
            self._add(name, item)
            return item

        return add

    def _add(self, name: str, item: T) -> None:
        if not self._ships(item):
            self._check(item, f"{self.kind} {shown(name)}")
            self._scan()
            if name not in self._items and name in self._reserved():
                raise ConfigError(f"{self.kind} {name!r} has a name that vtc uses; possible: another name")
        present = self._items.get(name)
        if present is not None and _place(present) != _place(item):
            raise ConfigError(f"{self.kind} {name!r} is already registered by {present!r}; possible: another name")
        self._items[name] = item

    def _ships(self, item: object) -> bool:
        return str(getattr(item, "__module__", None)).startswith(f"{self.package}.")

    def _check(self, item: object, what: str) -> None:
        """Raises ConfigError for anything that is not a class of this kind, or lacks a method of its base."""
        bases = self._bases()
        if not (isinstance(item, type) and issubclass(item, bases)):
            names = " or ".join(base.__name__ for base in bases)
            raise ConfigError(f"{what} is {shown(item)}; possible: a class derived from {names}")
        if inspect.isabstract(item):
            missing = ", ".join(sorted(item.__abstractmethods__))
            raise ConfigError(f"{what}: {item.__name__} is abstract; possible: a class that defines {missing}")

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        for module in _module_names(self.package):
            importlib.import_module(f"{self.package}.{module}")

    def _look(self, requested: str | None = None) -> None:
        """Loads the classes of other packages, once. One that cannot be loaded does not affect the others; it is logged
        in one line, except when it is the `requested` one, whose error is raised anyway."""
        if self._looked:
            return
        self._looked = True
        for name in _modules():
            self._try(name, partial(_imported, name, f"{MODULES}: {shown(name)}"), requested)
        for entry in entry_points(group=self.group):
            package = "" if entry.dist is None else f" of package {shown(entry.dist.name)}"
            what = f"{self.kind} {shown(entry.name)}{package}"
            self._try(entry.name, partial(self._enter, entry, what), requested)

    def _try(self, name: str, load: Callable[[], object], requested: str | None) -> None:
        try:
            load()
        except ConfigError as error:
            self._broken[name] = str(error)
            if name != requested:
                logging.getLogger("vtc").warning("vtc: left out: %s", error)

    def _enter(self, entry: EntryPoint, what: str) -> None:
        """Registers the target of an entry point: a class, or a module that registers its own."""
        try:
            item = entry.load()
        except (Exception, SystemExit) as error:
            kind = type(error).__name__
            raise ConfigError(f"{what} cannot be loaded: {kind}: {reason(error)}; possible: to mend it") from None
        if isinstance(item, ModuleType):
            return
        self._check(item, what)
        try:
            self._add(entry.name, item)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None

    def outside(self) -> list[str]:
        """The registered names from outside of vtc, sorted; imports nothing of vtc if there are none."""
        self._look()
        return sorted(name for name, item in self._items.items() if not self._ships(item))

    def broken(self, name: str) -> str | None:
        """Why another package's class of this name could not be loaded; None if it was loaded or does not exist."""
        self._look(name)
        return self._broken.get(name)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        self._look()
        return sorted(self._items)

    def name_of(self, item: type) -> str:
        """A name under which this class is found from now on: a registered one, or else its MODULE:CLASS."""
        self._check(item, self.kind)
        name = next((name for name, present in self._items.items() if present is item), None)
        if name is None:
            name = _place(item)
            self._unnamed[name] = item
        return name

    def _by_place(self, place: str) -> T:
        """Imports the class at MODULE:CLASS; raises ConfigError."""
        if place in self._unnamed:
            return self._unnamed[place]
        what = f"{self.kind} {shown(place)}"
        item = located(place, what)
        self._check(item, what)
        return item

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._items:
            self._scan()
        if isinstance(name, str) and name not in self._items:
            if ":" in name:
                return self._by_place(name)
            self._look(name)
        if not isinstance(name, str) or name not in self._items:
            if isinstance(name, str) and name in self._broken:
                raise ConfigError(self._broken[name])
            raise ConfigError(unknown(self.kind, name, self.names()))
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
