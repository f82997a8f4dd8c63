"""Choosing the transfer engine of a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volmig import errors, plugins
from volmig.transfer.base import TransferEngine
from volmig.transfer.ends.base import is_path
from volmig.transfer.nbd.address import is_address

if TYPE_CHECKING:
    from volmig.transfer.base import CopyOptions, End

NAMESPACE = "volmig.transfer_engines"
AUTO = "auto"
_PREFERRED = "chunked"
_TRANSLATES = "qemu-img"
_RAW = "raw"


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
    """Return the engine for a copy, and why it is used, in words for people.

    Left to itself (``auto``) it takes ``qemu-img`` when an end is not raw, and otherwise ``chunked``: also for NBD
    addresses, since that reads the source once only, digesting it on the way, can resume, and keeps limits exactly.
    When the first choice cannot serve, the others are asked.

    :raises volmig.errors.UnsupportedTransfer: when the engine that was asked for, or none at all, can serve.
    :raises volmig.errors.ProgramMissing: when the engine that was asked for, or the first choice, lacks its program,
        and no other can serve.
    :raises volmig.errors.ConfigurationError: when the engine that was asked for is missing or broken.
    """
    if options.engine != AUTO:
        engine = load_engine(options.engine)
        refusal = engine.refusal(source, destination, options)
        if refusal:
            raise errors.UnsupportedTransfer(engine=options.engine, reason=refusal)
        return engine, "asked for"
    preferred, reason = _first_choice(source, destination, options)
    missing: errors.ProgramMissing | None = None
    refusals: list[str] = []
    for name in sorted(engine_names(), key=lambda name: name != preferred):
        try:
            engine = load_engine(name)
            refusal = engine.refusal(source, destination, options)
        except errors.ConfigurationError as exc:
            refusal = exc.message
            if name == preferred and isinstance(exc, errors.ProgramMissing):
                missing = exc
        if not refusal:
            return engine, "; ".join([reason, *refusals])
        refusals.append(f"{name}: {refusal}")
    if missing is not None:
        raise missing
    raise errors.UnsupportedTransfer(
        engine=AUTO,
        reason="; ".join(refusals) or "no engine is installed",
        hint="Install a distribution with an engine that can, or change the ends of the copy.",
    )


def _first_choice(source: End, destination: End, options: CopyOptions) -> tuple[str, str]:
    """Return the engine that suits the ends best, and what about them decides it."""
    if options.source_format != options.destination_format:
        return _TRANSLATES, f"{options.source_format} is to become {options.destination_format}: {_TRANSLATES}"
    if options.source_format != _RAW:
        return _TRANSLATES, f"both ends are {options.source_format}: {_TRANSLATES}"
    if is_address(source) or is_address(destination):
        return _PREFERRED, f"an end is an NBD address, and {_PREFERRED} digests what it reads on the way"
    if is_path(source) and is_path(destination):
        return _PREFERRED, f"both ends are raw and local: {_PREFERRED}"
    return _PREFERRED, f"an end is a file-like handle: {_PREFERRED}"
