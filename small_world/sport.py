"""Stories of sport: matches that were won, matches that ended in a draw, and races."""

from small_world.grammar import NOTHING, Form
from small_world.words import DAYS, FIRST_NAMES, LAST_NAMES, TOWNS, days_after, others

WIN = Form(
    facts={
        "winner": lambda: TOWNS,
        "loser": lambda winner: others(TOWNS, winner),
        "high": lambda: range(2, 7),
        "low": lambda high: range(high),
        "goals": lambda high, low: [high + low],
        "day": lambda: DAYS,
        "next_day": lambda day: [days_after(day, 2)],
        "scorer": lambda: FIRST_NAMES,
        "scorer_name": lambda: LAST_NAMES,
        "minute": lambda: range(2, 45),
        "crowd": lambda: range(5, 90),
        "coach": lambda: FIRST_NAMES,
        "coach_name": lambda: LAST_NAMES,
        "joy": lambda: ["We played well", "It was a great day", "We never gave up", "The team was strong"],
        "grief": lambda: ["We were too slow", "The grass was wet", "It was a hard game", "We must train more"],
    },
    headlines=["Win for {winner}", "Match ends {high} to {low}"],
    sentences=[
        [
            "The team of {winner} beat {loser} by {high} to {low} on {day}.",
            "On {day} {winner} won {high} to {low} against {loser}.",
        ],
        [
            "{scorer} {scorer_name} scored the first goal after {minute} minutes.",
            "The first goal came after {minute} minutes from {scorer} {scorer_name}.",
        ],
        ["{crowd} hundred people watched the match.", "{crowd} hundred people saw all {goals} goals.", NOTHING],
        [
            '"{joy}," said {coach} {coach_name}, who coaches {winner}.',
            '"{grief}," said {coach} {coach_name}, who coaches {loser}.',
            NOTHING,
        ],
        ["Both teams play again on {next_day}.", NOTHING],
    ],
)

DRAW = Form(
    facts={
        "home": lambda: TOWNS,
        "guest": lambda home: others(TOWNS, home),
        "score": lambda: range(1, 5),
        "goals": lambda score: [2 * score],
        "day": lambda: DAYS,
        "scorer": lambda: FIRST_NAMES,
        "scorer_name": lambda: LAST_NAMES,
        "minute": lambda: range(46, 91),
        "crowd": lambda: range(5, 90),
    },
    headlines=["A draw for {home}", "Match ends {score} to {score}"],
    sentences=[
        [
            "The teams of {home} and {guest} drew {score} to {score} on {day}.",
            "On {day} the match of {home} and {guest} ended {score} to {score}.",
        ],
        [
            "{scorer} {scorer_name} scored the last of the {goals} goals in minute {minute}.",
            "In minute {minute} {scorer} {scorer_name} scored the last goal for {home}.",
        ],
        ["{crowd} hundred people watched the match.", NOTHING],
    ],
)

RACE = Form(
    facts={
        "town": lambda: TOWNS,
        "kind": lambda: ["bicycle", "boat", "ski", "horse"],
        "day": lambda: DAYS,
        "first": lambda: FIRST_NAMES,
        "first_name": lambda: LAST_NAMES,
        "minutes": lambda: range(20, 60, 10),
        "behind": lambda: range(1, 9),
        "later": lambda minutes, behind: [minutes + behind],
        "second": lambda first: others(FIRST_NAMES, first),
        "second_name": lambda: LAST_NAMES,
        "starters": lambda: range(12, 90),
    },
    headlines=[
        "The {kind} race of {town}",
        "Race goes to {first} {first_name}",
    ],
    sentences=[
        [
            "On {day} {first} {first_name} won the {kind} race of {town} in {minutes} minutes.",
            "The {kind} race of {town} was won by {first} {first_name} on {day} in {minutes} minutes.",
        ],
        [
            "{second} {second_name} was {behind} minutes behind and came in after {later}.",
            "{second} {second_name} came second, {behind} minutes behind.",
        ],
        ["{starters} people took part.", "Of {starters} who took part all came in.", NOTHING],
    ],
)

FORMS = [WIN, DRAW, RACE]
