"""The command line: quick where nothing is trained; one line, exit code 2 for a user's mistake."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_runs
import yaml
from paths import ROOT
from toy_records import (
    DATA,
    FINGERPRINTS,
    evaluation,
    toy_import,
    toy_record,
    toy_records,
    toy_table,
    write_toy_records,
)

from benchmarks import __version__
from benchmarks.__main__ import COMMANDS, _command_line, main
from benchmarks.protocol import Protocol
from benchmarks.record import Cost

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A table file, a folder of records, and a task without data or training."""

    def fingerprints(protocol: Protocol, data_root: Path) -> dict[str, str]:
        return FINGERPRINTS

    toy_table(tmp_path)
    write_toy_records(tmp_path / "records", toy_records())
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", fingerprints)
    monkeypatch.setattr("benchmarks.run.run_cell", toy_runs.quick)
    return {
        "table": tmp_path / "toy_table.yaml",
        "records": tmp_path / "records",
        "root": tmp_path,
        "protocol": DATA / "toy.yaml",
    }


def sweep(toy: dict[str, Path], *more: object) -> list[object]:
    return [
        *("sweep", toy["table"], "--profile", "toy", "--data-root", toy["root"]),
        *("--out", toy["root"] / "runs", "--methods", "freeze,lora", *more),
    ]


@pytest.mark.parametrize("argv", [["--help"], ["list", "tables"], ["list", "protocols"]])
def test_help_and_lists_do_not_import_torch(argv: list[str]) -> None:
    code = f"import sys; from benchmarks.__main__ import main; main({argv}); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_groups_every_command_with_an_example_that_parses(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for panel, commands in COMMANDS.items():
        listed = out.partition(f"─ {panel} ─")[2].partition("╰")[0]
        for name, (_, example) in commands.items():
            assert f"│ {name} " in listed
            parser = _command_line().commands[name]
            parser.make_context(name, shlex.split(example))  # refuses what is no option
            code, text, _ = command(name, "--help")
            assert (code, "Example: python -m benchmarks" in text) == (0, True)
            assert max(map(len, text.splitlines())) <= 80
            assert "<str>" not in text
            assert "<bool>" not in text
    assert command("--version") == (0, f"soma-peft {__version__}\n", "")


def test_citation_has_the_version_of_the_suite() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__
    assert cited["preferred-citation"]["url"].endswith("2412.04077")


@pytest.mark.parametrize("name", ["table", "status"])
def test_reading_records_does_not_import_torch(name: str, toy: dict[str, Path]) -> None:
    where = ["--records" if name == "table" else "--out", str(toy["records"])]
    base = [name, str(toy["table"]), "--profile", "toy", *where]
    lines = [(base, int(name == "status"))]  # a cell failed
    if name == "status":
        (
            toy["records"] / "toy/all/own.M"
        ).mkdir()  # a record's folder says that there is such a row
        (toy["root"] / "own.py").write_text("raise RuntimeError('nobody runs this')")
        rows = ["--methods", f"lora,soma,{toy['root']}/own.py:M", "--placement", "all"]
        lines += [([*base, *rows], 1), ([name, "table4", *where], 0)]
    code = "import sys; from benchmarks.__main__ import main; "
    code += "".join(f"assert main({argv}) == {expected}; " for argv, expected in lines)
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_module_runs_and_exits_with_the_code() -> None:
    wrong = [sys.executable, "-m", "benchmarks", "table", "tabel1"]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: no table 'tabel1'; did you mean 'table1'?\n"
    assert done.stdout == ""


