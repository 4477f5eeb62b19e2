"""The documents show what `cargo xtask check-families` covers; the check itself takes minutes, and is no test here."""

from dbcache_export.families.catalogue import FAMILIES

import table
from variants import VARIANTS

ROOT = table.DOCUMENT.parents[1]


def test_every_family_has_a_pipeline() -> None:
    assert {variant.family for variant in VARIANTS.values()} == {family.title for family in FAMILIES.values()}


def test_the_figures_are_of_these_pipelines() -> None:
    rows = table._rows(table.DOCUMENT.read_text("utf-8"))
    figures = {name: line.split(" | ")[1] for name, line in rows.items()}
    assert figures == {name: variant.pipeline for name, variant in VARIANTS.items()}
