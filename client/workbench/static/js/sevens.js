// Seven points of a structure: one inside, and one just outside each of its six ends. Which of them a person has set is
// told by their order and their place alone: a point has no more to it than its voxel and its label.

/** The six ends, in the order in which they are asked for; `t` is a turned axis. */
export const ENDS = [
  { name: "right", letter: "R", t: 0, sign: 1 },
  { name: "left", letter: "L", t: 0, sign: -1 },
  { name: "front", letter: "A", t: 1, sign: 1 },
  { name: "back", letter: "P", t: 1, sign: -1 },
  { name: "top", letter: "S", t: 2, sign: 1 },
  { name: "bottom", letter: "I", t: 2, sign: -1 },
];

/** Whether a voxel lies beyond the inner one towards an end; on a face of the image, beside it, nobody gets further. */
export function beyond(grid, voxel, inner, { t, sign }) {
  const [at, from] = [grid.toTurned(voxel)[t], grid.toTurned(inner)[t]];
  const face = sign > 0 ? grid.turned[t] - 1 : 0;
  return sign * (at - from) > 0 || (at === face && from === face);
}

/**
 * Which end each outer point stands for, as places in ENDS; -1 where it stands for none. `known` holds what the person
 * said of a voxel. Whatever was not said goes by the order in which ends are asked for or, where that cannot be, by
 * which point lies furthest out.
 */
export function endsOf(grid, spacing, { inner, outer }, known = new Map()) {
  const said = outer.map((voxel) => known.get(String(voxel)));
  if (said.every((end) => end !== undefined)) return said;
  if (outer.length <= ENDS.length && outer.every((voxel, n) => beyond(grid, voxel, inner, ENDS[n]))) return outer.map((_, n) => n);
  const from = grid.toTurned(inner);
  const gain = outer.map((voxel) => {
    const at = grid.toTurned(voxel);
    return ENDS.map((end) => (beyond(grid, voxel, inner, end) ? 1 + end.sign * (at[end.t] - from[end.t]) * spacing[grid.axis[end.t]] : 0));
  });
  const best = (n, free) => {
    if (n === outer.length) return { sum: 0, ends: [] };
    return [-1, ...free].reduce((found, end) => {
      if (end >= 0 && !gain[n][end]) return found;
      const rest = best(n + 1, free.filter((one) => one !== end));
      const sum = rest.sum + (end < 0 ? 0 : gain[n][end]);
      return found && found.sum >= sum ? found : { sum, ends: [end, ...rest.ends] };
    }, null);
  };
  return best(0, ENDS.map((_, n) => n)).ends;
}

/** Whether a voxel lies where a structure may be by what its seven points say. */
function holds(grid, { inner, outer }, voxel) {
  return voxel.every((at, n) => {
    const along = [inner, ...outer].map((one) => one[n]);
    const [low, high] = [Math.min(...along), Math.max(...along)];
    return (at > low || (at === 0 && low === 0)) && (at < high || (at === high && high === grid.shape[n] - 1));
  });
}

/** What the workbench knows of a case's points, and the points that are on their way to it. */
export function withSent(grid, { complete, begun }, sent) {
  const all = [...complete];
  let open = begun && { ...begun };
  for (const { index, label } of sent) {
    const corrects = !label || all.some((set) => set.label === label && holds(grid, set, index));
    if (!open) open = corrects ? null : { label, inner: index, outer: [] };
    else open = { ...open, outer: [...open.outer, index] };
    if (open?.outer.length === ENDS.length) {
      all.push(open);
      open = null;
    }
  }
  return { complete: all, begun: open };
}
