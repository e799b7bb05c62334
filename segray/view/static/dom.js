// Elements of the page. Text enters as text alone, so that no name or message can become markup.

/** Return an element with properties, attributes (names with "-", "role", "for" or "style") and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) made.style.setProperty(key, text);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);
export const whole = (number) => number.toLocaleString("en");

/** Show a sentence above the page, or hide it. */
export function notice(text) {
  byId("notice").textContent = text ?? "";
  byId("notice").hidden = !text;
}

/** Return the answer of the server. Throw an Error with all parts of its message. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is `segray view` still running?");
  }
  const answer = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (response.ok && answer) return answer;
  const { what = `The server answered ${response.status}`, where, found, hint } = answer?.error ?? {};
  const parts = [what, where && `where: ${where}`, found && `found: ${found}`, hint && `do: ${hint}`];
  throw new Error(parts.filter(Boolean).join("\n"));
}
