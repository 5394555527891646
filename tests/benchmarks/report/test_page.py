"""The page: its numbers are those of the table, and a browser opens it alone, at any width."""

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import DATA
from tiny_voc import NIGHT, write_domain
from tiny_worlds import write_world
from toy_detections import detected
from toy_records import (
    build,
    evaluation,
    toy_import,
    toy_record,
    toy_records,
    toy_table,
    write_toy_records,
)

from benchmarks import trials
from benchmarks.__main__ import main
from benchmarks.data.cards import IGNORE, load_card
from benchmarks.detection import predictions as kept_boxes
from benchmarks.detection import reading as boxes
from benchmarks.report import spec as specs
from benchmarks.report import table
from benchmarks.report.findings import findings
from benchmarks.report.page import gallery
from benchmarks.report.page.charts import charts
from benchmarks.report.page.data import sections
from benchmarks.segmentation import predictions
from benchmarks.segmentation.data import evaluation_pairs, read_pair
from benchmarks.segmentation.pictures import domains_of, streets
from benchmarks.yaml_files import digest_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (375, 768, 1280)
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A page over the toy records, one failed for a reason that is markup, and an imported one.

    Two rows kept what they predicted: soma is right in the upper half of every image, full nowhere.
    """
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        toy_table(folder)
        data = write_worlds(folder / "data")
        records = [toy_record(r.label, r.seed, data=data) for r in toy_records()[:-1]]
        failed = {"status": "failed", "reason": EVIL, "evaluations": []}
        records.append(toy_record("soma", 2, data=data, **failed))
        write_toy_records(folder / "records", records)
        cell = toy_import().cell | {"data": data}
        released = toy_import(cell=cell, digest=digest_of(cell), data=data)
        released.write(folder / "records" / released.path)
        keep_predictions(folder)
        patch.setattr(specs, "FOLDER", folder)
        profile = next(iter(specs.load_table("toy_table").protocols))
        out = folder / "report.html"
        arguments = ["--profile", profile, "--records", str(folder / "records")]
        arguments += ["--data-root", str(folder / "data")]
        assert main(["report", *arguments, "--out", str(out)]) == 0
        yield out


def write_worlds(root: Path) -> dict[str, str]:
    """The toy protocol's data, two images to be kept of each domain; their fingerprints."""
    for name, split in (("cityscapes", "val"), ("bdd100k", "val"), ("gtav", "train")):
        write_world(root, name, split, count=2 if split == "val" else 4, size=(32, 64))
    domains = domains_of(toy_record("soma", 0), root)
    return {d.domain: load_card(d.card).fingerprint(root, d.split) for d in domains}


def keep_predictions(folder: Path) -> None:
    """Beside a seed of soma and one of full, for every domain."""
    for label in ("soma", "full"):
        record = toy_record(label, 0)
        path = folder / "records" / record.path
        for domain in domains_of(record, path):
            names = [pair.name for pair in evaluation_pairs(domain, folder / "data")]
            kept = []
            for street in streets(domain, folder / "data", names):
                classes = np.where(street.classes == IGNORE, 0, street.classes)
                top = classes[: 16 if label == "soma" else 0]
                below = (classes[len(top) :] + 1) % 19
                kept.append(predictions.Prediction(street.name, np.vstack([top, below])))
            predictions.write(path.with_suffix(f".{domain.domain}.png"), kept)


