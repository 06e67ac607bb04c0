"use strict";
(() => {
  // Colour scheme: the reader's choice, else the system's.
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const isDark = (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
  });

  // Sliders: keyboards and screen readers use the range input; pointers drag anywhere.
  const attach = (box) => {
    const range = box.querySelector("input");
    const show = () => {
      box.style.setProperty("--at", range.value + "%");
      const noisy = Math.round(range.value);
      range.setAttribute("aria-valuetext", noisy + " % noisy, " + (100 - noisy) + " % denoised");
    };
    const drag = (event) => {
      const frame = box.getBoundingClientRect();
      const share = (event.clientX - frame.left) / frame.width;
      range.value = String(Math.min(100, Math.max(0, 100 * share)));
      show();
    };
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      box.setPointerCapture(event.pointerId);
      range.focus({ preventScroll: true });
      drag(event);
    });
    box.addEventListener("pointermove", (event) => {
      if (box.hasPointerCapture(event.pointerId)) drag(event);
    });
    // Keep the focus on the range input, so that the arrow keys work after a click.
    box.addEventListener("mousedown", (event) => event.preventDefault());
    range.addEventListener("input", show);
    show();
  };
  document.querySelectorAll(".compare").forEach(attach);

  // Table: sort, and filter by name.
  const body = document.querySelector("tbody");
  const rows = [...body.rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === "" ? null : Number(cell.dataset.v);
  };
  const names = new Intl.Collator(undefined, { numeric: true });
  const sort = (header, column) => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    document.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const direction = descending ? -1 : 1;
    const keyed = rows.map((row) => [value(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // unknown values last
      return direction * (typeof a === "number" ? a - b : names.compare(a, b));
    });
    body.append(...keyed.map(([, row]) => row));
  };
  document.querySelectorAll("th").forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sort(header, column));
  });
  const search = document.getElementById("search");
  const failed = document.getElementById("failed");
  const count = document.getElementById("count");
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const isShown = row.dataset.name.toLowerCase().includes(wanted) && !(failed && failed.checked && row.dataset.status !== "failed");
      row.hidden = !isShown;
      shown += isShown;
    }
    count.textContent = shown + " of " + rows.length;
  };
  search.addEventListener("input", filter);
  if (failed) failed.addEventListener("change", filter);
  filter();

  // A thumbnail opens its image: the full view above, or both thumbnails in a dialog.
  const dialog = document.querySelector("dialog");
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button.thumb");
    if (!button) return;
    const full = button.dataset.full && document.getElementById(button.dataset.full);
    if (full) {
      full.scrollIntoView();
      full.querySelector(".compare input").focus({ preventScroll: true });
      return;
    }
    const row = button.closest("tr");
    dialog.querySelector("h3").textContent = row.dataset.name;
    const [after, before] = dialog.querySelectorAll("img");
    after.onload = () => { // as large as fits on the screen
      const width = 0.72 * innerHeight * after.naturalWidth / after.naturalHeight;
      after.parentElement.style.maxWidth = Math.round(width) + "px";
    };
    after.src = button.querySelector("img").src;
    before.src = button.dataset.before;
    dialog.showModal();
  });
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
})();
