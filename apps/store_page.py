"""The report of a prepared store: one HTML page with everything in it. C channels, T samples, F frequencies.

Figures are inline SVG drawn here, so a page of twenty windows stays below a megabyte and needs no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jinja2 import Environment

from physio_data.evidence import Evidence, Example
from physio_data.store import Store

WIDTH, ROW, POINTS = 360, 44, 700  # pixels, pixels a channel, points a line
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .9em .2em 0;text-align:left;vertical-align:top}td.n{text-align:right}
.bar{background:#4477aa;height:.7em;display:inline-block}.bad{background:#cc6677}.grid{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0}figcaption{font-size:12px;color:#555}svg{background:#fafafa;border:1px solid #e4e4e4}svg text{font:10px system-ui,sans-serif;fill:#666}
.key span{display:inline-block;width:1.6em;height:3px;vertical-align:middle;margin:0 .3em 0 1em}
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
<h2>What it is</h2><table>{% for key, value in facts %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
{% for heading, rows in tables %}<h2>{{ heading }}</h2><table>{% for name, count, share, bad in rows %}
<tr><th>{{ name }}</th><td class="n">{{ count }}</td><td><span class="bar{{ ' bad' if bad }}" style="width:{{ share }}px"></span></td></tr>
{% endfor %}</table>{% endfor %}
{% if spectra %}<h2>Spectra before and after</h2>
<p>Median power density of kept windows: as recorded and as stored. <span class="key"><span style="background:#bbb"></span>recorded
<span style="background:#4477aa"></span>stored</span></p><div class="grid">{% for svg, caption in spectra %}
<figure>{{ svg|safe }}<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% for heading, figures in examples %}<h2>{{ heading }}</h2><div class="grid">{% for svg, caption in figures %}
<figure>{{ svg|safe }}<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endfor %}
{% if note %}<p>{{ note }}</p>{% endif %}
</body></html>
"""


def write(path: Path, store: Store, evidence: Evidence | None) -> Path:
    """Write the page of a store; without evidence (the corpus's files are gone) it has the counts alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(store, evidence), encoding="utf-8")
    return path


def page(store: Store, evidence: Evidence | None) -> str:
    """The whole page as text."""
    manifest = store.manifest
    n_rejected = manifest["n_rejected"]
    shown = {} if evidence is None else evidence.counts
    values = {
        "title": f"Store of {manifest['corpus']}",
        "lead": f"{len(store):,} windows of {store.window_s:g} s kept, {n_rejected:,} rejected ({100 * n_rejected / max(1, len(store) + n_rejected):.1f} %).",
        "facts": _facts(store),
        "tables": [
            ("Windows by fold", _bars(manifest["folds"])),
            *([("Rejected by reason (a window may have several)", _bars(manifest["rejected"], bad=True))] if manifest["rejected"] else []),
            *((f"Labels: {name}", _bars(_label_counts(store, name))) for name in store.tasks),
        ],
        "spectra": [] if evidence is None or evidence.before is None else _spectra(evidence),
        "examples": [] if evidence is None else _galleries(evidence),
        "note": "The corpus's files are not there any more, so no examples are shown."
        if evidence is None
        else f"Examples and spectra are from {len(evidence.records)} records spread over the corpus; of their windows "
        + ", ".join(f"{count:,} {name}" for name, count in shown.items())
        + ".",
    }
    return Environment(autoescape=True).from_string(_PAGE).render(values)


def _facts(store: Store) -> list[tuple[str, str]]:
    manifest, card = store.manifest, store.manifest.get("card", {})
    band = manifest.get("band")
    filtered = f"{band[0] or 'open'} to {band[1] or 'open'} Hz, {manifest['filter']}" if band else "none"
    filtered += ", still to be applied" if manifest["raw"] else ""
    return [
        ("corpus", card.get("title", manifest["corpus"])),
        ("licence", card.get("licence", "")),
        ("channels", ", ".join(f"{name} ({unit})" for name, unit in zip(store.channels, store.units, strict=True))),
        ("rate and length", f"{store.fs:g} Hz, {store.window_s:g} s, {store.n_samples} samples"),
        ("filter", filtered),
        ("split", f"{manifest['split']}, subjects {manifest['subjects']}" + (f", waivers {', '.join(manifest['waivers'])}" if manifest["waivers"] else "")),
        ("records", f"{manifest['n_records']:,}"),
        ("stored as", f"{manifest['dtype']}, {len(manifest['shards'])} shards, {sum(s['bytes'] for s in manifest['shards']) / 1e6:,.1f} MB"),
        ("manifest", store.hash),
    ]


def _bars(counts: Mapping[str, int], *, bad: bool = False) -> list[tuple[str, str, int, bool]]:
    most = max(counts.values(), default=1) or 1
    return [(name, f"{count:,}", round(260 * count / most), bad) for name, count in counts.items()]


def _label_counts(store: Store, task: str) -> dict[str, int]:
    """How often each class stands, or of a number its quartiles' classes."""
    spec, label = store.tasks[task], np.asarray(store.label(task))
    if spec["kind"] == "regression":
        known = label[np.isfinite(label)]
        if not known.size:
            return {"unknown": len(label)}
        counts, edges = np.histogram(known, bins=8)
        named = {f"{lo:.4g} to {hi:.4g} {spec['unit']}": int(n) for n, lo, hi in zip(counts, edges[:-1], edges[1:], strict=True)}
        return named | {"unknown": int(len(label) - known.size)}
    if spec["kind"] == "multilabel":
        return {name: int((label[:, i] == 1).sum()) for i, name in enumerate(spec["classes"])} | {"unknown": int((label < 0).all(1).sum())}
    names = spec["classes"] or ["no", "yes"]
    return {name: int((label == i).sum()) for i, name in enumerate(names)} | {"unknown": int((label < 0).sum())}


