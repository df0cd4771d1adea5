"use strict";
const LINES = 500;  // that a table shows at once: a browser lays out some hundred rows quickly, twenty thousand not
for (const box of document.querySelectorAll(".sortable")) {
  const table = box.querySelector("table"), filter = box.querySelector("input"), count = box.querySelector(".count");
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(row => words.every(word => texts.get(row).includes(word)));
    body.replaceChildren(...found.slice(0, LINES));
    count.textContent = (words.length ? `${found.length} of ` : "") + `${rows.length} samples` +
      (found.length > LINES ? `, ${LINES} shown: filter or sort` : "");
  };
  const key = (row, i) => row.cells[i].dataset.order ?? row.cells[i].textContent;
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = !head.classList.contains("text");
    const compare = (a, b) => {
      const x = key(a, i), y = key(b, i);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is unknown comes last either way
      return (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y));
    };
    rows.sort(compare);
    show();
  }));
  filter.addEventListener("input", show);
  show();
}
