// Film: levels of a film, their pyramid, and the table that turns levels into grey. No page, no events.

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function pixelsOf(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  // Neither colour management nor alpha may touch the bytes: they are levels, not colours.
  const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return { data: context.getImageData(0, 0, bitmap.width, bitmap.height).data, width: bitmap.width, height: bitmap.height };
}

class Film {
  // about: url, width, height, depth, units, presets, inverted, padding
  constructor(about, pixels) {
    Object.assign(this, about);
    const n = this.width * this.height;
    const levels = new Uint16Array(n);
    const rgba = pixels.data;
    if (this.depth === 16) {
      // Two planes of grey, one above the other: the high bytes, then the low ones.
      for (let i = 0, high = 0, low = 4 * n; i < n; i++, high += 4, low += 4) levels[i] = (rgba[high] << 8) | rgba[low];
    } else {
      for (let i = 0, at = 0; i < n; i++, at += 4) levels[i] = rgba[at];
    }
    this.pyramid = [{ levels, width: this.width, height: this.height }];
    if (this.units.table) this.values = new Float32Array(bytes(this.units.table).buffer);
    else this.values = Float32Array.from({ length: this.units.count }, (_, i) => this.units.offset + this.units.step * i);
    let low = Infinity, high = -Infinity;
    for (const v of this.values) { if (v < low) low = v; if (v > high) high = v; }
    this.span = high - low || 1;
  }

  static async load(about) { return new Film(about, await pixelsOf(about.url)); }

  // Half the size each: a film shown small is an average, not a choice of pixels.
  level(k) {
    while (this.pyramid.length <= k) {
      const { levels, width, height } = this.pyramid[this.pyramid.length - 1];
      if (width < 2 || height < 2) break;
      const w = width >> 1, h = height >> 1, half = new Uint16Array(w * h);
      for (let y = 0; y < h; y++) {
        let a = 2 * y * width, b = a + width, o = y * w;
        for (let x = 0; x < w; x++, a += 2, b += 2) half[o++] = (levels[a] + levels[a + 1] + levels[b] + levels[b + 1] + 2) >> 2;
      }
      this.pyramid.push({ levels: half, width: w, height: h });
    }
    return this.pyramid[Math.min(k, this.pyramid.length - 1)];
  }

  // Grey of every level as RGBA words, by DICOM PS3.3 C.11.2 (LINEAR, LINEAR_EXACT, SIGMOID, or a table of the file).
  table(view) {
    const out = new Uint32Array(this.values.length);
    const { centre, width, fn, table } = view;
    const flat = fn === "LINEAR" ? [centre - 0.5, width - 1] : [centre, width];
    for (let i = 0; i < out.length; i++) {
      const x = this.values[i];
      let y;
      if (table) y = table[i] / 255;
      else if (fn === "SIGMOID") y = 1 / (1 + Math.exp((-4 * (x - centre)) / width));
      else if (flat[1] <= 0) y = x > flat[0] ? 1 : 0;
      else y = (x - flat[0]) / flat[1] + 0.5;
      let grey = Math.round(255 * Math.min(1, Math.max(0, y)));
      if (this.inverted !== view.inverted) grey = 255 - grey;
      out[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    if (this.padding) out.fill(0xff000000, this.padding[0], this.padding[1] + 1);
    return out;
  }

  preset(index) {
    const p = this.presets[index];
    return { preset: index, centre: p.centre, width: p.width, fn: p.fn, table: p.table ? bytes(p.table) : null };
  }
}

class Heat {
  // about: url, rect [x, y, width, height] in film pixels
  constructor(about, pixels) {
    Object.assign(this, about);
    this.width = pixels.width;
    this.height = pixels.height;
    this.values = new Uint8Array(this.width * this.height);
    for (let i = 0; i < this.values.length; i++) this.values[i] = pixels.data[4 * i];
  }

  static async load(about) { return new Heat(about, await pixelsOf(about.url)); }

  picture(colours, opacity) {
    const image = new ImageData(this.width, this.height);
    for (let i = 0; i < this.values.length; i++) {
      const v = this.values[i];
      image.data.set([colours[3 * v], colours[3 * v + 1], colours[3 * v + 2], Math.round(opacity * v)], 4 * i);
    }
    const canvas = new OffscreenCanvas(this.width, this.height);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Lines around the highest `share` of the map (marching squares), in map coordinates where a pixel's centre is at +0.5.
  contour(share) {
    const counts = new Uint32Array(256);
    for (const v of this.values) counts[v]++;
    let above = 0, level = 255;
    while (level > 1 && above + counts[level] < share * this.values.length) above += counts[level--];
    const path = new Path2D(), w = this.width, h = this.height, t = level - 0.5;
    const value = (x, y) => (x < 0 || y < 0 || x >= w || y >= h ? 0 : this.values[y * w + x]);
    for (let y = -1; y < h; y++) {
      for (let x = -1; x < w; x++) {
        const a = value(x, y), b = value(x + 1, y), c = value(x + 1, y + 1), d = value(x, y + 1);
        const kind = (a > t) | ((b > t) << 1) | ((c > t) << 2) | ((d > t) << 3);
        if (kind === 0 || kind === 15) continue;
        const top = [x + 0.5 + (t - a) / (b - a), y + 0.5], right = [x + 1.5, y + 0.5 + (t - b) / (c - b)];
        const bottom = [x + 0.5 + (t - d) / (c - d), y + 1.5], left = [x + 0.5, y + 0.5 + (t - a) / (d - a)];
        const lines = {
          1: [left, top], 2: [top, right], 3: [left, right], 4: [right, bottom], 5: [left, top, right, bottom], 6: [top, bottom],
          7: [left, bottom], 8: [left, bottom], 9: [top, bottom], 10: [top, right, left, bottom], 11: [right, bottom],
          12: [left, right], 13: [top, right], 14: [left, top],
        }[kind];
        for (let i = 0; i < lines.length; i += 2) { path.moveTo(...lines[i]); path.lineTo(...lines[i + 1]); }
      }
    }
    return path;
  }
}
