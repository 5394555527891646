"""The charts of the page as Vega-Lite specifications, which also give the figures of a paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import UserError
from benchmarks.protocol import MARGIN
from benchmarks.record import write_atomically
from benchmarks.report.page import data
from benchmarks.report.page.data import Points, Section
from benchmarks.report.statistics import WORDS

Spec = dict[str, Any]
# Okabe and Ito 2008: told apart by colour-blind readers too.
COLOURS = {"better": "#009E73", "worse": "#D55E00", "within": "#0072B2", "other": "#767676"}
_FIGURE_WIDTH = 420  # pixels of 1/96 inch, about one column of a page


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
        key: name of its file and its place in the page.
        text: what it shows and how to read it.
        spec: Vega-Lite, its data inside.
    """

    key: str
    title: str
    text: str
    spec: Spec


def charts(section: Section, places: Mapping[str, Path], shown: Mapping[str, str]) -> list[Chart]:
    """All charts of a table for which it has data.

    Args:
        section: of the page.
        places: digest -> file of the record.
        shown: digest -> the same as it is printed.
    """
    reference, blocks = section.table.reference, [b.name for b, _ in section.blocks]
    unseen = next(iter(section.spec.domains.values()))
    made = [
        _differences(data.differences(section), blocks, reference),
        _costs(data.costs(section), blocks),
        _classes(data.per_class(section), blocks, reference, unseen),
        _confusion(data.confusions(section, places), data.class_names(section, []), reference),
        _seeds(data.seeds(section, shown), blocks),
        _source(data.source_and_unseen(section), blocks),
        _curves(data.curves(section, places), blocks, reference),
    ]
    return [chart for chart in made if chart]


def _select(name: str, label: str, options: Sequence[Any], value: Any = None) -> Spec | None:
    """A choice of the reader's; None where there is nothing to choose."""
    options = [*dict.fromkeys(options)]
    bind = {"input": "select", "options": options, "name": f"{label} "}
    chosen = value if value in options else options[0]
    return {"name": name, "value": chosen, "bind": bind} if len(options) > 1 else None


def _spec(points: Points, height: Any, choices: Sequence[tuple[str, Spec | None]]) -> Spec:
    """The frame of a chart; `choices` are fields with the parameter that filters them."""
    params = [param for _, param in choices if param]
    filters = [
        {"filter": f"datum.{name} == {param['name']}"} for name, param in choices if param and name
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": points},
        "width": "container",
        "height": height,
        "params": params,
        "transform": filters,
        # The page's table says the same in words; the marks would be thousands of nameless items.
        "config": {
            "aria": False,
            "mark": {"aria": False},
            "view": {"stroke": None},
            "axis": {"labelLimit": 140},
        },
    }


def _tips(*fields: str) -> list[Spec]:
    return [{"field": name} for name in fields]


_BY_NAME = {"field": "method", "type": "nominal", "title": None}
_BLOCK = "shown"


