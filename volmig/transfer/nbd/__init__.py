"""NBD exports as ends: a client of the protocol, and the addresses that name one."""
