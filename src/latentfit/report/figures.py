"""The report's line figures as inline SVG, drawn from numbers only.

Every function returns one `<svg>` of the given width. Colours are CSS classes of the page (`null`, `best`,
`mute`), so the figures follow light, dark and print; text is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentfit.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Mark:
    """A row of the gain figure; `estimate` None stands for N(0, I), which is 0 by definition.

    Attributes:
        label, detail: the name, and what follows it more lightly.
        aside: what stands at the right edge, such as the seconds of the fit.
    """

    label: str
    detail: str
    estimate: Estimate | None
    aside: str
    recommended: bool = False


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers between low and high.

    >>> ticks(-0.7, 2.1)
    [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.85)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 10) + 0.0 for k in range(first, last + 1)]


def number(value: float) -> str:
    """A short tick label, with thousands separated and a true minus.

    >>> number(-0.5), number(2000.0)
    ('−0.5', '2,000')
    """
    text = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:g}"
    return text.replace("-", "−")


def budget(parts: Sequence[tuple[str, str, Estimate, str]], axis: str, width: int = 880) -> str:
    """One bar of the parts of the error, end to end, each end with its interval; under it what each part is.

    A part below 0 lies over the end of the bar: the parts before it overlap by so much.

    Args:
        parts: (label, value as text, estimate in nats, CSS class of the part).
        axis: the label of the x axis.
    """
    left, right, top, bar = 8, width - 14, 8, 34
    total = max(sum(max(e.value, 0.0) for _, _, e, _ in parts), 1e-9)
    # a wide interval must not shrink the bar to nothing: it is cut at 1.3 times the bar
    reach, start = [total], 0.0
    for _, _, e, _ in parts:
        reach.append(start + e.interval[1] if _finite(e) else total)
        start += max(e.value, 0.0)
    high = min(max(reach), 1.3 * total) * 1.02
    x = _scale(0.0, high, left, right)
    svg = _axis(x, ticks(0.0, high, 6 if width > 500 else 4), top, top + bar + 8, axis)
    whiskers, start, y = [], 0.0, top + bar + 8 + 58
    for i, (label, value, e, css) in enumerate(parts):
        end = max(start + e.value, 0.0)
        a, b = sorted((x(start), x(end)))
        svg.append(f'<rect x="{a:.1f}" y="{top}" width="{max(b - a, 1):.1f}" height="{bar}" class="{css}"/>')
        if _finite(e) and e.std_error > 0:
            low, up = (x(min(max(start + v, 0.0), high)) for v in e.interval)
            # neighbours' intervals may cross: each has its own height
            whiskers.append(_whisker(low, up, top + 8 + 9 * (i % 3), "whisker"))
        start = max(end, start)
        svg.append(f'<rect x="{left}" y="{y - 10}" width="12" height="12" rx="2" class="{css}"/>')
        svg.append(f'<text x="{left + 20}" y="{y}" class="lab">{_text(label)}</text>')
        if 8 * len(label) + 7 * len(value) + 30 > right - left:  # no room beside it on a phone
            y += 18
        svg.append(f'<text x="{right}" y="{y}" class="num" text-anchor="end">{_text(value)}</text>')
        y += 24
    return _svg(width, y - 12, svg + whiskers, axis)


def gains(marks: Sequence[Mark], axis: str, aside: str, width: int = 880) -> str:
    """Dot and interval of the gain per row; band = one standard error of the best, the recommended one filled."""
    narrow = width < 500
    pitch, top = (46, 30) if narrow else (32, 30)
    left, right = (12, width - 52) if narrow else (268, width - 66)
    known = [m.estimate for m in marks if m.estimate is not None]
    values = [0.0, *(e.value for e in known)]
    spread = max(max(values) - min(values), 1e-9)
    ends = [v for e in known if _finite(e) for v in e.interval]
    low = max(min([*values, *ends]), min(values) - spread) - 0.04 * spread
    high = min(max([*values, *ends]), max(values) + spread) + 0.04 * spread
    x = _scale(low, high, left, right)
    height = top + pitch * len(marks) + 42
    svg = _axis(x, ticks(low, high, 3 if narrow else 7), top - 6, height - 42, axis)
    if known and any(m.recommended for m in marks):
        best = max(known, key=lambda e: e.value)
        if _finite(best):
            a, b = x(max(best.value - best.std_error, low)), x(min(best.value + best.std_error, high))
            svg.insert(
                0,
                f'<rect x="{a:.1f}" y="{top - 6}" width="{b - a:.1f}" height="{height - 36 - top}" class="band"/>',
            )
    zero = x(0.0)
    svg.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top - 6}" y2="{height - 42}" class="zero"/>')
    svg.append(f'<text x="{width - 2}" y="{top - 14}" class="tick" text-anchor="end">{_text(aside)}</text>')
    for i, mark in enumerate(marks):
        y = top + pitch * i + (32 if narrow else 16)
        name = f'<tspan class="{"lab strong" if mark.recommended else "lab"}">{_text(_short(mark.label, 22))}</tspan>'
        name += f'<tspan class="tick" dx="7">{_text(mark.detail)}</tspan>'
        svg.append(f'<text x="{2}" y="{y - 14 if narrow else y + 4}">{name}</text>')
        svg.append(f'<text x="{width - 2}" y="{y + 4}" class="num" text-anchor="end">{_text(mark.aside)}</text>')
        if mark.estimate is None:
            svg.append(f'<path d="M{zero:.1f} {y - 6}l6 6l-6 6l-6 -6z" class="diamond"/>')
            continue
        if _finite(mark.estimate):
            a, b = (x(min(max(v, low), high)) for v in mark.estimate.interval)
            svg.append(_whisker(a, b, y, "range best" if mark.recommended else "range"))
        css = "dot full" if mark.recommended else "dot"
        svg.append(f'<circle cx="{x(mark.estimate.value):.1f}" cy="{y}" r="5.5" class="{css}"/>')
    return _svg(width, height, svg, axis)


def curves(series: Sequence[tuple[str, np.ndarray, np.ndarray, str]], x_label: str, y_label: str, width: int) -> str:
    """Lines (label, x, y, CSS class), labelled at their right end; what is above the first fifth's end is cut."""
    left, right, top, bottom = 48, width - 104, 14, 230
    every = np.concatenate([y[np.isfinite(y)] for _, _, y, _ in series])
    ends = [float(y[np.isfinite(y)][-1]) for _, _, y, _ in series]
    steps = max(float(x[-1]) for _, x, _, _ in series)
    # the first steps are so far off that the end would be a flat line
    settled = [float(v) for _, x, y, _ in series for v in y[np.isfinite(y) & (x >= 0.2 * steps)]]
    low, high = float(every.min()), max([*settled, *ends])
    low, high = low - 0.06 * (high - low), high + 1e-9
    fx, fy = _scale(0.0, steps, left, right), _scale(low, high, bottom, top)
    svg = _axis(fx, ticks(0.0, steps, 4), top, bottom, x_label, grid=False)
    svg += _y_axis(fy, ticks(low, high, 5), left, right, y_label)
    place = bottom + 8.0
    for (label, x, y, css), end in sorted(zip(series, ends, strict=True), key=lambda item: item[1]):
        inside = np.isfinite(y) & (y <= high)
        points = " ".join(f"{fx(float(a)):.1f},{fy(float(b)):.1f}" for a, b in zip(x[inside], y[inside], strict=True))
        svg.append(f'<polyline points="{points}" class="line {css}"/>')
        place = min(fy(min(end, high)), place - 13)
        svg.append(f'<text x="{right + 6}" y="{place + 4:.1f}" class="tick {css}">{_text(_short(label, 16))}</text>')
    return _svg(width, bottom + 44, svg, y_label)


