// The filters beside the grid: values with their counts, histograms, texts.

import { change, filters, parameters } from "./address.js";
import { ask, byId, element, notice, whole } from "./dom.js";

const DELAY_MS = 350;

let asked = null;

/** Draw the filters for the present address. Counts come when the server has them. */
export async function drawFilters(state) {
  asked?.abort();
  asked = new AbortController();
  try {
    const facets = await ask(`/api/facets?${filters()}`, { signal: asked.signal });
    const focused = document.activeElement?.id, place = document.activeElement?.selectionStart;
    const scrolled = [...document.querySelectorAll(".values")].map((list) => list.scrollTop);
    byId("filters").replaceChildren(...parts(state, facets).filter(Boolean));
    document.querySelectorAll(".values").forEach((list, number) => (list.scrollTop = scrolled[number] ?? 0));
    if (focused && byId(focused)) {
      byId(focused).focus({ preventScroll: true });
      if (typeof place === "number" && byId(focused).setSelectionRange) byId(focused).setSelectionRange(place, place);
    }
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message);
  }
}

function parts(state, facets) {
  const classes = state.classes
    .map(({ id, name, colour }) => ({ value: String(id), name, colour, count: facets.classes[id] ?? 0 }))
    .filter(({ value, count }) => count > 0 || chosen("class").has(value))
    .sort((a, b) => b.count - a.count || a.name.localeCompare(b.name));
  const statuses = Object.entries(facets.statuses).map(([value, count]) => ({ value, name: value, count }));
  const batches = Object.entries(facets.batches).map(([value, count]) => ({ value, name: `batch ${value}`, count }));
  return [
    text("text", "Key contains"),
    heading("Class", "instances"),
    values("class", classes),
    heading("Score", "instances"),
    histogram("score", facets.scores, (bin) => bin / facets.scores.length, 2),
    heading("Area of the mask, pixels", "instances"),
    histogram("area", trimmed(facets.areas), (bin) => 2 ** bin, 0),
    heading("Image", "images"),
    values("status", statuses),
    heading("Instances in the image"),
    range("count"),
    batches.length > 1 || chosen("batch").size ? heading("Batch", "images") : null,
    batches.length > 1 || chosen("batch").size ? values("batch", batches) : null,
    text("where", "SQL condition on an instance", "score > 0.5 AND bbox_w > bbox_h"),
    element("p", {}, element("button", { type: "button", id: "clear", onclick: clear }, "Clear filters")),
  ];
}

const heading = (name, counted) =>
  element("h2", {}, name, counted ? element("span", { className: "soft" }, ` (${counted})`) : null);

const chosen = (name) => new Set((parameters().get(name) ?? "").split(",").filter(Boolean));

function values(name, entries) {
  return element("ul", { className: "values", "data-filter": name }, entries.map(({ value, name: shown, colour, count }) =>
    element("li", {}, element("label", {},
      element("input", {
        type: "checkbox", id: `${name}-${value}`, checked: chosen(name).has(value), onchange: () => toggle(name, value),
      }),
      colour ? element("span", { className: "swatch", style: { background: colour } }) : null,
      element("span", { className: "name" }, shown),
      element("span", { className: "count" }, whole(count))))));
}

function toggle(name, value) {
  const all = chosen(name);
  if (!all.delete(value)) all.add(value);
  change({ [name]: [...all].join(",") });
}

function histogram(name, counts, lowOf, digits) {
  const most = Math.max(1, ...counts);
  const [low, high] = bounds(name);
  return element("div", {},
    element("div", { className: "bars", "data-filter": name }, counts.map((count, bin) => {
      const from = lowOf(bin), to = lowOf(bin + 1);
      const shown = `${from.toFixed(digits)} to ${to.toFixed(digits)}: ${whole(count)}`;
      return element("button", {
        type: "button", title: shown, "aria-label": `${name} ${shown}`,
        className: from >= low - 1e-9 && to <= high + 1e-9 ? "in" : "",
        style: { "--height": `${count ? Math.max(4, (100 * count) / most) : 0}%` },
        onclick: () => change({ [name]: `${+from.toFixed(digits)}..${+to.toFixed(digits)}` }),
      });
    })),
    range(name));
}

function trimmed(counts) {
  const last = counts.findLastIndex((count) => count > 0);
  return counts.slice(0, Math.max(last + 1, 1));
}

function bounds(name) {
  const [low, high] = (parameters().get(name) ?? "").split("..");
  return [low ? Number(low) : -Infinity, high ? Number(high) : Infinity];
}

function range(name) {
  const [low = "", high = ""] = (parameters().get(name) ?? "").split("..");
  const set = () => {
    const [a, b] = [byId(`${name}-low`).value.trim(), byId(`${name}-high`).value.trim()];
    change({ [name]: a || b ? `${a}..${b}` : "" });
  };
  const box = (id, value, label) => element("input", {
    id, value, type: "text", inputMode: "decimal", "aria-label": `${label} ${name}`, placeholder: label, onchange: set,
  });
  return element("div", { className: "range" }, box(`${name}-low`, low, "least"), "to", box(`${name}-high`, high, "most"));
}

function text(name, label, example = "") {
  let timer;
  const input = element("input", {
    id: name, type: "text", value: parameters().get(name) ?? "", placeholder: example, spellcheck: false,
    onchange: () => { clearTimeout(timer); change({ [name]: input.value.trim() }); },
    oninput: name === "where" ? undefined : () => {
      clearTimeout(timer);
      timer = setTimeout(() => change({ [name]: input.value.trim() }, { replace: true }), DELAY_MS);
    },
  });
  return element("div", {}, element("h2", {}, element("label", { for: name }, label)), input);
}

function clear() {
  change({ class: "", status: "", batch: "", score: "", area: "", count: "", text: "", where: "" });
}
