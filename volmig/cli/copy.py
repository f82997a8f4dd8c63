"""``volmig copy``: the transfer by itself, for any two paths."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from volmig import errors
from volmig.cli import report, sizes
from volmig.cli.base import ShowCommand, command_line
from volmig.cli.cells import Cell, plain
from volmig.cli.interrupts import Interrupts
from volmig.cli.migrate import VERIFY_CHOICES
from volmig.cli.progress import progress_for

if TYPE_CHECKING:
    from volmig.cli.copy_run import StatusRequests
    from volmig.cli.target import Target
    from volmig.transfer import Checkpoint, CopyOptions, TransferProgress, TransferResult
    from volmig.transfer.resume.checkpoints import CheckpointFile

_RAW = "raw"
_TAIL_CHOICES = ("keep", "zero")


class Copy(ShowCommand):
    """Copy a block device, a file or an NBD export, and prove that the copy is identical.

    The destination is a block device, a regular file, an NBD address, or a path that does not exist yet. What is in
    use, or holds a partition table, a file system or the like, is not overwritten without --force. A destination
    that this command made is removed when the copy fails, unless --resume is given.

    No configuration is needed. Ctrl-C cancels the copy; SIGUSR1 shows how far it is.
    """

    columns = (
        "engine",
        "engine_reason",
        "means",
        "bytes_total",
        "bytes_copied",
        "bytes_zero",
        "bytes_resumed",
        "copy_seconds",
        "verify_seconds",
        "rate_bytes",
        "verify",
        "digest_algorithm",
        "source_digest",
        "destination_digest",
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        address = (
            "an NBD address (nbd://host[:port]/export, nbd+unix:///export?socket=path; with TLS "
            "nbds://host[:port]/export?tls-certificates=directory)"
        )
        parser.add_argument("source", metavar="SOURCE", help=f"a block device, a regular file, or {address}")
        parser.add_argument(
            "destination", metavar="DESTINATION", help=f"the same, or a path that does not exist, or {address}"
        )
        parser.add_argument(
            "--verify",
            choices=VERIFY_CHOICES,
            default="digest",
            help="how the data that arrived is compared with what left: by the digest of what is read back from the "
            "destination (%(default)s, the default), byte for byte, or not at all",
        )
        parser.add_argument(
            "--limit", type=sizes.parse_rate, metavar="RATE", help="bytes a second at most, such as 50MiB"
        )
        parser.add_argument(
            "--resume",
            metavar="FILE",
            help="keep in this file what is finished, and go on from there when the copy is repeated; it is removed "
            "when the copy is complete",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="overwrite a destination that is in use, is a file with content, or holds a signature",
        )
        parser.add_argument(
            "--size",
            type=sizes.parse_size,
            metavar="SIZE",
            help="copy only so much from the beginning, such as 10GiB or 512MiB (a bare number is GiB); all of the "
            "source unless given",
        )
        parser.add_argument(
            "--tail",
            choices=_TAIL_CHOICES,
            default="keep",
            help="what becomes of the part of a larger destination behind the copy: it is not touched (%(default)s, "
            "the default), or made zero",
        )
        _expert_options(parser)
        return parser

    def item(self, parsed_args: argparse.Namespace) -> Any:
        """Copy, and return what came of it."""
        from volmig.cli.copy_run import StatusRequests

        with Interrupts() as interrupts, StatusRequests() as status:
            return _Task(self, parsed_args, interrupts, status).run()

    def value(self, item: Any, column: str) -> Any:
        """Return what stands in a column."""
        if column == "rate_bytes":
            moved = item.bytes_total - item.bytes_resumed
            return round(moved / item.copy_seconds) if item.copy_seconds > 0 else 0
        if column in ("copy_seconds", "verify_seconds"):
            return round(getattr(item, column), 3)
        return super().value(item, column)

    def row(self, parsed_args: argparse.Namespace, item: Any, names: Iterable[str]) -> tuple[Any, ...]:
        """Return the values, with exact sizes and short times in a table."""
        values = super().row(parsed_args, item, names)
        if parsed_args.formatter != "table":
            return values
        return tuple(
            Cell(plain(self.value(item, name)), _SHOWN.get(name.partition("_")[0], str))
            if name.startswith("bytes_") or name.endswith("_seconds")
            else value
            for name, value in zip(names, values, strict=True)
        )


def _exact(size_bytes: int) -> str:
    return f"{size_bytes} ({sizes.format_approximate(size_bytes)})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


_SHOWN: dict[str, Any] = {"bytes": _exact, "copy": _seconds, "verify": _seconds}


def _expert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine", metavar="NAME", default="auto", help="transfer engine, such as chunked or dd; the best if not given"
    )
    for end, what in (("source", "of the source; never guessed"), ("destination", "that the destination is to have")):
        parser.add_argument(
            f"--{end}-format", default=_RAW, metavar="FORMAT", help=f"data format {what}; %(default)s unless given"
        )
    parser.add_argument(
        "--chunk-bytes",
        type=_parse_bytes,
        metavar="SIZE",
        help="largest size of one request: 4KiB to 1MiB, in steps of 4KiB",
    )
    parser.add_argument(
        "--backing-directory",
        action="append",
        default=[],
        metavar="DIR",
        help="a directory, beside the image's own, in which its backing files may lie; may be repeated",
    )
    parser.add_argument(
        "--ignore-header",
        action="store_true",
        help="copy a raw source even if it begins like an image of another format",
    )


def _parse_bytes(text: str) -> int:
    """Return a size; a bare number is bytes."""
    return sizes.parse_size(f"{text}B" if text.isdecimal() else text)


class _Task:
    """One call of the command."""

    def __init__(
        self, command: Copy, parsed_args: argparse.Namespace, interrupts: Interrupts, status: StatusRequests
    ) -> None:
        self._command = command
        self._args = parsed_args
        self._interrupts = interrupts
        self._status = status
        self._options = _options(parsed_args)

    def run(self) -> TransferResult:
        from volmig.cli import copy_checks as checks
        from volmig.transfer.resume.checkpoints import CheckpointFile

        with ExitStack() as stack:
            size_bytes = self._size_bytes()
            self._interrupts.check()
            if self._args.resume is None:
                return self._to_target(size_bytes, None, None)
            checks.check_checkpoint_apart(self._args.resume, self._args.source, self._args.destination)
            kept = stack.enter_context(CheckpointFile(self._args.resume))
            with checks.usable():
                checkpoint = kept.begin()
            try:
                result = self._to_target(size_bytes, kept, checkpoint)
            except (errors.RequestError, errors.ConfigurationError):
                # Nothing was written.
                kept.withdraw()
                raise
            kept.finish()
            return result

    def _size_bytes(self) -> int:
        """Return how much is to be copied, after a look at the source."""
        from volmig.cli import copy_checks as checks
        from volmig.transfer.guard import occupied

        size_bytes = checks.source_size(self._args.source, self._options, self._args.size)
        storage = occupied.identify(self._args.source)
        if storage is not None:
            for place in occupied.mounted_at(storage):
                self._command.note(
                    f"Warning: {self._args.source} is mounted at {place}. What is written there meanwhile makes the "
                    "copy one of no single moment."
                )
        return size_bytes

    def _to_target(self, size_bytes: int, kept: CheckpointFile | None, checkpoint: Checkpoint | None) -> TransferResult:
        from volmig.cli.target import Target, Wanted

        wanted = Wanted(
            path=self._args.destination,
            size_bytes=size_bytes,
            force=self._args.force,
            source=self._args.source,
            warn=self._command.note,
            identity=None if kept is None else kept.destination,
            checkpoint=self._args.resume or "",
            sized=self._args.destination_format == _RAW,
        )
        with Target(wanted) as target:
            try:
                self._interrupts.check()
                if kept is not None:
                    # Before it has a size, by which it would look like somebody's: a kill may come at any moment.
                    kept.name_destination(target.identity)
                target.prepare()
                return self._copy(target, size_bytes, kept, checkpoint)
            except errors.VolmigError as error:
                told = self._told(error, target, kept)
                _leave_if_hanging(target, told)
                raise told from error
            except BaseException as error:
                if kept is None:
                    target.undo()
                _leave_if_hanging(target, error)
                raise

    def _copy(
        self, target: Target, size_bytes: int, kept: CheckpointFile | None, checkpoint: Checkpoint | None
    ) -> TransferResult:
        from volmig import transfer
        from volmig.cli.copy_run import CopyRun

        control = transfer.Control()
        options = dataclasses.replace(self._options, destination_is_zero=target.is_zero)
        resume: dict[str, Any] = {}
        if kept is not None:
            self._check_resumes(target, options)
            resume = {"checkpoint": checkpoint, "on_checkpoint": kept.save}
        with progress_for(self._command.app.stderr, quiet=self._command.quiet, may_close=True) as progress:
            run = CopyRun(
                control=control,
                progress=progress,
                interrupts=self._interrupts,
                status=self._status,
                tell=self._tell if self._command.quiet else progress.note,
                leaving=lambda: self._leaving(kept),
            )

            def work(tell: Callable[[TransferProgress], None]) -> TransferResult:
                result = transfer.copy(
                    self._args.source,
                    target.end,
                    size_bytes=size_bytes,
                    options=options,
                    progress=tell,
                    control=control,
                    **resume,
                )
                target.settle()
                return result

            return run.run(work)

    def _check_resumes(self, target: Target, options: CopyOptions) -> None:
        from volmig.transfer.engines.choice import choose

        engine, _ = choose(self._args.source, target.end, options)
        if not engine.resumes:
            raise errors.UnsupportedTransfer(
                engine=engine.name,
                reason="it cannot go on where it stopped",
                hint="Leave out --resume, or choose another engine.",
            )

    # --- what is told -------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        # The copy matters more than who reads about it.
        with contextlib.suppress(OSError):
            self._command.app.stderr.write(f"{text}\n")
            self._command.app.stderr.flush()

    def _told(self, error: errors.VolmigError, target: Target, kept: CheckpointFile | None) -> errors.VolmigError:
        """Return the error with the state that things are in, under the names that the user knows them by."""
        nothing_done = isinstance(error, errors.RequestError | errors.ConfigurationError)
        undone = target.undo() if kept is None or nothing_done else ""
        state = [undone] if undone else []
        hint = error.hint
        if isinstance(error, errors.TransferCancelled) and hint == error.hint_template:
            hint = "The source is unchanged."
            state = state or [f"{self._args.destination} is incomplete."]
        if kept is not None and isinstance(error, errors.VerificationFailed | errors.SourceChanged):
            # What is recorded as finished is wrong, or of another state of the source: going on would fail again.
            state.append(self._begin_again(kept))
        elif kept is not None and not nothing_done:
            state.append(self._go_on_with(kept))
        fields = {name: _renamed(value, target) for name, value in error.fields.items()}
        if isinstance(error, errors.CheckpointMismatch):
            fields["path"] = self._args.resume
            hint = f"{hint} That takes removing {self._args.resume}, and --force for what was written already."
        return type(error)(hint=" ".join(filter(None, [_renamed(hint, target), *state])), **fields)

    def _leaving(self, kept: CheckpointFile | None) -> str:
        return f"{self._args.destination} is incomplete." if kept is None else self._go_on_with(kept)

    def _begin_again(self, kept: CheckpointFile) -> str:
        try:
            kept.forget()
        except errors.VolmigError as error:
            return f"To begin again, remove {self._args.resume} first, which could not be changed: {error.message}"
        command = command_line(None, *_words(self._args))
        return f"What was finished is no longer relied upon; begin again, from the first byte, with: {command}"

    def _go_on_with(self, kept: CheckpointFile) -> str:
        how = "Go on" if kept.has_checkpoint else "Nothing was recorded as finished yet; begin again"
        return f"{how} with: {command_line(None, *_words(self._args))}"


def _leave_if_hanging(target: Target, error: BaseException) -> None:
    """End the process with its error, if it would else wait for storage that does not answer."""
    from volmig.cli.copy_run import leave

    if target.hangs:
        leave("".join(f"{line}\n" for line in report.error_lines(error)), report.exit_status(error))


def _renamed(value: Any, target: Target) -> Any:
    """Return a fact of an error with the destination's name in place of that of its descriptor."""
    return value.replace(target.end, target.name) if isinstance(value, str) else value