@pytest.mark.parametrize("what", ["methods", "protocols", "tables", "datasets"])
def test_list_prints_one_name_first_on_each_line(what: str, command: Command) -> None:
    code, out, _ = command("list", what)
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    known = {"methods": "lora", "protocols": "mini_gtav", "tables": "table1", "datasets": "gtav"}
    assert known[what] in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["list", "metods"], "list metods: no such list; did you mean 'methods'?"),
        (["table", "table1", "--profile", "min"], "no profile 'min'; did you mean 'mini'?"),
        (["table", "table1", "--format", "htm"], "--format htm: no such format"),
        (["table", "table1", "--records", "nowhere"], "nowhere: no such folder of records"),
        (["table", "table1", "--recipe", "controled"], "did you mean 'controlled'?"),
        (["table", "table1", "--seeds", "0,x", "--records", "."], "--seeds 0,x: expected whole"),
        (["table", "table1", "--seeds", "-1", "--records", "."], "--seeds -1: expected whole"),
        (
            ["table", "table1", "--profile", "paper"],
            "no records of paper_gtav (controlled); `python -m benchmarks sweep",
        ),
        (["sweep", "table1", "--seeds", "4294967296"], "a seed lies in 0..4294967295"),
        (["run", "mini_gtav", "lora", "--seed", "-2"], "--seed -2: a seed lies in"),
        (["tune", "mini_gtav", "--methods", "lora", "--seeds", "-1"], "--seeds -1: expected whole"),
        (["sweep", "table1", "--engine", "torchvision"], "has no choice of them; leave it out"),
        (["sweep", "table2", "--engine", "torch"], "no engine 'torch'; did you mean"),
        (["run", "mini_gta", "lora"], "no protocol 'mini_gta'; did you mean 'mini_gtav'?"),
        (["run", "mini_gtav", "lor"], "no method 'lor'; did you mean 'lora'?"),
        (["run", "mini_gtav", "lora", "--set", "method.rang=2"], "no field 'rang'; did you mean"),
        (["run", "mini_gtav", "lora", "--set", "recipe.lr=fast"], "lr: input should be a valid"),
        (["run", "mini_gtav", "lora", "--placement", "both"], "no placement 'both'"),
        (["sweep", "table1", "--methods", "sona"], "no method 'sona'; did you mean 'soma'?"),
        (["status", "table1", "--methods", "sona", "--out", "."], "no method 'sona'; did you"),
        (
            ["sweep", "table1", "--workers", "0"],
            "--workers 0: input should be greater than or equal to 1; see python -m benchmarks",
        ),
        (["run", "mini_gtav"], "Missing argument 'method'; see python -m benchmarks run --help"),
        (["tabel"], "No such command 'tabel'"),
        (["table", "table1", "--formt", "md"], "No such option: --formt"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    argv: list[str], expected: str, command: Command
) -> None:
    code, out, err = command(*argv)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_real_data_needs_a_root(command: Command) -> None:
    code, _, err = command("run", DATA / "toy.yaml", "lora")
    assert code == 2
    assert err == "error: toy reads real data: say where with --data-root\n"


def test_unreadable_record_stops_the_table(toy: dict[str, Path], command: Command) -> None:
    (toy["records"] / "toy/all/lora/seed1.json").write_text('{"schema')
    code, out, err = command("table", toy["table"], "--profile", "toy", "--records", toy["records"])
    assert (code, out) == (2, "")
    assert "lora/seed1.json: not a record" in err
    assert err.count("\n") == 1


def test_released_weights_are_asked_for_by_name_and_never_a_reference(
    toy: dict[str, Path], command: Command
) -> None:
    toy_import().write(toy["records"] / toy_import().path)
    base = ["table", toy["table"], "--profile", "toy", "--records", toy["records"]]
    code, out, _ = command(*base, "--methods", "soma_best")
    assert code == 0
    assert "soma_best" in out
    assert "lora" not in out
    code, out, err = command(*base, "--reference", "soma_best")
    assert (code, out) == (2, "")
    assert "--reference soma_best: released weights stand outside of all differences" in err


