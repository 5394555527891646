"""The commands of `python -m benchmarks`, a file per group.

`arguments` holds what they share. What the user has to fix is a `UserError`, exit code 2.
"""
