// One image: its pixels and masks, the table of its instances, and what a person says of them.

import { change, filters } from "./address.js";
import { ask, byId, element, notice, whole } from "./dom.js";
import { decode } from "./rle.js";

const MOST_ZOOM = 64, KEY_PAN_PX = 60;
const VERDICTS = { y: "right", n: "wrong", "?": "unsure" };

// What stays from image to image.
const shown = { masks: true, boxes: false, names: true, opacity: 0.45, least: null };
let open = null;

/** Draw the page of an image. */
export async function drawImage(state, key) {
  closeImage();
  shown.least ??= state.min_score;
  const mine = { state, key, chosen: null, hovered: null, view: null, instances: [], bitmap: null };
  open = mine;
  document.onkeydown = (event) => onKey(mine, event);
  try {
    mine.record = await ask(`/api/image?${filters({ key })}`);
  } catch (error) {
    byId("main").replaceChildren(backLink(), element("p", { className: "empty" }, error.message));
    return;
  }
  if (open !== mine) return;
  const { width, height } = mine.record;
  const classes = new Map(state.classes.map((entry) => [entry.id, entry]));
  mine.instances = mine.record.instances.map((instance) => {
    const { name = `class ${instance.class_id}`, colour = "#888888" } = classes.get(instance.class_id) ?? {};
    const mask = decode(instance.rle, width, height);
    return { ...instance, name, colour, mask, drawing: drawingOf(mask, colour) };
  });
  mine.judgements = new Map(mine.record.judgements.map((judgement) => [judgement.instance, judgement]));
  layOut(mine);
  try {
    mine.bitmap = await bitmapOf(`/picture/${mine.record.image_no}.jpg?stamp=${state.stamp}`);
  } catch (error) {
    if (open === mine) byId("gone").textContent = error.message;
    return;
  }
  if (open === mine) paint(mine);
}

/** Leave the page of an image. */
export function closeImage() {
  open?.watch?.disconnect();
  open = null;
  document.onkeydown = null;
}

async function bitmapOf(address) {
  const response = await fetch(address);
  if (!response.ok) await ask(address);
  return createImageBitmap(await response.blob());
}

