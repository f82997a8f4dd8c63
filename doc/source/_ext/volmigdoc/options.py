"""The page of options, from the options themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oslo_config import cfg

from volmig import plugins
from volmig.conf import backend
from volmig.conf.opts import GROUPS
from volmig.drivers.loader import NAMESPACE, driver_options, load_driver
from volmigdoc import rst

_KINDS = {
    cfg.StrOpt: "text",
    cfg.IntOpt: "whole number",
    cfg.FloatOpt: "number",
    cfg.PortOpt: "port",
    cfg.IPOpt: "IP address",
    cfg.BoolOpt: "true or false",
    cfg.ListOpt: "list, separated by commas",
    cfg.DictOpt: "pairs ``name:value``, separated by commas",
}


def option_lines() -> list[str]:
    """Return the sections of volmig's own groups, of backends, and of each installed driver."""
    lines: list[str] = []
    for module in GROUPS:
        lines += rst.section(f"[{module.GROUP}]", "-", f"options-{module.GROUP.lower()}")
        lines += describe(module.OPTIONS)
    lines += rst.section("A backend's group", "-", "options-backend")
    lines += ["Each name in ``enabled_backends`` has a group of that name, with these options and its driver's.", ""]
    lines += describe(backend.OPTIONS)
    for name, options in drivers():
        lines += rst.section(f"Driver {name}", "-", f"options-driver-{name}")
        lines += [f"With ``volume_driver = {name}``:", ""]
        lines += describe(options)
    return lines


def drivers() -> Iterator[tuple[str, Sequence[cfg.Opt]]]:
    """Yield the name and the options of each driver that volmig brings."""
    for name in plugins.names(NAMESPACE):
        plugin = load_driver(name)
        if plugin.cls.__module__.startswith("volmig."):
            yield name, driver_options(plugin)


def describe(options: Sequence[cfg.Opt]) -> Iterator[str]:
    """Yield a definition of each option: its type, range and default, and its help."""
    for option in options:
        yield f"``{option.name}`` : {', '.join(_facts(option))}"
        yield f"   {rst.text(option.help)}"
        yield ""
        choices = getattr(option.type, "choices", None)
        if choices:
            for value, told in choices.items():
                yield f"   * ``{value}``" + (f": {rst.text(told)}" if told else "")
            yield ""


def _facts(option: cfg.Opt) -> Iterator[str]:
    kind = next((told for cls, told in _KINDS.items() if type(option) is cls), None)
    if kind is None:
        raise ValueError(f"option {option.name}: no words for {type(option).__name__}")
    yield kind
    lowest, highest = getattr(option.type, "min", None), getattr(option.type, "max", None)
    if lowest is not None and highest is not None:
        yield f"{_number(lowest)} to {_number(highest)}"
    elif lowest is not None:
        yield f"at least {_number(lowest)}"
    yield "required" if option.required else f"default {_default(option)}"
    if option.secret:
        yield "secret"
    if option.mutable:
        yield "read again while running"


def _default(option: cfg.Opt) -> str:
    # What depends on the machine is told by a sample.
    if option.sample_default is not None:
        return rst.text(str(option.sample_default).strip("<>"))
    value = option.default
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return rst.code(str(value).lower())
    if isinstance(value, list):
        return rst.code(",".join(value))
    return rst.code(_number(value) if isinstance(value, float) else value)


def _number(value: float) -> str:
    return f"{value:.15g}"
