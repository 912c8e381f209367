"""The video methods written as plain loops over lists, from their definitions; equal to 9 digits is equal.

No golden files exist for them: these loops are what the tests compare with, and they share no code with the library.
"""

import math
import random

DIGITS = 9
KINDS = ("normal", "drift", "copies", "still", "few")


def clip_of(seed):
    """A random clip as rows [F][n][D], its share to keep (0.03 to 0.9), and its kind: independent frames, frames that
    drift, some frames twice, one frame again and again, or few different tokens."""
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    frames, each, width = draw.randint(1, 13), draw.randint(1, 18), draw.choice((4, 7, 16))

    tokens = [[draw.gauss(0, 1) for _ in range(width)] for _ in range(5)]

    def frame():
        new = [[draw.gauss(0, 1) for _ in range(width)] for _ in range(each)]
        return [draw.choice(tokens) for _ in new] if kind == "few" else new

    rows = [frame()]
    while len(rows) < frames:
        if kind == "drift":
            rows.append([[x + draw.gauss(0, 0.2) for x in token] for token in rows[-1]])
        elif kind == "still" or kind == "copies" and draw.random() < 0.5:
            rows.append(rows[-1])
        else:
            rows.append(frame())
    return rows, draw.uniform(0.03, 0.9), kind


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def mean(rows):
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def cosine(a, b, eps=1e-12):
    return round(dot(a, b) / (max(norm(a), eps) * max(norm(b), eps)), DIGITS)


def smallest(values, count):
    """The indices of the smallest values, ascending; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda i: (round(values[i], DIGITS), i))[:count])


def evs(rows, count):
    """The kept tokens of a clip [F][n][D]."""
    change = []
    for f, frame in enumerate(rows):
        change += [255.0 if f == 0 else 1 - cosine(token, rows[f - 1][i]) for i, token in enumerate(frame)]
    return smallest([-x for x in change], count)


def dycoke(rows, count):
    each, kept = len(rows[0]), []
    late = [f for f in range(len(rows)) if f % 4]
    spare = count - each * (len(rows) - len(late))
    for f, frame in enumerate(rows):
        if f not in late:
            kept += [f * each + i for i in range(each)]
            continue
        quota = spare // len(late) + (late.index(f) < spare % len(late))
        other = rows[f - 2 if f % 4 == 2 else f - 1]
        alike = [cosine(token, other[i]) for i, token in enumerate(frame)]
        kept += [f * each + i for i in smallest(alike, quota)]
    return kept


def likeness(rows):
    """S_v and S_f [F][n] of VidCom2."""
    tokens = [token for frame in rows for token in frame]
    variance = []
    for column in zip(*tokens, strict=True):
        centre = math.fsum(column) / len(column)
        variance.append(math.fsum((x - centre) ** 2 for x in column) / len(column))
    channels = smallest(variance, len(variance) // 2)
    units = [[[token[c] for c in channels] for token in frame] for frame in rows]
    units = [[[x / max(norm(token), 1e-12) for x in token] for token in frame] for frame in units]

    def alike(token, centre):
        far = minus(token, centre)
        return math.fsum(math.exp(-dot(far, far) / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))

    middle = mean([token for frame in units for token in frame])
    return (
        [[alike(token, middle) for token in frame] for frame in units],
        [[alike(token, mean(frame)) for token in frame] for frame in units],
    )


def softmax(values):
    top = [math.exp(x - max(values)) for x in values]
    return [x / math.fsum(top) for x in top]


def vidcom2(rows, share, count=None):
    """count: the exact number, None for the official one."""
    of_clip, of_frame = likeness(rows)
    each = len(rows[0])
    stand_out = [round(-math.fsum(frame) / each, DIGITS) for frame in of_clip]
    part = softmax([x / 0.01 for x in stand_out])
    average = math.fsum(part) / len(part)
    kept, total = [], [a + b for first, second in zip(of_clip, of_frame) for a, b in zip(first, second)]
    for f in range(len(rows)):
        quota = max(1, round(each * min(1, share * (1 + part[f] - average))))
        kept += [f * each + i for i in smallest(total[f * each : (f + 1) * each], quota)]
    if count is not None and len(kept) > count:
        kept = [kept[i] for i in smallest([total[i] for i in kept], count)]
    elif count is not None:
        others = [i for i in range(len(total)) if i not in kept]
        kept += [others[i] for i in smallest([total[i] for i in others], count - len(kept))]
    return sorted(kept)


def v_cast(rows, count, min_k=1):
    """The kept tokens, and whether a frame's part of the budget is so close to a whole number that rounding decides."""
    each, frames = len(rows[0]), len(rows)
    if frames == 1:
        return list(range(each)), False
    centres = [mean(frame) for frame in rows]
    centres = [[x / max(norm(c), 1e-6) for x in c] for c in centres]
    turn = [1.0] * frames
    for f in range(1, frames - 1):
        turn[f] = 1 - cosine(minus(centres[f], centres[f - 1]), minus(centres[f + 1], centres[f]), 1e-6)
    base = min(min_k, each)
    exact = [w * (count - frames * base) for w in softmax([x / 0.7 for x in turn])]
    close = any(0 < abs(x - round(x)) < 1e-6 for x in exact)
    quota = [base + min(math.floor(x), each - base) for x in exact]
    while sum(quota) < count:
        open_frames = [f for f in range(frames) if quota[f] < each]
        quota[max(open_frames, key=lambda f: (round(exact[f] - math.floor(exact[f]), DIGITS), -f))] += 1
    kept = []
    for f, frame in enumerate(rows):
        norms = [norm(token) for token in frame]
        low, high = min(norms), max(norms)
        score = [1 - cosine(t, centres[f], 1e-6) + (norms[i] - low) / (high - low + 1e-6) for i, t in enumerate(frame)]
        kept += [f * each + i for i in smallest([-x for x in score], quota[f])]
    return kept, close