/** Return the mask in its colour, and its edge, as canvases of its box. */
function drawingOf(mask, colour) {
  if (!mask.width) return null;
  const rgb = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const is = (x, y) => x >= 0 && y >= 0 && x < mask.width && y < mask.height && mask.bits[y * mask.width + x];
  const [area, edge] = [0, 1].map((isEdge) => {
    const canvas = element("canvas", { width: mask.width, height: mask.height });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(mask.width, mask.height);
    for (let y = 0; y < mask.height; y++) {
      for (let x = 0; x < mask.width; x++) {
        if (!is(x, y) || (isEdge && is(x - 1, y) && is(x + 1, y) && is(x, y - 1) && is(x, y + 1))) continue;
        pixels.data.set([...rgb, 255], 4 * (y * mask.width + x));
      }
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  });
  return { area, edge };
}

// ---- layout ----

const backLink = () => element("button", { type: "button", id: "back", onclick: () => change({ image: "" }) }, "Back to the grid");

function layOut(mine) {
  const { record } = mine;
  const go = (key) => () => change({ image: key }, { replace: true });
  const toggle = (name, label) => element("label", {}, element("input", {
    type: "checkbox", id: `show-${name}`, checked: shown[name],
    onchange: (event) => { shown[name] = event.target.checked; paint(mine); },
  }), label);
  const slider = (name, label, step) => element("label", {}, label, element("input", {
    type: "range", id: name, min: 0, max: 1, step, value: shown[name],
    oninput: (event) => {
      shown[name] = Number(event.target.value);
      byId(`${name}-value`).textContent = shown[name].toFixed(2);
      list(mine);
      paint(mine);
    },
  }), element("output", { id: `${name}-value` }, shown[name].toFixed(2)));
  const stage = element("div", { id: "stage" }, element("canvas", { role: "img", "aria-label": record.image_key }),
    element("p", { className: "empty", id: "gone" }));
  const details = element("section", { id: "details", "aria-label": "Details" },
    element("h2", {}, record.image_key),
    element("p", { className: "soft" }, [
      `${record.width} x ${record.height}, ${record.status}`, record.message ? `: ${record.message}` : "",
      record.place === null ? "" : `, ${whole(record.place + 1)} of ${whole(record.total)}`,
    ].join("")),
    element("div", { className: "controls" }, backLink(),
      element("button", { type: "button", id: "previous", disabled: !record.previous, onclick: go(record.previous) }, "← Previous"),
      element("button", { type: "button", id: "next", disabled: !record.next, onclick: go(record.next) }, "Next →")),
    element("div", { className: "controls" }, toggle("masks", "masks"), toggle("boxes", "boxes"), toggle("names", "names")),
    element("div", { className: "controls" }, slider("opacity", "opacity ", 0.05)),
    element("div", { className: "controls" }, slider("least", "least score ", 0.01)),
    element("div", { className: "controls" },
      element("button", { type: "button", id: "fit", onclick: () => { mine.view = null; paint(mine); } }, "Fit"),
      element("button", { type: "button", id: "zoom-in", "aria-label": "Zoom in", onclick: () => zoom(mine, 1.5) }, "+"),
      element("button", { type: "button", id: "zoom-out", "aria-label": "Zoom out", onclick: () => zoom(mine, 1 / 1.5) }, "−")),
    element("div", { id: "list" }),
    judging(mine),
    element("h2", {}, "Take away"),
    element("div", { className: "controls" },
      action("Picture with masks", "download-overlay", () => save(overlay(mine), fileName(mine, "overlay.png"))),
      action("Mask as PNG", "download-mask", () => save(maskOf(need(mine)), fileName(mine, `mask-${mine.chosen}.png`))),
      action("Crop", "download-crop", () => save(cropOf(mine, need(mine)), fileName(mine, `crop-${mine.chosen}.png`))),
      action("Copy key", "copy-key", () => navigator.clipboard.writeText(record.image_key)),
      action("Copy address", "copy-uri", () => navigator.clipboard.writeText(record.uri)),
      action("Copy COCO", "copy-coco", () => navigator.clipboard.writeText(JSON.stringify(cocoOf(mine, need(mine)), null, 1)))),
    element("p", { className: "soft" }, "Keys: ", ["←", "→"].map((key) => element("kbd", {}, key)), " image, ",
      element("kbd", {}, "j"), element("kbd", {}, "k"), " instance, ", element("kbd", {}, "+"), element("kbd", {}, "-"),
      element("kbd", {}, "0"), " zoom, ", ["y", "n", "?"].map((key) => element("kbd", {}, key)), " judge, ",
      element("kbd", {}, "Esc"), " grid"));
  byId("main").onscroll = null;
  byId("main").replaceChildren(element("div", { id: "image" }, stage, details));
  byId("main").scrollTop = 0;
  list(mine);
  listen(mine, stage);
  mine.watch = new ResizeObserver(() => requestAnimationFrame(() => paint(mine)));
  mine.watch.observe(stage);
}

const action = (label, id, act) => element("button", {
  type: "button", id, onclick: async () => {
    try {
      notice("");
      await act();
    } catch (error) {
      notice(error.message);
    }
  },
}, label);

function list(mine) {
  const rows = mine.instances.map((instance) => {
    const verdict = mine.judgements.get(instance.instance);
    const said = verdict ? (verdict.class_name ?? verdict.verdict) : "";
    return element("tr", {
      tabIndex: 0, "data-instance": instance.instance,
      className: `${instance.instance === mine.chosen ? "chosen" : ""} ${instance.score < shown.least ? "below" : ""}`,
      onclick: () => choose(mine, instance.instance),
      onkeydown: (event) => { if (event.key === "Enter") choose(mine, instance.instance); },
      onmouseenter: () => { mine.hovered = instance.instance; paint(mine); },
      onmouseleave: () => { mine.hovered = null; paint(mine); },
    },
    element("td", {}, element("span", { className: "swatch", style: { background: instance.colour, display: "inline-block" } })),
    element("td", {}, instance.name),
    element("td", { className: "n" }, instance.score.toFixed(3)),
    element("td", { className: "n" }, whole(instance.area)),
    element("td", { className: verdict ? `verdict-${verdict.verdict}` : "" }, said));
  });
  const visible = mine.instances.filter(({ score }) => score >= shown.least).length;
  byId("list").replaceChildren(
    element("h2", {}, `${visible} of ${mine.instances.length} instances`),
    element("table", {}, element("thead", {}, element("tr", {},
      element("td"),
      ["class", "score", "area", "judged"].map((name, at) => element("th", { className: at === 1 || at === 2 ? "n" : "" }, name)))),
    element("tbody", {}, rows)));
  for (const button of document.querySelectorAll("[data-needs-instance]")) button.disabled = mine.chosen === null;
}

function choose(mine, number) {
  mine.chosen = number;
  list(mine);
  document.querySelector(`tr[data-instance="${number}"]`)?.scrollIntoView({ block: "nearest" });
  paint(mine);
}

// ---- judging ----

function judging(mine) {
  const of = (verdict, label) => element("button", {
    type: "button", id: `judge-${verdict}`, "data-needs-instance": "", onclick: () => judge(mine, mine.chosen, verdict),
  }, label);
  const classes = element("select", {
    id: "judge-class", "data-needs-instance": "", "aria-label": "The right class of the chosen instance",
    onchange: (event) => { judge(mine, mine.chosen, "class", event.target.value); event.target.value = ""; },
  }, element("option", { value: "" }, "other class…"), mine.state.classes.map(({ name }) => element("option", { value: name }, name)));
  const missing = element("button", {
    type: "button", id: "judge-missing", "aria-pressed": String(mine.judgements.get(null)?.verdict === "missing"),
    onclick: () => judge(mine, null, mine.judgements.get(null)?.verdict === "missing" ? "cleared" : "missing"),
  }, "Something is missing");
  return element("div", {},
    element("h2", {}, "Judge the chosen instance"),
    element("div", { className: "controls" }, of("right", "right"), of("wrong", "wrong"), of("unsure", "unsure"), classes, of("cleared", "take back")),
    element("div", { className: "controls" }, missing),
    element("p", { className: "soft" }, `Saved at once to ${mine.state.judgements.file}`));
}

async function judge(mine, instance, verdict, className = null) {
  const record = { image_key: mine.key, instance, verdict };
  if (className) record.class_name = className;
  try {
    const { saved } = await ask("/api/judge", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(record),
    });
    if (saved.verdict === "cleared") mine.judgements.delete(saved.instance);
    else mine.judgements.set(saved.instance, saved);
    notice("");
  } catch (error) {
    notice(error.message);
    return;
  }
  byId("judge-missing").setAttribute("aria-pressed", String(mine.judgements.get(null)?.verdict === "missing"));
  list(mine);
}

