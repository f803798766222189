"""Draws a soak's figures as SVG: latency, memory and descriptors over time, without any library."""

import json
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 760, 150, 64, 130, 34, 44
COLOURS = ["#1f6feb", "#c2410c", "#15803d", "#7c3aed"]


def ticks(most):
    """Round numbers from 0 to at least `most`, four or five of them."""
    step = 1.0
    while most / step > 5:
        step *= 2.5 if str(step).lstrip("0.")[0] == "2" else 2
    values = [0.0]
    while values[-1] < most:
        values.append(values[-1] + step)
    return values


def panel(title, unit, lines, seconds, top):
    """`lines`: name, and points (second, value)."""
    most = max((value for _, points in lines for _, value in points), default=1) or 1
    marks = ticks(most)
    x = lambda second: LEFT + (WIDTH - LEFT - RIGHT) * second / seconds  # noqa: E731
    y = lambda value: top + HEIGHT - HEIGHT * value / marks[-1]  # noqa: E731
    out = [f'<text x="{LEFT}" y="{top - 10}" class="title">{title}, {unit}</text>']
    for mark in marks:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" class="grid"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(mark) + 4:.1f}" class="mark" text-anchor="end">{mark:g}</text>')
    for number, (name, points) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(second):.1f},{y(value):.1f}" for second, value in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{top + 14 + 18 * number}" class="mark" fill="{colour}">{name}</text>')
    return out


def plot(lines):
    figures = [line["figures"] for line in lines if "figures" in line]
    samples = [line["sample"] for line in lines if "sample" in line]
    about = next((line for line in lines if "rate" in line), {})
    seconds = max([one["second"] for one in figures + samples], default=60) or 60
    of = lambda what, share: [(one["second"], one[what][share]) for one in figures if one[what][share] is not None]  # noqa: E731
    held = lambda node, what: [(one["second"], one[node][what]) for one in samples]  # noqa: E731
    panels = [
        ("Time to the first event of a stream", "ms", [("p99", of("first_ms", "p99")), ("p50", of("first_ms", "p50"))]),
        ("Time to a whole answer", "ms", [("p99", of("whole_ms", "p99")), ("p50", of("whole_ms", "p50"))]),
        ("Resident memory", "MiB", [("gateway", held("gateway", "rss_mib")), ("seller", held("seller", "rss_mib"))]),
        ("Open descriptors", "count", [("gateway", held("gateway", "descriptors")), ("seller", held("seller", "descriptors"))]),
        ("The machine's processors", "%", [(name, [(one["second"], one["machine"][name]) for one in samples]) for name in ["idle", "stolen"]]),
    ]
    out, top = [], TOP + 20
    for title, unit, drawn in panels:
        out += panel(title, unit, drawn, seconds, top)
        top += HEIGHT + GAP
    for minute in range(0, int(seconds / 60) + 1, max(1, round(seconds / 600))):
        x = LEFT + (WIDTH - LEFT - RIGHT) * minute * 60 / seconds
        out.append(f'<text x="{x:.1f}" y="{top - GAP + 20}" class="mark" text-anchor="middle">{minute}</text>')
    out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{top - GAP + 20}" class="mark">minutes</text>')
    most = about.get("saturating")
    head = f'{about.get("rate", "?")} requests/s{f", half of {most}," if most else ""} on {about.get("cores", "?")} cores'
    style = "text{font-family:sans-serif;font-size:12px;fill:#333}.title{font-size:13px;font-weight:600}.grid{stroke:#ddd;stroke-width:1}"
    body = "\n".join(out)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">\n<style>{style}</style>\n'
            f'<rect width="100%" height="100%" fill="#fff"/>\n<text x="{LEFT}" y="18">{head}</text>\n{body}\n</svg>\n')


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(plot([json.loads(line) for line in file]), end="")
