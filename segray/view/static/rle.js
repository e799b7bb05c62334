// COCO's compressed run lengths: column by column, 5 bits a character, each run from the third on as a difference.

/** Return the runs of a mask: lengths of 0 and 1 in turn. */
export function runs(counts) {
  const found = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << shift;
    }
    found.push(found.length > 2 ? value + found[found.length - 2] : value);
  }
  return found;
}

/**
 * Return a mask as the box that holds its set pixels: left, top, width, height, and `bits`, 1 for each set pixel, row by
 * row. width, height: of the image, in pixels.
 */
export function decode(counts, width, height) {
  const lengths = runs(counts), spans = [];
  let position = 0, left = width, top = height, right = 0, bottom = 0;
  lengths.forEach((length, number) => {
    if (number % 2 && length) {
      for (let from = position; from < position + length; ) {
        const x = Math.floor(from / height), end = Math.min(position + length, (x + 1) * height);
        const y = from - x * height, below = y + end - from;
        spans.push([x, y, below]);
        [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
        [top, bottom] = [Math.min(top, y), Math.max(bottom, below)];
        from = end;
      }
    }
    position += length;
  });
  if (position !== width * height) throw new Error(`The mask spans ${position} pixels of ${width * height}.`);
  if (!spans.length) return { left: 0, top: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const box = { left, top, width: right - left, height: bottom - top };
  const bits = new Uint8Array(box.width * box.height);
  for (const [x, y, below] of spans) {
    for (let row = y; row < below; row++) bits[(row - top) * box.width + x - left] = 1;
  }
  return { ...box, bits };
}
