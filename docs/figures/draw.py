"""Draw the figures of the documentation as SVG beside this file: `python docs/figures/draw.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

INK, FAINT, GOOD, BAD, PAPER = "#1f2933", "#8895a3", "#1b7f4b", "#c0392b", "#ffffff"
FILLS = {"plain": "#eef2f6", "good": "#dcf3e6", "bad": "#fbe1de", "wait": "#fff2cc"}


@dataclass
class Drawing:
    """An SVG in the making."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str = INK,
        size: int = 13,
        anchor: str = "middle",
        bold: bool = False,
        boxed: bool = False,
    ) -> None:
        """Write *words*, one line for each of theirs, the first at baseline *y*."""
        weight = ' font-weight="600"' if bold else ""
        for number, line in enumerate(words.split("\n")):
            place = f'x="{x}" y="{y + number * (size + 4)}" font-size="{size}" text-anchor="{anchor}"{weight}'
            if not boxed:  # a halo: lines behind the words do not cross them
                self.parts.append(
                    f'<text {place} fill="{PAPER}" stroke="{PAPER}" stroke-width="5">{escape(line)}</text>'
                )
            self.parts.append(f'<text {place} fill="{colour}">{escape(line)}</text>')

    def box(self, x: float, y: float, width: float, height: float, words: str, *, kind: str = "plain") -> None:
        """Draw a rounded box with centred *words*."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{FILLS[kind]}" stroke="{INK}"/>'
        )
        lines = words.count("\n")
        self.text(x + width / 2, y + height / 2 + 5 - lines * 8.5, words, bold=lines == 0, boxed=True)

    def arrow(self, path: str, *, colour: str = INK, dashed: bool = False) -> None:
        """Draw an arrow along an SVG *path*."""
        head = {INK: "ink", FAINT: "faint", GOOD: "good", BAD: "bad"}[colour]
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash} marker-end="url(#{head})"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, colour: str = FAINT) -> None:
        """Draw a thin line."""
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>')

    def svg(self) -> str:
        """Return the document."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
            for name, colour in (("ink", INK), ("faint", FAINT), ("good", GOOD), ("bad", BAD))
        )
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<defs>{heads}</defs>",
                f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


@dataclass
class Sequence:
    """Lifelines from top to bottom, and messages between them."""

    drawing: Drawing
    left: float
    names: list[str]
    gap: float = 150
    top: float = 70
    step: float = 40
    row: float = 0

    def begin(self, caption: str, rows: float, colour: str = INK) -> None:
        """Draw the caption, the names and the lifelines of *rows* steps."""
        self.drawing.text(self.x(0) - 45, self.top - 42, caption, colour=colour, size=14, anchor="start", bold=True)
        for number, name in enumerate(self.names):
            self.drawing.text(self.x(number), self.top - 10, name, bold=True)
            self.drawing.line(self.x(number), self.top, self.x(number), self.top + rows * self.step)

    def x(self, number: int) -> float:
        """Return the place of lifeline *number*."""
        return self.left + number * self.gap

    def message(self, source: int, target: int, words: str, *, colour: str = INK, dashed: bool = False) -> None:
        """Draw the next message from lifeline *source* to *target*."""
        self.row += 1
        y = self.top + self.row * self.step - 10
        toward = 3 if target > source else -3
        self.drawing.arrow(f"M{self.x(source)} {y}H{self.x(target) - toward}", colour=colour, dashed=dashed)
        self.drawing.text((self.x(source) + self.x(target)) / 2, y - 6, words, colour=colour, size=12)

    def state(self, number: int, words: str, *, kind: str = "plain", width: float = 112) -> None:
        """Draw what lifeline *number* now holds."""
        self.row += 1
        y = self.top + self.row * self.step - 30
        self.drawing.box(self.x(number) - width / 2, y, width, 26, words, kind=kind)


def states() -> Drawing:
    """Draw the states of an entry."""
    d = Drawing(820, 430, "States of an entry")
    d.box(40, 170, 150, 56, "absent")
    d.box(335, 40, 150, 56, "lease\n(reader's token)", kind="wait")
    d.box(335, 310, 150, 56, "tombstone\n(writer's token)", kind="bad")
    d.box(630, 170, 150, 56, "value\n(the row)", kind="good")
    d.arrow("M115 170C115 100 220 68 332 68", colour=GOOD)
    d.text(132, 72, "read: you fill", colour=GOOD)
    d.arrow("M485 68C600 68 705 100 705 167", colour=GOOD)
    d.text(690, 72, "fill, own lease", colour=GOOD)
    d.arrow("M410 96V307", colour=BAD)
    d.text(420, 170, "announce", colour=BAD, anchor="start")
    d.arrow("M160 226C190 290 250 322 332 326", colour=BAD)
    d.text(252, 292, "announce", colour=BAD)
    d.arrow("M660 226C630 290 570 322 488 326", colour=BAD)
    d.text(568, 292, "announce", colour=BAD)
    d.arrow("M485 350C620 350 720 310 720 229", colour=GOOD)
    d.text(720, 348, "publish, own\ntombstone", colour=GOOD)
    d.arrow("M335 350C200 350 100 310 100 229")
    d.text(92, 348, "retract, own tombstone,\nafter a ROLLBACK")
    d.arrow("M630 198H193", colour=FAINT, dashed=True)
    d.text(300, 190, "publish, own tombstone lost: heal", colour=FAINT, size=12)
    rule = "Whatever is not drawn leaves the entry as it is: a foreign token fills, publishes and retracts nothing."
    d.text(410, 408, rule, colour=FAINT, size=12)
    return d


