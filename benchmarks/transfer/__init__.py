"""Measure copying: volmig beside dd, cp, qemu-img and nbdcopy, in one run; ``python -m benchmarks.transfer``."""