def units(kl: np.ndarray, std: np.ndarray, axis: str, collapsed_below: float = 0.01, width: int = 426) -> str:
    """One mark per unit, sorted by KL (nats); area is the standard deviation of q(z), hollow where collapsed."""
    order = np.argsort(-kl)
    kl, std = kl[order], std[order]
    left, right, top, bottom = 40, width - 12, 14, 150
    high = float(max(kl.max(), 1e-3)) * 1.08
    fx, fy = _scale(-0.7, len(kl) - 0.3, left, right), _scale(0.0, high, bottom, top)
    svg = _y_axis(fy, ticks(0.0, high, 4), left, right, axis)
    radius = min(8.0, 0.46 * (right - left) / max(len(kl), 1))
    for i, (value, sd) in enumerate(zip(kl, std, strict=True)):
        css = "unit hollow" if value < collapsed_below else "unit"
        size = radius * min(max(float(sd), 0.15), 1.5) / 1.5 + 1.5
        svg.append(f'<circle cx="{fx(i):.1f}" cy="{fy(float(value)):.1f}" r="{size:.1f}" class="{css}"/>')
    return _svg(width, bottom + 14, svg, axis)


def histogram(
    sets: Sequence[tuple[str, np.ndarray, str]], line: float, line_label: str, axis: str, width: int = 426
) -> str:
    """Densities of several sets of numbers as steps; a vertical line with its label."""
    values = np.concatenate([v for _, v, _ in sets])
    low, high = (float(q) for q in np.quantile(values, [0.01, 0.995]))
    low, high = min(low, line) - 0.02 * (high - low), high + 0.02 * (high - low)
    edges = np.linspace(low, high, 41)
    left, right, top, bottom = 8, width - 8, 40 + 16 * len(sets), 220
    shares = [np.histogram(np.clip(v, low, high), edges)[0] / max(len(v), 1) for _, v, _ in sets]
    fx, fy = (
        _scale(low, high, left, right),
        _scale(0.0, float(max(s.max() for s in shares)) * 1.05, bottom, top),
    )
    svg = _axis(fx, ticks(low, high, 5), bottom, bottom, axis, grid=False)
    for i, ((label, _, css), share) in enumerate(zip(sets, shares, strict=True)):
        corners = [f"M{fx(edges[0]):.1f} {bottom}"]
        for a, b, s in zip(edges[:-1], edges[1:], share, strict=True):
            corners.append(f"L{fx(a):.1f} {fy(float(s)):.1f}L{fx(b):.1f} {fy(float(s)):.1f}")
        svg.append(f'<path d="{"".join(corners)}L{fx(edges[-1]):.1f} {bottom}Z" class="area {css}"/>')
        svg.append(f'<rect x="{left}" y="{i * 16 + 4}" width="10" height="10" class="swatch {css}"/>')
        svg.append(f'<text x="{left + 16}" y="{i * 16 + 13}" class="tick">{_text(label)}</text>')
    at = fx(line)
    anchor = "start" if at < width / 2 else "end"
    svg.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 14}" y2="{bottom}" class="cut"/>')
    place = at + (5 if anchor == "start" else -5)
    svg.append(f'<text x="{place:.1f}" y="{top - 6}" class="tick" text-anchor="{anchor}">{_text(line_label)}</text>')
    return _svg(width, bottom + 44, svg, axis)


