// What is written on the images: words that are seen on any tissue, and how long something is.

export const INK = "#dfe8ec";
export const FAINT = "#9fb3bb";
const SHADE = "rgba(0, 0, 0, 0.85)";

/** Write from (x, y) downwards, in CSS pixels; `align` as a canvas has it. */
export function write(context, text, x, y, align, colour = INK) {
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "top";
  context.textAlign = align;
  context.lineWidth = 3;
  context.strokeStyle = SHADE;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

/** The longest round number of millimetres that is no longer than `most`. */
function roundBelow(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].find((one) => one * power <= most) * power;
}

/** A bar of a round length at the lower left of a plane, of which a millimetre has `perMm` pixels. */
export function scale(context, { cell: [x, y, width, height] }, perMm) {
  const mm = roundBelow(Math.min(120, width / 4) / perMm);
  const [left, low] = [Math.round(x) + 9, Math.round(y + height) - 10];
  const right = left + Math.round(mm * perMm);
  for (const [colour, thick] of [[SHADE, 4], [FAINT, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.beginPath();
    context.moveTo(left, low - 5);
    context.lineTo(left, low);
    context.lineTo(right, low);
    context.lineTo(right, low - 5);
    context.stroke();
  }
  const text = mm < 10 ? `${Number(mm.toPrecision(1))} mm` : `${mm / 10} cm`;
  write(context, text, (left + right) / 2, low - 19, "center", FAINT);
}