def test_kept_predictions_make_a_gallery(page: Path) -> None:
    text, folder = page.read_text(), page.parent
    assert "No gallery" not in text
    streets_shown = re.findall(r"<h4>([^<]+), ([^<,]+)</h4>(.*?)</div></div>", text, re.DOTALL)
    assert {name for name, *_ in streets_shown} == {"source, held out", "Cityscapes", "BDD100K"}
    assert len(streets_shown) == 6
    for heading, name, strip in streets_shown:
        assert re.findall("<figcaption>([^<]+)", strip)[:2] == ["image", "truth "]
        card = {"Cityscapes": "cityscapes", "BDD100K": "bdd100k"}.get(heading, "gtav")
        split = "train" if card == "gtav" else "val"
        pairs = {pair.name: pair for pair in load_card(card).pairs(folder / "data", split)}
        _, truth = read_pair(pairs[name], load_card(card), halve=False)
        known = truth != IGNORE
        half = 100 * known[:16].sum() / known.sum()
        said = dict(re.findall(r"<figcaption>(soma|full) ([\d.]+)", strip))
        assert said == {"soma": f"{half:.1f}", "full": "0.0"}
    spreads = [float(re.search(r"soma ([\d.]+)<", strip)[1]) for *_, strip in streets_shown]
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("data", "No gallery: cityscapes here is not the data of the records."),
        ("root", "No gallery: the images are not here; name their folder with --data-root."),
        ("kept", "No gallery: the runs of these records kept no predictions."),
        ("names", "keeps other images of cityscapes"),
    ],
)
def test_without_images_or_predictions_the_page_says_why(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, says: str
) -> None:
    folder = Path(shutil.copytree(page.parent, tmp_path / "page"))
    monkeypatch.setattr(specs, "FOLDER", folder)
    if spoil == "data":
        load_card("cityscapes").pairs(folder / "data", "val")[0].image.write_bytes(b"x")
    elif spoil == "kept":
        for file in (folder / "records").rglob("*.png"):
            file.unlink()
    elif spoil == "names":
        kept = next((folder / "records").rglob("soma/*.cityscapes.png"))
        images = [one._replace(name="other") for one in predictions.read(kept)]
        predictions.write(kept, images)
    root = tmp_path / "nothing" if spoil == "root" else folder / "data"
    arguments = ["report", "--profile", "toy", "--records", str(folder / "records")]
    out = tmp_path / "report.html"
    assert main([*arguments, "--data-root", str(root), "--out", str(out)]) == 0
    assert says in out.read_text()
    assert "<h4>" not in out.read_text()


def test_boxes_are_drawn_over_the_street(tmp_path: Path) -> None:
    names = write_domain(tmp_path, "night_clear", 2, empty=[0])
    card = load_card("sdgod", "boxes")
    _, objects = boxes.read_pair(boxes.evaluation_pairs(NIGHT, tmp_path)[1], card)
    sure = [(label, 0.9, *box) for label, box in zip(objects.labels, objects.boxes, strict=True)]
    kept = [detected((2, 0.8, 3, 4, 13, 24), (2, 0.4, 0, 0, 9, 9)), detected(*sure)]
    kept_boxes.write(tmp_path / "seed0.night.json.gz", names, kept)
    records = {"soma": (tmp_path / "seed0.json", toy_record("soma", 0))}
    first, second = gallery.with_boxes("Night", NIGHT, card, tmp_path, records)
    assert [first.rows[0].says, second.rows[0].says] == [
        "0 of 0, 1 wrong",
        f"{len(objects)} of {len(objects)}, 0 wrong",
    ]
    assert first.rows[0].boxes == {"#009e73": "M3 4H13V24H3z"}  # a car, the surer one
    assert first.size == (64, 40)
    assert first.truth.boxes == {}
    assert second.truth.boxes == second.rows[0].boxes