def quantile_panel(name: str, real: np.ndarray, null: np.ndarray, best: np.ndarray, width: int = 200) -> str:
    """Quantile-quantile curves of one column: drawn from either prior (y) against reconstructed rows (x)."""
    grid = np.linspace(0.05, 0.95, 19)
    curves_ = [np.quantile(v, grid) for v in (real, null, best)]
    low, high = float(min(c.min() for c in curves_)), float(max(c.max() for c in curves_))
    pad = 0.04 * (high - low) or 0.5
    f, g = _scale(low - pad, high + pad, 8, width - 8), _scale(low - pad, high + pad, width - 8, 24)
    svg = [f'<rect x="8" y="24" width="{width - 16}" height="{width - 32}" class="frame"/>']
    svg.append(f'<text x="8" y="15" class="lab">{_text(_short(name, 24))}</text>')
    svg.append(f'<line x1="{f(low):.1f}" y1="{g(low):.1f}" x2="{f(high):.1f}" y2="{g(high):.1f}" class="zero"/>')
    for values, css in ((curves_[1], "null"), (curves_[2], "best")):
        points = " ".join(f"{f(float(a)):.1f},{g(float(b)):.1f}" for a, b in zip(curves_[0], values, strict=True))
        svg.append(f'<polyline points="{points}" class="line {css}"/>')
    return _svg(width, width, svg, name)


