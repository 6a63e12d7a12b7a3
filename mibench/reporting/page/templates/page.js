"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const before = [...body.rows];
  table.querySelectorAll("th button").forEach((button) => {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const old = head.getAttribute("aria-sort");
      const next = { none: "ascending", ascending: "descending", descending: "none" }[old];
      table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const at = head.cellIndex;
      const value = (row) => row.cells[at].dataset.value ?? "";
      const number = head.dataset.type === "number";
      const sign = next === "descending" ? -1 : 1;
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (number ? Number(x) - Number(y) : x.localeCompare(y));
      };
      const rows = next === "none" ? before : [...before].sort(compare);
      table.classList.toggle("sorted", next !== "none");
      body.append(...rows);
    });
  });
}
for (const panel of document.querySelectorAll("[data-tips]")) {
  const tip = panel.querySelector("output");
  const told = (event) => {
    const mark = event.target.closest("[aria-label]:is(.pt,.ln)");
    if (mark) tip.textContent = mark.getAttribute("aria-label");
  };
  panel.addEventListener("pointerover", told);
  panel.addEventListener("focusin", told);
}
