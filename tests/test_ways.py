"""What docs/running.md says of ways to run a model holds: a way, a site and a family at a time."""

import json
import sys

import pytest

from tests.helpers_ways import FILE, SITES, WAYS, read, verdict
from vtc.patches import FAMILIES, available

TRIED = [way for way in WAYS if "compiled" not in way]  # that one has tests of its own: test_compiled_decode.py


@pytest.mark.product(cases=1)
@pytest.mark.slow
@pytest.mark.parametrize("case", [*FAMILIES])
@pytest.mark.parametrize("way", TRIED)
def test_it_is_as_the_table_says(way, case):
    """At every site."""
    for site in SITES:
        said, expected = verdict(case, way, site), read()[way][site][case]
        assert said.partition(":")[0] == expected.partition(":")[0], (site, said)


def test_the_table_is_whole():
    """Every way, site and family is in it."""
    assert {way: {site: [*families] for site, families in sites.items()} for way, sites in read().items()} == {
        way: dict.fromkeys(SITES, [*FAMILIES]) for way in WAYS
    }


def main(ways: list[str]) -> None:
    """Tries the ways whose names hold one of the words given (all without any), and writes what was found."""
    known = read() if FILE.is_file() else {}
    for way in WAYS:
        if way in known and ways and not any(word in way for word in ways):
            continue
        known[way] = {site: {} for site in SITES}
        for case in filter(available, FAMILIES):
            for site in SITES:
                known[way][site][case] = said = verdict(case, way, site)
                print(f"{way} / {site} / {case}: {said}", flush=True)
        FILE.write_text(json.dumps({way: known[way] for way in WAYS if way in known}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
