"""The commands of `python -m benchmarks`, one file per group; `arguments` is what they share."""
