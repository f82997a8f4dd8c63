"""The driver ``lvm``: volumes are logical volumes, thick or thin, of one volume group."""

from volmig.drivers.lvm.driver import LvmDriver

__all__ = ["LvmDriver"]
