// The labels of a plane as runs, in C order: {"shape": [a, b], "rle": [[value, count], …]}.

export function encode(values, shape) {
  const runs = [];
  for (let start = 0; start < values.length; ) {
    let end = start + 1;
    while (end < values.length && values[end] === values[start]) end += 1;
    runs.push([values[start], end - start]);
    start = end;
  }
  return { shape, rle: runs };
}

export function decode({ shape, rle }) {
  const values = new Uint8Array(shape[0] * shape[1]);
  let at = 0;
  for (const [value, count] of rle) {
    values.fill(value, at, at + count);
    at += count;
  }
  return values;
}
