"""Table 5: what is measured, the formats, and the committed files."""

from pathlib import Path

import pytest
from paths import ROOT

from benchmarks import costs as measuring
from benchmarks.__main__ import main
from benchmarks.report import costs as report
from benchmarks.report.costs import Cost, Costs

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = ROOT / "results" / "costs"
ROWS = ("full", "freeze", "lora", "vpt", "hf:LoRA")


@pytest.fixture(scope="module")
def costs() -> Costs:
    """Some rows on the mini backbone."""
    return measuring.measure("mini", rounds=2, rows=ROWS)


def row(costs: Costs, method: str) -> Cost:
    return next(row for row in costs.rows if row.method == method)


def test_what_rows_cost(costs: Costs) -> None:
    full, freeze, lora, vpt, peft = costs.rows
    protocol = measuring.load_protocol("mini_gtav")
    vit = measuring._backbone(protocol.backbone, None)
    assert full.trainable == sum(p.numel() for p in vit.parameters())
    assert full.adapter_bytes == 4 * full.trainable
    assert (freeze.trainable, freeze.kept_bytes, freeze.adapter_bytes) == (0, 0, 0)
    rank = measuring._methods(protocol, defaults=False)["lora"].rank
    sides = 18 * vit.embed_dim  # four linears d x d and two 4 d x d, both of their sides
    assert lora.trainable == peft.trainable == rank * sides * len(vit.blocks)
    assert lora.adapter_bytes == peft.adapter_bytes == 4 * lora.trainable
    assert all(row.state_bytes == 12 * row.trainable for row in costs.rows)
    assert lora.kept_bytes <= 0.75 * full.kept_bytes < peft.kept_bytes
    assert freeze.step < 0.8 < full.step
    assert [row.method for row in costs.rows if row.folded is None] == ["vpt"]
    assert vpt.evaluation > 0
    assert lora.folded < lora.evaluation


def test_bytes_are_the_same_every_time(costs: Costs) -> None:
    again = measuring.measure("mini", rounds=1, rows=("lora",))
    for name in ("trainable", "adapter_bytes", "kept_bytes", "state_bytes"):
        assert getattr(row(again, "lora"), name) == getattr(row(costs, "lora"), name)


def test_formats(costs: Costs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = measuring.write(costs, tmp_path)
    assert [path.name for path in paths] == [
        f"table5.mini.{e}" for e in ("md", "csv", "tex", "json")
    ]
    assert report.load(tmp_path, "mini") == costs
    words = report.render(costs, "text")
    assert "step: over a frozen backbone that passes the gradient on" in words
    assert "eval, folded: over the plain backbone" in words
    read = ["bench", "costs", "--read", str(tmp_path)]
    assert main(read) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:-1])) <= 80
    for form in ("md", "csv", "tex", "json"):
        assert main([*read, "--format", form]) == 0
        assert capsys.readouterr().out == (tmp_path / f"table5.mini.{form}").read_text()
    names = (tmp_path / "table5.mini.csv").read_text().splitlines()[0].split(",")
    assert names[:4] == ["profile", "method", "reason", "trainable"]
    assert f"| {'lora':<8} | " in (tmp_path / "table5.mini.md").read_text()
    assert r"hf:LoRA & " in (tmp_path / "table5.mini.tex").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--profile", "smoke"], "--profile smoke: no costs of it"),
        (["--methods", "lor"], "--methods lor: no such row; did you mean 'lora'?"),
        (["--format", "pdf"], "--format pdf: no such format"),
        (["--device", "cuda:99"], "device 'cuda:99': torch sees "),
        (["--read", "none"], "none/table5.mini.json: No such file or directory; `python -m bench"),
        (["--read", "."], "table5.mini.json: no record of costs: "),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table5.mini.json").write_text('{"profile": "mini"}')
    assert main(["bench", "costs", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


# Of the definitions and of published tables, all blocks of ViT-L adapted.
ON_VIT_L = {
    "freeze": 0,
    "bitfit": 272_384,
    "lora": 7_077_888,
    "hf:LoRA": 7_077_888,
    "pissa": 7_077_888,
    "milora": 7_077_888,
    "mica": 3_538_944,
    "dora": 7_299_072,
    "hf:DoRA": 7_299_072,
    "dude": 7_299_072,
    "soma": 7_299_072,
    "edora": 368_640,
    "svf": 147_456,
    "vpt": 3_686_400,
    "adaptformer": 3_171_840,
    "rein": 2_530_817,
    "recyclelora": 15_925_248,
    "full": 304_198_656,
}


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_committed_costs(profile: str) -> None:
    costs = report.load(KEPT, profile)
    assert costs.environment.dirty is False
    assert [row.method for row in costs.rows] == [*measuring.METHODS, *measuring.OUTSIDE]
    for form in report.FORMATS[1:]:
        assert (KEPT / f"table5.{profile}.{form}").read_text() == report.render(costs, form)
    full = row(costs, "full")
    for method, share in (("lora", 0.75), ("soma", 0.75), ("dora", 0.8)):
        assert row(costs, method).kept_bytes <= share * full.kept_bytes
    if profile == "paper":
        assert costs.tokens == 1025
        counts = {row.method: row.trainable for row in costs.rows}
        assert {method: counts[method] for method in ON_VIT_L} == ON_VIT_L
