"""FlashVID written as plain loops over lists, from its definition; shares no code with the library. There is no golden
file for it."""

import math

from tests.naive_video import DIGITS, cosine, dot, mean, minus


def segments(rows, cut, least):
    """Lists of frame numbers."""
    centres = [mean(frame) for frame in rows]
    likeness = [cosine(a, b) for a, b in zip(centres, centres[1:])]
    cuts = {i for i, x in enumerate(likeness) if x < cut}
    while len(cuts) + 1 < min(least, len(rows)):
        cuts.add(min((i for i in range(len(likeness)) if i not in cuts), key=lambda i: (likeness[i], i)))
    parts = [[0]]
    for f in range(1, len(rows)):
        if f - 1 in cuts:
            parts.append([])
        parts[-1].append(f)
    return parts


def distinct(frame, attention, count):
    """The chosen tokens of one frame."""
    tokens = range(len(frame))
    far = [[1 - cosine(a, b) for b in frame] for a in frame]
    if len(frame) == 1:
        return [0][:count]
    near = [min(far[i][j] for i in tokens if i != j) for j in tokens]
    picks = [max(tokens, key=lambda j: (round(attention[j] * near[j], DIGITS), -j))]
    while len(picks) < count:
        rest = [j for j in tokens if j not in picks]
        picks.append(max(rest, key=lambda j: (round(attention[j] * min(far[i][j] for i in picks), DIGITS), -j)))
    return sorted(picks[:count])


def shortened(x):
    """Nine significant digits."""
    return float(format(x, ".8e"))


def peaks(points, clusters):
    """The centre that each point joins, by density peaks."""
    every, width = range(len(points)), len(points[0])
    square = [[round(dot(minus(a, b), minus(a, b)) / width, DIGITS) for b in points] for a in points]
    density = [math.exp(-math.fsum(sorted(row)[: min(clusters, 7)]) / min(clusters, 7)) for row in square]
    ranked = sorted(every, key=lambda i: (-shortened(density[i]), i))
    score, largest = [0.0] * len(points), math.sqrt(max(map(max, square)))
    for place, i in enumerate(ranked):
        apart = min((math.sqrt(square[i][j]) for j in ranked[:place]), default=largest)
        score[i] = shortened(density[i] * apart)
    centres = sorted(every, key=lambda i: (-score[i], i))[:clusters]
    return [i if i in centres else min(centres, key=lambda c: (square[i][c], centres.index(c))) for i in every]


def flashvid(rows, attention, budgets, cut=0.9, least=8, share=0.7, link=0.8, released=True, exact=True):
    """The kept tokens, and for each of them its feature. budgets: tokens to keep of each frame."""
    each, feature = len(rows[0]), {}
    for part in segments(rows, cut, least):
        chosen = {(f, i) for f in part for i in distinct(rows[f], attention[f], math.ceil(share * budgets[f]))}
        for f, i in chosen:
            feature[f * each + i] = rows[f][i]
        quota = sum(budgets[f] - math.ceil(share * budgets[f]) for f in part)
        places = [(f, i) for f in part for i in range(each)]
        best = {}
        for f, i in places:
            others = [j for j in range(each) if f > part[0] and (f - 1, j) not in chosen]
            if others and (f, i) not in chosen:
                alike = [cosine(rows[f][i], rows[f - 1][j]) for j in others]
                best[f, i] = (max(alike), (f - 1, others[alike.index(max(alike))]))
        linked = {place for place in best if best[place][0] > link}
        most = len(places) - len(chosen) - quota
        if len(linked) > most:
            ranked = sorted(best, key=lambda place: (-best[place][0], place))
            linked = {place for place in ranked[: max(0, most - 1)] if best[place][0] > -1 + 1e-6}

        trees = {place: [] for place in places if place not in linked and place not in chosen}
        for place in places:
            if place not in chosen:
                top = place
                while top in linked:
                    top = best[top][1]
                trees[top].append(place)
        grown = {}
        for top, tokens in trees.items():
            direct = 1 + sum(best[place][1] == top for place in linked)
            size = direct if released else len(tokens)
            grown[top] = [x * len(tokens) / size for x in mean([rows[f][i] for f, i in tokens])]
        sizes = {f: [top for top in grown if top[0] == f] for f in part}
        clusters = {f: len(sizes[f]) for f in part}
        if quota < len(grown) and not exact:
            clusters = {f: math.ceil(len(sizes[f]) * (quota / len(grown))) for f in part}
        elif quota < len(grown):
            parts = {f: len(sizes[f]) * quota / len(grown) for f in part}
            clusters = {f: math.floor(parts[f] + 1e-9) for f in part}
            rest = {f: round(parts[f] - clusters[f], 9) for f in part}
            for f in sorted(part, key=lambda f, rest=rest: (-rest[f], f))[: quota - sum(clusters.values())]:
                clusters[f] += 1
        for f in part:
            if not clusters[f]:
                continue
            tops = sizes[f]
            joined = peaks([grown[top] for top in tops], clusters[f]) if clusters[f] < len(tops) else range(len(tops))
            for centre in set(joined):
                members = [grown[tops[k]] for k, c in enumerate(joined) if c == centre]
                feature[f * each + tops[centre][1]] = mean(members)
    return sorted(feature), [feature[place] for place in sorted(feature)]
