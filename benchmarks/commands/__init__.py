"""The commands of `python -m benchmarks`, a file per group.

`arguments`, `training` and `listing` are what they share: what is asked, the work, what is said.
"""
