"""The command line ``volmig``, on cliff.

Importing this package loads nothing else; each command is an entry point in the namespace ``volmig.cli`` and imports
the engine only when it runs, so that help and mistakes in the arguments are answered at once.
"""
