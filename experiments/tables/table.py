"""Tables are data: a spec names rows, columns and the paper's numbers; one renderer prints all of them.

title: Table 4, ablation
distance: false                # true where the similarity is a negated nL2: shown as the distance
causes: []                     # with causes, every row is printed once per cause that its prompts have
keys: []                       # what sets its rows apart beside their guidance, e.g. model=lab_sd
rows:                          # a row is a choice of guidance; an experiment sweeps over them, but for `run: false`
  - {row: none, label: Unguided, paper: {top5: 0.9133, copies: 44.85}}
columns: [top5, copies, {key: fid, format: .1f}]   # names of columns.yaml, or what differs from it
notes: [Paper rows are Stable Diffusion v1.4.]
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator

from experiments.tables.cells import INTERVAL, MISSING, SHARES, SIMILARITIES, measured, negated, published, raw

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table as RichTable

NOT_RUN, NOT_APPLICABLE = "not run", "n/a"
ARROWS = {"lower": " ↓", "higher": " ↑", None: ""}
OPPOSITE = {"lower": "higher", "higher": "lower", None: None}


class Column(BaseModel, extra="forbid", frozen=True):
    key: str
    label: str
    format: str = ".2f"
    better: Literal["lower", "higher"] | None = None

    @field_validator("format")
    @classmethod
    def _printable(cls, style: str) -> str:
        if style not in (*SHARES, INTERVAL):
            try:
                format(1.0, style)
            except ValueError:
                raise ValueError(f"a format is share, percent, interval or one like .2f, got {style!r}") from None
        return style


@cache
def columns() -> dict[str, Column]:
    """The columns of columns.yaml by their key."""
    file = Path(__file__).with_name("columns.yaml")
    return {key: Column(key=key, **entry) for key, entry in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


class RowSpec(BaseModel, extra="forbid", frozen=True):
    row: str
    label: str
    run: bool = True  # False: quoted from the paper alone
    optional: bool = False  # left out where the model cannot run it
    cause: str | None = None
    paper: dict[str, float] = Field(default_factory=dict)


class TableSpec(BaseModel, extra="forbid", frozen=True):
    title: str
    rows: list[RowSpec]
    columns: list[Column]
    keys: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    distance: bool = False
    causes: list[str] = Field(default_factory=list)

    @field_validator("columns", mode="before")
    @classmethod
    def _named(cls, entries: Any) -> Any:
        """Completes a column that is named alone, or by its key with what differs from columns.yaml."""
        completed = []
        for entry in ({"key": entry} if isinstance(entry, str) else entry for entry in entries):
            known = columns().get(entry.get("key"))
            if known is None and "label" not in entry:
                raise ValueError(f"no column {entry.get('key')!r}; known: {', '.join(columns())}")
            completed.append({**known.model_dump(), **entry} if known else entry)
        return completed

    @model_validator(mode="after")
    def _paper_fits(self) -> TableSpec:
        known = {column.key for column in self.columns}
        for row in self.rows if not self.causes else ():  # the paper has no numbers by cause
            if stray := sorted(set(row.paper) - known):
                raise ValueError(f"row {row.row!r}: the paper's {', '.join(stray)} has no column")
        return self

    def key(self, row: RowSpec) -> str:
        """The name of a row's result: its guidance, and the keys of the table."""
        return " ".join([f"guidance={row.row}", *self.keys]) if self.keys else row.row


