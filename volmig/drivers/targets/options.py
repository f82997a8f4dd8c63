"""The options of a backend that say how its volumes are shown to other hosts; Cinder's names where it has them."""

from __future__ import annotations

from oslo_config import cfg


def target_options() -> list[cfg.Opt]:
    """Return the options, for a driver to add to its own."""
    return [
        cfg.StrOpt(
            "target_protocol",
            default="none",
            choices=[
                ("none", "Volumes are used on this host only."),
                ("iscsi", "iSCSI by the kernel's target (LIO)."),
                ("nvmet_tcp", "NVMe/TCP by the kernel's target (nvmet)."),
                ("nbd", "NBD over TLS by qemu-nbd; needs no kernel module."),
            ],
            help="How volumes are shown to other hosts.",
        ),
        cfg.IPOpt(
            "target_ip_address",
            default="127.0.0.1",
            help="Address at which targets listen. Only this host reaches the default.",
        ),
        cfg.PortOpt(
            "target_port",
            default=0,
            help="Port at which targets listen; 0 for the protocol's own (iSCSI 3260, NVMe/TCP 4420, NBD 10809).",
        ),
        cfg.StrOpt(
            "target_prefix",
            default="",
            regex=r"^$|^(iqn|nqn)\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]{1,80}:[a-z0-9.:-]{0,40}$",
            help="What the qualified names of targets begin with, such as iqn.2010-10.org.openstack: . Empty for "
            "iqn.2026-11.org.volmig: or nqn.2026-11.org.volmig: .",
        ),
        cfg.StrOpt(
            "target_secret_file",
            default="",
            help="File with the key from which the CHAP secrets of the backend's volumes are derived. It is made, for "
            "its owner alone, when it is missing. Empty for /var/lib/volmig/target-BACKEND.key .",
        ),
        cfg.StrOpt(
            "target_tls_directory",
            default="",
            help="Directory with the certificates of NBD over TLS: ca-cert.pem, server-cert.pem and server-key.pem. "
            "Empty for /etc/volmig/tls .",
        ),
        cfg.StrOpt(
            "target_tls_client_name",
            default="",
            help="Distinguished name that the certificate of a host must have to be let in by NBD over TLS, with "
            "{host} for the host's name, such as CN={host} . Empty: every certificate of the authority is let in.",
        ),
        cfg.StrOpt(
            "target_run_directory",
            default="",
            help="Directory for the records of the NBD servers that run. Empty for /run/volmig .",
        ),
        cfg.BoolOpt(
            "export_to_own_host",
            default=False,
            help="This host, too, attaches volumes through the target instead of opening them directly.",
        ),
    ]