def test_table_prints_and_writes_every_format(toy: dict[str, Path], command: Command) -> None:
    runs = toy["records"].rename(toy["root"] / "runs")
    base = ["table", toy["table"], "--profile", "toy", "--records", runs]
    folder = toy["root"] / "tables"
    code, out, _ = command(*base, "--against", runs, "--write", folder)
    assert code == 0
    stem = folder / "toy_table.toy"
    assert out.splitlines()[-1] == f"Written: {stem}.{{md,csv,tex,html}}. More: --notes, --wide"
    assert command(*base, "--against", runs, "--format", "md")[1] == Path(f"{stem}.md").read_text()
    assert "against committed records" in Path(f"{stem}.md").read_text()
    assert {path.name for path in folder.iterdir()} == {
        f"toy_table.toy.{ending}" for ending in ("md", "csv", "tex", "html")
    }
    before = {path: path.read_bytes() for path in folder.iterdir()}
    command(*base, "--seeds", "0,1", "--methods", "lora,freeze", "--write", folder)
    assert (folder / "toy_table.toy.lora-freeze.seeds0-1.md").is_file()
    assert {path: path.read_bytes() for path in before} == before
    _, text, _ = command(*base, "--against", runs, "--format", "csv")
    assert text == (folder / "toy_table.toy.csv").read_text()
    elsewhere = shutil.copytree(runs, toy["root"] / "other")
    command(*base[:-1], elsewhere, "--write", folder)
    assert len([*folder.glob("toy_table.toy.from-????????.md")]) == 1
    assert {path: path.read_bytes() for path in before} == before
    _, text, _ = command(*base, "--format", "json", "--seeds", "0,1", "--methods", "lora")
    assert [(r["method"], r["n"]) for r in json.loads(text)] == [("lora", 2)]


def test_several_folders_make_one_table_and_conflicts_are_refused(
    toy: dict[str, Path], command: Command
) -> None:
    base = ["table", toy["table"], "--profile", "toy", "--records", toy["records"]]
    mine = toy["root"] / "mine"
    scores = [evaluation(20, 42.0, 28.0, 26.0)]
    own, again = toy_record("vpt", 0, evaluations=scores), toy_record("lora", 0)
    write_toy_records(mine, [own, again.model_copy(update={"cost": Cost(seconds_per_step=9.0)})])
    code, out, err = command(*base, "--records", mine, "--format", "json")
    assert (code, err) == (0, "")
    rows = {row["method"]: row for row in json.loads(out)}
    # Whatever is shorter, the whole path or that from here, is printed.
    read = {label: [Path(path).resolve() for path in rows[label]["records"]] for label in rows}
    assert read["vpt"] == [mine / own.path]
    assert read["lora"][0] == toy["records"] / again.path  # once, the first
    write_toy_records(mine, [toy_record("lora", 0, evaluations=[evaluation(20, 1.0, 2.0, 3.0)])])
    code, out, err = command(*base, "--records", mine)
    assert (code, out) == (2, "")
    assert f"{mine / again.path}: another record of the same row and seed than" in err
    assert err.count("\n") == 1


def test_placements_of_a_table(toy: dict[str, Path], command: Command) -> None:
    base = ["table", toy["table"], "--profile", "toy", "--records", toy["records"]]
    assert "last-two-thirds" not in command(*base)[1]
    assert "; placement last-two-thirds\n" in command(*base, "--placement", "both")[1]


def test_sweep_runs_what_is_missing_and_says_so(toy: dict[str, Path], command: Command) -> None:
    code, out, err = command(*sweep(toy, "--seeds", "0,1,0", "--workers", 2))
    assert (code, out) == (0, "")
    assert "[4/4]" in err
    assert err.splitlines()[-1] == "4 cells run, 0 recorded before"
    code, _, err = command(*sweep(toy, "--seeds", "0,1,2"))
    assert err.splitlines()[-1] == "2 cells run, 4 recorded before"
    assert len((toy["root"] / "log").read_text().splitlines()) == 6


