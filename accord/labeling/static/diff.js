// The words in which two texts differ: unique common words as anchors (patience diff), exact in between where that is small.

const WORDS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|[^\s\p{L}\p{M}\p{N}_]/gu;
const CELLS = 4_000_000; // work in exact comparisons, for one call

/** Two arrays of booleans: which words of `a` and of `b` have no counterpart, in order, in the other. */
export function differing(a, b) {
  const marks = [new Array(a.length).fill(true), new Array(b.length).fill(true)];
  const budget = { cells: CELLS };
  const ranges = [[0, a.length, 0, b.length]];
  while (ranges.length) {
    let [a0, a1, b0, b1] = ranges.pop();
    while (a0 < a1 && b0 < b1 && a[a0] === b[b0]) marks[0][a0++] = marks[1][b0++] = false;
    while (a0 < a1 && b0 < b1 && a[a1 - 1] === b[b1 - 1]) marks[0][--a1] = marks[1][--b1] = false;
    if (a0 === a1 || b0 === b1) continue;
    const anchors = uniqueInOrder(a, b, a0, a1, b0, b1);
    if (!anchors.length) {
      matchExactly(a, b, [a0, a1, b0, b1], marks, budget);
      continue;
    }
    let [i, j] = [a0, b0];
    for (const [x, y] of anchors) {
      marks[0][x] = marks[1][y] = false;
      ranges.push([i, x, j, y]);
      [i, j] = [x + 1, y + 1];
    }
    ranges.push([i, a1, j, b1]);
  }
  return marks;
}

/** Pairs of positions of words that occur once in either range: the longest sequence that is in order in both. */
function uniqueInOrder(a, b, a0, a1, b0, b1) {
  const seen = new Map(); // word -> [times in a, times in b, position in a, position in b]
  for (let i = a0; i < a1; i++) {
    const entry = seen.get(a[i]);
    if (entry) entry[0]++;
    else seen.set(a[i], [1, 0, i, -1]);
  }
  for (let j = b0; j < b1; j++) {
    const entry = seen.get(b[j]);
    if (entry) [entry[1], entry[3]] = [entry[1] + 1, j];
  }
  const common = [...seen.values()].filter(([n, m]) => n === 1 && m === 1);
  const tops = []; // the smallest last position in b of a sequence of each length
  const before = new Array(common.length).fill(-1);
  common.forEach(([, , , y], k) => {
    let [low, high] = [0, tops.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (common[tops[middle]][3] < y) low = middle + 1;
      else high = middle;
    }
    before[k] = low ? tops[low - 1] : -1;
    tops[low] = k;
  });
  const path = [];
  for (let k = tops.at(-1) ?? -1; k >= 0; k = before[k]) path.push([common[k][2], common[k][3]]);
  return path.reverse();
}

/** The longest common subsequence of a range, unless the work left is too small for it: then all of it stays marked. */
function matchExactly(a, b, [a0, a1, b0, b1], marks, budget) {
  const [n, m] = [a1 - a0, b1 - b0];
  if ((n + 1) * (m + 1) > budget.cells) return;
  budget.cells -= (n + 1) * (m + 1);
  const width = m + 1;
  const best = new Uint32Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      best[i * width + j] =
        a[a0 + i] === b[b0 + j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[a0 + i] === b[b0 + j]) marks[0][a0 + i++] = marks[1][b0 + j++] = false;
    else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
    else j++;
  }
}

/** The words of an element's text: [word, text node, start, end]. */
function wordsOf(element) {
  const words = [];
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const match of node.data.matchAll(WORDS)) words.push([match[0], node, match.index, match.index + match[0].length]);
  }
  return words;
}

/** Wraps the words in which two elements differ in <mark>; returns how many words differ on either side. */
export function markDifferences(left, right) {
  const words = [wordsOf(left), wordsOf(right)];
  const marks = differing(words[0].map((word) => word[0]), words[1].map((word) => word[0]));
  words.forEach((list, side) => wrap(list, marks[side]));
  return words.map((list, side) => list.filter(([word], k) => marks[side][k] && /[\p{L}\p{N}]/u.test(word)).length);
}

/** Wraps neighboring marked words of one text node together; from the end, so that earlier positions stay valid. */
function wrap(words, marked) {
  for (let k = words.length - 1; k >= 0; k--) {
    if (!marked[k]) continue;
    const last = k;
    while (k > 0 && marked[k - 1] && words[k - 1][1] === words[last][1]) k--;
    const range = document.createRange();
    range.setStart(words[k][1], words[k][2]);
    range.setEnd(words[last][1], words[last][3]);
    range.surroundContents(document.createElement("mark"));
  }
}
