"""Exporting volumes by NBD over TLS, with a ``qemu-nbd`` for each host: no module of the kernel is needed.

qemu-nbd and not nbdkit: it goes past the page cache of this host (``--cache=none``), so that what a copy reads back
comes from the storage, and it can hold the name in a client's certificate against the one host that it is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Protocol

from volmig import errors
from volmig.drivers.lvm.commands import CommandFailed, Commands
from volmig.drivers.targets.base import Exporter
from volmig.drivers.targets.nbd_records import ExportRecord, Records
from volmig.drivers.targets.servers import Server, boot_id, end, find
from volmig.drivers.targets.tcp_peers import peers_of

if TYPE_CHECKING:
    from volmig.drivers.base import ConnectionInfo, ConnectorProperties

PROGRAM: Final = "qemu-nbd"
DEFAULT_PORT: Final = 10809
DEFAULT_RUN_DIRECTORY: Final = "/run/volmig"
DEFAULT_TLS_DIRECTORY: Final = "/etc/volmig/tls"

_PORTS: Final = 1024
_PORT_ATTEMPTS: Final = 16
_TAKEN = re.compile(r"address already in use|failed to find an available port", re.IGNORECASE)
_PRIORITY: Final = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
_CLIENT_CERTIFICATE: Final = "client-cert.pem"
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Runs(Protocol):
    """What runs programs with the rights that the storage asks for."""

    def run(self, *arguments: str) -> str:
        """Run a program to its end and return what it wrote to its standard output."""


class NbdExporter(Exporter):
    """Exports the volumes of one backend. Each host has a server of its own for each volume that it is shown.

    What runs is on record before it is started, under a name that nobody else can have given, so that it is found again
    by any later process of the backend. With it end the connections of its host, and no others. Every host with a
    certificate of the authority that knows the name is let in, unless ``target_tls_client_name`` says what name its
    certificate must have.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        backend: str,
        host: str,
        prefix: Sequence[str] = (),
        commands: Runs | None = None,
    ) -> None:
        """Keep how volumes are exported; nothing is touched yet.

        :param commands: what runs programs, in place of the usual one with *prefix*.
        """
        super().__init__(options, backend=backend, host=host, prefix=prefix)
        self._commands = commands or Commands(backend=backend, prefix=prefix)
        run_directory = options.get("target_run_directory") or DEFAULT_RUN_DIRECTORY
        self._records = Records(Path(run_directory), prefix=f"nbd-{self.tag}")
        self._tls_directory = Path(options["target_tls_directory"] or DEFAULT_TLS_DIRECTORY)
        self._address = str(options["target_ip_address"])
        self._first_port = options["target_port"] or DEFAULT_PORT
        self._client_name = options.get("target_tls_client_name") or ""

    def connection(self, volume_id: str, device: str, connector: ConnectorProperties) -> ConnectionInfo:
        """Export *device* to the host of *connector*, and return how it is reached. Repeating it gives the same answer.

        :param device: absolute path of a block device or a regular file.
        :raises volmig.errors.StorageBusy: when other hosts have another device under the volume's name.
        :raises volmig.errors.HostNotIdentified: when certificates must have the host's name, and it has none.
        :raises volmig.errors.ExportFailed: when the server cannot be started.
        :raises volmig.errors.ProgramMissing: when there is no qemu-nbd.
        """
        if not device.startswith("/"):
            raise self.failed(volume_id, f"{device!r} is not an absolute path")
        initiator = _initiator(connector)
        wanted = self._wanted(initiator)
        with self._records.locked(volume_id):
            servers = self._records.read(volume_id)
            self._require_device(servers, device, initiator)
            for record in servers:
                if initiator in record.initiators and self._serves(record, device, wanted):
                    return self._info(record, initiator)
            left = self._without(servers, initiator)
            return self._info(self._started(volume_id, device, initiator, left), initiator)

    def terminate(self, volume_id: str, connector: ConnectorProperties) -> None:
        """Take back the export to one host, and end its connections. Succeeds when there is none.

        :raises volmig.errors.StorageBusy: when the server does not end.
        """
        if self._records.directory.is_dir():
            with self._records.locked(volume_id):
                self._keep(volume_id, self._without(self._records.read(volume_id), _initiator(connector)))

    def remove(self, volume_id: str) -> None:
        """Take back the export to all hosts. Succeeds when there is none.

        :raises volmig.errors.VolumeInUse: when somebody is connected; nothing was changed.
        :raises volmig.errors.StorageBusy: when a server does not end.
        """
        if not self._records.directory.is_dir():
            return
        with self._records.locked(volume_id):
            servers = self._records.read(volume_id)
            peers = {peer for record in servers if self._runs(record) for peer in peers_of(record.port)}
            if peers:
                users = f"by its export, from {', '.join(sorted(peers))}"
                raise errors.VolumeInUse(volume=volume_id, users=users)
            for record in servers:
                self._end(record)
            self._keep(volume_id, ())

    def exports(self) -> list[str]:
        """Return the ids of the volumes that are exported, or were when this host went down."""
        return self._records.volumes()

    # --- one server ---------------------------------------------------------------------------

    def _runs(self, record: ExportRecord) -> bool:
        return bool(record.pid) and bool(find(PROGRAM, _argument(record)))

    def _serves(self, record: ExportRecord, device: str, wanted: str) -> bool:
        """Say whether a server runs as it would be started now."""
        return self._runs(record) and (record.device_identity, record.identity) == (_identity(device), wanted)

    def _require_device(self, servers: Sequence[ExportRecord], device: str, initiator: str) -> None:
        """Refuse to show two hosts two devices as one volume."""
        for record in servers:
            others = sorted(set(record.initiators) - {initiator})
            if others and self._runs(record) and record.device_identity != _identity(device):
                raise errors.StorageBusy(
                    backend=self.backend,
                    reason=f"volume {record.volume_id} is exported to {', '.join(others)} with another device",
                )

    def _without(self, servers: Sequence[ExportRecord], initiator: str) -> tuple[ExportRecord, ...]:
        """End what serves a host only, and return what is left of the servers, for the record."""
        left = []
        for record in servers:
            others = tuple(name for name in record.initiators if name != initiator)
            if others:
                # All of them for a server of another host; some for one that an earlier version has started.
                left.append(dataclasses.replace(record, initiators=others))
            else:
                self._end(record)
        return tuple(left)

    def _keep(self, volume_id: str, servers: Sequence[ExportRecord], *, keeps_lock: bool = False) -> None:
        """Have on record what is left of the servers of a volume."""
        if servers:
            self._records.write(volume_id, servers)
        else:
            self._records.remove(volume_id, keeps_lock=keeps_lock)

    def _started(self, volume_id: str, device: str, initiator: str, others: tuple[ExportRecord, ...]) -> ExportRecord:
        # Beside those of other hosts, which QEMU's locks allow: a server does not mind other writers of a raw device.
        record = ExportRecord(
            volume_id=volume_id,
            export=f"volume-{volume_id}.{self.tag}.{token_hex(16)}",
            device=device,
            device_identity=_identity(device),
            port=0,
            initiators=(initiator,),
            identity=self._wanted(initiator),
            boot=boot_id(),
        )
        try:
            return self._running(record, others)
        except BaseException:
            # Also when the caller is interrupted: what may run by then is found by its name.
            self._end(record)
            self._keep(volume_id, others, keeps_lock=True)
            raise

    def _running(self, record: ExportRecord, others: tuple[ExportRecord, ...]) -> ExportRecord:
        taken: CommandFailed | None = None
        for attempt, port in enumerate(self._free_ports()):
            record = dataclasses.replace(record, port=port)
            self._records.write(record.volume_id, (*others, record))
            try:
                self._commands.run(*self._command(record))
            except CommandFailed as exc:
                # Between the look and the start somebody else can take a port.
                if not _TAKEN.search(exc.stderr) or attempt >= _PORT_ATTEMPTS:
                    raise self.failed(record.volume_id, exc.reason) from exc
                taken = exc
                continue
            servers = find(PROGRAM, _argument(record))
            if len(servers) != 1:
                raise self.failed(
                    record.volume_id,
                    f"{PROGRAM} was started, but /proc shows {len(servers)} of it: it ended at once, or /proc hides it",
                )
            record = dataclasses.replace(record, pid=servers[0].pid, start_time_ticks=servers[0].start_time_ticks)
            self._records.write(record.volume_id, (*others, record))
            return record
        reason = f"no port of {self._address} from {self._first_port} on is free"
        raise self.failed(record.volume_id, reason) from taken

    def _command(self, record: ExportRecord) -> list[str]:
        credentials = {
            "id": "tls",
            "endpoint": "server",
            "dir": os.fspath(self._tls_directory),
            "verify-peer": "on",
            "priority": _PRIORITY,
        }
        command = [
            *(PROGRAM, "--fork", "--persistent", "--shared=0", "--format=raw", "--cache=none", "--discard=unmap"),
            *(f"--bind={self._address}", f"--port={record.port}", _argument(record)),
            *("--object", _object("tls-creds-x509", credentials), "--tls-creds=tls"),
        ]
        if record.identity:
            command += ["--object", _object("authz-simple", {"id": "client", "identity": record.identity})]
            command += ["--tls-authz=client"]
        return [*command, "--", record.device]

    def _end(self, record: ExportRecord) -> None:
        """End a server on record, whether its start was seen or not."""
        argument = _argument(record)
        if record.pid and record.boot == boot_id():
            # First, since one whose threads hang in the storage shows no command line any more.
            self._end_server(record, Server(pid=record.pid, start_time_ticks=record.start_time_ticks))
        # Again and again, since one that was just being started may have forked meanwhile, and twice, since it may have
        # done so behind the back of whoever looked.
        while servers := find(PROGRAM, argument) or find(PROGRAM, argument):
            for server in servers:
                self._end_server(record, server)

    def _end_server(self, record: ExportRecord, server: Server) -> None:
        if not end(server, program=PROGRAM, argument=_argument(record), kill=self._kill):
            raise errors.StorageBusy(
                backend=self.backend,
                reason=f"{PROGRAM} (process {server.pid}), which exports volume {record.volume_id}, does not end",
            )

    def _kill(self, pid: int, number: int) -> None:
        with contextlib.suppress(CommandFailed):  # it has ended meanwhile
            self._commands.run("kill", f"-{number}", str(pid))

    def _free_ports(self) -> Iterator[int]:
        """Yield ports that nobody listens on at the moment."""
        for port in range(self._first_port, min(self._first_port + _PORTS, 65536)):
            with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._address, port))
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                    continue
            yield port

    # --- who is who ---------------------------------------------------------------------------

    def _wanted(self, initiator: str) -> str:
        """Return the name that a certificate of *initiator* must have; empty when any will do."""
        if not self._client_name:
            return ""
        if _HOST_NAME.match(initiator) is None:
            # It could say more than a name in the pattern.
            raise errors.HostNotIdentified(host=initiator, what="host", protocol="nbd", file=self._tls_directory)
        return self._client_name.replace("{host}", initiator)

    def _info(self, record: ExportRecord, initiator: str) -> ConnectionInfo:
        address = f"[{self._address}]" if ":" in self._address else self._address
        data: dict[str, Any] = {"uri": f"nbds://{address}:{record.port}/{record.export}", "format": "raw"}
        if initiator == self.host and (self._tls_directory / _CLIENT_CERTIFICATE).exists():
            data["tls_certificates"] = os.fspath(self._tls_directory)
        return {"driver_volume_type": "nbd", "data": data}


def _argument(record: ExportRecord) -> str:
    return f"--export-name={record.export}"


def _object(kind: str, values: Mapping[str, str]) -> str:
    """Return an object of QEMU's as an option; a comma in a value is written twice."""
    return ",".join([kind, *(f"{name}={value.replace(',', ',,')}" for name, value in values.items())])


def _initiator(connector: ConnectorProperties) -> str:
    return str(connector.get("host", ""))


def _identity(device: str) -> str:
    """Return what a device, or a file, is known by as long as a server has it open."""
    found = Path(device).stat()
    if stat.S_ISBLK(found.st_mode):
        return f"block {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    return f"file {found.st_dev}:{found.st_ino}"
