"""Dense, slow readings of the selection rules: one head, token by token, in NumPy float64.

Written from the papers' descriptions and apart from the implementations: they share no code with them.
Every reading takes q [Sq, D], k [Sk, D], a position offset, a bool ``valid`` [Sk] and the block sizes,
and returns the kept blocks as a bool matrix [query blocks, key blocks].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Head:
    q: np.ndarray  # [Sq, D]
    k: np.ndarray  # [Sk, D]
    scale: float
    offset: int
    valid: np.ndarray  # bool [Sk]
    bq: int
    bk: int

    def __post_init__(self):
        self.n_q, self.n_k = len(self.q), len(self.k)
        self.blocks_q, self.blocks_k = -(-self.n_q // self.bq), -(-self.n_k // self.bk)

    def rows(self, i):
        return range(i * self.bq, min((i + 1) * self.bq, self.n_q))

    def keys(self, j):
        return range(j * self.bk, min((j + 1) * self.bk, self.n_k))

    def sees(self, r, c):
        return c <= r + self.offset and self.valid[c]

    def allowed(self):
        return self.cover(
            lambda r, c: self.sees(r, c) or (c <= r + self.offset and self.any_valid(c // self.bk))
        )

    def any_valid(self, j):
        return any(self.valid[c] for c in self.keys(j))

    def cover(self, keep):
        """Blocks that hold a (row, key) entry for which ``keep`` says yes."""
        kept = np.zeros((self.blocks_q, self.blocks_k), bool)
        for r in range(self.n_q):
            for c in range(self.n_k):
                if keep(r, c):
                    kept[r // self.bq, c // self.bk] = True
        return kept

    def last_rows(self, count):
        """Every block of the query blocks that hold one of the last ``count`` rows."""
        return np.array(
            [[(i + 1) * self.bq > self.n_q - count] * self.blocks_k for i in range(self.blocks_q)]
        )

    def attention(self, r):
        """Softmax of row r over the keys it sees, [Sk]; all 0 if it sees none."""
        weights = np.zeros(self.n_k)
        seen = [c for c in range(self.n_k) if self.sees(r, c)]
        if seen:
            scores = np.array([self.q[r] @ self.k[c] * self.scale for c in seen])
            scores = np.exp(scores - scores.max())
            weights[seen] = scores / scores.sum()
        return weights

    def first_block(self):
        return next((j for j in range(self.blocks_k) if self.any_valid(j)), None)

    def block_of_first_row(self, i):
        return (self.rows(i)[0] + self.offset) // self.bk

    def mean_key(self, j):
        rows = [self.k[c] for c in self.keys(j) if self.valid[c]]
        return np.mean(rows, 0) if rows else np.zeros(self.k.shape[1])

    def mean_query(self, i):
        return np.mean([self.q[r] for r in self.rows(i)], 0)


def greedy(scores, needed):
    """Indices in descending order of score until their sum reaches ``needed``; ties: lower index first."""
    taken, total = [], 0.0
    for index in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
        if total >= needed or scores[index] <= 0:
            break
        taken.append(index)
        total += scores[index]
    return taken


def oracle(head, alpha):
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        mass = sum(head.attention(r) for r in head.rows(i))
        per_block = [sum(mass[c] for c in head.keys(j)) for j in range(head.blocks_k)]
        kept[i, greedy(per_block, alpha * sum(per_block))] = True
    return kept


def streaming(head, sink, window):
    order = [c for c in range(head.n_k) if head.valid[c]]
    first = set(order[:sink])
    return head.cover(lambda r, c: c <= r + head.offset and (c in first or c > r + head.offset - window))


def sampled(head, rows):
    """Column and slash scores of the sampled rows: mean mass per row that can see the strip."""
    column, slash = np.zeros(head.blocks_k), np.zeros(head.blocks_k)
    sees_column, sees_slash = np.zeros(head.blocks_k), np.zeros(head.blocks_k)
    for r in rows:
        p = r + head.offset
        mass = head.attention(r)
        for j in range(head.blocks_k):
            sees_column[j] += j * head.bk <= p
            sees_slash[j] += p // head.bk >= j
            share = sum(mass[c] for c in head.keys(j))
            column[j] += share
            if 0 <= p // head.bk - j < head.blocks_k:
                slash[p // head.bk - j] += share
    return column / np.maximum(sees_column, 1), slash / np.maximum(sees_slash, 1)


def strips(head, columns, slashes, sink, window):
    def keep(r, c):
        p, j = r + head.offset, c // head.bk
        if c > p:
            return False
        near = any((row + head.offset) // head.bk - j < window for row in head.rows(r // head.bq))
        in_slash = any((row + head.offset) // head.bk - j in slashes for row in head.rows(r // head.bq))
        return j in columns or in_slash or near or (sink and j == head.first_block())

    return head.cover(keep)


def chunked(head, alpha, chunk_n, sample_rows, sink, window):
    rows = []
    for g in range(chunk_n):
        low, high = g * head.n_q // chunk_n, (g + 1) * head.n_q // chunk_n
        rows += range(max(low, high - sample_rows), high)
    column, slash = sampled(head, rows)
    columns, slashes = greedy(column, alpha * sum(column)), greedy(slash, alpha * sum(slash))
    return strips(head, set(columns), set(slashes), sink, window)


def stride(head, alpha, r_row, r_w, sink):
    count = max(int(np.ceil(r_row * head.n_q)), 1)
    column, _ = sampled(head, [(g + 1) * head.n_q // count - 1 for g in range(count)])
    kept = strips(head, set(greedy(column, alpha * sum(column))), set(), sink, 0)
    window = int(np.ceil(r_w * head.n_k))
    return kept | head.cover(lambda r, c: r + head.offset - window < c <= r + head.offset)


def minference(head, vertical, slash, rows):
    mass = {r: head.attention(r) for r in range(max(head.n_q - rows, 0), head.n_q)}
    column = [np.inf if c < 30 else sum(row[c] for row in mass.values()) for c in range(head.n_k)]
    diagonal = np.zeros(head.n_k)
    for r, row in mass.items():
        for c in range(head.n_k):
            if 0 <= r + head.offset - c < head.n_k:
                diagonal[r + head.offset - c] += row[c]
    diagonal[:100] = np.inf
    columns = set(np.argsort(-np.array(column), kind="stable")[: min(head.n_k, max(vertical, 30))])
    offsets = set(np.argsort(-diagonal, kind="stable")[: min(head.n_k, max(slash, 50))])
    return head.cover(lambda r, c: c <= r + head.offset and (c in columns or r + head.offset - c in offsets))


def flexprefill(head, gamma, tau, min_budget):
    if head.n_k <= max(2 * head.bq, min_budget):
        return head.cover(lambda r, c: c <= r + head.offset)
    last = range(max(head.n_q - head.bq, 0), head.n_q)
    mass = {r: head.attention(r) for r in last}
    column = np.mean(list(mass.values()), 0)
    slash = np.zeros(head.n_k)
    for r in last:
        for c in range(head.n_k):
            if 0 <= r + head.offset - c < head.n_k:
                slash[r + head.offset - c] += mass[r][c] / len(last)

    def budget(scores):
        total, count = 0.0, 0
        for value in sorted(scores, reverse=True):
            total += value
            count += total <= gamma
        return (count + 1) // head.bk + 1

    column_block = np.array([sum(column[c] for c in head.keys(j)) for j in range(head.blocks_k)])
    slash_block = np.array([sum(slash[c] for c in head.keys(j)) for j in range(head.blocks_k)])
    pooled = np.mean([head.q[r] for r in last], 0)
    logits = np.array(
        [
            pooled @ head.mean_key(j) * head.scale if head.any_valid(j) else -np.inf
            for j in range(head.blocks_k)
        ]
    )
    last_block_position = head.n_q - 1 + head.offset
    logits[[j * head.bk > last_block_position for j in range(head.blocks_k)]] = -np.inf
    estimate = np.exp(logits - logits.max())
    estimate /= estimate.sum()
    middle = (estimate + column_block) / 2

    def divergence(p):
        return sum(a * np.log(a / m) for a, m in zip(p, middle, strict=True) if a > 0)

    query_aware = np.sqrt(max((divergence(estimate) + divergence(column_block)) / 2, 0)) < tau
    least = -(-min_budget // head.bk)
    counts = [least if query_aware else max(budget(scores), least) for scores in (column, slash)]
    chosen = []
    for scores, count in zip((column_block, slash_block), counts, strict=True):
        scores = scores.copy()
        scores[0] = np.inf
        chosen.append(set(np.argsort(-scores, kind="stable")[:count]))
    kept = strips(head, chosen[0], chosen[1], False, 0)
    if query_aware:
        weights = np.zeros((head.blocks_q, head.blocks_k))
        for i in range(head.blocks_q):
            seen = [
                j
                for j in range(head.blocks_k)
                if head.any_valid(j) and j * head.bk <= head.rows(i)[-1] + head.offset
            ]
            if not seen:
                continue
            row = np.array([head.mean_query(i) @ head.mean_key(j) * head.scale for j in seen])
            row = np.exp(row - row.max())
            weights[i, seen] = row / row.sum()
        total = 0.0
        for flat in np.argsort(-weights, axis=None, kind="stable"):
            i, j = divmod(int(flat), head.blocks_k)
            total += weights[i, j]
            if total > gamma * weights.sum():
                break
            kept[i, j] = True
    return kept


def xattention(head, stride, tau):
    cells_q, cells_k = -(-head.n_q // stride), -(-head.n_k // stride)
    weights = np.zeros((cells_q, cells_k))
    for a in range(cells_q):
        last_row = min(a * stride + stride, head.n_q) - 1
        logits = np.full(cells_k, -np.inf)
        for c in range(cells_k):
            cell_keys = [c * stride + r for r in range(stride) if c * stride + r < head.n_k]
            if c * stride > last_row + head.offset or not any(head.valid[x] for x in cell_keys):
                continue
            total = 0.0
            for r in range(stride):
                row, key = a * stride + stride - 1 - r, c * stride + r
                if row < head.n_q and key < head.n_k and head.valid[key]:
                    total += head.q[row] @ head.k[key]
            logits[c] = total * head.scale / stride
        if np.isfinite(logits).any():
            weights[a] = np.exp(logits - logits.max())
            weights[a] /= weights[a].sum()
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        rows = range(i * head.bq // stride, min((i + 1) * head.bq // stride, cells_q))
        mass = np.array(
            [
                sum(
                    weights[a, c]
                    for a in rows
                    for c in range(j * head.bk // stride, (j + 1) * head.bk // stride)
                    if c < cells_k
                )
                for j in range(head.blocks_k)
            ]
        )
        top = head.rows(i)[-1] + head.offset
        always = {
            j
            for j in range(head.blocks_k)
            if head.any_valid(j)
            and j * head.bk <= top
            and (j == head.first_block() or j >= head.block_of_first_row(i))
        }
        kept[i, list(always)] = True
        held = sum(mass[list(always)])
        rest = [0.0 if j in always else mass[j] for j in range(head.blocks_k)]
        kept[i, greedy(rest, tau * mass.sum() - held)] = True
    return kept


def budget(head, most, tau, count):
    """Of the average attention of sampled rows, what is left out: from the smallest block on, as long as
    the square of what is left out grows by less than the square of ``most``; none whose keys reach tau."""
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        rows, step = list(head.rows(i)), head.bq // count
        sampled = [rows[min(n, len(rows) - 1)] for n in range((5 * i + 3) % step, head.bq, step)]
        seen = [a for a in map(head.attention, sampled) if a.any()]
        share = np.mean(seen, 0) if seen else np.zeros(head.n_k)
        square = head.bq * np.mean(np.square(seen), 0) if seen else np.zeros(head.n_k)
        out = 0.0
        by_size = sorted(range(head.blocks_k), key=lambda j: share[head.keys(j)].sum())
        for j in by_size:
            if (
                j == head.first_block()
                or head.block_of_first_row(i) - j < 2
                or (out + share[head.keys(j)].sum()) ** 2 - out**2 >= most**2
            ):
                kept[i, j] = True
            else:
                out += share[head.keys(j)].sum()
            kept[i, j] |= square[head.keys(j)].sum() >= tau**2
    return kept


def flashprefill(head, alpha, sink, window, last_full):
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        logits = {}
        for r in head.rows(i):
            for j in range(head.blocks_k):
                if head.any_valid(j) and r + head.offset >= head.keys(j)[-1]:
                    logits[r, j] = head.q[r] @ head.mean_key(j) * head.scale
        top = max(logits.values(), default=0.0)
        score = np.zeros(head.blocks_k)
        for (_, j), value in logits.items():
            score[j] += np.exp(value - top)
        for j in range(head.blocks_k):
            near = head.block_of_first_row(i) - j < window
            dense = i >= head.blocks_q - last_full
            strong = score[j] > 0 and score[j] >= alpha * score.max()
            kept[i, j] = strong or near or dense or j < sink
    return kept


def gray_sequence(bits):
    """All bit patterns (as ints, bit 0 first) in reflected Gray order."""
    if bits == 0:
        return [0]
    shorter = gray_sequence(bits - 1)
    return shorter + [code + (1 << (bits - 1)) for code in reversed(shorter)]


def hyper(head, directions, group, sample, min_seq_len, draw):
    """``draw(n, count)``: the sampled key blocks of a quadrant of n, in the order of the recursion."""
    order = gray_sequence(directions.shape[1])
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)

    def rank(vector):
        return order.index(sum(1 << b for b, value in enumerate(vector @ directions) if value > 0))

    place = [
        min((head.rows(i)[-1] + head.offset) // head.bk, head.blocks_k - 1) for i in range(head.blocks_q)
    ]

    def visit(low, high):
        if (high - low) * head.bk <= min_seq_len or high - low < 2:
            for i in range(head.blocks_q):
                if low <= place[i] < high:
                    kept[i, low:high] = True
            return
        middle = low + -(-(high - low) // 2)
        keys = sorted(range(low, middle), key=lambda j: rank(head.mean_key(j)))
        rows = [i for i in range(head.blocks_q) if middle <= place[i] < high]
        per_group = max(group // head.bk, 1)
        groups = -(-len(keys) // per_group)
        if rows:
            for n, i in enumerate(sorted(rows, key=lambda i: rank(head.mean_query(i)))):
                mine = n * groups // len(rows)
                kept[i, keys[mine * per_group : (mine + 1) * per_group]] = True
            for j in draw(middle - low, min(max(sample // head.bk, 1), middle - low)):
                kept[rows, low + j] = True
        visit(low, middle)
        visit(middle, high)

    visit(0, head.blocks_k)
    return kept


def hashsparse(head, all_directions):
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        for j in range(head.blocks_k):
            same = False
            for directions in all_directions:
                both = np.concatenate([directions, -directions], 1)
                same |= np.argmax(head.mean_query(i) @ both) == np.argmax(head.mean_key(j) @ both)
            kept[i, j] = same or j >= head.block_of_first_row(i)
    return kept