// ---- drawing ----

function paint(mine) {
  if (open !== mine) return;
  const stage = byId("stage"), canvas = stage.querySelector("canvas"), ratio = devicePixelRatio || 1;
  const [width, height] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  mine.view ??= fitted(mine, width, height);
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  context.setTransform(mine.view.scale, 0, 0, mine.view.scale, mine.view.x, mine.view.y);
  context.imageSmoothingEnabled = mine.view.scale < 1;
  if (mine.bitmap) context.drawImage(mine.bitmap, 0, 0);
  drawInstances(context, mine, 1 / mine.view.scale * ratio);
  name(mine, stage, ratio);
}

function fitted(mine, width, height) {
  const size = [mine.record.width || mine.bitmap?.width || 1, mine.record.height || mine.bitmap?.height || 1];
  const scale = Math.min(width / size[0], height / size[1]);
  return { scale, x: (width - size[0] * scale) / 2, y: (height - size[1] * scale) / 2 };
}

const visible = (mine) => mine.instances
  .filter(({ score, instance }) => score >= shown.least || instance === mine.chosen)
  .sort((a, b) => b.area - a.area);

function drawInstances(context, mine, pixel) {
  for (const instance of visible(mine)) {
    const bright = instance.instance === mine.hovered || instance.instance === mine.chosen;
    const { left, top } = instance.mask;
    if (shown.masks && instance.drawing) {
      context.globalAlpha = bright ? Math.min(1, shown.opacity + 0.25) : shown.opacity;
      context.drawImage(instance.drawing.area, left, top);
      context.globalAlpha = 1;
      context.drawImage(instance.drawing.edge, left, top);
    }
    if (shown.boxes || bright) {
      context.strokeStyle = instance.colour;
      context.lineWidth = (bright ? 3 : 1.5) * pixel;
      context.strokeRect(...instance.bbox_xywh);
    }
    if (shown.names) {
      context.font = `${13 * pixel}px system-ui, sans-serif`;
      const text = `${instance.name} ${instance.score.toFixed(2)}`, [x, y] = instance.bbox_xywh;
      context.lineWidth = 3 * pixel;
      context.strokeStyle = "#000";
      context.strokeText(text, x, y - 4 * pixel);
      context.fillStyle = "#fff";
      context.fillText(text, x, y - 4 * pixel);
    }
  }
}

