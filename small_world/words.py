"""Names and words that several kinds of stories share."""

TOWNS = (
    "Arlen Brook Caddon Dunmere Eastholt Farrow Gilden Harnham Ister Jorvale Kelby Lindow Marrick Norwell Oxley "
    "Penfold Quarrel Rosvik Sørby Tarn"
).split()
WOMEN = "Anna Clara Elena Greta Ines Karla Mira Olga Rosa Zoë".split()
MEN = "Boris David Felix Hugo Jonas Leon Nils Pavel Simon Émile".split()
FIRST_NAMES = [*WOMEN, *MEN]
LAST_NAMES = (
    "Adler Brandt Costa Dahl Ebert Fonda Grimm Holt Ilves Jansen Krall Lund Moritz Nagel Orban Pohl Quist Renner "
    "Stein Thorne"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def days_after(day: str, number: int) -> str:
    """The day of the week `number` days later.

    >>> days_after("Saturday", 2)
    'Monday'
    """
    return DAYS[(DAYS.index(day) + number) % len(DAYS)]


def she_or_he(first_name: str) -> str:
    """The pronoun of a first name, capitalized."""
    return "She" if first_name in WOMEN else "He"


def others(values: list[str], value: str) -> list[str]:
    """All values but one."""
    return [other for other in values if other != value]
