"""The page: its numbers are those of the table, and a browser opens it alone, at any width."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_records import toy_import, toy_record, toy_records, toy_table, write_toy_records

from benchmarks.__main__ import main
from benchmarks.report import spec as specs
from benchmarks.report.page.charts import charts
from benchmarks.report.page.data import sections

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (375, 768, 1280)
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A page over the toy records, one failed for a reason that is markup, and an imported one."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        toy_table(folder)
        records = toy_records()[:-1]
        records.append(toy_record("soma", 2, status="failed", reason=EVIL, evaluations=[]))
        write_toy_records(folder / "records", records)
        toy_import().write(folder / "records" / toy_import().path)
        patch.setattr(specs, "FOLDER", folder)
        profile = next(iter(specs.load_table("toy_table").protocols))
        out = folder / "report.html"
        arguments = ["--profile", profile, "--records", str(folder / "records")]
        assert main(["report", *arguments, "--out", str(out)]) == 0
        yield out


def rows_of(page: Path, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The same table as JSON."""
    folder = page.parent
    capfd.readouterr()
    arguments = ["--profile", "toy", "--records", str(folder / "records"), "--format", "json"]
    assert main(["table", str(folder / "toy_table.yaml"), *arguments]) == 0
    return json.loads(capfd.readouterr().out)


def test_markup_of_a_record_stays_text(page: Path) -> None:
    assert EVIL not in page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.read_text()


def test_released_weights_stand_in_a_block_of_their_own_and_in_no_chart(page: Path) -> None:
    tables, charts = page.read_text().split("<figure", 1)
    start, _, block = tables.partition('<div class="block released"')
    assert "soma_best" not in start + charts
    assert "Weights: released, chosen by the authors on the targets" in block
    assert "imported/soma_best/5555555555555555.json" in block
    for value in ("90.0", "80.0", "85.0"):
        assert f">{value}</td>" in block
    assert "soma" in charts


def test_a_page_of_released_weights_alone_shows_them(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        toy_table(tmp_path)
        toy_import().write(tmp_path / "records" / toy_import().path)
        patch.setattr(specs, "FOLDER", tmp_path)
        (section,) = sections("toy", [tmp_path / "records"], "controlled")
    assert [row["method"] for _, rows in section.released for row in rows] == ["soma_best"]
    assert charts(section, {}, {}) == []


def test_figures_are_written_without_a_browser(page: Path, tmp_path: Path) -> None:
    folder = page.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specs, "FOLDER", folder)
        profile = next(iter(specs.load_table("toy_table").protocols))
        arguments = ["--profile", profile, "--records", str(folder / "records")]
        assert main(["report", *arguments, "--figures", str(tmp_path)]) == 0
    for key in ("differences", "costs", "classes", "seeds", "source"):
        (svg,) = tmp_path.glob(f"*.{key}.svg")
        assert svg.read_text().startswith("<svg")
        assert "NaN" not in svg.read_text()
        assert svg.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, from Playwright and the system's Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; apt-get install chromium")
    for package in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; make setup")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.browser
def test_page_stands_alone_at_any_width(page: Path, chromium: Any) -> None:
    """One request, no error, no serious violation of accessibility, no scrolling sideways."""
    from axe_playwright_python.sync_playwright import Axe

    shown = chromium.new_page(viewport={"width": WIDTHS[0], "height": 800})
    requests, errors = [], []
    shown.on("request", lambda request: requests.append(request.url))
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    shown.goto(page.as_uri())
    charts = shown.locator(".chart")
    assert charts.count() >= 5
    for chart in charts.all():
        chart.scroll_into_view_if_needed()
        chart.locator("svg[role=img]").wait_for(state="attached")
    for width in WIDTHS:
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert errors == []
    violations = Axe().run(shown).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []
    shown.close()


@pytest.mark.browser
def test_numbers_are_those_of_the_table(
    page: Path, chromium: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    shown, expected = chromium.new_page(), rows_of(page, capfd)
    shown.goto(page.as_uri())
    keys = [key for key in expected[0] if key.endswith("_mean")]
    compared = 0
    for number, row in enumerate(expected):
        cells = shown.locator(".block tbody tr").nth(number)
        assert cells.get_attribute("data-method") == row["method"]
        for key in (*keys, "difference"):
            cell = cells.locator(f"td[data-key={key.removesuffix('_mean')}]")
            text = cell.get_attribute("data-value")
            assert (float(text) if text else None) == row[key]
            assert row[key] is None or f"{row[key]:.1f}" in cell.text_content()
            compared += row[key] is not None
    assert compared >= 10
    shown.close()


@pytest.mark.browser
def test_sort_and_filter_come_back_from_the_address(
    page: Path, chromium: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    shown, expected = chromium.new_page(), rows_of(page, capfd)
    shown.goto(page.as_uri())
    shown.locator("th[data-key=avg] button").first.click()
    assert shown.locator("th[data-key=avg]").first.get_attribute("aria-sort") == "descending"
    listed = "[...document.querySelector('.block tbody').rows].map(row => row.dataset.method)"
    runs = [row for row in expected if row["placement"] != "released"]
    order = [row["method"] for row in sorted(runs, key=lambda row: -row["avg_mean"])]
    assert shown.evaluate(listed) == order
    shown.locator("input[name=filter]").first.fill("lor")
    link = shown.evaluate("location.href")  # `shown.url` lags behind
    shown.goto("about:blank")
    shown.goto(link)
    assert shown.evaluate(listed) == order
    rows = "[...document.querySelectorAll('.block tbody tr')].filter(row => !row.hidden)"
    assert shown.evaluate(f"{rows}.map(row => row.dataset.method)") == ["lora"]
    shown.close()
