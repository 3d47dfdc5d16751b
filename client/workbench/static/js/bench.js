// What the page is made of, and which case is open. main.js makes the parts; whoever needs one looks here.

import { oncePerFrame } from "./dom.js";

/**
 * `session`: the case that is open, or null; `answer`: the last one for it; `ready`: whether it can be drawn on;
 * `about`: what the site says of itself; all others are the parts of the page.
 */
export const bench = {
  session: null, answer: null, ready: false, about: null,
  panel: null, viewer: null, painter: null, windowing: null, hand: null, guide: null, worklist: null, review: null, connection: null,
};

export const repaint = oncePerFrame(() => bench.painter.paint());
