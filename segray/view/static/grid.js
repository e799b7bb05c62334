// The grid of thumbnails. Only tiles near the window exist. Very long lists are cut into pages.

import { change, filters, ofImage, parameters } from "./address.js";
import { ask, byId, element, notice, whole } from "./dom.js";

const BLOCK = 100;
const PAGE = 60_000; // Browsers cannot lay out much taller pages.
const WANTED_PX = 220, GAP_PX = 10, CAPTION_PX = 24;
const LABELS = {
  key: "key", score: "highest score", lowest: "lowest score", count: "most instances", area: "largest mask",
  uncertain: "most uncertain", random: "random",
};

let stamp = "", blocks = new Map(), total = 0, layout = null, generation = 0, scrollTop = 0, shownFor = null;

const resized = new ResizeObserver(() => requestAnimationFrame(place));

/** Draw the grid for the present address. */
export async function drawGrid(state) {
  const main = byId("main"), address = filters().toString() + (parameters().get("page") ?? "");
  const mine = ++generation;
  stamp = state.stamp;
  const keep = shownFor === address;
  if (!keep) [blocks, scrollTop] = [new Map(), 0];
  let first;
  try {
    first = keep ? null : await ask(`/api/images?${filters({ offset: pageStart(), limit: BLOCK })}`);
  } catch (error) {
    notice(error.message);
    return;
  }
  if (mine !== generation) return;
  if (first) {
    blocks.set(Math.floor(pageStart() / BLOCK), first.images);
    total = first.total;
  }
  shownFor = address;
  const tiles = element("div", { id: "tiles" });
  main.replaceChildren(toolbar(state), total ? tiles : element("p", { className: "empty" }, "No image fits these filters."));
  main.onscroll = () => {
    scrollTop = main.scrollTop;
    requestAnimationFrame(place);
  };
  resized.observe(main);
  place();
  main.scrollTop = scrollTop;
}

const pageStart = () => PAGE * Math.max(0, Number(parameters().get("page") ?? 1) - 1);
const onPage = () => Math.min(PAGE, total - pageStart());

function toolbar(state) {
  const pages = Math.ceil(total / PAGE), page = Number(parameters().get("page") ?? 1);
  const order = parameters().get("order") ?? "key";
  const turn = (by) => () => change({ page: page + by });
  return element("div", { id: "toolbar" },
    element("span", { className: "total", id: "total", role: "status" }, `${whole(total)} images`),
    pages > 1 ? element("span", { className: "controls" },
      element("button", { type: "button", disabled: page <= 1, onclick: turn(-1) }, "Earlier"),
      `page ${page} of ${pages}`,
      element("button", { type: "button", disabled: page >= pages, onclick: turn(1) }, "Later")) : null,
    element("label", { for: "order" }, "Sort by "),
    element("select", { id: "order", onchange: (event) => change({ order: event.target.value, page: "" }) },
      state.orders.map((value) => element("option", { value, selected: value === order }, LABELS[value] ?? value))),
    order === "random" ? element("button", {
      type: "button", onclick: () => change({ seed: 1 + Math.floor(Math.random() * 1e6), page: "" }),
    }, "Shuffle") : null);
}

function place() {
  const main = byId("main"), tiles = byId("tiles");
  if (!tiles) return;
  const width = tiles.clientWidth;
  const columns = Math.max(2, Math.round(width / WANTED_PX));
  const size = Math.floor((width - GAP_PX * (columns - 1)) / columns);
  const height = Math.round(size * 0.75) + CAPTION_PX, step = height + GAP_PX;
  layout = { columns, size, height, step };
  tiles.style.height = `${Math.ceil(onPage() / columns) * step}px`;
  const top = Math.max(0, main.scrollTop - tiles.offsetTop);
  const first = Math.max(0, Math.floor(top / step) - 2) * columns;
  const last = Math.min(onPage(), (Math.ceil((top + main.clientHeight) / step) + 2) * columns);
  const wanted = new Map();
  for (let number = first; number < last; number++) {
    const index = pageStart() + number;
    const row = blocks.get(Math.floor(index / BLOCK))?.[index % BLOCK];
    if (row) wanted.set(index, row);
    else load(Math.floor(index / BLOCK));
  }
  for (const tile of [...tiles.children]) if (!wanted.has(Number(tile.dataset.index))) tile.remove();
  const present = new Map([...tiles.children].map((tile) => [Number(tile.dataset.index), tile]));
  let before = null;
  for (const [index, row] of wanted) {
    const tile = present.get(index) ?? tileOf(row, index);
    if (!present.has(index)) before ? before.after(tile) : tiles.prepend(tile);
    const number = index - pageStart();
    tile.style.width = `${size}px`;
    tile.style.height = `${height}px`;
    tile.style.transform = `translate(${(number % columns) * (size + GAP_PX)}px, ${Math.floor(number / columns) * step}px)`;
    before = tile;
  }
}

async function load(block) {
  if (blocks.has(block)) return;
  const mine = blocks;
  mine.set(block, []);
  try {
    const answer = await ask(`/api/images?${filters({ offset: block * BLOCK, limit: BLOCK })}`);
    mine.set(block, answer.images);
    if (mine === blocks) place();
  } catch (error) {
    mine.delete(block);
    notice(error.message);
  }
}

function tileOf(row, index) {
  const drawn = new URLSearchParams({ stamp });
  for (const name of ["class", "score", "area"]) if (parameters().get(name)) drawn.set(name, parameters().get(name));
  const address = `/thumbnail/${row.image_no}.jpg?${drawn}`;
  const picture = element("img", { alt: "", loading: "lazy", decoding: "async", src: address });
  picture.addEventListener("error", async () => {
    const reason = await ask(address).then(() => "The picture cannot be shown.", (error) => error.message.split("\n")[0]);
    picture.replaceWith(element("span", { className: "gone" }, reason));
  });
  const count = row.status === "ok"
    ? [String(row.n_instances), element("span", { className: "spoken" }, row.n_instances === 1 ? " instance" : " instances")]
    : row.status;
  const tile = element("a", {
    className: "tile", href: ofImage(row.image_key), title: row.image_key,
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      change({ image: row.image_key });
    },
    onkeydown: (event) => move(event, index),
  },
  picture,
  element("span", { className: "caption" },
    element("span", { className: "key" }, element("bdi", {}, row.image_key)),
    row.judgements ? element("span", { title: "judged" }, "✓") : null,
    element("span", { className: "soft" }, count)));
  tile.dataset.index = index;
  return tile;
}

function move(event, index) {
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout.columns, ArrowDown: layout.columns }[event.key];
  if (!by) return;
  event.preventDefault();
  document.querySelector(`.tile[data-index="${index + by}"]`)?.focus();
}

/** Forget what the grid shows, so that it is asked for again. */
export const forgetGrid = () => { shownFor = null; };
