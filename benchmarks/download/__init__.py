"""Fetching data sets from where their cards say they are: `python -m benchmarks download`."""
