"""Stories of the weather: forecasts and storms."""

from small_world.grammar import NOTHING, Form
from small_world.words import DAYS, TOWNS, days_after

ROADS = {"rain": "wet", "snow": "white", "fog": "gray", "hail": "slippery", "sun": "dry"}

FORECAST = Form(
    facts={
        "town": lambda: TOWNS,
        "sky": lambda: list(ROADS),
        "road": lambda sky: [ROADS[sky]],
        "day": lambda: DAYS,
        "next_day": lambda day: [days_after(day, 1)],
        "low": lambda: range(-5, 20, 5),
        "high": lambda low: range(low + 2, low + 7),
        "warmer": lambda: range(1, 4),
        "next_high": lambda high, warmer: [high + warmer],
    },
    headlines=["Expect {sky}", "Weather in {town}"],
    sentences=[
        ["There will be {sky} in {town} on {day}.", "On {day} people in {town} can expect {sky}."],
        [
            "The day begins with {low} degrees and reaches {high}.",
            "Temperatures rise from {low} degrees in the morning to {high}.",
        ],
        ["The roads of the town will be {road}.", "Roads will be {road}, and drivers should take care.", NOTHING],
        ["It gets {warmer} degrees warmer on {next_day}, with {next_high}.", NOTHING],
    ],
)

STORM = Form(
    facts={
        "town": lambda: TOWNS,
        "day": lambda: DAYS,
        "next_day": lambda day: [days_after(day, 1)],
        "speed": lambda: range(70, 140),
        "trees": lambda: range(2, 60),
        "roofs": lambda: range(2, 30),
        "hours": lambda: range(2, 20),
    },
    headlines=["A storm hits {town}", "Storm on {day}"],
    sentences=[
        [
            "A storm hit {town} on {day} with winds of {speed} kilometers an hour.",
            "On {day} a storm of {speed} kilometers an hour reached {town}.",
        ],
        [
            "It tore down {trees} trees and damaged {roofs} roofs.",
            "{trees} trees fell, and {roofs} roofs were damaged.",
        ],
        ["Parts of the town had no power for {hours} hours.", "Trains stood still for {hours} hours.", NOTHING],
        ["Schools stay closed on {next_day}.", "The wind is to calm down by {next_day}.", NOTHING],
    ],
)

FORMS = [FORECAST, STORM]