def _differences(points: Points, blocks: Sequence[str], reference: str) -> Chart | None:
    if not points:
        return None
    block = _select("forest_block", _BLOCK, [p["block"] for p in points], blocks[0])
    first = [p["reference"] for p in points if p["block"] == blocks[0]]
    against = None
    # In a table of factors each block has one reference.
    if len({*first}) > 1:
        against = _select("forest_reference", "minus", first, reference)
    rows = {"field": "method", "type": "nominal", "title": None}
    rows["sort"] = {"field": "mean", "order": "descending"}
    palette = [COLOURS["better"], COLOURS["worse"], COLOURS["within"], COLOURS["other"]]
    colour = {"field": "verdict", "scale": {"domain": [*WORDS], "range": palette}, "title": None}
    colour["legend"] = {"orient": "top", "columns": 2}
    shape = {"field": "verdict", "scale": {"domain": [*WORDS]}, "title": None}
    x = {"type": "quantitative", "title": "difference of Avg, points"}
    spec = _spec(points, {"step": 18}, [("block", block), ("reference", against)])
    spec["layer"] = [
        {
            "mark": {"type": "rect", "opacity": 0.12, "color": COLOURS["other"]},
            "data": {"values": [{"from": -MARGIN, "to": MARGIN}]},
            # Its own data has none of the fields that the filters of the chart read.
            "transform": [],
            "encoding": {"x": {"field": "from", **x}, "x2": {"field": "to"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "y": rows,
                "x": {"field": "low", **x},
                "x2": {"field": "high"},
                "color": colour,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                "y": rows,
                "x": {"field": "mean", **x},
                "color": colour,
                "shape": shape,
                "tooltip": _tips("method", "mean", "low", "high", "verdict"),
            },
        },
    ]
    text = (
        "Difference of the average over unseen domains to the row that is chosen, with intervals "
        "that hold together at 95 %. Grey: within 1 point. The verdict counts all comparisons with "
        "that row."
    )
    return Chart("differences", "Differences", text, spec)


def overview(points: Points, reference: str) -> Spec:
    """The picture of the README: what rows gain on the source and on unseen domains.

    Read on a phone and on a dark page too: large type, its own background. The type is one that the
    library brings along, so that the picture is the same on every machine.

    Args:
        points: as `findings.gains` makes them.
        reference: the row that they are differences to.
    """
    rows = {"field": "method", "type": "nominal", "title": None}
    rows["sort"] = [*dict.fromkeys(point["method"] for point in points)]
    x = {"type": "quantitative", "title": None, "scale": {"padding": 8}}
    x["axis"] = {"tickCount": 4, "labelOverlap": True}
    words = [word for word in WORDS if any(point["verdict"] == word for point in points)]
    palette = dict(zip(WORDS, ("better", "worse", "within", "other"), strict=True))
    shapes = dict(zip(WORDS, ("triangle-up", "triangle-down", "square", "circle"), strict=True))
    colour = {"field": "verdict", "title": None}
    colour["scale"] = {"domain": words, "range": [COLOURS[palette[word]] for word in words]}
    shape = {"field": "verdict", "title": None}
    shape["scale"] = {"domain": words, "range": [shapes[word] for word in words]}
    rule = {"mark": {"type": "rule", "strokeWidth": 3}}
    rule["encoding"] = {"x": {"field": "low", **x}, "x2": {"field": "high"}}
    point = {"mark": {"type": "point", "filled": True, "size": 110, "opacity": 1}}
    point["encoding"] = {"x": {"field": "mean", **x}, "shape": shape}
    zero = {"mark": {"type": "rule", "strokeWidth": 1.5, "color": "#1b1b1b"}}
    zero["encoding"] = {"x": {"datum": 0, **x}}
    for layer in (rule, point):
        layer["encoding"] |= {"y": rows, "color": colour}
    font = "Liberation Sans, Arial, Helvetica, sans-serif"
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": {
            "text": f"mIoU minus that of {reference}, points (axes differ)",
            "anchor": "start",
        },
        "data": {"values": points},
        "facet": {
            "column": {"field": "where", "type": "nominal", "title": None, "sort": None},
        },
        "spec": {"width": 175, "height": {"step": 26}, "layer": [zero, rule, point]},
        # Rows differ several times as much on the source: on one scale the other would not be read.
        "resolve": {"scale": {"x": "independent"}},
        "background": "white",
        "padding": 12,
        "config": {
            "font": font,
            "aria": False,
            "view": {"stroke": "#cccccc"},
            "axis": {"labelFontSize": 14, "labelColor": "#1b1b1b", "gridColor": "#e5e5e5"},
            "header": {"labelFontSize": 15, "labelFontWeight": "bold", "labelColor": "#1b1b1b"},
            "legend": {"labelFontSize": 14, "orient": "bottom", "labelColor": "#1b1b1b"},
            "title": {"fontSize": 15, "color": "#1b1b1b", "offset": 10},
        },
    }


