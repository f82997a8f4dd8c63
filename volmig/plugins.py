"""Finding plugins by name and refusing those that cannot work, at load.

All plugins are entry points, found with stevedore. What is checked for every kind: it can be imported, it is a class
of the right kind with nothing left abstract, its interface version fits, and its methods take the arguments that
they will be called with. An error names the plugin and the distribution that brought it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stevedore.driver import DriverManager
from stevedore.exception import MultipleMatches, NoMatches

from volmig import errors

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plugin(Generic[T]):
    """A plugin that passed the checks."""

    namespace: str
    name: str
    cls: type[T]
    entry_point: importlib.metadata.EntryPoint | None
    """None for a plugin named by its path."""

    @property
    def distribution(self) -> str:
        """The distribution that brings it, with its version; the module of a plugin named by its path."""
        if self.entry_point is None:
            return f"module {self.name.partition(':')[0]}"
        return _distribution(self.entry_point)

    def invalid(self, reason: object) -> errors.PluginInvalid:
        """Return the error that says why the plugin is not usable after all."""
        return errors.PluginInvalid(
            plugin=self.name, namespace=self.namespace, distribution=self.distribution, reason=reason
        )


def names(namespace: str) -> list[str]:
    """Return the names of the plugins that are installed in a namespace, sorted."""
    return sorted({point.name for point in _entry_points(namespace)})


@functools.cache
def _entry_points(namespace: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    # Looking through all installed distributions takes milliseconds, and they don't change while a process runs.
    return tuple(importlib.metadata.entry_points(group=namespace))


def load(namespace: str, name: str, base: type[T]) -> Plugin[T]:
    """Return the plugin *name*, checked against *base*.

    :param base: the abstract class that it must derive from; its ``interface_version`` is the one supported.
    :param name: name of an entry point, or ``module.path:ClassName``.
    :raises volmig.errors.PluginNotFound: when there is none.
    :raises volmig.errors.PluginInvalid: when it does not fulfil its contract.
    """
    loaded, point = (_by_path(namespace, name), None) if ":" in name else _by_entry_point(namespace, name)
    plugin = Plugin(namespace=namespace, name=name, cls=loaded, entry_point=point)
    if not isinstance(loaded, type) or not issubclass(loaded, base):
        raise plugin.invalid(f"{loaded!r} is not a class derived from {base.__module__}.{base.__qualname__}")
    _check_version(plugin, base)
    if missing := sorted(getattr(loaded, "__abstractmethods__", ())):
        raise plugin.invalid(f"it does not implement {', '.join(missing)}")
    for method, function in inspect.getmembers(base, inspect.isfunction):
        if not method.startswith("_") and getattr(loaded, method) is not function:
            _check_signature(plugin, method, function)
    return plugin


def _by_path(namespace: str, path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        is_absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if not is_absent:
            raise _unloadable(namespace, path, f"module {module_name}", error) from error
        raise errors.PluginNotFound(plugin=path, namespace=namespace, known=", ".join(names(namespace))) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise errors.PluginNotFound(plugin=path, namespace=namespace, known=", ".join(names(namespace))) from error


def _by_entry_point(namespace: str, name: str) -> tuple[Any, importlib.metadata.EntryPoint]:
    def refuse(_manager: Any, point: importlib.metadata.EntryPoint, error: BaseException) -> None:
        raise _unloadable(namespace, name, _distribution(point), error) from error

    try:
        manager: Any = DriverManager(namespace, name, invoke_on_load=False, on_load_failure_callback=refuse)
    except MultipleMatches as error:
        owners = ", ".join(sorted(_distribution(point) for point in _entry_points(namespace) if point.name == name))
        raise errors.PluginInvalid(
            plugin=name, namespace=namespace, distribution=owners, reason="several distributions offer it"
        ) from error
    except NoMatches as error:
        known = ", ".join(names(namespace)) or "none"
        raise errors.PluginNotFound(plugin=name, namespace=namespace, known=known) from error
    except (AssertionError, SystemExit) as error:
        # stevedore lets these through.
        owners = ", ".join(sorted(_distribution(point) for point in _entry_points(namespace) if point.name == name))
        raise _unloadable(namespace, name, owners, error) from error
    extension = manager[name]
    return extension.plugin, extension.entry_point


def _unloadable(namespace: str, name: str, distribution: str, error: BaseException) -> errors.PluginInvalid:
    return errors.PluginInvalid(
        plugin=name,
        namespace=namespace,
        distribution=distribution,
        reason=f"it cannot be loaded: {type(error).__name__}: {error}",
    )


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    # What stevedore has from its cache does not know its distribution.
    dist = point.dist or next((other.dist for other in _entry_points(point.group) if other == point), None)
    return f"module {point.value.partition(':')[0]}" if dist is None else f"{dist.name} {dist.version}"


def _check_version(plugin: Plugin[Any], base: type[Any]) -> None:
    supported = base.interface_version
    version = plugin.cls.interface_version
    if (
        not isinstance(version, tuple)
        or len(version) != 2
        or not all(isinstance(part, int) for part in version)
        or version[0] != supported[0]
        or version[1] > supported[1]
    ):
        raise plugin.invalid(f"it is written for interface version {version!r}, and this volmig has {supported!r}")


def _check_signature(plugin: Plugin[Any], method: str, contract: Any) -> None:
    """Refuse a method that cannot be called as the contract's, by position (where that allows it) or by name."""
    found = getattr(plugin.cls, method)
    if not callable(found):
        raise plugin.invalid(f"{method} is not a method")
    # Other callables may change, and need not be hashable.
    compare = _difference if inspect.isfunction(found) else _difference.__wrapped__
    if difference := compare(contract, found):
        raise plugin.invalid(f"{method} {difference}")


@functools.lru_cache(maxsize=1024)
def _difference(contract: Any, found: Any) -> str:
    """Return how a method cannot be called as the contract's; empty when it can.

    A process that opens the same backends many times need not compare the same functions each time.
    """
    asked = inspect.signature(contract)
    offered = inspect.signature(found)
    wanted = list(asked.parameters)
    positions, in_order = _positions(asked), _positions(offered)
    only_named = {name: name for name in wanted if name not in positions}
    fits = in_order[: len(positions)] == positions[: len(in_order)]
    # Nobody names the object itself.
    itself = [name for name in wanted[:1] if name == "self"]
    try:
        offered.bind(*positions, **only_named)
        offered.bind(*itself, **{name: name for name in wanted if name not in itself})
    except TypeError:
        fits = False
    return "" if fits else f"takes {offered}, and the contract says ({', '.join(wanted)})"


def _positions(signature: inspect.Signature) -> list[str]:
    """Return the names of what can be given by position, in order."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind in by_position]