def _galleries(evidence: Evidence) -> list[tuple[str, list[tuple[str, str]]]]:
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in evidence.examples:
        groups.setdefault(example.reasons, []).append(example)
    kept = groups.pop((), [])
    pages = [("Kept", [_figure(example, evidence) for example in kept])] if kept else []
    return pages + [(f"Rejected: {', '.join(names)}", [_figure(example, evidence) for example in found]) for names, found in sorted(groups.items())]


def _figure(example: Example, evidence: Evidence) -> tuple[str, str]:
    """Channels below one another: as recorded in grey, its offset removed, and as stored in blue."""
    height = ROW * len(evidence.channels) + 6
    parts = []
    for row, name in enumerate(evidence.channels):
        top = 3 + row * ROW
        lines = [(_centred(example.recorded_CT[row]), "#bbb"), (_centred(example.stored_CT[row]), "#4477aa")]
        finite = np.concatenate([line[np.isfinite(line)] for line, _ in lines])
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        parts += [_line(np.linspace(0, 1, len(line)), (line - low) / ((high - low) or 1.0), color, top, ROW - 4) for line, color in lines]
        parts.append(f'<text x="3" y="{top + 10}">{_escaped(name)}</text>')
    caption = f"{example.record}, {example.start_s:g} s"
    return _svg(WIDTH, height, parts), caption


def _centred(x_T: np.ndarray) -> np.ndarray:
    return x_T - np.nanmedian(x_T) if np.isfinite(x_T).any() else x_T


def _spectra(evidence: Evidence) -> list[tuple[str, str]]:
    return [_spectrum(row, name, evidence) for row, name in enumerate(evidence.channels)]


def _spectrum(row: int, name: str, evidence: Evidence) -> tuple[str, str]:
    """Power in decibels over frequency; six decades below the highest value."""
    before, after = evidence.before, evidence.after
    decibel = [10 * np.log10(np.maximum(one.power_CF[row], 1e-30)) for one in (before, after)]
    top = max(float(line.max()) for line in decibel)
    limit_hz = before.frequency_F[-1]
    parts = []
    for one, line, color in zip((before, after), decibel, ("#bbb", "#4477aa"), strict=True):
        parts.append(_line(one.frequency_F / limit_hz, np.clip((line - top + 60) / 60, 0, 1), color, 4, 120))
    for share in (0, 0.25, 0.5, 0.75):
        parts.append(f'<text x="{share * WIDTH + 2:.0f}" y="137">{share * limit_hz:.3g} Hz</text>')
    return _svg(WIDTH, 142, parts), f"{name}: 60 dB below {top:.0f} dB re 1 {evidence.units[row]}²/Hz"


def _line(x_T: np.ndarray, y_T: np.ndarray, color: str, top: int, height: int) -> str:
    """A polyline over the width; a gap breaks it. Long lines are drawn by their extremes."""
    step = -(-len(x_T) // POINTS)
    if step > 1:
        n = len(x_T) // step * step
        pairs = y_T[:n].reshape(-1, step)
        x_T, y_T = np.repeat(x_T[:n:step], 2), np.stack([pairs.min(1), pairs.max(1)], 1).ravel()
    pieces, run = [], []
    for x, y in zip(x_T.tolist(), y_T.tolist(), strict=True):
        if np.isfinite(y):
            run.append(f"{x * WIDTH:.1f},{top + (1 - y) * height:.1f}")
        elif run:
            pieces, run = [*pieces, run], []
    return "".join(f'<polyline fill="none" stroke="{color}" stroke-width="1" points="{" ".join(piece)}"/>' for piece in [*pieces, run] if piece)


def _svg(width: int, height: int, parts: list[str]) -> str:
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
