"""Choosing the transfer engine of a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volmig import errors, plugins
from volmig.transfer.base import TransferEngine

if TYPE_CHECKING:
    from volmig.transfer.base import CopyOptions, End

NAMESPACE = "volmig.transfer_engines"
AUTO = "auto"
_PREFERRED = "chunked"


def engine_names() -> list[str]:
    """Return the names of the engines that are installed, the one that is tried first in front."""
    return sorted(plugins.names(NAMESPACE), key=lambda name: (name != _PREFERRED, name))


def load_engine(name: str) -> TransferEngine:
    """Return a new engine.

    :param name: name of an entry point in ``volmig.transfer_engines``, or ``module.path:ClassName``.
    :raises volmig.errors.PluginNotFound: when there is none.
    :raises volmig.errors.PluginInvalid: when it does not fulfil the contract.
    """
    # The base is abstract on purpose: what derives from it is checked to be concrete.
    plugin = plugins.load(NAMESPACE, name, TransferEngine)  # type: ignore[type-abstract]
    own_name = getattr(plugin.cls, "name", None)
    if not isinstance(own_name, str) or (":" not in name and own_name != name):
        raise plugin.invalid(f"it calls itself {own_name!r}")
    try:
        return plugin.cls()
    except Exception as exc:
        raise plugin.invalid(f"it cannot be made: {type(exc).__name__}: {exc}") from exc


def choose(source: End, destination: End, options: CopyOptions) -> tuple[TransferEngine, str]:
    """Return the engine for a copy, and why it is used.

    :raises volmig.errors.UnsupportedTransfer: when the engine that was asked for, or none at all, can serve.
    :raises volmig.errors.ConfigurationError: when the engine that was asked for is missing or broken.
    """
    if options.engine != AUTO:
        engine = load_engine(options.engine)
        refusal = engine.refusal(source, destination, options)
        if refusal:
            raise errors.UnsupportedTransfer(engine=options.engine, reason=refusal)
        return engine, "asked for"
    refusals: list[str] = []
    for name in engine_names():
        try:
            engine = load_engine(name)
            refusal = engine.refusal(source, destination, options)
        except errors.ConfigurationError as exc:
            refusal = exc.message
        if not refusal:
            return engine, "; ".join(["first choice that can serve these ends", *refusals])
        refusals.append(f"{name}: {refusal}")
    raise errors.UnsupportedTransfer(
        engine=AUTO,
        reason="; ".join(refusals) or "no engine is installed",
        hint="Install a distribution with an engine that can, or change the ends of the copy.",
    )