def _options(parsed_args: argparse.Namespace) -> CopyOptions:
    from volmig.transfer.base import CopyOptions, Tail, Verify

    options = CopyOptions(
        engine=parsed_args.engine,
        verify=Verify(parsed_args.verify),
        source_format=parsed_args.source_format,
        destination_format=parsed_args.destination_format,
        bandwidth_limit_bytes=parsed_args.limit or 0,
        tail=Tail(parsed_args.tail),
        ignore_header=parsed_args.ignore_header,
        backing_directories=tuple(parsed_args.backing_directory),
    )
    if parsed_args.chunk_bytes is None:
        return options
    return dataclasses.replace(options, chunk_bytes=parsed_args.chunk_bytes)


def _words(parsed_args: argparse.Namespace) -> list[str]:
    """Return the command line that makes the same call again."""
    words = ["copy"]
    for name, default in (
        ("verify", "digest"),
        ("limit", None),
        ("resume", None),
        ("size", None),
        ("tail", "keep"),
        ("engine", "auto"),
        ("source_format", _RAW),
        ("destination_format", _RAW),
        ("chunk_bytes", None),
    ):
        value = getattr(parsed_args, name)
        if value != default:
            words += [f"--{name.replace('_', '-')}", f"{value}B" if isinstance(value, int) else value]
    for directory in parsed_args.backing_directory:
        words += ["--backing-directory", directory]
    words += [f"--{name.replace('_', '-')}" for name in ("force", "ignore_header") if getattr(parsed_args, name)]
    dashes = ["--"] if any(end.startswith("-") for end in (parsed_args.source, parsed_args.destination)) else []
    return [*words, *dashes, parsed_args.source, parsed_args.destination]
