"""A process that deletes an object and is stopped on the way."""

from __future__ import annotations

import os
import signal

from volmig.drivers._directory import OpenDirectory

from .support import CTXT, file_driver


def delete_until(path, storage, volume, identity, point, reached):
    """Delete an object; report when *point* is reached, and wait there to be killed or to go on."""
    driver = file_driver(path, setup=False)
    driver.storage_identity = storage
    driver.do_setup(CTXT)
    original = {"move": OpenDirectory.move, "unlink": os.unlink, "rmdir": os.rmdir}

    def pause(*args, **kwargs):
        if point == "moved":
            original["move"](*args, **kwargs)
        reached.set()
        os.kill(os.getpid(), signal.SIGSTOP)
        if point != "moved":
            original["move" if point == "looked" else point](*args, **kwargs)

    if point in {"looked", "moved"}:
        OpenDirectory.move = pause
    else:
        setattr(os, point, pause)
    driver.delete_object(volume, identity)
