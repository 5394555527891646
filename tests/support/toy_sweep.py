"""Sweeps of toy cells."""

from pathlib import Path

import toy_runs
from toy_records import toy_protocol

from benchmarks.cell import Cell, make_cell
from benchmarks.sweep import Outcome, Plan, RunCell, sweep


def cells(methods: tuple[str, ...] = ("freeze", "lora"), seeds: int = 2) -> tuple[Cell, ...]:
    protocol = toy_protocol()
    return tuple(
        make_cell(protocol, m, seed=seed, data={}) for seed in range(seeds) for m in methods
    )


def plan(folder: Path, run: RunCell = toy_runs.quick, **what: tuple[str, ...] | int) -> Plan:
    return Plan(cells(**what), folder / "out", folder, "cpu", run)


def work(made: Plan, workers: int = 2, retry_failed: bool = False) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    outcome = sweep(made, workers, lambda line, ends: lines.append(line), retry_failed)
    return outcome, lines


def log(folder: Path) -> list[str]:
    return sorted((folder / "log").read_text().splitlines())
