// NiiVue, as this page needs it: the image on three planes that cut it along its own axes, and a rendering. NiiVue
// draws the image, and the labels within the rendering; all that lies over the planes is drawn by painter.js, from a
// slice at a time, so that a stroke never makes anything three-dimensional be computed or uploaded.

import { Grid, PLANES, Tile } from "./geometry.js";

const RENDER = 4;
const SLOW_MS = 1000; // a rendering that takes longer is drawn anew when somebody asks for it, and never under the hand
const TEXTURE7 = 33991; // where NiiVue keeps the texture of its drawing

export class Viewer {
  /** `drawn` is called after every frame, whatever caused it. */
  constructor(canvas, drawn) {
    this.canvas = canvas;
    this.drawn = drawn;
    this.grid = null;
    this.active = PLANES[0];
    this.large = true;
    this.cells = new Map();
    this.shown = null; // the box of labels within the rendering
    this.solid = document.createElement("canvas"); // the rendering as it was drawn last
    this.stale = true; // whether it has to be drawn anew
    this.cost = 0; // milliseconds that it took
    this.asked = false; // whether it is worth them
    this.measuring = false; // whether one is being drawn now
  }

  async start() {
    const nv = new globalThis.niivue.Niivue({
      interactive: false,
      isRadiologicalConvention: true,
      isOrientationTextVisible: false,
      crosshairWidth: 0,
      backColor: [0, 0, 0, 1],
      loadingText: "",
      logLevel: "error",
      show3Dcrosshair: false,
    });
    this.nv = nv;
    // The rendering shows labels, the planes do not: there painter.js does, with outlines and opacities.
    const draw2D = nv.draw2D.bind(nv);
    nv.draw2D = (...given) => {
      const opacity = nv.drawOpacity;
      nv.drawOpacity = 0;
      draw2D(...given);
      nv.drawOpacity = opacity;
    };
    // A plane fills its cell, also when it is enlarged, and is never stretched.
    nv.calculateWidthHeight = (type, scale, width, height) => [width, height];
    const extent = nv.screenFieldOfViewExtendedVox.bind(nv);
    nv.screenFieldOfViewExtendedVox = (type) => this._filling(type, extent(type));
    const drawScene = nv.drawScene.bind(nv);
    nv.drawScene = (...given) => {
      const { width, height } = this.canvas;
      if (this.sized !== `${width}x${height}`) this.stale = true;
      const renders = Boolean(this.grid) && this.stale && this._timely;
      nv.customLayout = renders ? this.layout : this.layout?.filter((one) => one.sliceType !== RENDER);
      const begun = performance.now();
      const result = drawScene(...given);
      if (renders) {
        this._keepRendering();
        this._measure(begun);
      }
      this.drawn();
      return result;
    };
    await nv.attachToCanvas(this.canvas);
    nv.drawOpacity = 0.9;
    nv.scene.renderAzimuth = 120;
    nv.scene.renderElevation = 15;
    this._lay();
  }

  /** Show an image from the bytes of its file, and learn its geometry. */
  async load(bytes, labels) {
    const { nv } = this;
    while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
    this.image = await globalThis.niivue.NVImage.loadFromUrl({ url: "image.nii.gz", name: "image.nii.gz", buffer: bytes });
    nv.addVolume(this.image);
    const { hdr, permRAS } = this.image;
    this.grid = new Grid(hdr.dims.slice(1, 4), Array.from(permRAS));
    this.spacing = Array.from(hdr.pixDims.slice(1, 4));
    nv.createEmptyDrawing();
    this.shown = null;
    this.stale = true;
    this.cost = 0;
    Object.assign(this.solid, { width: 1, height: 1 }); // nothing of the case before is seen beside this one
    const colours = [[0, 0, 0], ...labels];
    nv.setDrawColormap({
      R: colours.map((one) => one[0]),
      G: colours.map((one) => one[1]),
      B: colours.map((one) => one[2]),
      A: colours.map((_, n) => (n ? 255 : 0)),
      I: colours.map((_, n) => n),
      labels: colours.map((_, n) => String(n)),
    });
    this.fit();
    return this.grid;
  }

  clear() {
    while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
    this.grid = this.image = null;
    this.nv.drawScene();
  }

  /** Lowest and highest intensity that are told apart. */
  get window() {
    return [this.image.cal_min, this.image.cal_max];
  }

  set window([low, wanted]) {
    const { image } = this;
    const high = Math.max(wanted, low + 1e-6);
    // What follows goes over all voxels: not for the window that an image is loaded with.
    if (Math.abs(low - image.cal_min) + Math.abs(high - image.cal_max) <= 1e-6 * (high - low)) return;
    image.cal_min = low;
    image.cal_max = high;
    this.stale = true;
    this.nv.updateGLVolume();
  }

  get range() {
    const { robust_min, robust_max, global_min, global_max } = this.image;
    return { robust: [robust_min, robust_max], full: [global_min, global_max] };
  }

