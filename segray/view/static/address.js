// The state of the page lives in its address, so that a link shows the same.

const FILTERS = ["class", "status", "batch", "score", "area", "count", "text", "where", "order", "seed"];

/** Return the parameters of the address. */
export const parameters = () => new URLSearchParams(location.search);

/** Return the parameters that choose and order images, for the server. */
export function filters(more = {}) {
  const all = parameters();
  const chosen = new URLSearchParams();
  for (const name of FILTERS) if (all.get(name)) chosen.set(name, all.get(name));
  for (const [name, value] of Object.entries(more)) chosen.set(name, value);
  return chosen;
}

/** Change parameters of the address; an empty value removes one. `replace` adds no step to the history. */
export function change(values, { replace = false } = {}) {
  const all = parameters();
  for (const [name, value] of Object.entries(values)) {
    if (value === "" || value === null || value === undefined) all.delete(name);
    else all.set(name, value);
  }
  history[replace ? "replaceState" : "pushState"](null, "", address(all));
  dispatchEvent(new Event("addresschange"));
}

/** Return the address with these parameters. */
export const address = (all) => (all.size ? `?${all}` : location.pathname);

/** Return the address of an image's page. */
export function ofImage(key) {
  const all = parameters();
  all.set("image", key);
  return address(all);
}
