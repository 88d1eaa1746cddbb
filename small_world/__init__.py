"""A small world of news that a grammar tells: five kinds of stories, and how well any model can possibly predict them.

A story is a headline and two to six sentences. `local.py`, `sport.py`, `weather.py`, `business.py` and `culture.py`
have the forms of the stories: templates such as "{winner} beat {loser} by {high} to {low} on {day}.", and of each
fact the list of values that it may take, given the facts before it. All that is left open is drawn from a list, each
entry as likely as the others. So the world has no text but what these tables say, and everything about it is known:

- `grammar.py` draws stories;
- `reading.py` reads a text back: how it was drawn, how likely that is, and what may follow it;
- `limit.py` has the entropy: bits per byte below which no model can get, exactly;
- `checker.py` tells of any text which sentences are well formed, and whether the story's facts agree.

The entropy of the draws is that of the texts because no story can be drawn in two ways; a test reads them all back.
"""

from small_world import business, culture, local, sport, weather
from small_world.grammar import World

WORLD = World(
    {
        "local": local.FORMS,
        "sport": sport.FORMS,
        "weather": weather.FORMS,
        "business": business.FORMS,
        "culture": culture.FORMS,
    }
)
