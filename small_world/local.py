"""Stories of towns: votes of the council, festivals, and fires."""

from small_world.grammar import NOTHING, Form
from small_world.words import DAYS, FIRST_NAMES, LAST_NAMES, TOWNS, days_after, she_or_he

PLACES = "bridge school library station market theater harbor park hospital mill".split()

VOTE = Form(
    facts={
        "town": lambda: TOWNS,
        "do": lambda: ["repair", "close", "rebuild", "sell", "extend", "paint"],
        "place": lambda: PLACES,
        "day": lambda: DAYS,
        "in_favor": lambda: range(6, 12),
        "against": lambda: range(6),
        "members": lambda in_favor, against: [in_favor + against],
        "mayor": lambda: FIRST_NAMES,
        "mayor_name": lambda: LAST_NAMES,
        "she": lambda mayor: [she_or_he(mayor)],
        "reason": lambda: [
            "it is too old",
            "money is short",
            "more people use it",
            "the winter was hard",
            "nobody uses it",
            "many people asked for it",
        ],
        "years": lambda: range(2, 13),
        "cost": lambda: range(10, 100),
        "start": lambda day: [days_after(day, 1)],
    },
    headlines=["Council votes on the {place}", "Vote of the council of {town}"],
    sentences=[
        [
            "The council of {town} voted on {day} to {do} the {place}.",
            "On {day} the council of {town} decided to {do} the {place}.",
        ],
        [
            "{in_favor} members were in favor and {against} were against.",
            "With {in_favor} in favor and {against} against, all {members} members had voted.",
        ],
        ["Mayor {mayor} {mayor_name} said that {reason}."],
        ["{she} has led the town for {years} years.", NOTHING],
        ["The work will cost {cost} thousand crowns.", "The work begins on {start}.", NOTHING],
    ],
)

FESTIVAL = Form(
    facts={
        "town": lambda: TOWNS,
        "kind": lambda: ["apple", "music", "lantern", "bread", "kite", "river"],
        "day": lambda: DAYS,
        "last_day": lambda day: [days_after(day, 2)],
        "visitors": lambda: range(2, 60),
        "prize": lambda: ["pie", "song", "hat", "garden", "boat", "cake"],
        "winner": lambda: FIRST_NAMES,
        "winner_name": lambda: LAST_NAMES,
        "age": lambda: range(18, 80),
    },
    headlines=["The {kind} festival begins", "Festival in {town}"],
    sentences=[
        [
            "The {kind} festival of {town} begins on {day} and ends on {last_day}.",
            "From {day} to {last_day} people in {town} celebrate the {kind} festival.",
        ],
        ["{visitors} hundred visitors came last year.", NOTHING],
        ["The prize for the best {prize} went to {winner} {winner_name}, {age}.", NOTHING, NOTHING],
        [
            "The roads of the town are closed until the evening of {last_day}.",
            "Entry is free for all who live there.",
        ],
    ],
)

FIRE = Form(
    facts={
        "town": lambda: TOWNS,
        "place": lambda: PLACES,
        "day": lambda: DAYS,
        "hour": lambda: range(1, 12),
        "end": lambda hour: [hour + 1],
        "firefighters": lambda: range(8, 40),
        "rescued": lambda: range(2, 10),
        "chief": lambda: FIRST_NAMES,
        "chief_name": lambda: LAST_NAMES,
        "cause": lambda: ["an old wire", "a candle", "a stove", "lightning"],
    },
    headlines=["Fire in the {place}", "Fire in {town}"],
    sentences=[
        [
            "A fire broke out in the {place} of {town} on {day} at {hour} o'clock.",
            "The {place} of {town} caught fire on {day} at {hour} o'clock.",
        ],
        [
            "{firefighters} firefighters put it out by {end}.",
            "It took {firefighters} firefighters until {end} to put it out.",
        ],
        ["{rescued} people were led out of the building, and nobody was hurt.", NOTHING],
        [
            "The cause was {cause}, said {chief} {chief_name}, who leads the firefighters.",
            "{chief} {chief_name} of the police named {cause} as the cause.",
        ],
    ],
)

FORMS = [VOTE, FESTIVAL, FIRE]
