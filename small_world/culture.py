"""Stories of culture: concerts, exhibitions and books."""

from small_world.grammar import NOTHING, Form
from small_world.words import DAYS, FIRST_NAMES, LAST_NAMES, TOWNS, she_or_he

CONCERT = Form(
    facts={
        "artist": lambda: FIRST_NAMES,
        "artist_name": lambda: LAST_NAMES,
        "she": lambda artist: [she_or_he(artist)],
        "plays": lambda: ["plays the piano", "plays the violin", "plays the harp", "sings"],
        "town": lambda: TOWNS,
        "day": lambda: DAYS,
        "hall": lambda: ["church", "theater", "school", "market hall"],
        "adults": lambda: range(10, 30, 5),
        "less": lambda: range(1, 6),
        "children": lambda adults, less: [adults - less],
        "seats": lambda: range(50, 100),
        "songs": lambda: range(8, 30),
    },
    headlines=["An evening of music", "Concert in {town}"],
    sentences=[
        [
            "In the {hall} of {town} {artist} {artist_name} {plays} on {day}.",
            "On {day} {artist} {artist_name} {plays} in the {hall} of {town}.",
        ],
        ["{she} will perform {songs} pieces.", "{songs} pieces are planned.", NOTHING],
        [
            "A ticket costs {adults} crowns, {less} less for children, who pay {children}.",
            "A ticket costs {adults} crowns.",
        ],
        ["The {hall} has {seats} seats.", NOTHING],
    ],
)

EXHIBITION = Form(
    facts={
        "town": lambda: TOWNS,
        "day": lambda: DAYS,
        "artist": lambda: FIRST_NAMES,
        "artist_name": lambda: LAST_NAMES,
        "she": lambda artist: [she_or_he(artist)],
        "motif": lambda: ["ships", "birds", "mountains", "horses", "flowers", "bridges"],
        "years": lambda: range(3, 40),
        "paintings": lambda: range(10, 80, 10),
        "drawings": lambda: range(2, 10),
        "works": lambda paintings, drawings: [paintings + drawings],
        "weeks": lambda: range(2, 10),
    },
    headlines=["Museum shows {motif}", "New works on show"],
    sentences=[
        [
            "The museum of {town} shows {motif} by {artist} {artist_name} from {day} on.",
            "From {day} on {motif} by {artist} {artist_name} hang in the museum of {town}.",
        ],
        [
            "There are {paintings} paintings and {drawings} drawings, {works} works in all.",
            "There are {paintings} paintings and {drawings} drawings.",
            "There are {paintings} paintings.",
        ],
        ["{she} has painted for {years} years.", "The exhibition stays for {weeks} weeks.", NOTHING],
    ],
)

FORMS = [CONCERT, EXHIBITION]