def rows_of(page: Path, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The same table as JSON."""
    folder = page.parent
    capfd.readouterr()
    arguments = ["--profile", "toy", "--records", str(folder / "records"), "--format", "json"]
    assert main(["table", str(folder / "toy_table.yaml"), *arguments]) == 0
    return json.loads(capfd.readouterr().out)


def test_every_block_says_what_its_rows_say(page: Path) -> None:
    (block,) = build(page.parent).blocks
    said = findings(block)
    assert said
    shown = re.search(r'<ul class="findings">(.*?)</ul>', page.read_text(), re.DOTALL)[1]
    assert re.findall("<li>(.*?)</li>", shown) == [f"{line}." for line in said]


def test_protocols_and_trials_of_a_table_stand_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy table with a second profile and a summary of trials."""
    toy_table(tmp_path)
    text = (tmp_path / "toy_table.yaml").read_text()
    own = (DATA / "toy.yaml").read_text()
    other = re.sub(r"(?m)^name: .*", "name: toy_other", own).replace("profile: toy", "profile: far")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/toy_other.yaml").write_text(re.sub(r"seeds: .*", "seeds: [41]", other))
    (tmp_path / "toy_table.yaml").write_text(
        text.replace("protocols: {", f"protocols: {{far: {tmp_path / 'other/toy_other.yaml'}, ")
    )
    write_toy_records(tmp_path / "records", toy_records())
    kept = tmp_path / "results/trials/toy.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text(
        "method,backbone_lr,weight_decay,miou,chosen,protocol,version,domain,seed\n"
        "full,0.001,0.05,40.0,1,toy,3,gtav_held_out,100\n"
        "full,0.001,0.05,42.0,1,toy,3,gtav_held_out,101\n"
        "full,0.01,0.05,31.5,0,toy,3,gtav_held_out,100\n"
        "full,0.01,0.05,30.5,0,toy,3,gtav_held_out,101\n"
        "freeze,,0.05,20.0,1,toy,3,gtav_held_out,100\n"
    )
    monkeypatch.setattr(specs, "FOLDER", tmp_path)
    monkeypatch.setattr(trials, "REPOSITORY", tmp_path)
    out = tmp_path / "page.html"
    places = ["--profile", "toy", "--records", str(tmp_path / "records")]
    assert main(["report", *places, "--out", str(out)]) == 0
    text = re.sub(r"\s*<[^>]+>\s*", "|", out.read_text())
    text = re.sub(r"\|+", "|", text)
    assert "|field|toy 3|toy_other 3|seeds|0, 1, 2|41|" in text
    assert "|full|2|0.001|41.0|41.0|31.0|4|0.001, 0.01|0.05|" in text
    assert "|freeze|1|-|20.0|20.0|20.0|1|-|0.05|" in text
    note = "trials per method, results/trials/toy.csv, version 3, seed 100, 101: 2: full; 1: freeze"
    assert f"|{note}|" in text


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


def test_a_reference_chosen_on_the_page_is_that_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A row that is not shown, a level of a factor, counts for the noise on both sides."""
    toy_table(tmp_path)
    noisy = [toy_record("vpt", n, evaluations=[evaluation(20, 9, 9 * n, 1)]) for n in range(3)]
    write_toy_records(tmp_path / "records", [*toy_records(), *noisy])
    monkeypatch.setattr(specs, "FOLDER", tmp_path)
    monkeypatch.setattr(table, "factor_rows", lambda *_: {"vpt"})
    places = ["--profile", "toy", "--records", str(tmp_path / "records")]
    assert main(["report", *places, "--out", str(tmp_path / "page.html")]) == 0
    spec = re.search(
        r'id="toy_table-differences-spec">(.*?)</script>', (tmp_path / "page.html").read_text()
    )
    points = {(p["reference"], p["method"]): p for p in json.loads(spec[1])["data"]["values"]}
    compared = 0
    for reference in ("freeze", "lora", "soma", "full"):
        capfd.readouterr()
        of = [str(tmp_path / "toy_table.yaml"), *places, "--reference", reference]
        assert main(["table", *of, "--format", "json"]) == 0
        for row in json.loads(capfd.readouterr().out):
            if row["difference"] is None:
                assert (reference, row["method"]) not in points
                continue
            point = points[reference, row["method"]]
            for ours, theirs in (("mean", ""), ("low", "_low"), ("high", "_high")):
                assert point[ours] == pytest.approx(row[f"difference{theirs}"], abs=6e-4)
                compared += 1
            assert point["verdict"] == row["verdict"]
    assert compared >= 30


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
