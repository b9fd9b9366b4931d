"""A drawing of a network's stages as SVG, from top to bottom: wide boxes are fine maps, lines are what feeds what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from html import escape
from itertools import groupby

from atrousops.bench.flow import Node

# All lengths in pixels.
WIDTH = 700
_MARGIN, _NAMES, _LANE, _GAP, _LINE = 8, 122, 12, 24, 14
_WIDEST, _NARROWER, _NARROWEST = 400, 46, 160
# Of a letter in bold and in plain type, on average.
_BOLD, _PLAIN = 7.0, 6.1
# By log2 of the stride: fill and text.
_COLORS = (
    ("#f1f6fc", "#111"), ("#d9e8f6", "#111"), ("#bcd7ee", "#111"), ("#98c1e3", "#111"),
    ("#6ea6d4", "#111"), ("#3f7fb8", "#fff"), ("#245a8d", "#fff"),
)  # fmt: skip
_FIXED = ("#e9e9e9", "#111")
_ATROUS = "#d9480f"


@dataclass
class _Box:
    node: Node
    rank: int = 0
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    lines: tuple[str, ...] = ()
    shape: str = ""
    readers: list[_Box] = field(default_factory=list)
    above: float = 0

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def svg(nodes: dict[int, Node], title: str) -> str:
    """The drawing; the same bytes for the same stages."""
    boxes = {number: _Box(node) for number, node in nodes.items()}
    _rank(boxes)
    for box in boxes.values():
        for source in box.node.sources:
            boxes[source].readers.append(box)
    rows = [[*row] for _, row in groupby(sorted(boxes.values(), key=lambda b: b.rank), key=lambda b: b.rank)]
    edges = [(boxes[s], box) for box in boxes.values() for s in sorted(box.node.sources)]
    skips = _lanes([edge for edge in edges if edge[1].rank - edge[0].rank > 1])
    right = WIDTH - _MARGIN - _LANE * (1 + max([lane for *_, lane in skips], default=-1))
    height = _place(rows, {id(edge[1]) for edge in skips}, right)
    parts = [_drawn(box) for row in rows for box in row]
    lines = [_line(a, b) for a, b in edges if b.rank - a.rank == 1]
    lines += [_skip(rows, a, b, right + _LANE * (lane + 0.5)) for a, b, lane in skips]
    names = [_name(row) for row in rows]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="8" fill="#fff"/>\n'
        '<g fill="none" stroke="#555" stroke-width="1.2">'
    )
    return "\n".join([head, *lines, "</g>", *parts, *filter(None, names), "</svg>", ""])


def _rank(boxes: dict[int, _Box]) -> None:
    """Rows: as early as the sources allow, then as late as the readers do; outputs are in the last one."""
    for box in boxes.values():
        box.rank = max([boxes[s].rank + 1 for s in box.node.sources], default=0)
    last = max(box.rank for box in boxes.values())
    for number in reversed(boxes):
        if boxes[number].node.merge == "output":
            boxes[number].rank = last
        readers = [box.rank for box in boxes.values() if number in box.node.sources]
        if readers and number:
            boxes[number].rank = min(readers) - 1


def _lanes(edges: Sequence[tuple[_Box, _Box]]) -> list[tuple[_Box, _Box, int]]:
    """Lines past other rows: those of one stage share a lane, two stages' do where they do not meet."""
    ends: dict[int, int] = {}
    for a, b in edges:
        ends[id(a)] = max(ends.get(id(a), 0), b.rank)
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    for a, _ in sorted(edges, key=lambda edge: (ends[id(edge[0])] - edge[0].rank, edge[0].rank)):
        if id(a) in lanes:
            continue
        end, lane = ends[id(a)], 0
        while lane < len(taken) and any(a.rank <= last and start <= end for start, last in taken[lane]):
            lane += 1
        taken += [[]] if lane == len(taken) else []
        taken[lane].append((a.rank, end))
        lanes[id(a)] = lane
    return [(a, b, lanes[id(a)]) for a, b in edges]


def _place(rows: list[list[_Box]], skipped: set[int], right: float) -> float:
    """Gives the boxes their places; the height of the drawing."""
    y = float(_MARGIN)
    left = _MARGIN + _NAMES
    for row in rows:
        # What a line from far above feeds is on the right, where that line is; others are below their sources.
        row.sort(key=lambda box: (id(box) in skipped, box.above))
        start = left if len(row) == 1 else _MARGIN
        room = (right - 6 - start - 8 * (len(row) - 1)) / len(row)
        for box in row:
            box.width = min(room, _resolution(box.node.stride))
            box.lines, box.shape = _lines(box.node, box.width - 10), _shape(box.node, box.width - 10)
            thick = 2 * max(0.0, math.log2(max(1, box.node.shape[0])) - 4) if box.node.merge != "output" else 0.0
            box.height = 8 + _LINE * (len(box.lines) + bool(box.shape)) + thick
        x = max(start, (left + right) / 2 - (sum(box.width for box in row) + 8 * (len(row) - 1)) / 2)
        x = min(x, right - 6 - sum(box.width for box in row) - 8 * (len(row) - 1))
        tallest = max(box.height for box in row)
        for box in row:
            box.x, box.y = x, y + (tallest - box.height) / 2
            x += box.width + 8
            for reader in box.readers:
                reader.above += box.middle / len(reader.node.sources)
        y += tallest + _GAP
    return y - _GAP + _MARGIN


def _resolution(stride: Fraction | None) -> float:
    return _NARROWEST if stride is None else max(_NARROWEST, _WIDEST - _NARROWER * math.log2(stride))


