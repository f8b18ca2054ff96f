"""The benchmarks' table, for a terminal and for the documentation, their chart, and the file of raw rows."""

import json
import math

import epoch
from figures import FIGURES
from support import ROOT, median

RAW, PAGE, CHART = (ROOT / "docs" / name for name in ("benchmarks.json", "benchmarks.md", "benchmarks.svg"))
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- /figures -->"
HEADER = ["figure", "Graft", "against", "ratio", "spread", "rounds", "by processor time", "bar", "aim", "reached"]


# Raw rows


def stored_rows():
    return json.loads(RAW.read_text(encoding="utf-8")) if RAW.exists() else {}


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def store(rows):
    """Writes the rows, in the figures' order and a line each."""
    lines = [f"{json.dumps(name)}: {json.dumps(rounded(rows[name]))}" for name in FIGURES if name in rows]
    write(RAW, "{\n" + ",\n".join(lines) + "\n}\n")


def write(path, text):
    partial = path.with_name(path.name + ".new")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# The table


def value(figure, values):
    scale = 1e9 if figure.unit == "GB" else 1
    return f"{median(values) / scale:.{figure.digits}f} {figure.unit}".strip()


def cells(name, row):
    figure = FIGURES[name]
    ours, theirs = zip(*row["pairs"])
    ratios = figure.ratios(row)
    against = f"{figure.against}: {value(figure, theirs)}" if figure.unit else figure.against
    few = f" (first {row['rows']})" if row.get("rows", epoch.COUNT) < epoch.COUNT else ""
    return [
        figure.title + few,
        value(figure, ours) if figure.unit else "-",
        against,
        f"{figure.ratio(row):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else "-",
        str(max(map(len, [row["pairs"], *row.get("points", {}).values()]))),
        f"{figure.ratio(row, 'processor'):.2f}" if "processor" in row else "-",
        figure.bound(figure.bar),
        figure.bound(figure.aim),
        figure.verdict(row),
    ]


def aligned(header, rows, edge=""):
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    between = " | " if edge else "  "

    def text(line):
        return (edge + between.join(cell.ljust(width) for cell, width in zip(line, widths)) + edge[::-1]).rstrip()

    rule = edge + between.join(("-" if edge else "─") * width for width in widths) + edge[::-1]
    return "\n".join([text(header), rule, *map(text, rows)]) + "\n"


def table(rows, markdown=False):
    lines = [cells(name, rows[name]) for name in FIGURES if name in rows]
    return aligned(HEADER, lines, "| " if markdown else "")


def conditions(rows):
    """A sentence on each machine and set of versions that rows were measured with."""
    seen = {}
    for name, row in rows.items():
        seen.setdefault(json.dumps([row["machine"], row["versions"]]), []).append((name, row))
    for key, members in seen.items():
        machine, versions = json.loads(key)
        loads = [load for _, row in members for load in row["load"]]
        dates = sorted({row["date"] for _, row in members})
        which = "" if len(seen) == 1 else f" ({', '.join(name for name, _ in members)})"
        yield (
            f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instructions'])}), "
            f"{machine['memory_gb']} GB, {machine['system']}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items())
            + f"; measured {' and '.join(dates)}, load average {min(loads):.1f} to {max(loads):.1f}{which}."
        )


def points(rows):
    """The least times of the sizes of each sweep."""
    lines = []
    for name, row in rows.items():
        for size, times in row.get("points", {}).items():
            lines.append([name.removeprefix("scaling-"), size, f"{min(times):.3f}", str(len(times))])
    return aligned(["sweep", "size", "least processor s a step", "runs"], lines, "| ") if lines else ""


# The chart


def chart(rows):
    """Bars of how many times better than the peer each figure is, on a logarithmic scale; ticks are bar and aim."""
    shown = [name for name in FIGURES if name in rows and FIGURES[name].unit]
    left, width, height, lowest, highest = 250, 520, 22, 0.5, 32.0

    def gain(figure, ratio):
        return 1 / ratio if figure.less else ratio

    def x(gain):
        place = math.log2(min(max(gain, lowest), highest) / lowest) / math.log2(highest / lowest)
        return round(left + width * place, 1)

    bottom = 30 + height * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {bottom + 44}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for mark in [0.5, 1, 2, 4, 8, 16, 32]:
        color = "#888" if mark == 1 else "#ddd"
        parts.append(f'<path d="M{x(mark)} 24V{bottom}" stroke="{color}"/>')
        parts.append(f'<text x="{x(mark)}" y="16" text-anchor="middle" fill="#555">{mark:g}x</text>')
    for index, name in enumerate(shown):
        figure, row, top = FIGURES[name], rows[name], 30 + height * index
        found = gain(figure, figure.ratio(row))
        color = {"no": "#c8553d", "": "#8a8a8a"}.get(figure.verdict(row), "#3a7d44")
        begin, end = sorted([x(1), x(found)])
        parts.append(f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{figure.title}</text>')
        parts.append(f'<rect x="{begin}" y="{top + 2}" width="{max(end - begin, 1):.1f}" height="14" fill="{color}"/>')
        parts.append(f'<text x="{max(end, x(1)) + 5}" y="{top + 13}">{found:.2f}x</text>')
        for bound, dash in ((figure.bar, ""), (figure.aim, ' stroke-dasharray="2 2"')):
            if bound is not None:
                place = x(gain(figure, bound))
                parts.append(f'<path d="M{place} {top}v18" stroke="#000" stroke-width="2"{dash}/>')
    legend = "times better than what it is measured against; line: bar, dotted line: aim; green: bar reached"
    parts.append(f'<text x="{left}" y="{bottom + 22}" fill="#555">{legend}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def write_page(rows):
    """Writes the raw rows, the chart, and the part of the page between the markers."""
    store(rows)
    write(CHART, chart(rows))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    part = "\n\n".join([*conditions(rows), "![Ratios, bars and aims](benchmarks.svg)"])
    middle = f"{BEGIN}\n{table(rows, markdown=True)}\n{part}\n\n{points(rows)}"
    write(PAGE, before + middle + END + after)
