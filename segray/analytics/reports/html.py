"""Pieces of a web page that needs nothing but itself: escaped text, tables, charts as inline SVG, and the frame.

Knows HTML and how it looks in light, dark and on a phone; knows nothing of label sets. No script, no address: whatever
text comes in, only `text` puts it on the page, and the page forbids itself to load or run anything.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

_LONGEST = 300
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--raised:#fff;--ink:#1b1d22;--soft:#565c68;--line:#dcd9d3;
--bar:#2f6fb0;--track:#e9e6e0;--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--paper:#14161b;--raised:#1c1f26;--ink:#e8eaee;--soft:#a5adbb;
--line:#343944;--bar:#6fb0f0;--track:#2a2f39;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:74rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem}
h2{font-size:1.25rem;margin:2.75rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}.soft,caption,figcaption,dt{color:var(--soft)}.bad{color:var(--bad)}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;padding:0;margin:1rem 0 0}
a{color:var(--bar)}
:focus-visible{outline:2px solid var(--bar);outline-offset:2px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1.25rem 0}
.figures div{background:var(--raised);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .85rem}
.figures dt{font-size:.85rem}.figures dd{margin:0;font-size:1.45rem;font-weight:600;line-height:1.3}
.scroll{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 .4rem;font-size:.88rem}
th,td{text-align:left;padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-weight:600;white-space:nowrap}tbody th{font-weight:500;min-width:5rem}
td:not(.n){min-width:4rem}
.n{text-align:right;white-space:nowrap}
td svg{display:block;margin-top:.3rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.25rem 2rem}
figure{margin:0}figcaption{font-size:.88rem;margin:.35rem 0 0}
figure.chart>figcaption{margin:0 0 .35rem;color:var(--ink);font-weight:500}
figure.chart svg{width:100%;max-width:27rem;height:auto;display:block}
svg text{fill:var(--soft);font:11px system-ui,"DejaVu Sans",sans-serif}
svg .bar{fill:var(--bar)}svg .track{fill:var(--track)}svg .axis{stroke:var(--line)}
details{margin:.35rem 0}summary{cursor:pointer;color:var(--soft);font-size:.88rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1.5rem 1.25rem}
.gallery img{width:100%;height:auto;max-height:22rem;object-fit:contain;display:block;
border-radius:.4rem;background:var(--track)}
.gallery b{color:var(--ink)}
progress{width:100%;max-width:40rem;height:1.1rem;accent-color:var(--bar)}
footer{padding:2.5rem 1.25rem 2rem;color:var(--soft);font-size:.88rem}
@media (max-width:34rem){header,main,footer{padding-left:1rem;padding-right:1rem}h1{font-size:1.35rem}
.figures{grid-template-columns:repeat(2,1fr)}.figures dd{font-size:1.2rem}th,td{padding-right:.7rem}}
@media print{.scroll{overflow:visible}nav{display:none}}
"""


class Markup(str):
    """HTML that is finished: text in it is escaped already."""


def text(value: object, longest: int = _LONGEST) -> Markup:
    """Any text as text, whatever is in it: what cannot be seen is spelt out, what is too long is cut in the middle."""
    if isinstance(value, Markup):
        return value
    whole = str(value)
    if len(whole) > longest:
        whole = f"{whole[: longest // 2]} ... {whole[-longest // 2 :]}"
    seen = "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c for c in whole)
    return Markup(html.escape(seen, quote=True))


