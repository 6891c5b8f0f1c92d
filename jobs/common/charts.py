"""Charts of a report, drawn by Vega-Lite as SVG: no script in the page, colours and text size from its style sheet."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert
from markupsafe import Markup, escape

VEGA_LITE = "5.20"
WIDTH, HEIGHT = 300, 130
ROW = 17  # height of a bar, in a chart of bars that lie

Rows = Sequence[Mapping[str, Any]]


def histogram(bins: Sequence[tuple[float, int]], step: float, unit: str, description: str) -> Markup:
    """Columns: `bins` are each one's lower end and count."""
    rows = [{"low": low, "high": low + step, "images": count} for low, count in bins]
    axis = {
        "tickCount": 5,
        "format": "d",
        "grid": False,
        "labelFlush": False,
        "labelOverlap": True,
        "labelSeparation": 6,
    }
    x = {"field": "low", "type": "quantitative", "bin": {"binned": True, "step": step}, "title": unit, "axis": axis}
    return _draw(
        rows,
        {"type": "bar"},
        {"x": x, "x2": {"field": "high"}, "y": {"field": "images", "type": "quantitative", "axis": _of_counts(bins)}},
        HEIGHT,
        description,
    )


def bars(counts: Sequence[tuple[str, int]], unit: str, description: str) -> Markup:
    """Lying bars, in the order given."""
    rows = [{"name": name, "count": count} for name, count in counts]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 120}}
    x = {"field": "count", "type": "quantitative", "title": unit, "axis": _of_counts(counts)}
    return _draw(rows, {"type": "bar"}, {"x": x, "y": y}, ROW * len(rows), description)


def intervals(scores: Rows, description: str) -> Markup:
    """A dot for each score, with its interval where there is one. Rows have metric, model, score, ci_low, ci_high."""
    y = {"field": "metric", "type": "nominal", "sort": None, "title": None}
    models = list(dict.fromkeys(row["model"] for row in scores))
    series = {"yOffset": {"field": "model", "sort": models}} if len(models) > 1 else {}
    legend = {"title": None, "orient": "bottom", "columns": 1, "labelLimit": 280} if len(models) > 1 else None
    colour = {"field": "model", "sort": models, "scale": {"range": list(_SERIES)}, "legend": legend}
    x = {"field": "score", "type": "quantitative", "title": "score", "axis": _AXIS}
    layers = [
        {"mark": {"type": "rule", "size": 2}, "encoding": {"x": x | {"field": "ci_low"}, "x2": {"field": "ci_high"}}},
        {"mark": {"type": "point", "filled": True, "size": 50, "opacity": 1}, "encoding": {"x": x}},
    ]
    height = ROW * len(models) * len({row["metric"] for row in scores})
    return _draw(scores, layers, {"y": y, "color": colour, **series}, max(height, 60), description)


# The style sheet turns the first into the page's accent; the others are read on white and on black.
_SERIES = ("#2563ab", "#c2571a", "#3d8b40", "#9355b8", "#a8741a")
_AXIS = {"tickCount": 5, "format": "~s"}
_CONFIG = {
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "labelPadding": 6,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 12,  # the width of labels is guessed without the page's font
        "domain": False,
        "ticks": False,
    },
    "legend": {"labelFontSize": 12},
    "mark": {"color": _SERIES[0]},
}


def _of_counts(pairs: Sequence[tuple[Any, int]]) -> dict[str, Any]:
    """An axis without halves of an image; the counts come second."""
    most = max((count for _, count in pairs), default=1)
    return _AXIS | {"tickCount": min(5, most)}


# What XML, and so an SVG, cannot hold: Vega would end the process.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _drawable(value: Any) -> Any:
    return _NO_XML.sub("\ufffd", value) if isinstance(value, str) else value


def _draw(rows: Rows, mark: Any, encoding: dict[str, Any], height: int, description: str) -> Markup:
    what = {"layer": mark} if isinstance(mark, list) else {"mark": mark}
    specification = {
        "data": {"values": [{name: _drawable(value) for name, value in row.items()} for row in rows]},
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": encoding,
        "config": _CONFIG,
        **what,
    }
    svg = vl_convert.vegalite_to_svg(specification, vl_version=VEGA_LITE)
    # Read out as one picture: of single marks a reader hears nothing that the tables do not say.
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1))
