"""Letting only sound answers of a driver through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from volmig import errors
from volmig.drivers.base import ConnectionInfo, StoredObject, VolumeUpdate
from volmig.store.rules import check_text

_UPDATE_KEYS = frozenset(VolumeUpdate.__annotations__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Checks what the driver of one backend returns.

    Every method returns the answer, or raises :class:`volmig.errors.DriverContractBroken`.
    """

    driver: str
    backend: str

    def nothing(self, method: str, answer: Any) -> None:
        if answer is not None:
            raise self.broken(method, f"it returned {answer!r}, and the contract says None")

    def truth(self, method: str, answer: Any) -> bool:
        if not isinstance(answer, bool):
            raise self.broken(method, f"it returned {answer!r}, neither True nor False")
        return answer

    def identity(self, method: str, answer: Any) -> str | None:
        if answer is None:
            return None
        if not isinstance(answer, str) or not answer:
            raise self.broken(method, f"it returned {answer!r}, neither text nor None")
        self.text(method, "identity", answer)
        return answer

    def size(self, method: str, answer: Any) -> int:
        if isinstance(answer, bool) or not isinstance(answer, int) or answer < 1:
            raise self.broken(method, f"it returned {answer!r}, not a positive number of bytes")
        return answer

    def connection(self, method: str, answer: Any) -> ConnectionInfo:
        if (
            not isinstance(answer, Mapping)
            or not isinstance(answer.get("driver_volume_type"), str)
            or not isinstance(answer.get("data"), Mapping)
        ):
            raise self.broken(method, "its answer lacks 'driver_volume_type' (text) or 'data' (a mapping)")
        return {"driver_volume_type": answer["driver_volume_type"], "data": dict(answer["data"])}

    def handle(self, method: str, answer: Any) -> BinaryIO:
        if not all(callable(getattr(answer, name, None)) for name in ("read", "seek", "tell", "close")):
            raise self.broken(method, f"it returned {type(answer).__name__}, not a file-like handle")
        return cast(BinaryIO, answer)

    def moved(self, method: str, answer: Any) -> tuple[bool, VolumeUpdate]:
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], bool):
            raise self.broken(method, f"it returned {answer!r}, not (True, update) or (False, None)")
        moved, update = answer
        if not moved and update is not None:
            raise self.broken(method, "it returned an update for a volume that it did not change")
        return moved, self.update(method, update)

    def update(self, method: str, answer: Any, *, required: bool = False) -> VolumeUpdate:
        if answer is None and not required:
            return {}
        if not isinstance(answer, Mapping):
            raise self.broken(method, f"it returned {answer!r}, not a mapping of changes")
        if unknown := sorted(str(key) for key in answer.keys() - _UPDATE_KEYS):
            raise self.broken(method, f"it asks to change {', '.join(unknown)}")
        for key, value in answer.items():
            sound = _is_metadata(value) if key == "metadata" else value is None or isinstance(value, str)
            if not sound or (key == "_name_id" and value == ""):
                raise self.broken(method, f"its value for {key} is {value!r}")
            texts = [text for item in value.items() for text in item] if key == "metadata" else [value or ""]
            for text in texts:
                self.text(method, key.removeprefix("_"), text)
        return cast(VolumeUpdate, dict(answer))

    def objects(self, method: str, answer: Any) -> tuple[StoredObject, ...]:
        if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
            raise self.broken(method, f"it returned {type(answer).__name__}, not a sequence of objects")
        names: set[str] = set()
        for found in answer:
            self._object(method, found)
            if found.name in names:
                raise self.broken(method, f"it names the object {found.name!r} twice")
            names.add(found.name)
        return tuple(answer)

    def ids(self, method: str, answer: Any) -> tuple[str, ...]:
        if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
            raise self.broken(method, f"it returned {type(answer).__name__}, not a sequence of ids")
        for found in answer:
            if not isinstance(found, str) or not found:
                raise self.broken(method, f"an id in it is {found!r}")
            self.text(method, "id", found)
        return tuple(answer)

    def _object(self, method: str, found: Any) -> None:
        if not isinstance(found, StoredObject):
            raise self.broken(method, f"an object in it is {type(found).__name__}, not a StoredObject")
        name: Any = found.name
        size: Any = found.size_bytes
        backend_id: Any = found.backend_id
        if not isinstance(name, str) or not name:
            raise self.broken(method, f"the name of an object is {name!r}")
        self.text(method, "name of an object", name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise self.broken(method, f"the size of the object {name!r} is {size!r}")
        if backend_id is not None:
            if not isinstance(backend_id, str) or not backend_id:
                raise self.broken(method, f"the backend_id of the object {name!r} is {backend_id!r}")
            self.text(method, "backend_id of an object", backend_id)

    def text(self, method: str, name: str, text: str) -> None:
        """Refuse what could not be recorded: a rollback must not fail of it."""
        try:
            check_text(name, text)
        except errors.RequestInvalid as error:
            raise self.broken(method, error.message) from error

    def broken(self, method: str, reason: str) -> errors.DriverContractBroken:
        """Return the error of an answer that is not what the contract says."""
        return errors.DriverContractBroken(driver=self.driver, backend=self.backend, method=method, reason=reason)


def _is_metadata(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for item in value.items() for text in item)