def test_sweep_of_both_placements_takes_all_methods_of_a_seed_first(
    toy: dict[str, Path], command: Command
) -> None:
    command(*sweep(toy, "--seeds", "0,1", "--placement", "both"))
    order = (toy["root"] / "log").read_text().splitlines()
    assert [line.split()[0] for line in order] == ["0"] * 4 + ["1"] * 4
    assert (toy["root"] / "runs/toy/last-two-thirds/lora/seed1.json").exists()


def test_several_values_of_set_make_a_sweep(toy: dict[str, Path], command: Command) -> None:
    ranks = ("--set", "method.rank=2,4,8")
    code, _, err = command(*sweep(toy, "--methods", "lora", "--seeds", "0", *ranks))
    assert (code, err.splitlines()[-1]) == (0, "3 cells run, 0 recorded before")
    one = [
        "run",
        toy["protocol"],
        "lora",
        "--data-root",
        toy["root"],
        "--out",
        toy["root"] / "runs",
    ]
    code, out, _ = command(*one, *ranks)
    assert code == 0
    files = [line for line in out.splitlines() if line.endswith("seed0.json")]
    assert Path(files[0]).parent.name == "lora"  # its rank is 2
    assert len(set(files)) == 3
    code, _, err = command(*one, *ranks, "--devices", 2)
    assert (code, err.count("\n")) == (2, 1)


def test_local_sweep_trains_each_cell_on_as_many_devices_as_asked(
    command: Command, toy: dict[str, Path]
) -> None:
    code, _, _ = command(*sweep(toy, "--devices", 2))
    assert code == 0
    assert "0 freeze 2 1" in (toy["root"] / "log").read_text().splitlines()


def test_sweep_with_a_dead_worker_exits_with_2(
    toy: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.run.run_cell", toy_runs.dies_on_lora_seed_0)
    code, _, err = command(*sweep(toy, "--workers", 2, "--seeds", "0,1"))
    assert code == 2
    assert "error: lora seed 0 (all): its worker died (signal 9); the same command" in err


def test_sweep_with_a_failed_cell_exits_with_1(
    toy: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.run.run_cell", toy_runs.breaks_on_lora)
    code, _, err = command(*sweep(toy, "--seeds", "0"))
    assert code == 1
    assert "failed: lora seed 0 (all): RuntimeError: something unexpected" in err


def test_run_prints_scores_and_the_path_of_the_record(
    toy: dict[str, Path], command: Command
) -> None:
    out = toy["root"] / "runs"
    base = ["run", toy["protocol"], "lora", "--data-root", toy["root"], "--out", out, "--seed", 1]
    code, text, _ = command(*base)
    assert code == 0
    assert text.splitlines()[0] == "lora seed 1: done"
    assert text.splitlines()[-1] == str(out / "toy/all/lora/seed1.json")
    assert "cityscapes           mIoU 28.90 (2 images, target)" in text
    code, again, err = command(*base)
    assert (code, again, err) == (0, text, "recorded before; nothing was run\n")


def test_run_of_another_cell_at_the_same_path_is_refused(
    toy: dict[str, Path], command: Command, monkeypatch: Any
) -> None:
    base = ["run", toy["protocol"], "lora", "--data-root", toy["root"], "--out", toy["root"] / "r"]
    assert command(*base)[0] == 0
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: {"gtav": "other"})
    code, _, err = command(*base)
    assert code == 2
    assert "record of another cell" in err
    assert err.count("\n") == 1


def test_output_cut_off_by_a_pipe_leaves_no_traceback() -> None:
    code = f"{sys.executable} -m benchmarks list protocols | true"
    shell = subprocess.run(code, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in shell.stderr
    assert os.name == "posix"


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    # The first import is slow, and tells when it is reached.
    (tmp_path / "typer.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "list"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted; the same command resumes\n")


def test_a_reader_that_leaves_a_pipe_early_is_no_fault() -> None:
    command = f"{sys.executable} -m benchmarks table table1 | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