function name(mine, stage, ratio) {
  stage.querySelector(".name")?.remove();
  const instance = mine.instances.find((entry) => entry.instance === mine.hovered);
  if (!instance || !mine.pointer) return;
  stage.append(element("span", {
    className: "name", style: { left: `${mine.pointer.x / ratio + 12}px`, top: `${mine.pointer.y / ratio + 12}px` },
  }, `${instance.name} ${instance.score.toFixed(3)}`));
}

// ---- pointer and keys ----

function at(mine, event) {
  const ratio = devicePixelRatio || 1, frame = byId("stage").getBoundingClientRect();
  const point = { x: (event.clientX - frame.left) * ratio, y: (event.clientY - frame.top) * ratio };
  return { ...point, column: Math.floor((point.x - mine.view.x) / mine.view.scale), row: Math.floor((point.y - mine.view.y) / mine.view.scale) };
}

/** Return the smallest visible instance at a pixel of the image. */
function instanceAt(mine, column, row) {
  return visible(mine).reverse().find(({ mask }) => {
    const [x, y] = [column - mask.left, row - mask.top];
    return x >= 0 && y >= 0 && x < mask.width && y < mask.height && mask.bits[y * mask.width + x];
  });
}

function listen(mine, stage) {
  let dragged = null;
  stage.onwheel = (event) => {
    event.preventDefault();
    zoom(mine, event.deltaY < 0 ? 1.2 : 1 / 1.2, at(mine, event));
  };
  stage.onpointerdown = (event) => {
    dragged = { ...at(mine, event), moved: false };
    stage.setPointerCapture(event.pointerId);
  };
  stage.onpointermove = (event) => {
    if (!mine.view) return;
    const point = at(mine, event);
    mine.pointer = point;
    if (dragged) {
      dragged.moved ||= Math.hypot(point.x - dragged.x, point.y - dragged.y) > 4;
      if (dragged.moved) {
        mine.view = { ...mine.view, x: mine.view.x + point.x - dragged.x, y: mine.view.y + point.y - dragged.y };
        Object.assign(dragged, { x: point.x, y: point.y });
      }
    } else {
      mine.hovered = instanceAt(mine, point.column, point.row)?.instance ?? null;
    }
    requestAnimationFrame(() => paint(mine));
  };
  stage.onpointerup = (event) => {
    const point = at(mine, event);
    if (dragged && !dragged.moved) choose(mine, instanceAt(mine, point.column, point.row)?.instance ?? null);
    dragged = null;
  };
  stage.onpointerleave = () => { mine.hovered = null; paint(mine); };
}

