"""Readings of method C's choices by landmarks, dense and a head at a time, as ``rule_readings``."""

import numpy as np


def landmark_columns(head, j, landmarks):
    """Columns of a block's landmarks: of which most is left, with half of the directions before gone."""
    columns = [c for c in head.keys(j) if head.valid[c]]
    left = {c: head.k[c].astype(float) for c in columns}
    chosen = []
    while left and len(chosen) < landmarks:
        best = max(left, key=lambda c: left[c] @ left[c])
        if not chosen and j == head.first_block():
            best = columns[0]
        chosen.append(best)
        gone = left.pop(best)
        for c in left:
            left[c] = left[c] - (left[c] @ gone) / max(gone @ gone, 1e-300) * gone / 2
    return chosen


def adaptive(head, tau, landmarks):
    """Blocks whose keys' shares of attention reach tau in their 2-norm; far keys stand for each other."""
    marks = {j: landmark_columns(head, j, landmarks) for j in range(head.blocks_k)}
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        for j in range(head.blocks_k):
            kept[i, j] = j == head.first_block() or head.block_of_first_row(i) - j < 2
    forced = kept.copy()
    for i in range(head.blocks_q):
        squares = np.zeros(head.blocks_k)
        for r in head.rows(i):
            q = head.q[r] * head.scale
            own = head.block_of_first_row(i)
            exact = [q @ head.k[c] for c in range(head.n_k) if head.sees(r, c) and c // head.bk >= own]
            far = {}
            for j in range(head.blocks_k):
                if j >= own or not head.any_valid(j):
                    continue
                others = head.k[[c for c in head.keys(j) if head.valid[c] and c not in marks[j]]]
                marked = np.array([np.exp(q @ head.k[c]) for c in marks[j]])
                mass, square = marked.sum(), (marked**2).sum()
                if n := len(others):
                    # exp(q . k) of a normal distribution has this mean relative to that of the mean key, and
                    # this mean square relative to its mean's; n numbers have at most n of either.
                    variance = q @ q * others.var(0).mean()
                    rest = n * np.exp(q @ others.mean(0)) * min(np.exp(variance / 2), n)
                    mass += rest
                    square += rest**2 / n * min(np.exp(min(variance / 2, np.log(n))) ** 2, n)
                far[j] = mass, square
            total = sum(np.exp(exact)) + sum(mass for mass, _ in far.values())
            for j, (_, square) in far.items():
                squares[j] += square / total**2
        kept[i] |= ~forced[i] & (squares > 0) & (squares >= tau**2)
    return kept


def peaks(head, peak, landmarks):
    """Blocks of which a row gives a landmark the share ``peak`` of a total that counts far keys roughly."""
    marks = {j: landmark_columns(head, j, landmarks) for j in range(head.blocks_k)}
    kept = np.zeros((head.blocks_q, head.blocks_k), bool)
    for i in range(head.blocks_q):
        own = head.block_of_first_row(i)
        for j in range(head.blocks_k):
            kept[i, j] = j == head.first_block() or own - j < 2
        for r in head.rows(i):
            q = head.q[r] * head.scale
            total = sum(
                np.exp(q @ head.k[c]) for c in range(head.n_k) if head.sees(r, c) and c // head.bk >= own
            )
            if head.first_block() < own:
                total += sum(np.exp(q @ head.k[c]) for c in marks[head.first_block()])
            for first in range(0, own - 7, 8):
                eight = range(first, first + 8)
                columns = [c for j in eight for c in head.keys(j) if head.valid[c] and c not in marks[j]]
                if n := len(columns):
                    others = head.k[columns]
                    # Of a normal distribution, but no more than if one of the keys had all of it.
                    boost = min(np.exp(q @ q * others.var(0).mean() / 2), n)
                    total += n * np.exp(q @ others.mean(0)) * boost
            for j in range(own):
                if marks[j] and max(np.exp(q @ head.k[c]) for c in marks[j]) >= peak * total > 0:
                    kept[i, j] = True
    return kept
