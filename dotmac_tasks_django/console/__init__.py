"""
What `manage.py bgops` does: one module for each group of its subcommands.

A group adds its parsers to the command's, and each parser names the function
that carries it out. A function gets the manager and the options, and returns an
`Answer`; it prints nothing.
"""