@dataclass(frozen=True)
class Line:
    """One printed line of a table."""

    label: str
    cells: tuple[str, ...]
    source: Literal["measured", "paper"] = "measured"
    section: str = ""
    raw: Mapping[str, Any] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The label and the cells."""
        return self.label, *self.cells


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    """Labels of the columns behind the first, with their arrows."""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def sections(self) -> list[tuple[str, list[Line]]]:
        """Lines under their section's name, in the order of first appearance; "" where there are no sections."""
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.section, []).append(line)
        return list(found.items())

    def to_markdown(self) -> str:
        return self._filled("table.md.j2").rstrip() + "\n"

    def to_latex(self) -> str:
        """A booktabs tabular with its notes; needs \\usepackage{booktabs}."""
        return self._filled("table.tex.j2")

    def to_html(self) -> str:
        """A fragment: <figure class="table"> with caption, table and notes; all text escaped."""
        return self._filled("table.html.j2")

    def _filled(self, template: str) -> str:
        fields = {"title": self.title, "head": ("", *self.head), "notes": self.notes, "sections": self.sections()}
        return _templates().get_template(template).render(fields)

    def to_csv(self) -> str:
        """Numbers, not their print: a share is its count, `_n`, `_low`, `_high`; a paper's share is per cent."""
        keys = list(dict.fromkeys(key for line in self.lines for key in line.raw or ()))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["label", "section", "source", "status", *keys], lineterminator="\n")
        writer.writeheader()
        for line in self.lines:
            status = line.cells[0] if line.cells and line.cells[0] in (NOT_RUN, NOT_APPLICABLE) else "ok"
            fixed = {"label": line.label, "section": line.section, "source": line.source, "status": status}
            writer.writerow({**fixed, **(line.raw or {})})
        return buffer.getvalue()

    def to_rich(self) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        table = RichTable(
            title=Text(self.title), caption=caption, caption_justify="left", title_justify="left", box=box.SIMPLE_HEAD
        )
        longest = max((len(line.label) for line in self.lines), default=0)
        table.add_column("", min_width=min(longest, 32), overflow="fold")
        for label in self.head:
            table.add_column(Text(label), justify="right")
        for section, lines in self.sections():
            if section:
                table.add_row(Text(section, style="bold"))
            for line in lines:
                style = "dim" if line.source == "paper" else ""
                table.add_row(*(Text(cell, style=style) for cell in line.texts))
        return table

    def write(self, folder: str | Path) -> None:
        """table.md, table.tex and table.csv."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("md", self.to_markdown()), ("tex", self.to_latex()), ("csv", self.to_csv())):
            (folder / f"table.{name}").write_text(text, encoding="utf-8")


def render(table: TableSpec | Mapping[str, Any], results: Mapping[str, Mapping[str, Any] | str | None]) -> Table:
    """Fills a table.

    Args:
        table: the spec, see this module's head.
        results: a run's metrics by the name of its row; None or absent where nothing was run, "n/a" where the model
            cannot run the row.
    Raises:
        ValueError: for a spec with unknown keys, or a result that is none of these.
    """
    spec = table if isinstance(table, TableSpec) else TableSpec.model_validate(dict(table))
    for name, result in results.items():
        if result is not None and result != NOT_APPLICABLE and not isinstance(result, Mapping):
            raise ValueError(f"the result of row {name!r} is metrics, None or {NOT_APPLICABLE!r}, got {result!r}")
    lines: list[Line] = []
    for cause in _met(spec.causes, results) or [None]:
        for row in spec.rows:
            if row.optional and results.get(spec.key(row)) == NOT_APPLICABLE:
                continue
            lines.append(_measured_line(spec, row, cause or row.cause, results.get(spec.key(row)), cause or ""))
            if row.paper and not cause:
                lines.append(_paper_line(spec, row))
    kept = _with_numbers(lines) or range(len(spec.columns))
    head = tuple(_heading(spec, spec.columns[i]) for i in kept)
    lines = [replace(line, cells=tuple(line.cells[i] for i in kept)) for line in lines]
    return Table(spec.title, head, tuple(lines), (*spec.notes, *_own_notes(spec, results)))


def _own_notes(spec: TableSpec, results: Mapping[str, Any]) -> list[str]:
    """Returns the footnotes of a table: thresholds, intervals, and the settings of its FID."""
    ran = {row.label: metrics for row in spec.rows if isinstance(metrics := results.get(spec.key(row)), Mapping)}
    told = [note for one in ran.values() for note in (*_thresholds(one), *one.get("notes", ()))]
    notes = [note for note in dict.fromkeys(told) if note not in spec.notes]
    if ran and any(column.format == "share" for column in spec.columns):
        notes.append("Shares: count/n with Wilson's 95 % interval.")
    groups = sorted({metrics.get("groups", 1) for metrics in ran.values()})
    if groups and groups != [1]:
        notes.append(
            f"Over {' or '.join(map(str, groups))} groups of seeds: ± is the 95 % interval of the mean (Student's t "
            "over the groups; none for one group); shares are counted over all samples, which are independent."
        )
    if spec.distance and any(column.key in SIMILARITIES for column in spec.columns):
        notes.append("Top5 % and Top1 are nL2 distances (Eq. 8): larger is farther from the training set.")
    if any(column.key.startswith("alignment") for column in spec.columns):
        by = dict.fromkeys(metrics["alignment_by"] for metrics in ran.values() if metrics.get("alignment_by"))
        notes += [f"Alignment: 100 · cosine of image and prompt, by {name}." for name in by]
    by_setting: dict[str, list[str]] = {}
    if any(column.key == "fid" for column in spec.columns):
        for label, metrics in ran.items():
            if setting := metrics.get("fid_setting"):
                by_setting.setdefault(_fid_setting(setting), []).append(label)
    for setting, labels in by_setting.items():
        which = "" if len(by_setting) == 1 else f" of {', '.join(labels)}"
        notes.append(f"FID{which}: {setting}.")
    return notes


def _thresholds(metrics: Mapping[str, Any]) -> list[str]:
    line = metrics.get("thresholds")
    return [f"{line[0].upper()}{line[1:]}."] if line else []


def _fid_setting(setting: Mapping[str, Any]) -> str:
    parts = [f"n = {setting['n']}"]
    return ", ".join(parts + [f"{name} {setting[name]}" for name in ("extractor", "reference", "resize")])


def _heading(spec: TableSpec, column: Column) -> str:
    turned = spec.distance and column.key in SIMILARITIES
    return column.label + ARROWS[OPPOSITE[column.better] if turned else column.better]


def _with_numbers(lines: list[Line]) -> list[int]:
    """The columns that hold a number: a count that does not exist in a world needs none there."""
    columns = zip(*(line.cells for line in lines), strict=True)
    return [i for i, cells in enumerate(columns) if not {*cells} <= {MISSING, NOT_RUN, NOT_APPLICABLE}]


def _met(causes: list[str], results: Mapping[str, Any]) -> list[str]:
    """The causes that the prompts of some run have; all where none is known."""
    known = {cause for one in results.values() if isinstance(one, Mapping) for cause in one.get("by_cause") or ()}
    return [cause for cause in causes if cause in known] or causes


def _measured_line(spec: TableSpec, row: RowSpec, cause: str | None, result: Any, section: str) -> Line:
    if not isinstance(result, Mapping):
        return Line(row.label, (result or NOT_RUN,) * len(spec.columns), section=section)
    if cause is not None:
        result = result.get("by_cause", {}).get(cause)
        if not result or not result.get("n"):
            return Line(row.label, (NOT_RUN,) * len(spec.columns), section=section)
    cells: list[str] = []
    numbers: dict[str, Any] = {}
    for column in spec.columns:
        value = result.get(column.key)
        value = negated(value) if spec.distance and column.key in SIMILARITIES else value
        cells.append(measured(value, column.format))
        numbers |= raw(column.key, value)
    return Line(row.label, tuple(cells), section=section, raw=numbers)


def _paper_line(spec: TableSpec, row: RowSpec) -> Line:
    cells = tuple(published(row.paper[c.key], c.format) if c.key in row.paper else MISSING for c in spec.columns)
    return Line(f"{row.label}, paper", cells, "paper", raw=row.paper)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    folder = Path(__file__).with_name("templates")
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=lambda name: name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"keep_arrow": _keep_arrow, "pipes": _pipes, "tex": _tex}
    templates.tests["missing"] = {MISSING, NOT_RUN, NOT_APPLICABLE}.__contains__
    return templates


def _keep_arrow(label: str) -> str:
    """A no-break space before the arrow: it never stands alone on a line."""
    return label[:-2] + "\u00a0" + label[-1] if label.endswith((" ↓", " ↑")) else label


def _pipes(cell: str) -> str:
    """Text within a Markdown table."""
    return cell.replace("|", "\\|")


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$"}
    special |= {c: "\\" + c for c in "&%$#_{}"} | {">": r"$>$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    special |= {
        "–": "--",
        "−": "$-$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
        "±": r"$\pm$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
    }
    return "".join(special.get(c, c) for c in text)