function zoom(mine, factor, point = null) {
  if (!mine.view) return;
  const canvas = byId("stage").querySelector("canvas");
  const [x, y] = point ? [point.x, point.y] : [canvas.width / 2, canvas.height / 2];
  const scale = Math.min(MOST_ZOOM, Math.max(0.02, mine.view.scale * factor)), by = scale / mine.view.scale;
  mine.view = { scale, x: x - (x - mine.view.x) * by, y: y - (y - mine.view.y) * by };
  paint(mine);
}

function onKey(mine, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.target.tagName === "INPUT" && event.target.type !== "checkbox") return;
  const numbers = mine.instances.map(({ instance }) => instance), now = numbers.indexOf(mine.chosen);
  const deeds = {
    ArrowLeft: () => mine.record?.previous && change({ image: mine.record.previous }, { replace: true }),
    ArrowRight: () => mine.record?.next && change({ image: mine.record.next }, { replace: true }),
    Escape: () => change({ image: "" }),
    j: () => numbers.length && choose(mine, numbers[(now + 1) % numbers.length]),
    k: () => numbers.length && choose(mine, numbers[(now <= 0 ? numbers.length : now) - 1]),
    "+": () => zoom(mine, 1.5),
    "=": () => zoom(mine, 1.5),
    "-": () => zoom(mine, 1 / 1.5),
    0: () => { mine.view = null; paint(mine); },
  };
  if (VERDICTS[event.key] && mine.chosen !== null) deeds[event.key] = () => judge(mine, mine.chosen, VERDICTS[event.key]);
  if (!deeds[event.key]) return;
  event.preventDefault();
  deeds[event.key]();
}

// ---- what a person takes away ----

function need(mine) {
  const instance = mine.instances.find((entry) => entry.instance === mine.chosen);
  if (!instance) throw new Error("Choose an instance first: click it, or press j.");
  return instance;
}

const fileName = (mine, end) => `${mine.key.replace(/[^\w.-]+/g, "_")}.${end}`;

function canvasOf(width, height) {
  const canvas = element("canvas", { width, height });
  return [canvas, canvas.getContext("2d")];
}

function overlay(mine) {
  const [canvas, context] = canvasOf(mine.record.width, mine.record.height);
  if (mine.bitmap) context.drawImage(mine.bitmap, 0, 0);
  drawInstances(context, mine, Math.max(1, mine.record.width / 1000));
  return canvas;
}

/** Return a mask of the image's size: white for set pixels, black elsewhere. */
function maskOf(instance) {
  const [canvas, context] = canvasOf(open.record.width, open.record.height);
  context.fillRect(0, 0, canvas.width, canvas.height);
  const { left, top, width, height, bits } = instance.mask;
  if (!width) return canvas;
  const pixels = context.createImageData(width, height);
  bits.forEach((bit, at) => pixels.data.set([bit * 255, bit * 255, bit * 255, 255], 4 * at));
  context.putImageData(pixels, left, top);
  return canvas;
}

/** Return the pixels under a mask, with nothing around them. */
function cropOf(mine, instance) {
  const { left, top, width, height, bits } = instance.mask;
  if (!width || !mine.bitmap) throw new Error("There are no pixels to crop.");
  const [canvas, context] = canvasOf(width, height);
  context.drawImage(mine.bitmap, -left, -top);
  const pixels = context.getImageData(0, 0, width, height);
  bits.forEach((bit, at) => { if (!bit) pixels.data[4 * at + 3] = 0; });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function cocoOf(mine, instance) {
  return {
    image_id: mine.key, category_id: instance.class_id, score: instance.score, bbox: instance.bbox_xywh, area: instance.area,
    segmentation: { size: [mine.record.height, mine.record.width], counts: instance.rle }, iscrowd: 0,
  };
}

async function save(canvas, file) {
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = element("a", { href: URL.createObjectURL(blob), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