def number(value: float | None, digits: int = 0) -> str:
    """12345.6 -> "12,346"; None -> a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def size(in_bytes: int) -> str:
    """12345 -> "12 kB"."""
    value = float(in_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.0f} PB"


def paragraph(*sentences: object, kind: str = "") -> Markup:
    return Markup(f"<p{_class(kind)}>{' '.join(map(text, sentences))}</p>")


def figures(pairs: Iterable[tuple[str, object]]) -> Markup:
    """The few numbers that matter most, large."""
    cells = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs)
    return Markup(f'<dl class="figures">{cells}</dl>')


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = "") -> Markup:
    """The first cell of a row names it. numbers: a letter for each column, n where it holds numbers."""
    kinds = [_class("n" if kind == "n" else "") for kind in numbers.ljust(len(head), "-")]
    tops = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(f"<tr>{_row(row, kinds)}</tr>" for row in rows)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">'
    return Markup(
        f"{region}<table><caption>{text(caption)}</caption><thead><tr>{tops}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[object], kinds: Sequence[str]) -> str:
    first, *rest = zip(row, kinds, strict=True)
    cells = "".join(f"<td{kind}>{text(value)}</td>" for value, kind in rest)
    return f'<th scope="row"{first[1]}>{text(first[0])}</th>{cells}'


def folded(summary: str, inner: str) -> Markup:
    return Markup(f"<details><summary>{text(summary)}</summary>{inner}</details>")


def section(name: str, title: str, *parts: str) -> Markup:
    return Markup(
        f'<section id="{text(name)}" aria-label="{text(title)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'
    )


def picture(data_uri: str, alt: str, size_wh: tuple[int, int], caption: Markup) -> Markup:
    return Markup(
        f'<figure><img src="{text(data_uri, len(data_uri))}" alt="{text(alt)}" width="{size_wh[0]}" '
        f'height="{size_wh[1]}"><figcaption>{caption}</figcaption></figure>'
    )


# ---- charts ---------------------------------------------------------------------------------------


def share(part: float, whole: float, wide: int = 120) -> Markup:
    """A bar of its share, beside a number that says the same."""
    width = wide * part / whole if whole else 0.0
    return Markup(
        f'<svg aria-hidden="true" width="{wide}" height="10" viewBox="0 0 {wide} 10">'
        f'<rect class="track" width="{wide}" height="10" rx="2"/>'
        f'<rect class="bar" width="{width:.1f}" height="10" rx="2"/></svg>'
    )


def sparkline(counts: Sequence[int], label: str) -> Markup:
    """A tiny histogram, as high as its highest bar."""
    top, wide = max([1, *counts]), 5
    bars = "".join(
        f'<rect class="bar" x="{i * wide}" y="{18 - 18 * n / top:.1f}" width="{wide - 1}" height="{18 * n / top:.1f}"/>'
        for i, n in enumerate(counts)
        if n
    )
    width = wide * len(counts)
    return Markup(
        f'<svg role="img" aria-label="{text(label)}" width="{width}" height="18" viewBox="0 0 {width} 18">{bars}</svg>'
    )


def histogram(title: str, unit: str, labels: Sequence[str], counts: Sequence[int], every: int = 1) -> Markup:
    """Bars with their values written where there is room; all of them are in a table below. every: of the labels."""
    wide, high, base = 360.0, 110.0, 132.0
    top, step = max([1, *counts]), wide / max(1, len(counts))
    parts = [f'<path class="axis" d="M0 {base}H{wide:.0f}"/>']
    for i, value in enumerate(counts):
        tall, middle = high * value / top, step * (i + 0.5)
        if value:
            parts.append(
                f'<rect class="bar" x="{step * i + 1:.1f}" y="{base - max(tall, 1):.1f}" width="{step - 2:.1f}" '
                f'height="{max(tall, 1):.1f}" rx="1"/>'
            )
            if len(short := _short(value)) * 6.5 <= step + 2 or value == top:
                parts.append(f'<text x="{middle:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle">{short}</text>')
        if i % every == 0:
            parts.append(f'<text x="{middle:.1f}" y="{base + 14}" text-anchor="middle">{text(labels[i])}</text>')
    parts.append(f'<text x="{wide / 2:.0f}" y="{base + 30}" text-anchor="middle">{text(unit)}</text>')
    most = labels[max(range(len(counts)), key=lambda i: counts[i])] if any(counts) else "none"
    said = f"{title}: {sum(counts):,} in all, most at {most} {unit}; the numbers are in the table below"
    numbers = table(title, [unit, "count"], [(name, f"{n:,}") for name, n in zip(labels, counts, strict=True)], "-n")
    return Markup(
        f'<figure class="chart"><figcaption>{text(title)}</figcaption><svg role="img" aria-label="{text(said)}" '
        f'viewBox="-12 0 {wide + 24:.0f} {base + 36:.0f}">{"".join(parts)}</svg>{folded("Numbers", numbers)}</figure>'
    )


def _short(value: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= 10 * size or (value >= size and value % size == 0):
            return f"{value / size:.0f}{letter}"
    return str(value)


# ---- the frame ------------------------------------------------------------------------------------


def page(
    title: str, head: str, sections: Sequence[tuple[str, str, str]], foot: str, refresh_s: float | None = None
) -> str:
    """A whole document. sections: name, title and content of each. refresh_s: how often it asks for itself again."""
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{max(1, round(refresh_s))}">'
    links = "".join(f'<li><a href="#{text(name)}">{text(said)}</a></li>' for name, said, _ in sections)
    nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(sections) > 1 else ""
    body = "".join(section(name, said, content) for name, said, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f'img-src data:">{again}<title>{text(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><header><h1>{text(title)}</h1>{head}{nav}</header><main>{body}</main>"
        f"<footer>{foot}</footer></body></html>\n"
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
