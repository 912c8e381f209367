"""Contractions that the VQA scripts spell out: `dont` -> `don't`.

The table of VQA v2's evaluation (https://github.com/GT-Vision-Lab/VQA, vqaEval.py), which TextVQA's and VizWiz's
evaluation use too: each contraction is keyed by its spellings with exactly one apostrophe left out. Entries that change
nothing (`let's`, `she's`) and those that cannot occur in lower-cased text (`Im`, `Ive`, `Id've`, `I'dve`) are omitted.
"""

_SPELLED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _SPELLED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the official table has this entry the wrong way round
