"""On how many examples a property is tried: in chaos as many as it asks for, in other tiers twenty at most."""

from __future__ import annotations

from hypothesis import settings

FAST = "fast"

settings.register_profile(FAST, max_examples=20)


def tried(examples: int) -> settings:
    """The decorator of a property: this many examples, each of them as slow as the machine makes it."""
    chosen = settings.default
    assert chosen is not None
    if chosen is settings.get_profile(FAST):
        examples = min(examples, chosen.max_examples)
    return settings(max_examples=examples, deadline=None)
