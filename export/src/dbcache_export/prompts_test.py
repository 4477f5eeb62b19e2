from __future__ import annotations

from pathlib import Path

from dbcache_export import prompts

#: The engine takes these expressions, and of others only the simplest.
KNOWN = Path(__file__).parents[3] / "src/text/clean/patterns.txt"


def test_the_engine_knows_every_pattern() -> None:
    rules = [rule for rules in (prompts.WAN, prompts.NO_PICTURES, prompts.CAPTION) for rule in rules]
    patterns = {rule["replace"]["pattern"] for rule in rules if isinstance(rule, dict)}
    assert patterns == set(KNOWN.read_text(encoding="utf-8").splitlines())
