// Begins the page, and draws what the address says: the grid, or one image.

import { parameters } from "./address.js";
import { ask, byId, notice, whole } from "./dom.js";
import { drawFilters } from "./filters.js";
import { drawGrid } from "./grid.js";
import { closeImage, drawImage } from "./image.js";

let state = null;

async function draw() {
  notice("");
  const key = parameters().get("image");
  byId("filters").hidden = key !== null;
  byId("show-filters").hidden = key !== null;
  if (key !== null) {
    await drawImage(state, key);
    return;
  }
  closeImage();
  await Promise.all([drawGrid(state), drawFilters(state)]);
}

async function begin() {
  try {
    state = await ask("/api/state");
  } catch (error) {
    notice(error.message);
    return;
  }
  byId("title").textContent = state.root;
  document.title = `${state.root} · segray view`;
  byId("summary").textContent =
    `${whole(state.rows.images ?? 0)} images, ${whole(state.rows.instances ?? 0)} instances, ` +
    `${state.model}, batch ${state.version}`;
  byId("show-filters").addEventListener("click", () => {
    const open = byId("filters").classList.toggle("open");
    byId("show-filters").setAttribute("aria-expanded", String(open));
  });
  addEventListener("addresschange", draw);
  addEventListener("popstate", draw);
  await draw();
}

begin();
