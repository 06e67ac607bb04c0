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
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const divide = (box, range, value) => {
    range.value = String(clamp(value, 0, 100));
    box.style.setProperty("--at", range.value + "%");
    const noisy = Math.round(range.value);
    range.setAttribute("aria-valuetext", noisy + " % noisy, " + (100 - noisy) + " % denoised");
  };
  const share = (box, event) => {
    const frame = box.getBoundingClientRect();
    return 100 * (event.clientX - frame.left) / frame.width;
  };
  document.querySelectorAll(".compare").forEach((box) => {
    const range = box.querySelector("input");
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      box.setPointerCapture(event.pointerId);
      range.focus({ preventScroll: true });
      divide(box, range, share(box, event));
    });
    box.addEventListener("pointermove", (event) => {
      if (box.hasPointerCapture(event.pointerId)) divide(box, range, share(box, event));
    });
    // Keep the focus on the range input, so that the arrow keys work after a click.
    box.addEventListener("mousedown", (event) => event.preventDefault());
    range.addEventListener("input", () => divide(box, range, range.value));
    divide(box, range, range.value);
  });

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

  // The dialog: one picture as large as the window. Both sides have one position and one zoom.
  const dialog = document.querySelector("dialog");
  const part = (id) => document.getElementById(id);
  const stage = dialog.querySelector(".stage");
  const [before, after] = dialog.querySelectorAll("img");
  let row = null; // of the table, whose picture is shown
  let zoom = null; // null: as large as fits
  let x = 0, y = 0, scale = 1;
  const pane = () => before.parentElement.getBoundingClientRect();
  const fitting = () => Math.min(pane().width / before.naturalWidth, pane().height / before.naturalHeight);
  const draw = () => {
    if (!before.naturalWidth) return;
    const { width, height } = pane();
    scale = zoom === null ? fitting() : zoom;
    const place = (at, extent, room) => (extent <= room ? (room - extent) / 2 : clamp(at, room - extent, 0));
    x = place(x, before.naturalWidth * scale, width);
    y = place(y, before.naturalHeight * scale, height);
    for (const [name, number] of [["--x", x + "px"], ["--y", y + "px"], ["--s", scale]]) stage.style.setProperty(name, number);
    stage.classList.toggle("large", scale > 1);
    part("zoom").textContent = Math.round(100 * scale) + " %";
    part("fit").setAttribute("aria-pressed", zoom === null);
    part("actual").setAttribute("aria-pressed", zoom === 1);
  };
  const zoomTo = (wanted, cx = pane().width / 2, cy = pane().height / 2) => {
    const old = scale;
    zoom = wanted === null || wanted <= fitting() && wanted !== 1 ? null : Math.min(wanted, 16);
    const now = zoom === null ? fitting() : zoom;
    x = cx - (cx - x) * now / old;
    y = cy - (cy - y) * now / old;
    draw();
  };
  const centre = () => { x = (pane().width - before.naturalWidth * scale) / 2; y = (pane().height - before.naturalHeight * scale) / 2; };
  const pictures = () => [...body.rows].filter((other) => !other.hidden && other.querySelector(".thumb"));
  const show = (chosen) => {
    row = chosen;
    const thumb = row.querySelector(".thumb");
    const article = thumb.dataset.full && document.getElementById(thumb.dataset.full);
    const [denoised, noisy] = article
      ? [...article.querySelectorAll(".compare img")].map((image) => image.src)
      : [thumb.querySelector("img").src, thumb.dataset.before];
    part("dialog-name").textContent = row.dataset.name;
    before.alt = row.dataset.name + ", noisy";
    after.alt = row.dataset.name + ", denoised";
    part("copy").textContent = !article ? "A thumbnail: the page holds no more of this picture."
      : article.dataset.scale ? "A copy at " + Math.round(100 * article.dataset.scale) + " % of the file's size." : "";
    before.onload = () => { draw(); centre(); draw(); };
    after.src = denoised;
    before.src = noisy;
    const all = pictures();
    const index = all.indexOf(row);
    part("place").textContent = index < 0 ? "" : index + 1 + " of " + all.length;
    part("previous").disabled = index <= 0;
    part("next").disabled = index < 0 || index === all.length - 1;
  };
  const open = (chosen) => {
    if (!dialog.open) dialog.showModal();
    show(chosen);
    stage.focus();
  };
  const step = (by) => {
    const all = pictures();
    const other = all[all.indexOf(row) + by];
    if (other && all.includes(row)) show(other);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".thumb, .enlarge");
    if (!button) return;
    event.preventDefault();
    const full = button.dataset.full;
    open(button.closest("tr") || body.querySelector('.thumb[data-full="' + full + '"]').closest("tr"));
  });
  part("previous").addEventListener("click", () => step(-1));
  part("next").addEventListener("click", () => step(1));
  part("fit").addEventListener("click", () => zoomTo(null));
  part("actual").addEventListener("click", () => zoomTo(1));
  part("close").addEventListener("click", () => dialog.close());
  part("pair").addEventListener("click", () => {
    const isSplit = stage.classList.toggle("split");
    part("pair").setAttribute("aria-pressed", !isSplit);
    part("divider").parentElement.hidden = !isSplit;
    draw(); centre(); draw();
  });
  part("divider").addEventListener("input", () => divide(stage, part("divider"), part("divider").value));
  divide(stage, part("divider"), 50);
  addEventListener("resize", () => { if (dialog.open) draw(); });

  const isLarger = () => before.naturalWidth * scale > pane().width + 1 || before.naturalHeight * scale > pane().height + 1;
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isRange = event.target === part("divider");
    const move = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (event.key === "PageDown") step(1);
    else if (event.key === "PageUp") step(-1);
    else if (event.key === "+" || event.key === "=") zoomTo(scale * 1.25);
    else if (event.key === "-") zoomTo(scale / 1.25);
    else if (event.key === "0") zoomTo(null);
    else if (event.key === "1") zoomTo(1);
    else if (move && !isRange && isLarger()) { x += move[0]; y += move[1]; draw(); }
    else if (move && !isRange && move[0]) step(-Math.sign(move[0]));
    else return;
    event.preventDefault();
  });

  // Pointers: the divider, the picture where it is larger than the window, or two fingers.
  const pointers = new Map();
  let isDividing = false;
  const local = (point) => { // in the pane under it: both have the same coordinates
    const panes = [...stage.querySelectorAll(".pane")].map((other) => other.getBoundingClientRect());
    const frame = panes.find((other) => point.clientX >= other.left && point.clientX <= other.right) || panes[0];
    return [point.clientX - frame.left, point.clientY - frame.top];
  };
  const spread = () => { // distance and middle of two fingers
    const [a, b] = [...pointers.values()];
    return [Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1,
      ...local({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 })];
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    const frame = stage.getBoundingClientRect();
    const distance = Math.abs(share(stage, event) - part("divider").value) / 100 * frame.width;
    isDividing = pointers.size === 1 && stage.classList.contains("split") && (distance < 22 || !isLarger());
    if (isDividing) divide(stage, part("divider"), share(stage, event));
  });
  stage.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    if (pointers.size === 1 && isDividing) divide(stage, part("divider"), share(stage, event));
    else if (pointers.size === 1) { x += event.clientX - last.clientX; y += event.clientY - last.clientY; draw(); }
    const old = pointers.size === 2 && spread();
    pointers.set(event.pointerId, event);
    if (old) {
      const [distance, cx, cy] = spread();
      x += cx - old[1];
      y += cy - old[2];
      zoomTo(scale * distance / old[0], cx, cy);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(scale * Math.exp(-0.002 * event.deltaY), ...local(event));
  }, { passive: false });
})();
