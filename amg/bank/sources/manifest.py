"""What became of each address of a list of pictures: an append-only `manifest.jsonl` beside the pictures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "manifest.jsonl"
DONE = "done"


@dataclass(frozen=True)
class Entry:
    """One address, as it was left by the last try."""

    prompt: str
    url: str
    status: str
    """`done`, or why there is no picture; see `amg.bank.sources.web.STATUSES`."""
    detail: str = ""
    file: str = ""
    """Name of the picture in the manifest's folder; "" where there is none."""
    bytes: int = 0


class Manifest:
    """Reads and extends the manifest of a folder; of several lines for one address the last counts.

    A line is written when its picture is whole on disk, so that a download that was stopped goes on where it stood.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.path = Path(folder), Path(folder) / NAME

    def begin(self, total: int) -> None:
        """Notes how many addresses the list has, behind the last whole line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                self.path.write_bytes(content[:whole])
        self._append({"total": total})

    def add(self, entry: Entry) -> None:
        self._append(asdict(entry))

    def read(self) -> tuple[int, dict[tuple[str, str], Entry]]:
        """How many addresses the list has, and the last entry by prompt and address; (0, {}) without a manifest.

        A last line without its end is what a killed process leaves, and is no entry.

        Raises:
            ValueError: for any other line that is none, by number.
        """
        if not self.path.is_file():
            return 0, {}
        total, entries = 0, {}
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if "total" in row:
                    total = int(row["total"])
                else:
                    entries[row["prompt"], row["url"]] = Entry(**row)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: no entry of a download ({error}): delete the file to download anew"
                ) from None
        return max(total, len(entries)), entries

    def there(self, entry: Entry | None) -> Path | None:
        """The entry's picture, if it is on disk as it was written."""
        if entry is None or entry.status != DONE or Path(entry.file).name != entry.file:
            return None
        file = self.folder / entry.file
        return file if file.is_file() and file.stat().st_size == entry.bytes else None

    def _append(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
