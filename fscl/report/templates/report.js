// Sorts tables and shows where else on the page a learner is. Without it the page reads as well.
(() => {
  "use strict";

  // Sorting: each heading becomes a button. Numbers are sorted by their value before rounding, and largest first;
  // what is undefined comes last in both directions.
  const collator = new Intl.Collator(undefined, { numeric: true });
  const valueOf = (row, column) => {
    const value = row.cells[column].dataset.value;
    return value === undefined ? null : Number(value);
  };
  const textOf = (row, column) => row.cells[column].textContent.trim();

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => !row.matches(".group"))]);
    const numeric = bodies.some(([, rows]) => rows.some((row) => valueOf(row, column) !== null));
    const before = heads[column].getAttribute("aria-sort");
    const descending = before === "none" ? numeric : before === "ascending";
    const sign = descending ? -1 : 1;
    const compare = (first, second) => {
      if (!numeric) return sign * collator.compare(textOf(first, column), textOf(second, column));
      const [a, b] = [valueOf(first, column), valueOf(second, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b);
    };
    for (const [body, rows] of bodies) body.append(...rows.sort(compare));
    for (const head of heads) head.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column));
      head.append(button);
      head.setAttribute("aria-sort", "none");
    });
  }

  // Pointing: the rows, curves, dots and names of the learner under the pointer, or with the focus, stand out.
  const shown = new Map();
  for (const element of document.querySelectorAll("[data-learner]")) {
    const label = element.dataset.learner;
    shown.set(label, [...(shown.get(label) ?? []), element]);
    // a thin line is hard to meet, so it gets a wide one that is not seen
    for (const line of element.querySelectorAll(":scope > path")) {
      const wide = line.cloneNode();
      wide.setAttribute("class", "hit");
      wide.removeAttribute("style");
      element.prepend(wide);
    }
  }
  let pointed = null;
  function point(target) {
    const label = target instanceof Element ? target.closest("[data-learner]")?.dataset.learner ?? null : null;
    if (label === pointed) return;
    pointed = label;
    for (const element of document.querySelectorAll(".pointed, .pointing")) element.classList.remove("pointed", "pointing");
    for (const element of shown.get(label) ?? []) {
      element.classList.add("pointed");
      element.closest("svg")?.classList.add("pointing");
    }
  }
  document.addEventListener("pointerover", (event) => point(event.target));
  document.addEventListener("focusin", (event) => point(event.target));
  document.documentElement.addEventListener("pointerleave", () => point(null));

  // A link to a figure that is folded away unfolds it; a print shows all that is folded away.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target?.closest("details:not([open])");
    if (folded) {
      folded.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", unfold);
  unfold();
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open])")];
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
  });
})();
