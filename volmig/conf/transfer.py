"""Options in ``[transfer]``: how data is copied unless a request says otherwise."""

from __future__ import annotations

from oslo_config import cfg

GROUP = "transfer"

OPTIONS = (
    cfg.StrOpt(
        "engine",
        default="auto",
        help="Transfer engine: auto, or the name of an installed one (chunked, dd, qemu-img, nbdcopy).",
    ),
    cfg.StrOpt(
        "verify",
        default="digest",
        choices=[
            ("none", "do not compare"),
            ("digest", "read the destination back and compare digests"),
            ("compare", "read both ends again and compare each byte"),
        ],
        help="How the data that arrived is compared with what left.",
    ),
    cfg.IntOpt(
        "bandwidth_limit_bytes",
        default=0,
        min=0,
        help="Bytes a second that one copy may move at most; 0 for no limit.",
    ),
    cfg.IntOpt(
        "chunk_bytes",
        default=1024 * 1024,
        min=4096,
        max=1024 * 1024,
        help="Largest size of one read or write request; a multiple of 4096.",
    ),
    cfg.BoolOpt(
        "check_image_headers",
        default=True,
        help="Refuse to copy a raw volume whose data begins like an image (qcow2, vmdk, ...). Such a volume may be an "
        "image that was taken for raw; or whoever may write to it has made it look like one, and then its bytes can be "
        "copied as they are by turning this off.",
    ),
)