  value([i, j, k]) {
    const { img, hdr } = this.image;
    const [columns, rows] = this.grid.shape;
    const slope = hdr.scl_slope || 1;
    return img[i + columns * (j + rows * k)] * slope + hdr.scl_inter;
  }

  /** Show the slices through a voxel. */
  go(voxel) {
    const turned = this.grid.toTurned(voxel);
    this.nv.scene.crosshairPos = turned.map((at, t) => (at + 0.5) / this.grid.turned[t]);
    this.nv.drawScene();
  }

  arrange(large, active) {
    this.large = large;
    this.active = active;
    this._lay();
  }

  fit() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.drawScene();
  }

  /** Enlarge about a voxel, which stays where it is. */
  zoom(factor, voxel) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.min(20, Math.max(0.5, pan[3] * factor));
    const at = this._mm(this.grid.toTurned(voxel).map((one, t) => (one + 0.5) / this.grid.turned[t]));
    this.nv.scene.pan2Dxyzmm = [0, 1, 2].map((t) => pan[t] + at[t] * (pan[3] - zoom)).concat(zoom);
    this.nv.drawScene();
  }

  /** Move what a plane shows by pixels. */
  pan(tile, dx, dy) {
    const pan = Array.from(this.nv.scene.pan2Dxyzmm);
    const { plane } = tile;
    const step = (t, pixels, per) => (pixels / per) * this.spacing[this.grid.axis[t]] * pan[3];
    pan[plane.h] += step(plane.h, dx, tile.perU);
    pan[plane.v] += step(plane.v, dy, tile.perV);
    this.nv.scene.pan2Dxyzmm = pan;
    this.nv.drawScene();
  }

  /** Whether a rendering may be drawn now: it is quick or asked for, and none is under way. */
  get _timely() {
    return !this.measuring && (this.asked || this.cost < SLOW_MS);
  }

  /** See how long a rendering takes. The page goes on meanwhile: the graphics card, or what plays it, works beside it. */
  _measure(begun) {
    const { nv: { gl }, image } = this;
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    this.measuring = true;
    const look = () => {
      if (fence && !gl.isContextLost() && gl.getSyncParameter(fence, gl.SYNC_STATUS) !== gl.SIGNALED) return setTimeout(look, 20);
      if (fence) gl.deleteSync(fence);
      this.measuring = false;
      if (image === this.image) this.cost = performance.now() - begun;
      if (this.stale && this._timely) this.nv.drawScene();
      else this.drawn();
    };
    setTimeout(look);
  }

  /** Whether the rendering is an old one, since a new one takes long. */
  get outdated() {
    return Boolean(this.grid) && this.stale && this.cost >= SLOW_MS;
  }

  /** Draw the rendering anew, however long that takes. */
  render() {
    this.asked = this.stale;
    this.nv.drawScene();
  }

  turn(dx, dy) {
    const { scene } = this.nv;
    this.stale = true;
    this.nv.setRenderAzimuthElevation(scene.renderAzimuth + dx / 2, Math.max(-90, Math.min(90, scene.renderElevation + dy / 2)));
  }

  /** The planes as they lie on the screen now, in CSS pixels. */
  tiles() {
    if (!this.grid) return [];
    const dpr = this.nv.uiData.dpr || 1;
    const zero = this._mm([0, 0, 0]);
    const one = this._mm([1, 1, 1]);
    return this.nv.screenSlices
      .filter((slice) => slice.axCorSag < 3)
      .map((slice) => {
        const plane = PLANES[slice.axCorSag];
        const [x, y, width, height] = slice.leftTopWidthHeight.map((length) => length / dpr);
        const across = (mm) => x + ((mm - slice.leftTopMM[0]) / slice.fovMM[0]) * width;
        const up = (mm) => y + (1 - (mm - slice.leftTopMM[1]) / slice.fovMM[1]) * height;
        return new Tile(plane, [x, y, width, height], this.grid.size(plane), {
          left: across(zero[plane.h]),
          right: across(one[plane.h]),
          bottom: up(zero[plane.v]),
          top: up(one[plane.v]),
        });
      });
  }

  /** Whether a pixel lies in the rendering. */
  inRendering(px, py) {
    const [x, y, width, height] = this.renderingCell;
    return px >= x && py >= y && px < x + width && py < y + height;
  }

  /** Put a layer of labels into the rendering; only the box that changes is uploaded. */
  renderLabels(layer) {
    const { nv, grid } = this;
    if (!grid || !nv.drawBitmap) return;
    const [columns, rows] = grid.turned;
    const put = (box, values) => {
      const [low, high] = this._turnedBox(box);
      const size = high.map((one, t) => one - low[t]);
      if (size.some((one) => one <= 0)) return;
      const part = new Uint8Array(size[0] * size[1] * size[2]);
      if (values) this._turnInto(part, box, values);
      for (let z = 0; z < size[2]; z += 1)
        for (let y = 0; y < size[1]; y += 1) {
          const start = size[0] * (y + size[1] * z);
          nv.drawBitmap.set(part.subarray(start, start + size[0]), low[0] + columns * (low[1] + y + rows * (low[2] + z)));
        }
      const { gl } = nv;
      gl.activeTexture(TEXTURE7);
      gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture);
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      gl.texSubImage3D(gl.TEXTURE_3D, 0, ...low, ...size, gl.RED, gl.UNSIGNED_BYTE, part);
    };
    if (this.shown) put(this.shown, null);
    this.shown = null;
    if (layer && layer.values.length) {
      put(layer.box, layer.values);
      this.shown = layer.box;
    }
    this.stale = true;
    nv.drawScene();
  }

  /** A box of stored voxels, in the order of the turned axes. */
  _turnInto(part, [i0, i1, j0, j1, k0, k1], values) {
    const sides = [i1 - i0, j1 - j0, k1 - k0];
    const strides = [1, sides[0], sides[0] * sides[1]];
    const { axis, flip } = this.grid;
    const size = axis.map((one) => sides[one]);
    const step = axis.map((one, t) => (flip[t] ? -strides[one] : strides[one]));
    let start = axis.reduce((sum, one, t) => sum + (flip[t] ? strides[one] * (sides[one] - 1) : 0), 0);
    let n = 0;
    for (let z = 0; z < size[2]; z += 1, start += step[2])
      for (let y = 0, row = start; y < size[1]; y += 1, row += step[1])
        for (let x = 0, at = row; x < size[0]; x += 1, at += step[0]) part[n++] = values[at];
  }

  _mm(frac) {
    return this.image.convertFrac2MM(frac, false);
  }

  _turnedBox([i0, i1, j0, j1, k0, k1]) {
    const first = this.grid.toTurned([i0, j0, k0]);
    const last = this.grid.toTurned([i1 - 1, j1 - 1, k1 - 1]);
    return [first.map((one, t) => Math.min(one, last[t])), first.map((one, t) => Math.max(one, last[t]) + 1)];
  }

  _lay() {
    const order = [this.active, ...PLANES.filter((plane) => plane !== this.active)].map((plane) => plane.type);
    const cells = this.large
      ? [[0, 0, 0.66, 1], [0.66, 0, 0.34, 0.34], [0.66, 0.34, 0.34, 0.33], [0.66, 0.67, 0.34, 0.33]]
      : [[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]];
    const types = this.large ? [...order, RENDER] : [0, 1, 2, RENDER];
    // Which plane is the large one changes nothing of the rendering, as long as it lies where it did.
    if (String(this.cells.get(RENDER)) !== String(cells[3])) this.stale = true;
    this.cells = new Map(types.map((type, n) => [type, cells[n]]));
    this.layout = types.map((type, n) => ({ sliceType: type, position: cells[n] }));
    this.nv.drawScene();
  }

  /** Keep the rendering as a picture: it costs far more than the planes, and changes far less often. */
  _keepRendering() {
    const { width, height } = this.canvas;
    const [x, y, across, down] = this.cells.get(RENDER).map((part, n) => Math.round(part * (n % 2 ? height : width)));
    Object.assign(this.solid, { width: across, height: down });
    this.solid.getContext("2d").drawImage(this.canvas, x, y, across, down, 0, 0, across, down);
    this.stale = this.asked = false;
    this.sized = `${width}x${height}`;
  }

  /** Where the rendering's picture lies, in CSS pixels: an old one may have been drawn for a cell of another size. */
  get solidCell() {
    const [x, y, width, height] = this.renderingCell;
    const scale = Math.min(width / this.solid.width, height / this.solid.height);
    const [across, down] = [this.solid.width * scale, this.solid.height * scale];
    return [x + (width - across) / 2, y + (height - down) / 2, across, down];
  }

  /** Where the rendering lies, in CSS pixels. */
  get renderingCell() {
    const { clientWidth, clientHeight } = this.canvas;
    return this.cells.get(RENDER).map((part, n) => part * (n % 2 ? clientHeight : clientWidth));
  }

  /** The extent of a plane, widened to the proportions of its cell. */
  _filling(type, extent) {
    const cell = this.cells.get(type);
    if (!cell) return extent;
    const wanted = (cell[2] * this.canvas.width) / (cell[3] * this.canvas.height);
    const size = [0, 1].map((n) => extent.mxMM[n] - extent.mnMM[n]);
    const grown = size[0] / size[1] < wanted ? [size[1] * wanted, size[1]] : [size[0], size[0] / wanted];
    for (const n of [0, 1]) {
      const middle = (extent.mnMM[n] + extent.mxMM[n]) / 2;
      extent.mnMM[n] = middle - grown[n] * 0.51;
      extent.mxMM[n] = middle + grown[n] * 0.51;
      extent.fovMM[n] = extent.mxMM[n] - extent.mnMM[n];
    }
    return extent;
  }
}
