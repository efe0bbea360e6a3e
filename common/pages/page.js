"use strict";
// What a page does beyond showing itself: colors, sorting, filters, copying, plots. Without it all is still readable.
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const root = document.documentElement;
root.classList.add("js");

// Colors: as the system, or as chosen.
const memory = { get: () => { try { return localStorage.getItem("tunebook-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("tunebook-theme", value); } catch { /* a file may have none */ } } };
const repaint = () => { // what a plot has painted keeps its colors until it changes
  for (const { model } of window.Bokeh?.index?.roots ?? []) for (const part of [model, ...["left", "below", "center"].flatMap((side) => model[side] ?? [])]) part.change.emit();
};
const wear = (theme) => { if (theme === "light" || theme === "dark") root.dataset.theme = theme; else delete root.dataset.theme; repaint(); };
wear(memory.get());
for (const button of all(".theme")) button.addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const next = root.dataset.theme ? "" : dark ? "light" : "dark"; // the other one, and back to the system's
  memory.set(next);
  wear(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

// Tables: a click on a head sorts by it; what has no value stays last.
const value = (row, column) => row.cells[column]?.dataset.sort ?? row.cells[column]?.textContent.trim() ?? "";
const order = (one, other) => {
  const numbers = [one, other].map((text) => /^\d+-\d/.test(text) ? NaN : parseFloat(text.replace(/[,\s<]/g, ""))); // no dates
  return numbers.some(Number.isNaN) ? one.localeCompare(other, "en", { numeric: true }) : numbers[0] - numbers[1];
};
const empty = (text) => text === "" || text === "–";
for (const table of all("table.sort")) for (const [column, head] of all("thead th", table).entries()) {
  if (!head.textContent.trim()) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([one], [other]) => empty(one) - empty(other) || (up ? order(one, other) : order(other, one)));
    body.append(...rows.map(([, row]) => row));
  });
}

// A wide table says that it goes on.
const wide = all(".wide").map((box) => {
  const hint = Object.assign(document.createElement("p"), { className: "hint", textContent: "More columns: scroll the table sideways →" });
  box.before(hint);
  return [box, hint];
});
const measure = () => { for (const [box, hint] of wide) hint.classList.toggle("shown", box.scrollWidth > box.clientWidth + 1); };
addEventListener("resize", measure);
measure();

// Items: those of the kinds that are marked; all where none is.
for (const box of all(".filter input")) box.addEventListener("change", () => {
  const wanted = all(`.filter input[name=${box.name}]:checked`).map((one) => one.value);
  for (const item of all(`[data-${box.name}]`)) item.hidden = wanted.length > 0 && !wanted.includes(item.dataset[box.name]);
});
for (const button of all("[data-open]")) button.addEventListener("click", () => {
  const items = all(`${button.dataset.open} details`), open = items.some((item) => !item.open);
  for (const item of items) item.open = open;
});

for (const button of all(".copy")) button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre").textContent;
  try { await navigator.clipboard.writeText(text); } catch { // where there is no clipboard, the text is selected
    getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
  }
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});

// Plots. Every line has the columns x, raw and y; y is raw until it is smoothed.
const smoothed = (raw, share) => { // an exponential average, without the pull towards its beginning
  let sum = 0, weight = 0;
  return raw.map((one) => (sum = share * sum + (1 - share) * one, weight = share * weight + (1 - share), sum / weight));
};
const control = (figure, plot) => {
  const lines = plot.renderers, named = (name) => lines.filter((line) => line.name === name);
  for (const button of all(".legend button", figure)) button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    for (const line of lines) if (line.tags[0] === Number(button.dataset.series)) line.visible = shown;
  });
  all(".smooth", figure).forEach((slider) => slider.addEventListener("input", () => {
    for (const line of lines) if (line.tags.includes("smooth")) {
      const data = line.data_source.data;
      line.data_source.data = { ...data, y: smoothed([...data.raw], Number(slider.value)) };
    }
    for (const line of lines) if (line.tags.includes("raw")) line.visible = Number(slider.value) > 0;
  }));
  all(".log", figure).forEach((button) => button.addEventListener("click", () => {
    const log = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", log);
    const [linear, logarithmic] = plot.left;
    plot.y_range.scale_hint = log ? "log" : "auto";
    plot.y_scale = new (Bokeh.Models.get(log ? "LogScale" : "LinearScale"))();
    linear.visible = !log;
    logarithmic.visible = log;
  }));
  all(".reset", figure).forEach((button) => button.addEventListener("click", () => plot.reset.emit()));
  if (matchMedia("(pointer: coarse)").matches) plot.toolbar.active_drag = null; // a finger scrolls the page
};
const draw = async (figure) => {
  const item = JSON.parse(figure.querySelector("script").textContent), place = figure.querySelector(".live");
  place.id = `${figure.id}-live`;
  figure.classList.add("drawn");
  const views = await Bokeh.embed.embed_item(item, place.id);
  control(figure, (views.roots ?? views)[0].model);
};
if (window.Bokeh) {
  Bokeh.logger.set_level("error");
  for (const figure of all("figure.plot")) draw(figure).catch(() => figure.classList.remove("drawn")); // the drawing stays
}
