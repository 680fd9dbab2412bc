// Arithmetic, and how figures are written.

/** float32 little-endian in base64, as POST /v1/embeddings gives vectors. */
export function vector(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

/** cosines[i][j] of vectors; 0 with one that is all zeros. */
export function cosines(vectors) {
  const lengths = vectors.map((one) => Math.sqrt(dot(one, one)));
  return vectors.map((left, i) =>
    vectors.map((right, j) => {
      const norm = lengths[i] * lengths[j];
      return norm ? Math.min(Math.max(dot(left, right) / norm, -1), 1) : 0;
    }),
  );
}

function dot(left, right) {
  let sum = 0;
  for (let index = 0; index < left.length; index += 1) sum += left[index] * right[index];
  return sum;
}

/** Indices of the others, the most similar first; of equals the earlier one. */
export function nearest(row, self) {
  const others = row.map((_, index) => index).filter((index) => index !== self);
  return others.sort((left, right) => row[right] - row[left] || left - right);
}

/** The share `q` of what a histogram counted lies below this; null if it counted nothing.
 *
 * counts[i] lie below bounds[i] and not below the one before; of the last, which have no bound, the last bound is told.
 */
export function quantile(bounds, counts, q) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return null;
  let before = 0;
  for (let index = 0; index < bounds.length; index += 1) {
    if (before + counts[index] >= q * total && counts[index]) {
      const low = index ? bounds[index - 1] : 0;
      return low + ((bounds[index] - low) * (q * total - before)) / counts[index];
    }
    before += counts[index];
  }
  return bounds.at(-1);
}

/** 1234 -> "1,234"; small ones with a digit behind the point. */
export function count(value) {
  const digits = value && Math.abs(value) < 10 && !Number.isInteger(value) ? 1 : 0;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** Seconds, in the unit that suits them. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms`;
}

/** Bytes, in the unit that suits them. */
export function bytes(value) {
  const gib = value / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(2)} GiB` : `${Math.round(value / 2 ** 20)} MiB`;
}

/** A weight, or a term of a similarity. Of 512 times 512 terms each is some millionths, and none of them nothing. */
export const weight = (value) => (Math.abs(value) >= 0.001 || !value ? value.toFixed(4) : value.toPrecision(2));

export const percent = (share) => `${Math.round(100 * share)} %`;

/** 1 sequence, 2 sequences. */
export const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
