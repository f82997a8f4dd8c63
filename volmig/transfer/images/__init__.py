"""Disk images: telling their formats without believing them, and their content as an end."""