def _costs(points: Points, blocks: Sequence[str]) -> Chart | None:
    if not points:
        return None
    block = _select("cost_block", _BLOCK, [p["block"] for p in points], blocks[0])
    cost = _select("cost", "against", [p["cost"] for p in points])
    spec = _spec(points, 320, [("block", block), ("cost", cost)])
    # Counts of parameters spread over decades, and one of them is 0.
    scale = {"type": "pow", "exponent": 0.3, "zero": False, "nice": False, "padding": 12}
    x = {"field": "value", "type": "quantitative", "scale": scale, "title": None}
    x["axis"] = {"labelExpr": "format(datum.value, '~s')", "labelOverlap": True}
    y = {"field": "low", "type": "quantitative", "title": "Avg, %", "scale": {"zero": False}}
    colour = {
        "condition": {"test": "datum.frontier", "value": COLOURS["worse"]},
        "value": COLOURS["within"],
    }
    spec["layer"] = [
        {
            "mark": {"type": "rule", "opacity": 0.5},
            "encoding": {"x": x, "y": y, "y2": {"field": "high"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {
                "x": x,
                "y": {**y, "field": "avg"},
                "color": colour,
                "shape": {
                    "condition": {"test": "datum.frontier", "value": "diamond"},
                    "value": "circle",
                },
                "tooltip": _tips("method", "avg", "value", "low", "high"),
            },
        },
        {
            "transform": [{"filter": "datum.frontier"}],
            "mark": {"type": "text", "align": "left", "dx": 7, "dy": -7, "color": COLOURS["other"]},
            "encoding": {"x": x, "y": {**y, "field": "avg"}, "text": {"field": "method"}},
        },
    ]
    text = (
        "Average over unseen domains against what a row costs. Diamonds: no cheaper row is as "
        "good. Bars reach from the worst seed to the best. Time and memory are those of the "
        "records: compare them only where the environment below is one machine."
    )
    return Chart("costs", "Score and cost", text, spec)


def _classes(points: Points, blocks: Sequence[str], reference: str, first: str) -> Chart | None:
    if not points:
        return None
    block = _select("class_block", _BLOCK, [p["block"] for p in points], blocks[0])
    domain = _select("class_domain", "domain", [p["domain"] for p in points], first)
    spec = _spec(points, {"step": 15}, [("block", block), ("domain", domain)])
    methods = [*dict.fromkeys(p["method"] for p in points)]
    classes = [*dict.fromkeys(name for p in points for name in p["class"])]
    spec["transform"].append({"flatten": ["class", "score", "difference"]})
    spec["mark"] = "rect"
    spec["encoding"] = {
        "x": {**_BY_NAME, "sort": methods, "axis": {"labelAngle": -60, "labelOverlap": False}},
        "y": {"field": "class", "type": "nominal", "sort": classes, "title": None},
        "color": {
            "field": "difference",
            "type": "quantitative",
            "title": "points",
            "scale": {"scheme": "redblue", "domainMid": 0},
            "legend": {"orient": "top"},
        },
        "tooltip": _tips("class", "method", "score", "difference"),
    }
    text = f"Every class in one domain: score minus that of {reference}. Blue is better, red worse."
    return Chart("classes", "Class by class", text, spec)


def _confusion(points: Points, classes: Sequence[str], reference: str) -> Chart | None:
    # Without as many names, as of a record with classes of its own, places would get wrong ones.
    if not points or len(points[0]["share"]) != len(classes) ** 2:
        return None
    own = _select("confusion_method", "row", [p["method"] for p in points], reference)
    spec = _spec(points, {"step": 15}, [("method", own)])
    names, count = json.dumps(classes), len(classes)
    # Unfolded by the reader's machine: as points, these lists would fill most of the page.
    spec["transform"] += [
        {"flatten": ["share"]},
        {"window": [{"op": "row_number", "as": "place"}], "groupby": ["method"]},
        {"calculate": f"{names}[floor((datum.place - 1) / {count})]", "as": "truth"},
        {"calculate": f"{names}[(datum.place - 1) % {count}]", "as": "prediction"},
    ]
    axes = {"type": "nominal", "sort": [*classes]}
    angle = {"labelAngle": -60, "labelOverlap": False}
    spec["mark"] = "rect"
    spec["encoding"] = {
        "x": {"field": "prediction", **axes, "axis": angle},
        "y": {"field": "truth", **axes},
        "color": {
            "field": "share",
            "type": "quantitative",
            "title": "% of the class",
            "scale": {"scheme": "blues", "domain": [0, 100]},
            "legend": {"orient": "top"},
        },
        "tooltip": _tips("truth", "prediction", "share"),
    }
    text = (
        "What the pixels of every class were taken for, all unseen domains together, one seed of "
        "the row."
    )
    return Chart("confusion", "Confusion", text, spec)


def _seeds(points: Points, blocks: Sequence[str]) -> Chart | None:
    if not points:
        return None
    block = _select("seed_block", _BLOCK, [p["block"] for p in points], blocks[0])
    columns = [name for p in points for name in p["column"]]
    column = _select("seed_column", "column", columns, "Avg")
    spec = _spec(points, {"step": 18}, [("block", block), ("column", column)])
    # Unfolded by the reader's machine, before a column is picked: record and digest stand once.
    spec["transform"].insert(0, {"flatten": ["column", "score"]})
    spec["mark"] = {"type": "point", "size": 50, "color": COLOURS["within"], "strokeWidth": 1.5}
    spec["encoding"] = {
        "y": {**_BY_NAME, "sort": {"field": "score", "op": "mean", "order": "descending"}},
        "x": {
            "field": "score",
            "type": "quantitative",
            "title": "score, %",
            "scale": {"zero": False},
        },
        "tooltip": _tips("method", "seed", "score", "record", "digest", "commit"),
    }
    text = "Every seed is a point; its record, digest and commit show when you point at it."
    return Chart("seeds", "Every seed", text, spec)


def _source(points: Points, blocks: Sequence[str]) -> Chart | None:
    if not points:
        return None
    block = _select("source_block", _BLOCK, [p["block"] for p in points], blocks[0])
    spec = _spec(points, 320, [("block", block)])
    scale = {"zero": False}
    spec["encoding"] = {
        "x": {"field": "source", "type": "quantitative", "title": "source, %", "scale": scale},
        "y": {
            "field": "unseen",
            "type": "quantitative",
            "title": "unseen (Avg), %",
            "scale": scale,
        },
        "tooltip": _tips("method", "source", "unseen"),
    }
    # Three names: those of all rows would cover each other.
    best = {"filter": "datum.order <= 2 || datum.worst == 1"}
    rank = [
        {
            "window": [{"op": "rank", "as": "order"}],
            "sort": [{"field": "unseen", "order": "descending"}],
        },
        {"window": [{"op": "rank", "as": "worst"}], "sort": [{"field": "unseen"}]},
    ]
    spec["layer"] = [
        {"mark": {"type": "point", "filled": True, "size": 70, "color": COLOURS["within"]}},
        {
            "transform": [*rank, best],
            "mark": {"type": "text", "dy": -10, "color": COLOURS["other"]},
            "encoding": {"text": {"field": "method"}},
        },
    ]
    text = (
        "Score on held-out images of the source against the average over unseen domains. Were the "
        "source enough to choose by, the points would lie on a rising line."
    )
    return Chart("source", "Source and unseen", text, spec)


def _curves(points: Points, blocks: Sequence[str], reference: str) -> Chart | None:
    if not points:
        return None
    block = _select("curve_block", _BLOCK, [p["block"] for p in points], blocks[0])
    what = _select("curve_what", "what", [p["what"] for p in points])
    own = _select("curve_method", "highlighted", [p["method"] for p in points], reference)
    spec = _spec(points, 280, [("block", block), ("what", what), ("", own)])
    spec["transform"].append({"flatten": ["iteration", "value"]})
    test = f"datum.method == {own['name']}" if own else "true"
    spec["mark"] = {"type": "line", "clip": True}
    spec["encoding"] = {
        "x": {"field": "iteration", "type": "quantitative", "title": "step"},
        "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}},
        "detail": {"field": "method"},
        # One row at a time stands out: a colour for each of twenty cannot be told apart.
        "color": {"condition": {"test": test, "value": COLOURS["worse"]}, "value": "#999999"},
        "opacity": {"condition": {"test": test, "value": 1}, "value": 0.35},
        "strokeWidth": {"condition": {"test": test, "value": 2.5}, "value": 1},
        "tooltip": _tips("method", "iteration", "value"),
    }
    text = "One seed of every row over training; losses are means where the run kept its log."
    return Chart("curves", "Training", text, spec)


def write_figures(folder: Path, named: Mapping[str, Chart]) -> list[Path]:
    """Write every chart as SVG and PDF, with what is chosen in the page at first.

    Args:
        folder: of the files.
        named: name of the files -> chart.

    Raises:
        UserError: vl-convert-python is missing, or a file cannot be written.
    """
    converter, files = vl_convert(), []
    for name, chart in named.items():
        spec = deepcopy(chart.spec)
        spec |= {"width": _FIGURE_WIDTH, "background": "white"}
        for param in spec["params"]:
            # A figure has nothing to choose by, and keeps what is chosen at first.
            param.pop("bind", None)
        svg, pdf = converter.vegalite_to_svg(spec), converter.vegalite_to_pdf(spec)
        for ending, content in (("svg", svg.encode()), ("pdf", pdf)):
            files.append(folder / f"{name}.{ending}")
            write_atomically(files[-1], lambda file, content=content: file.write(content))
    return files


def vl_convert() -> Any:
    """The library that draws Vega-Lite without a browser.

    Raises:
        UserError: it is not installed.
    """
    try:
        import vl_convert as converter
    except ImportError:
        raise UserError(
            "the report needs vl-convert-python, which is not installed; make setup, or "
            "pip install vl-convert-python"
        ) from None
    return converter
