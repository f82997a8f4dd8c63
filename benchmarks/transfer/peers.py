"""Who is measured: the programs people copy volumes with, and volmig.

All of them get the same: a source, and a fresh destination that reads as zeroes. Those that can be told so are told;
those that cannot, and skip zeroes all the same, are right only because it is so. ``sync`` follows each program that
does not flush by itself, and is part of the time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from benchmarks.transfer.ends import FILE, LOOP, Pair
from benchmarks.transfer.machine import PACKAGES, find_program

Command: TypeAlias = "tuple[str, ...]"

DD = "dd"
OURS = "volmig-none"
OURS_TOLD = "volmig-none-zero"
OURS_DIGEST = "volmig-digest"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A program, started anew for each run; its start counts."""

    name: str
    title: str
    programs: tuple[str, ...]
    commands: Callable[[Pair], tuple[Command, ...]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Kinds of ends that it is not measured on, and why."""
    is_ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Ours:
    """``volmig.transfer.copy``, called in a warm process."""

    name: str
    title: str
    verify: str
    destination_is_zero: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    is_ours: bool = True


Entrant: TypeAlias = "Peer | Ours"


def _dd(*words: str, pair: Pair) -> tuple[Command, ...]:
    return (("dd", f"if={pair.source}", f"of={pair.destination}", "status=none", *words),)


def _cp(sparse: str, pair: Pair) -> tuple[Command, ...]:
    # A clone shares blocks and copies nothing; where the file system can do that, cp is kept from it.
    no_clone = ("--reflink=never",) if pair.clones else ()
    return (("cp", f"--sparse={sparse}", *no_clone, pair.source, pair.destination), ("sync", pair.destination))


def _qemu_img(*words: str, pair: Pair) -> tuple[Command, ...]:
    # A file is created anew, which tells qemu-img that it reads as zeroes; of a device it must be told.
    told = ("-n", "--target-is-zero") if pair.kind == LOOP else ()
    convert = ("qemu-img", "convert", "-f", "raw", "-O", "raw", *words, *told, pair.source, pair.destination)
    return (convert, ("sync", pair.destination))


def _nbdcopy(pair: Pair) -> tuple[Command, ...]:
    return (("nbdcopy", "--flush", "--destination-is-zero", pair.source, pair.destination),)


def _volmig(pair: Pair) -> tuple[Command, ...]:
    words = ("copy", pair.source, pair.destination, "--verify", "none", "--force", "-f", "json")
    return ((sys.executable, "-m", "volmig.cli", *words),)


_ALIKE = "makes holes in regular files only, so that on a device it does what --sparse=auto does"
_FINDS_OUT = "a fresh file is seen to be one hole without being told"

ENTRANTS: tuple[Entrant, ...] = (
    Ours(name=OURS, title="volmig, verify=none", verify="none"),
    Ours(
        name=OURS_TOLD,
        title="volmig, verify=none, destination_is_zero",
        verify="none",
        destination_is_zero=True,
        left_out={FILE: _FINDS_OUT},
    ),
    Ours(name=OURS_DIGEST, title="volmig, verify=digest", verify="digest"),
    Ours(name="volmig-compare", title="volmig, verify=compare", verify="compare"),
    Peer(
        name="volmig-command", title="volmig copy (command), verify=none", programs=(), commands=_volmig, is_ours=True
    ),
    Peer(
        name=DD,
        title="dd bs=1M conv=fsync",
        programs=("dd",),
        commands=lambda pair: _dd("bs=1M", "conv=fsync", pair=pair),
    ),
    Peer(
        name="dd-direct",
        title="dd bs=1M direct conv=fsync",
        programs=("dd",),
        commands=lambda pair: _dd("bs=1M", "iflag=direct", "oflag=direct", "conv=fsync", pair=pair),
    ),
    Peer(
        name="dd-sparse",
        title="dd bs=64k conv=sparse,fsync",
        programs=("dd",),
        commands=lambda pair: _dd("bs=64k", "conv=sparse,fsync", pair=pair),
    ),
    Peer(name="cp", title="cp --sparse=auto", programs=("cp", "sync"), commands=partial(_cp, "auto")),
    Peer(
        name="cp-sparse",
        title="cp --sparse=always",
        programs=("cp", "sync"),
        commands=partial(_cp, "always"),
        left_out={LOOP: _ALIKE},
    ),
    Peer(
        name="qemu-img",
        title="qemu-img convert",
        programs=("qemu-img", "sync"),
        commands=lambda pair: _qemu_img(pair=pair),
    ),
    Peer(
        name="qemu-img-direct",
        title="qemu-img convert -W -m 16 -t none -T none",
        programs=("qemu-img", "sync"),
        commands=lambda pair: _qemu_img("-W", "-m", "16", "-t", "none", "-T", "none", pair=pair),
    ),
    Peer(
        name="nbdcopy",
        title="nbdcopy --flush --destination-is-zero",
        programs=("nbdcopy",),
        commands=_nbdcopy,
    ),
)

NAMES = tuple(entrant.name for entrant in ENTRANTS)


def unavailable(entrant: Entrant, *, has_command: bool) -> str:
    """Return why an entrant cannot take part on this machine; empty when it can."""
    missing = [program for program in entrant.programs if find_program(program) is None]
    if missing:
        return ", ".join(f"{program} is missing (Debian package {PACKAGES[program]})" for program in missing)
    if entrant.name == "volmig-command" and not has_command:
        return "the command is missing (install volmig with its extra cli)"
    return ""


def rotated(entrants: Iterable[Entrant], round_number: int) -> list[Entrant]:
    """Return the entrants in the order of a round: each round begins one further on, and so none is always first."""
    everyone = list(entrants)
    if not everyone:
        return []
    first = round_number % len(everyone)
    return everyone[first:] + everyone[:first]
