"""Stories of business: prices that rise, prices that fall, and companies that hire."""

from small_world.grammar import NOTHING, Form
from small_world.words import DAYS, FIRST_NAMES, LAST_NAMES, TOWNS, days_after

CROPS = "wheat barley apples potatoes plums grapes honey wool".split()
SELLER = {
    "town": lambda: TOWNS,
    "crop": lambda: CROPS,
    "before": lambda: range(20, 90, 10),
    "seller": lambda: FIRST_NAMES,
    "seller_name": lambda: LAST_NAMES,
    "last_year": lambda: range(10, 90),
}

RISE = Form(
    facts={
        **SELLER,
        "after": lambda before: range(before + 1, before + 10),
        "change": lambda before, after: [after - before],
        "reason": lambda: ["the harvest was poor", "demand is high", "the winter was long", "transport is dear"],
    },
    headlines=["Price of {crop} rises", "Prices rise in {town}"],
    sentences=[
        [
            "The price of {crop} rose from {before} to {after} crowns on the market of {town}.",
            "On the market of {town} {crop} rose from {before} to {after} crowns.",
        ],
        ["Buyers pay {change} crowns more.", NOTHING, NOTHING],
        [
            "{seller} {seller_name}, who sells {crop}, said that {reason}.",
            "The reason is that {reason}, said {seller} {seller_name}, a farmer.",
        ],
        ["A year ago it was {last_year} crowns.", NOTHING],
    ],
)

FALL = Form(
    facts={
        **SELLER,
        "after": lambda before: range(before - 9, before),
        "change": lambda before, after: [before - after],
        "reason": lambda: ["the harvest was good", "buyers stay away", "the storehouses are full", "demand is low"],
    },
    headlines=["Price of {crop} falls", "Prices fall in {town}"],
    sentences=[
        [
            "The price of {crop} fell from {before} to {after} crowns on the market of {town}.",
            "On the market of {town} {crop} fell from {before} to {after} crowns.",
        ],
        ["Buyers pay {change} crowns less.", NOTHING, NOTHING],
        [
            "{seller} {seller_name}, who sells {crop}, said that {reason}.",
            "The reason is that {reason}, said {seller} {seller_name}, a farmer.",
        ],
        ["A year ago it was {last_year} crowns.", NOTHING],
    ],
)

HIRING = Form(
    facts={
        "company": lambda: LAST_NAMES,
        "kind": lambda: ["bakery", "brewery", "sawmill", "dairy", "foundry", "shipyard"],
        "town": lambda: TOWNS,
        "day": lambda: DAYS,
        "start": lambda day: [days_after(day, 1)],
        "hired": lambda: range(2, 10),
        "had": lambda: range(30, 90, 10),
        "has": lambda hired, had: [hired + had],
        "head": lambda: FIRST_NAMES,
        "orders": lambda: ["more orders", "a new machine", "a new hall", "customers abroad"],
    },
    headlines=["The {kind} {company} hires people", "New jobs in {town}"],
    sentences=[
        ["The {kind} {company} in {town} said on {day} that it hires {hired} people."],
        ["It has {had} now and will then have {has}.", "It employs {had} people so far.", NOTHING],
        ["{head} {company}, who owns it, spoke of {orders}.", "The {kind} has {orders}, said {head} {company}."],
        ["The first of them begin on {start}.", NOTHING],
    ],
)

FORMS = [RISE, FALL, HIRING]
