"""A world so small that all its stories can be written down."""

from small_world.grammar import NOTHING, Form, World

NUM_COPIES = 192  # every probability is a multiple of 1 / 192


def tiny_world() -> World:
    """A fact that depends on another, a sum, a choice of sentences, one that may be left out, and two sources."""
    score = Form(
        facts={
            "high": lambda: [1, 2],
            "low": lambda high: range(high),
            "goals": lambda high, low: [high + low],
        },
        headlines=["Zoë: {high} to {low}"],
        sentences=[["All {goals} goals were good.", "It rained.", "It rained."], [NOTHING, "{goals} goals."]],
    )
    weather = Form(
        facts={"sky": lambda: ["sun", "rain", "rain", "rain"]},
        headlines=["Now {sky}"],
        sentences=[["It is {sky}.", "Look!"], [NOTHING, "It was {sky} before."]],
    )
    other = Form(facts={}, headlines=["Nothing new"], sentences=[["No."]])
    return World({"sport": [score], "weather": [weather, other]})