def _lines(node: Node, width: float) -> tuple[str, ...]:
    """What a stage does, in lines of no more than its width."""
    if node.merge == "output" or not node.layers:
        return _wrapped([" and ".join([", ".join(node.names[:-1])] * (len(node.names) > 1) + node.names[-1:])
                         if node.names else node.merge], width)  # fmt: skip
    runs = [(layer, len([*group])) for layer, group in groupby(_pairs(node.layers))]
    words = [node.merge] * bool(node.merge) + [layer if n == 1 else f"{n} × {layer}" for layer, n in runs]
    if node.rates:
        rates = sorted(set(node.rates))
        some = rates if len(rates) < 7 else [*rates[:3], "...", rates[-1]]
        words.append(f"rate{'s' * (len(rates) > 1)} {' '.join(map(str, some))}")
    return _wrapped(words, width)


def _pairs(layers: list[str]) -> list[str]:
    """A depthwise and a 1x1 convolution are a separable one."""
    found: list[str] = []
    for layer in layers:
        if layer == "conv 1x1" and found and found[-1].startswith("depthwise"):
            found[-1] = found[-1].replace("depthwise", "separable")
        else:
            found.append(layer)
    return found


def _wrapped(words: list[str], width: float) -> tuple[str, ...]:
    """Lines of whole phrases, or where one is too long of words."""
    lines = [""]
    for i, phrase in enumerate(words):
        phrase += "," * (i < len(words) - 1)
        parts = [phrase] if _BOLD * len(phrase) <= width else phrase.split(" ")
        for part in parts:
            joined = f"{lines[-1]} {part}".strip()
            if _BOLD * len(joined) <= width:
                lines[-1] = joined
            else:
                lines.append(part)
    return tuple(line for line in lines if line)


def _shape(node: Node, width: float) -> str:
    if node.merge == "output":
        return ""
    if node.several:
        where = "several sizes"
    elif node.stride is None:
        where = f"{node.shape[1]}x{node.shape[1]}"
    else:
        where = "full size" if node.stride == 1 else f"1/{node.stride}"
    channels = " → ".join(map(str, node.channels))
    long = f"{channels} channel{'s' * (node.shape[0] != 1)}, {where}"
    return long if _PLAIN * len(long) <= width else f"{channels}, {where}"


def _drawn(box: _Box) -> str:
    node = box.node
    fill, color = _FIXED
    if node.stride is not None:
        fill, color = _COLORS[min(round(math.log2(node.stride)), len(_COLORS) - 1)]
    stroke = f'stroke="{_ATROUS}" stroke-width="2"' if node.rates else 'stroke="#777"'
    corners = ' rx="11"' if node.merge == "output" or node.names == ["image"] else ' rx="3"'
    parts = [
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"{corners} '
        f'fill="{fill}" {stroke}/>'
    ]
    lines = [*((line, 12, ' font-weight="bold"') for line in box.lines)]
    lines += [(box.shape, 11, "")] if box.shape else []
    at = box.y + box.height / 2 - _LINE * len(lines) / 2 + 11
    for i, (line, size, weight) in enumerate(lines):
        parts.append(
            f'<text x="{box.middle:.1f}" y="{at + _LINE * i:.1f}" font-size="{size}"{weight} text-anchor="middle" '
            f'fill="{color}">{escape(line)}</text>'
        )
    return "\n".join(parts)


def _name(row: list[_Box]) -> str:
    """Beside a stage: what its module is called."""
    box, names = row[0], row[0].node.names
    if len(row) > 1 or not names or box.node.merge == "output" or names == ["image"]:
        return ""
    parents, ends = {name.rpartition(".")[0] for name in names}, [name.rpartition(".")[2] for name in names]
    lines = [names[0]] if len(names) == 1 else [names[0], f"to {names[-1]}"]
    if len(names) > 1 and len(parents) == 1 and ends[0].isdigit() and ends[-1].isdigit():
        lines = [f"{names[0]}-{ends[-1]}"]
    lines = [_cut(line) for line in lines]
    at = box.y + box.height / 2 - 6.5 * len(lines) + 9
    return "\n".join(
        f'<text x="{_MARGIN}" y="{at + 13 * i:.1f}" font-size="10" fill="#555">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )


def _cut(name: str) -> str:
    longest = int(_NAMES / 5.2)
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _line(a: _Box, b: _Box) -> str:
    return f'<path d="M{a.middle:.1f} {a.y + a.height:.1f}L{b.middle:.1f} {b.y:.1f}" marker-end="url(#a)"/>'


def _skip(rows: list[list[_Box]], a: _Box, b: _Box, lane: float) -> str:
    """Out at the right, down, and in at the right; below or above the row where other boxes are in the way."""
    if rows[a.rank][-1] is a:
        out = f"M{a.x + a.width:.1f} {a.y + a.height / 2:.1f}"
    else:
        bottom = max(box.y + box.height for box in rows[a.rank])
        out = f"M{a.middle + a.width / 4:.1f} {a.y + a.height:.1f}V{bottom + 6:.1f}"
    if rows[b.rank][-1] is b:
        back = f"V{b.y + b.height / 2 + 3:.1f}H{b.x + b.width:.1f}"
    else:
        top = min(box.y for box in rows[b.rank])
        back = f"V{top - 9:.1f}H{b.middle + b.width / 4:.1f}V{b.y:.1f}"
    return f'<path d="{out}H{lane:.1f}{back}" marker-end="url(#a)"/>'
