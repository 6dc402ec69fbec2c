// Sorting, the theme button, printing. The page is complete without this script.
"use strict";
const headsOf = (table) => [...table.tHead.rows[0].cells].filter((head) => head.dataset.key);

function sortBy(table, key, direction) {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex((head) => head.dataset.key === key);
  if (column < 0) return;
  const sign = direction === "ascending" ? 1 : -1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.cells.length > 1);
    const value = (row) => row.cells[column].dataset.value;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = key === "method" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return sign * order;
    });
    body.append(...rows);
  }
  for (const head of headsOf(table)) head.setAttribute("aria-sort", head.dataset.key === key ? direction : "none");
}

const sortable = [...document.querySelectorAll("table.sortable")];
for (const table of sortable) {
  for (const head of headsOf(table)) {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(table, head.dataset.key, now === first ? other : first);
    });
  }
}

const button = document.getElementById("theme");
const themes = ["auto", "light", "dark"];
function setTheme(theme) {
  if (!themes.includes(theme)) return;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  button.textContent = "Theme: " + theme;
}
button.hidden = false;
button.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || "auto";
  setTheme(themes[(themes.indexOf(now) + 1) % themes.length]);
});

// report.html#sort=params or #sort=params:descending&theme=dark is a link to a sorted or themed report.
function readHash() {
  const options = new URLSearchParams(location.hash.slice(1));
  if (options.has("theme")) setTheme(options.get("theme"));
  if (options.has("sort")) {
    const [key, direction] = options.get("sort").split(":");
    for (const table of sortable) {
      const first = headsOf(table).find((head) => head.dataset.key === key)?.dataset.first;
      if (first) sortBy(table, key, direction === "ascending" || direction === "descending" ? direction : first);
    }
  }
}
addEventListener("hashchange", readHash);
readHash();

addEventListener("beforeprint", () => {
  setTheme("light");
  for (const details of document.querySelectorAll("details")) details.open = true;
});