def band(name: str, x: np.ndarray, low: np.ndarray, high: np.ndarray, width: int = 200) -> str:
    """The area between two densities (P,) over points x (P,)."""
    height, bottom = 130, 104
    fx = _scale(float(x[0]), float(x[-1]), 8, width - 8)
    fy = _scale(0.0, max(float(high.max()), 1e-9) * 1.05, bottom, 24)
    svg = [f'<text x="8" y="15" class="lab">{_text(_short(name, 24))}</text>']
    svg += _axis(fx, ticks(float(x[0]), float(x[-1]), 3), bottom, bottom, "", grid=False)
    there = [f"{fx(float(a)):.1f} {fy(float(b)):.1f}" for a, b in zip(x, high, strict=True)]
    back = [f"{fx(float(a)):.1f} {fy(float(b)):.1f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
    svg.append(f'<path d="M{"L".join(there + back)}Z" class="area best"/>')
    return _svg(width, height, svg, name)


def scatter(codes: np.ndarray, draws: Sequence[tuple[np.ndarray, str]], axes: tuple[str, ...], width: int = 426) -> str:
    """The map without script: codes (n, 2) as dots, each set of draws (n, 2) as crosses of its CSS class."""
    every = np.concatenate([codes, *(d for d, _ in draws)])
    low, high = np.quantile(every, 0.002, axis=0), np.quantile(every, 0.998, axis=0)
    pad = 0.03 * (high - low) + 1e-9
    fx = _scale(float(low[0] - pad[0]), float(high[0] + pad[0]), 6, width - 6)
    fy = _scale(float(low[1] - pad[1]), float(high[1] + pad[1]), width - 26, 6)
    svg = [f'<rect x="6" y="6" width="{width - 12}" height="{width - 32}" class="frame"/>']

    def inside(z: np.ndarray) -> np.ndarray:
        return z[((z >= low - pad) & (z <= high + pad)).all(-1)]

    dots = "".join(f"M{fx(float(a)):.1f} {fy(float(b)):.1f}h0" for a, b in inside(codes))
    svg.append(f'<path d="{dots}" class="codes"/>')
    for points, css in draws:
        crosses = "".join(f"M{fx(float(a)) - 2:.1f} {fy(float(b)) - 2:.1f}l4 4m0 -4l-4 4" for a, b in inside(points))
        svg.append(f'<path d="{crosses}" class="cross {css}"/>')
    svg.append(f'<text x="{width / 2}" y="{width - 8}" class="tick" text-anchor="middle">{_text(axes[0])}</text>')
    return _svg(width, width, svg, f"{axes[0]} / {axes[1]}")


class _scale:
    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.start = low, start
        self.slope = (stop - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def _axis(x: _scale, at: list[float], top: float, bottom: float, label: str, grid: bool = True) -> list[str]:
    svg = []
    for value in at:
        if grid:
            svg.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{bottom}" class="grid"/>')
        svg.append(
            f'<text x="{x(value):.1f}" y="{bottom + 17}" class="tick" text-anchor="middle">{number(value)}</text>'
        )
    if at:
        middle = (x(at[0]) + x(at[-1])) / 2
        svg.append(f'<text x="{middle:.1f}" y="{bottom + 35}" class="tick" text-anchor="middle">{_text(label)}</text>')
    return svg


def _y_axis(y: _scale, at: list[float], left: float, right: float, label: str) -> list[str]:
    svg = []
    for value in at:
        svg.append(f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>')
        svg.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" class="tick" text-anchor="end">{number(value)}</text>')
    svg.append(f'<text x="{left + 4}" y="10" class="tick">{_text(label)}</text>')
    return svg


def _whisker(a: float, b: float, y: float, css: str) -> str:
    return f'<path d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {y - 4}v8M{b:.1f} {y - 4}v8" class="{css}"/>'


def _svg(width: int, height: int, parts: list[str], label: str) -> str:
    head = (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{_text(label)}">'
    )
    return head + "".join(parts) + "</svg>"


def _finite(estimate: Estimate) -> bool:
    return all(math.isfinite(v) for v in (estimate.std_error, *estimate.interval))


def _short(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _text(text: str) -> str:
    return html.escape(str(text), quote=True)