def race() -> Drawing:
    """Draw the reader that fills after the writer's commit, without and with a lease."""
    d = Drawing(1000, 540, "A reader fills after the writer's commit")
    s = Sequence(d, 70, ["reader", "cache", "database", "writer"], gap=125)
    s.begin("Without a lease: the old row stays", 11, BAD)
    s.message(0, 1, "get: miss")
    s.message(2, 0, "SELECT: old row")
    s.message(3, 2, "UPDATE, COMMIT")
    s.message(3, 1, "set new row")
    s.state(1, "new row", kind="good")
    s.message(0, 1, "set old row", colour=BAD)
    s.state(1, "old row", kind="bad")
    d.text(s.x(1), s.top + s.row * s.step + 24, "stale for ever", colour=BAD)
    s = Sequence(d, 575, ["reader", "cache", "database", "writer"], gap=125)
    s.begin("With a lease: the fill is refused", 11, GOOD)
    s.message(0, 1, "read: lease r")
    s.message(2, 0, "SELECT: old row")
    s.message(3, 2, "UPDATE")
    s.message(3, 1, "announce")
    s.state(1, "tombstone w", kind="wait")
    s.message(3, 2, "COMMIT")
    s.message(3, 1, "publish over w")
    s.state(1, "new row", kind="good")
    s.message(0, 1, "fill over r", colour=BAD, dashed=True)
    s.state(1, "new row", kind="good")
    d.text(s.x(1), s.top + s.row * s.step + 24, "refused: lease r is gone", colour=GOOD)
    return d


def tombstone() -> Drawing:
    """Draw the lost tombstone, without and with the verified fill."""
    d = Drawing(1000, 620, "A lost tombstone")
    s = Sequence(d, 70, ["reader", "cache", "database", "writer"], gap=125)
    s.begin("A fill that trusts the cache alone", 13, BAD)
    s.message(3, 2, "UPDATE")
    s.message(3, 1, "announce")
    s.state(1, "tombstone w", kind="wait")
    s.state(1, "lost", kind="plain")
    s.message(0, 1, "read: lease r")
    s.message(2, 0, "SELECT: old row")
    s.message(0, 1, "fill over r", colour=BAD)
    s.state(1, "old row", kind="bad")
    s.message(3, 2, "COMMIT")
    s.state(3, "killed", kind="bad", width=70)
    d.text(s.x(1), s.top + s.row * s.step + 24, "stale for ever", colour=BAD)
    s = Sequence(d, 575, ["reader", "cache", "database", "writer"], gap=125)
    s.begin("The verified fill asks the database too", 13, GOOD)
    s.message(3, 2, "UPDATE, lock")
    s.message(3, 1, "announce")
    s.state(1, "tombstone w", kind="wait")
    s.state(1, "lost", kind="plain")
    s.message(0, 1, "read: lease r")
    s.message(2, 0, "SELECT: old row, held by a writer", colour=GOOD)
    s.state(0, "does not fill", kind="good")
    s.message(3, 2, "COMMIT")
    s.state(3, "killed", kind="bad", width=70)
    s.message(2, 0, "later: SELECT: new row, free")
    s.message(0, 1, "fill", colour=GOOD)
    s.state(1, "new row", kind="good")
    return d


def write() -> Drawing:
    """Draw one write's path."""
    d = Drawing(820, 520, "One write")
    s = Sequence(d, 110, ["application", "session", "database", "cache"], gap=200)
    s.begin("One write", 10.5)
    s.message(0, 1, "user.name = ...")
    s.message(0, 1, "session.commit()")
    s.message(1, 2, "flush: UPDATE, locks the row")
    s.message(1, 2, "read back, if need be", dashed=True)
    s.message(1, 3, "announce: acknowledged, 1 round trip", colour=BAD)
    s.state(3, "tombstone", kind="wait")
    s.message(1, 2, "COMMIT")
    s.message(1, 3, "publish: not waited for", colour=GOOD)
    s.message(1, 0, "done", dashed=True)
    s.state(3, "new row", kind="good")
    d.text(410, 505, "A failure before COMMIT has written nothing. Nothing after COMMIT raises.", colour=FAINT, size=12)
    return d


FIGURES: tuple[Callable[[], Drawing], ...] = (states, race, tombstone, write)


def main() -> None:
    """Write every figure."""
    for figure in FIGURES:
        path = Path(__file__).with_name(f"{figure.__name__}.svg")
        path.write_text(figure().svg())
        print(path.name)


if __name__ == "__main__":
    main()
